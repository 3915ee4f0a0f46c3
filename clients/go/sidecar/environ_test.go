//go:build unix

package sidecar_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gemma-server/gemma-server/clients/go/internal/realpython"
	"github.com/gemma-server/gemma-server/clients/go/sidecar"
)

// changeDir goes to a directory for as long as the test lasts.
func changeDir(t *testing.T, dir string) {
	t.Helper()
	before, err := os.Getwd()
	if err == nil {
		err = os.Chdir(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chdir(before) })
}

// What lies in the program's directory is not the server's to import.
func TestModulesOfTheWorkingDirectory(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"queue.py", "gunicorn.py", "gemma_server.py"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("raise SystemExit('"+name+" of the program')"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	python := realpython.Path(t)
	changeDir(t, dir)
	t.Setenv("PATH", filepath.Dir(python)+":"+os.Getenv("PATH"))
	var seen record
	s, err := sidecar.Start(context.Background(), fake("", &seen))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop(context.Background())
	if !answers(s) {
		t.Error("no answer")
	}
}

// A relative directory for temporary files is that of the start, wherever the
// program goes later.
func TestRelativeTempDir(t *testing.T) {
	standIn, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	dir, elsewhere := t.TempDir(), t.TempDir()
	changeDir(t, dir)
	t.Setenv("TMPDIR", ".")
	s := start(t, sidecar.Config{Python: standIn, Env: []string{serverRole + "=1"}})
	if err := os.Chdir(elsewhere); err != nil {
		t.Fatal(err)
	}
	if st, err := s.Client().Ready(context.Background()); err != nil || !st.Ready() {
		t.Errorf("got %+v, %v", st, err)
	}
	if err := s.Stop(context.Background()); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// What the environment says of a public server does not hold for a private one,
// unless the configuration says it, too.
func TestSettingsOfTheEnvironment(t *testing.T) {
	python := script(t, `echo "<$GEMMA_HOST$GEMMA_PORT$GEMMA_FRAMES$GEMMA_API_KEY_FILE>" >&2; exit 2`)
	for _, name := range []string{"HOST", "PORT", "FRAMES", "API_KEY_FILE"} {
		t.Setenv("GEMMA_"+name, "public")
	}
	own := []string{"GEMMA_FRAMES=own ", "GEMMA_API_KEY_FILE=keys"}
	for want, env := range map[string][]string{"<>": nil, "<own keys>": own} {
		_, err := sidecar.Start(context.Background(), sidecar.Config{Python: python, Env: env})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
