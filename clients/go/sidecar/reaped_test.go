//go:build unix

package sidecar_test

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gemma-server/gemma-server/clients/go/sidecar"
)

// ignoreChildren has the system take the news of every child's end, as some
// programs want it.
func ignoreChildren(t *testing.T) {
	signal.Ignore(syscall.SIGCHLD)
	t.Cleanup(func() { // Reset leaves it ignored
		news := make(chan os.Signal, 1)
		signal.Notify(news, syscall.SIGCHLD)
		signal.Stop(news)
	})
}

func TestSomebodyElseTookTheChild(t *testing.T) {
	ignoreChildren(t)
	crash := script(t, "echo last words >&2; exit 9")
	_, err := sidecar.Start(context.Background(), sidecar.Config{Python: crash})
	var exit *sidecar.ExitError
	if !errors.As(err, &exit) || exit.State != nil || !errors.Is(err, syscall.ECHILD) || !strings.Contains(err.Error(), "last words") {
		t.Errorf("a crash: %v", err)
	}

	cfg := sidecar.Config{Python: crash, Venv: filepath.Join(t.TempDir(), "venv"), Install: "gemma-server"}
	if _, err = sidecar.Start(context.Background(), cfg); !errors.Is(err, syscall.ECHILD) || !strings.Contains(err.Error(), "last words") {
		t.Errorf("an installation: %v", err)
	}

	// What Python prints tells of the server even so.
	python := script(t, `case "$1" in -c) echo "gemma-server is here" ;; *) exec `+os.Args[0]+` "$@" ;; esac`)
	if err := os.Rename(python, python+"3"); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", filepath.Dir(python)+":"+os.Getenv("PATH"))
	s := start(t, sidecar.Config{Env: []string{serverRole + "=1"}})
	if err := s.Stop(context.Background()); err != nil {
		t.Error(err)
	}
}
