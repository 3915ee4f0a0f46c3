//go:build unix

package sidecar_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/internal/realpython"
	"github.com/gemma-server/gemma-server/clients/go/sidecar"
)

func TestStartAskStop(t *testing.T) {
	t.Parallel()
	var seen record
	var progress []gemma.Status
	cfg := fake(realpython.Path(t), &seen)
	cfg.OnProgress = func(status gemma.Status) { progress = append(progress, status) }
	s := start(t, cfg)
	if !answers(s) {
		t.Error("no answer")
	}
	if len(progress) < 2 || progress[0].State != gemma.StateLoading || !progress[len(progress)-1].Ready() {
		t.Errorf("progress %+v", progress)
	}
	dir := filepath.Dir(seen.last("socket"))
	if info, err := os.Stat(dir); err != nil || info.Mode() != os.ModeDir|0o700 {
		t.Errorf("the socket's directory: %v, %v", info, err)
	}
	// Readiness and the pipe of the lines are two ways: neither is always first.
	waitFor(t, "the server's lines are in the log", func() bool {
		return seen.has("gemma-server ready: unix:" + seen.last("socket"))
	})
	pid, child := seen.pid(), worker(t, seen.pid())
	if !server(pid) || !server(child) {
		t.Fatalf("server %d and worker %d do not run", pid, child)
	}

	var stops sync.WaitGroup
	for range 3 {
		stops.Add(1)
		go func() {
			defer stops.Done()
			if err := s.Stop(context.Background()); err != nil {
				t.Error(err)
			}
			if server(pid) || server(child) {
				t.Error("a process is left")
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Error("the socket's directory is left: ", err)
			}
		}()
	}
	stops.Wait()
	<-s.Done()
	if s.Err() != nil || s.Stop(context.Background()) != nil {
		t.Error(s.Err())
	}
}

// A directory for temporary files with a long name must not make an address
// that no socket can have.
func TestLongTempDir(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("x", 100))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", long)
	var seen record
	s := start(t, fake(realpython.Path(t), &seen))
	if !answers(s) {
		t.Error("no answer")
	}
}

// Slow answers are allowed to finish, but not beyond the context of Stop.
func TestStopDrainsOrKills(t *testing.T) {
	t.Parallel()
	python := patched(t, `loader.FakeRunner = functools.partial(loader.FakeRunner, step_s=0.05)`)
	for _, tc := range []struct {
		name   string
		prompt string
		limit  time.Duration
		killed bool
	}{
		{"drain", "a text that takes one second", time.Minute, false},
		{"kill", strings.Repeat("x", 1500), time.Second, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var seen record
			s := start(t, fake(python, &seen))
			child := worker(t, seen.pid())
			var text strings.Builder
			var failure, stopped error
			done := make(chan struct{})
			for chunk, err := range s.Client().Stream(context.Background(), gemma.Request{Prompt: tc.prompt, SamplingSteps: 1500}) {
				if text.Len() == 0 {
					go func() {
						defer close(done)
						ctx, cancel := context.WithTimeout(context.Background(), tc.limit)
						defer cancel()
						stopped = s.Stop(ctx)
					}()
				}
				text.WriteString(chunk.Text)
				failure = err
			}
			<-done
			if tc.killed != (failure != nil) || tc.killed != errors.Is(stopped, context.DeadlineExceeded) {
				t.Errorf("the stream's error: %v, that of Stop: %v", failure, stopped)
			}
			if !tc.killed && text.String() != tc.prompt {
				t.Errorf("got %q", text.String())
			}
			if server(seen.pid()) || server(child) {
				t.Error("a process is left")
			}
		})
	}
}

// A server answers again whichever of its two processes was killed, and
// nothing of the killed one stays.
func TestKilledServerIsReplaced(t *testing.T) {
	t.Parallel()
	var seen record
	s := start(t, fake(realpython.Path(t), &seen))
	first := seen.pid()
	child := worker(t, first)
	kill9(t, child)
	waitFor(t, "a new worker answers", func() bool { return worker(t, first) != child && answers(s) })

	child = worker(t, first)
	kill9(t, first)
	waitFor(t, "a new server answers", func() bool { return seen.pid() != first && answers(s) })
	if server(child) {
		t.Error("the worker of the killed server is left")
	}
	select {
	case <-s.Done():
		t.Error(s.Err())
	default:
	}
}

