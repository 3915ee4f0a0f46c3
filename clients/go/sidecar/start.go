package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

// The address of a Unix socket holds 104 bytes on macOS and 108 on Linux, the
// last one 0.
const socketPathMax = 103

// Start runs a server and returns when it is ready to answer. The server then
// runs until [Sidecar.Stop] is called or this program ends: ctx is for the
// start alone, and when it ends before that is over, so does the server.
//
// The error of a server that ended instead has its last lines; it is an
// [*ExitError].
func Start(ctx context.Context, cfg Config) (*Sidecar, error) {
	s, err := newSidecar(ctx, cfg.withDefaults())
	if err != nil {
		return nil, err
	}
	p, err := s.launch()
	if err == nil {
		if err = s.waitReady(ctx, p); err != nil {
			p.kill()
			<-p.done
		}
	}
	if err != nil {
		s.remove()
		return nil, fmt.Errorf("sidecar: starting %s: %w", s.python, err)
	}
	draining, drain := context.WithCancel(context.Background())
	killing, kill := context.WithCancel(context.Background())
	s.drain, s.kill = drain, kill
	go s.supervise(draining, killing, p)
	return s, nil
}

// newSidecar makes ready what every start needs.
func newSidecar(ctx context.Context, cfg Config) (*Sidecar, error) {
	if err := errors.Join(cfg.checkSources(), checkOptions(cfg.ClientOptions)); err != nil {
		return nil, err
	}
	workDir, err := os.Getwd()
	if err != nil {
		return nil, fmt.Errorf("sidecar: %w", err)
	}
	s := &Sidecar{cfg: cfg, workDir: workDir, done: make(chan struct{})}
	if s.python, err = s.findPython(ctx); err != nil {
		return nil, err
	}
	if s.dir, err = makeSocketDir(os.TempDir()); err != nil {
		return nil, err
	}
	s.connect()
	return s, nil
}

// makeSocketDir makes a directory that nobody else may enter, in parent unless
// the path of a socket would be too long there. Its path is absolute, and stays
// right when this program changes its directory.
func makeSocketDir(parent string) (string, error) {
	parent, err := filepath.Abs(parent)
	dir := ""
	if err == nil {
		dir, err = os.MkdirTemp(parent, "gemma-")
	}
	if err != nil {
		return "", fmt.Errorf("sidecar: making the directory of the socket: %w", err)
	}
	if len(filepath.Join(dir, socketName)) <= socketPathMax {
		return dir, nil
	}
	os.Remove(dir)
	if parent == "/tmp" {
		return "", errors.New("sidecar: " + dir + " is too long for the address of a socket")
	}
	return makeSocketDir("/tmp")
}

// launch starts the server's process.
func (s *Sidecar) launch() (*process, error) {
	// A server that was killed leaves its socket behind, and perhaps somebody
	// who still listens there: the next one would refuse to replace that.
	if err := os.Remove(s.socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	s.report(gemma.Status{State: gemma.StateLoading, Stage: "starting Python"})
	p, err := s.start(exec.Command(s.python, s.cfg.serveArgs(s.socket())...))
	if err != nil {
		return nil, err
	}
	s.cfg.log(slog.LevelInfo, "gemma-server started", "pid", p.cmd.Process.Pid, "socket", s.socket())
	return p, nil
}
