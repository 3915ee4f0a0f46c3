//go:build unix

package sidecar_test

import (
	"context"
	"os"
	"path/filepath"
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
