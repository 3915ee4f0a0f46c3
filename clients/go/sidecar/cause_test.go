//go:build unix

package sidecar_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/sidecar"
)

// A context may end because of another request's error, which says nothing of
// this server.
func TestCauseOfAContext(t *testing.T) {
	sibling := &gemma.APIError{Status: 429, Code: gemma.CodeOverloaded, Message: "the sibling's"}
	soon := func() context.Context {
		ctx, cancel := context.WithCancelCause(context.Background())
		time.AfterFunc(50*time.Millisecond, func() { cancel(sibling) })
		return ctx
	}
	slow := script(t, "exec sleep 600")
	if err := os.Rename(slow, slow+"3"); err != nil {
		t.Fatal(err)
	}
	slow += "3"
	standIn := start(t, sidecar.Config{Python: os.Args[0], Env: []string{serverRole + "=1"}})
	for name, fail := range map[string]func(context.Context) error{
		"waiting until it is ready": func(ctx context.Context) error {
			_, err := sidecar.Start(ctx, sidecar.Config{Python: slow})
			return err
		},
		"looking for Python": func(ctx context.Context) error {
			t.Setenv("PATH", filepath.Dir(slow)+":"+os.Getenv("PATH"))
			_, err := sidecar.Start(ctx, sidecar.Config{})
			return err
		},
		"installing": func(ctx context.Context) error {
			_, err := sidecar.Start(ctx, sidecar.Config{Python: slow, Venv: filepath.Join(t.TempDir(), "venv"), Install: "gemma-server"})
			return err
		},
		"stopping": func(ctx context.Context) error {
			<-ctx.Done()
			return standIn.Stop(ctx)
		},
	} {
		err := fail(soon())
		if !errors.Is(err, context.Canceled) || errors.Is(err, gemma.ErrOverloaded) || !strings.Contains(err.Error(), "the sibling's") {
			t.Errorf("%s: %v", name, err)
		}
	}
	cfg := sidecar.Config{Python: slow, StartTimeout: 50 * time.Millisecond}
	if _, err := sidecar.Start(context.Background(), cfg); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("not ready in time: %v", err)
	}
}
