// Package realpython finds the Python that has gemma-server, for tests that
// start the real one.
package realpython

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// Path is GEMMA_PYTHON, or the interpreter of the repository's own
// environment. Without either the test is skipped, but fails in CI.
func Path(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("GEMMA_PYTHON"); path != "" {
		return path
	}
	path, err := inRepository()
	if err != nil {
		reason := "no Python with gemma-server here: set GEMMA_PYTHON, or run scripts/venv.sh demo: " + err.Error()
		if os.Getenv("CI") != "" {
			t.Fatal(reason)
		}
		t.Skip(reason)
	}
	return path
}

// inRepository looks upwards from the test's directory.
func inRepository() (string, error) {
	dir, err := os.Getwd()
	for err == nil {
		path := filepath.Join(dir, ".venv", "bin", "python")
		if _, missing := os.Stat(path); missing == nil {
			return path, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("there is no .venv above")
		}
		dir = filepath.Dir(dir)
	}
	return "", err
}
