//go:build unix

package sidecar_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/internal/realpython"
	"github.com/gemma-server/gemma-server/clients/go/sidecar"
)

// installer is a Python that makes "environments", whose Python has the server
// once pip has "installed" something; it notes what it does.
func installer(t *testing.T, notes string) string {
	t.Helper()
	real := realpython.Path(t)
	inside := script(t, `case "$1 $2" in
"-m pip") echo "$@" >>`+notes+`; touch "$0.installed" ;;
-c*) test -e "$0.installed" && echo "gemma-server is here" ;;
*) exec `+real+` "$@" ;;
esac`)
	return script(t, `echo "$@" >>`+notes+`; mkdir -p "$3/bin" && cp `+inside+` "$3/bin/python"`)
}

func TestInstallsOnce(t *testing.T) {
	notes, venv := filepath.Join(t.TempDir(), "notes"), filepath.Join(t.TempDir(), "new", "venv")
	var stages []string
	var seen record
	cfg := fake(installer(t, notes), &seen)
	cfg.Venv, cfg.Install = venv, "gemma-server[demo]"
	cfg.OnProgress = func(status gemma.Status) { stages = append(stages, status.Stage) }
	for range 2 {
		s := start(t, cfg)
		if !answers(s) {
			t.Error("no answer")
		}
		s.Stop(context.Background())
	}
	done, err := os.ReadFile(notes)
	want := "-m venv " + venv + "\n-m pip install --disable-pip-version-check gemma-server[demo]\n"
	if err != nil || string(done) != want {
		t.Errorf("it did %q, %v", done, err)
	}
	want = "making the Python environment " + venv
	if len(stages) < 3 || stages[0] != want || !slices.Contains(stages, "installing gemma-server[demo]") {
		t.Errorf("stages %q", stages)
	}
}

func TestFailedInstallation(t *testing.T) {
	broken := script(t, `if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi
echo "no room left" >&2; exit 1`)
	venv := filepath.Join(t.TempDir(), "venv")
	cfg := sidecar.Config{Python: broken, Venv: venv, Install: "gemma-server"}
	_, err := sidecar.Start(context.Background(), cfg)
	if err == nil || !strings.Contains(err.Error(), venv) || !strings.Contains(err.Error(), "no room left") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(venv); !errors.Is(err, os.ErrNotExist) {
		t.Error("half an environment is left: ", err)
	}

	if err := os.MkdirAll(filepath.Join(venv, "bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(broken, filepath.Join(venv, "bin", "python")); err != nil {
		t.Fatal(err)
	}
	_, err = sidecar.Start(context.Background(), cfg)
	if err == nil || !strings.Contains(err.Error(), "installing gemma-server") || !strings.Contains(err.Error(), "no room left") {
		t.Errorf("got %v", err)
	}
}

// Python is looked for on the PATH, and passed by if it has no gemma-server.
func TestPythonOnPath(t *testing.T) {
	real := realpython.Path(t)
	without, with := script(t, "exit 1"), script(t, "exec "+real+` "$@"`)
	if err := os.Rename(without, without+"3"); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", filepath.Dir(without)+":"+filepath.Dir(with)+":"+os.Getenv("PATH"))
	var seen record
	if s := start(t, fake("", &seen)); !answers(s) {
		t.Error("no answer")
	}
}

func TestNoPython(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	missing := filepath.Join(t.TempDir(), "missing")
	for want, cfg := range map[string]sidecar.Config{
		"set Config.Python or Config.Venv":    {},
		"Config.Python: exec: \"python3.99\"": {Python: "python3.99"},
		"set Config.Install":                  {Venv: missing},
		"Config.Install needs Config.Venv":    {Install: "gemma-server"},
		"on Debian":                           {Venv: missing, Install: "gemma-server"},
	} {
		if _, err := sidecar.Start(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