func TestCrashLoopEnds(t *testing.T) {
	t.Parallel()
	// A server at first, then a program that ends at once.
	mark := filepath.Join(t.TempDir(), "mark")
	python := script(t, `if [ -e `+mark+` ]; then echo "my last words" >&2; exit 7; fi
touch `+mark+`
exec `+realpython.Path(t)+` "$@"
`)
	var seen record
	cfg := fake(python, &seen)
	cfg.CrashLimit = 4
	s := start(t, cfg)
	kill9(t, seen.pid())
	<-s.Done()
	var exit *sidecar.ExitError
	if err := s.Err(); !errors.As(err, &exit) || exit.State.ExitCode() != 7 || !strings.Contains(err.Error(), "4 crashes") ||
		!strings.Contains(err.Error(), "my last words") {
		t.Errorf("got %v", err)
	}
	if n := seen.count(); n != 4 {
		t.Errorf("%d starts", n)
	}
	if _, err := os.Stat(filepath.Dir(seen.last("socket"))); !errors.Is(err, os.ErrNotExist) {
		t.Error("the socket's directory is left: ", err)
	}
	if err := s.Stop(context.Background()); err != nil {
		t.Error(err)
	}
}

// gunicorn replaces a worker that dies for ever, also one that can never load.
func TestWorkerThatDiesWhileItLoads(t *testing.T) {
	t.Parallel()
	python := patched(t, `
def open_model(settings, model, *_, **__):
    model.at("the first stage")
    time.sleep(0.5)
    model.at("the second stage")
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
loader.open_model = open_model
`)
	var seen record
	_, err := sidecar.Start(context.Background(), fake(python, &seen))
	if err == nil || !strings.Contains(err.Error(), "worker died") || !strings.Contains(err.Error(), "SIGKILL") {
		t.Errorf("got %v", err)
	}
	if server(seen.pid()) {
		t.Error("the server is left")
	}
}

// No process is left of a program that was killed, and no more of files than an
// empty directory.
func TestKilledProgramLeavesNoServer(t *testing.T) {
	python := realpython.Path(t)
	temp, err := os.MkdirTemp("", "kill-") // t.TempDir() may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(temp) })
	t.Setenv("TMPDIR", temp)
	parent, pid := runAsParent(t, python)
	child := worker(t, pid)
	if !server(pid) || !server(child) {
		t.Fatalf("server %d and worker %d do not run", pid, child)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the server and its worker are gone", func() bool { return !server(pid) && !server(child) })
	if left, err := filepath.Glob(filepath.Join(temp, "*", "*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestCancelledStartEndsTheServer(t *testing.T) {
	t.Parallel()
	python := patched(t, `loader.FakeRunner = lambda slots: time.sleep(600)`)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var seen record
	child := 0
	cfg := fake(python, &seen)
	cfg.OnProgress = func(status gemma.Status) {
		if status.Stage == "starting" { // the server's own word: it answers
			child = worker(t, seen.pid())
			cancel()
		}
	}
	if _, err := sidecar.Start(ctx, cfg); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if child == 0 || server(seen.pid()) || server(child) {
		t.Errorf("server %d or worker %d is left", seen.pid(), child)
	}
}

func TestStartErrors(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	real, slow := realpython.Path(t), script(t, "exec sleep 600")
	for _, tc := range []struct {
		name string
		cfg  sidecar.Config
		code int
		want []string
	}{
		{"usage", sidecar.Config{Python: real, Args: []string{"--fake", "--slots", "0"}}, 2, []string{"gemma-server: --slots"}},
		{"no such flag", sidecar.Config{Python: real, Args: []string{"--nope"}}, 2, []string{"--nope"}},
		{"load error", sidecar.Config{Python: real, Model: "/no/such/model"}, 3, []string{"exit status 3: gemma-server: cannot load the model", "/no/such/model"}},
		{"load error, then a stage", sidecar.Config{Python: script(t, "{ echo 'gemma-server: cannot load the model: why'; echo 'gemma-server: a stage'; } >&2; exit 3")}, 3, []string{"model: why"}},
		{"setting in the environment", sidecar.Config{Python: real, Env: []string{"GEMMA_SLOTS=none"}}, 2, []string{"GEMMA_SLOTS"}},
		{"crash", sidecar.Config{Python: script(t, "echo one >&2; echo two >&2; exit 9")}, 9, []string{"one\n\ttwo"}},
		{"no module", sidecar.Config{Python: script(t, `exec `+real+` -I -S "$@"`)}, 1, []string{"Config.Install"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := sidecar.Start(context.Background(), tc.cfg)
			var exit *sidecar.ExitError
			if !errors.As(err, &exit) || exit.State.ExitCode() != tc.code {
				t.Fatalf("got %v", err)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("no %q in %q", want, err)
				}
			}
		})
	}
	t.Run("timeout", func(t *testing.T) {
		cfg := sidecar.Config{Python: slow, StartTimeout: 200 * time.Millisecond}
		if _, err := sidecar.Start(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), "Config.StartTimeout") {
			t.Errorf("got %v", err)
		}
	})
	if left, err := os.ReadDir(temp); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
