package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// supervise keeps a server running until draining ends or it crashes too often.
func (s *Sidecar) supervise(draining, killing context.Context, p *process) {
	defer close(s.done)
	defer s.remove()
	cause := s.watch(draining, p)
	for draining.Err() == nil {
		count := s.crashes.add(time.Now(), s.cfg.CrashWindow)
		s.cfg.log(slog.LevelWarn, "gemma-server crashed", "error", cause, "crashes", count)
		if count >= s.cfg.CrashLimit {
			s.err = fmt.Errorf("sidecar: gave up after %d crashes within %s, the last one: %w",
				count, s.cfg.CrashWindow, cause)
			p.kill()
			break
		}
		if p, cause = s.restart(draining, p, cause, s.cfg.backoff(count)); cause == nil {
			cause = s.watch(draining, p)
		}
	}
	s.connections.CloseIdleConnections() // those at work follow when they are done
	p.drain(killing)
}

// restart returns when there is a server that is ready again, or why there is
// none.
func (s *Sidecar) restart(ctx context.Context, p *process, cause error, backoff time.Duration) (*process, error) {
	if errors.Is(cause, errWorkerDied) { // and has been replaced already
		return p, s.waitReady(ctx, p)
	}
	p.kill()
	<-p.done
	select {
	case <-ctx.Done():
		return p, ctx.Err()
	case <-time.After(backoff):
	}
	next, err := s.launch()
	if err != nil {
		return p, err
	}
	return next, s.waitReady(ctx, next)
}

// backoff is how long to wait after so many crashes.
func (c Config) backoff(crashes int) time.Duration {
	wait := c.BackoffMin
	for range crashes - 1 {
		if wait >= c.BackoffMax {
			break
		}
		wait *= 2
	}
	return min(wait, c.BackoffMax)
}

// crashes are the times of those that count, oldest first.
type crashes []time.Time

// add counts a crash now, and returns how many there were within the window.
func (c *crashes) add(now time.Time, window time.Duration) int {
	*c = slices.DeleteFunc(*c, func(at time.Time) bool { return now.Sub(at) > window })
	*c = append(*c, now)
	return len(*c)
}
