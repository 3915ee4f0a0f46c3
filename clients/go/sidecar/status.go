package sidecar

import (
	"context"
	"fmt"
	"slices"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/internal/ended"
)

const (
	lookWhileLoading = 100 * time.Millisecond
	lookWhenReady    = time.Second
	answerTimeout    = 5 * time.Second
)

// waitReady returns nil once the server can answer.
func (s *Sidecar) waitReady(ctx context.Context, p *process) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.StartTimeout,
		fmt.Errorf("the server was not ready within %s, which is Config.StartTimeout", s.cfg.StartTimeout))
	defer cancel()
	return s.follow(ctx, p, lookWhileLoading, (*gemma.Status).Ready)
}

// watch returns when a server that was ready has died or ctx ends.
func (s *Sidecar) watch(ctx context.Context, p *process) error {
	return s.follow(ctx, p, lookWhenReady, func(*gemma.Status) bool { return false })
}

// follow looks at the server's status every so often until enough says that it
// will do.
func (s *Sidecar) follow(ctx context.Context, p *process, every time.Duration, enough func(*gemma.Status) bool) error {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ended.Error(ctx)
		case <-p.done:
			return p.exitError()
		case <-ticker.C:
		}
		status := s.look(ctx)
		if status == nil {
			continue
		}
		s.report(*status)
		if p.stages.wentBack(*status) {
			return fmt.Errorf("%w%s", errWorkerDied, lastWords(p.stderr.lines()))
		}
		s.lookAtModels(ctx, p)
		if enough(status) {
			return nil
		}
	}
}

// look returns nil where the server does not answer: it is not up yet, very
// busy, or dead, which its process will tell.
func (s *Sidecar) look(ctx context.Context) *gemma.Status {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	status, err := s.probe.Ready(ctx)
	if err != nil {
		return nil
	}
	return status
}

// report tells the callback what is new. One goroutine at a time calls it:
// that of Start, then that of supervise.
func (s *Sidecar) report(status gemma.Status) {
	status.RetryAfter = 0
	if s.cfg.OnProgress == nil || sameStatus(status, s.reported) {
		return
	}
	s.reported = status
	s.cfg.OnProgress(status)
}

func sameStatus(a, b gemma.Status) bool {
	if a.Progress == nil || b.Progress == nil {
		return a == b
	}
	same := *a.Progress == *b.Progress
	a.Progress = b.Progress
	return same && a == b
}

// stages are what a worker has gone through, each once and in this order.
type stages []string

// wentBack reports whether the status is that of a new worker.
func (h *stages) wentBack(status gemma.Status) bool {
	last := len(*h) - 1
	at := slices.Index(*h, status.Stage)
	again := at >= 0 && at < last
	again = again || status.State == gemma.StateLoading && last >= 0 && (*h)[last] == string(gemma.StateReady)
	if again {
		*h, at = nil, -1
	}
	if at < 0 {
		*h = append(*h, status.Stage)
	}
	return again
}
