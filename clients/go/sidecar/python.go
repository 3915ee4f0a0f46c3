package sidecar

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/internal/ended"
)

// hasServer is a Python program that prints serverFound where gemma-server is
// installed; a checkout in the current directory alone is not enough.
const hasServer = `from importlib.util import find_spec
if find_spec("gemma_server") and find_spec("gunicorn"): print("gemma-server is here")`

const serverFound = "gemma-server is here"

// findPython returns the interpreter that shall run the server, and makes its
// environment if there is none and the configuration wants that.
func (s *Sidecar) findPython(ctx context.Context) (string, error) {
	switch {
	case s.cfg.Venv != "":
		return s.prepareVenv(ctx)
	case s.cfg.Install != "":
		return "", errors.New("sidecar: Config.Install needs Config.Venv, the directory to install into")
	case s.cfg.Python != "":
		path, err := lookPath(s.cfg.Python)
		if err != nil {
			return "", fmt.Errorf("sidecar: Config.Python: %w", err)
		}
		return path, nil
	}
	for _, name := range []string{"python3", "python"} {
		if path, err := lookPath(name); err == nil && s.serverIn(ctx, path) {
			return path, nil
		}
	}
	if err := ended.Error(ctx); err != nil {
		return "", fmt.Errorf("sidecar: %w", err)
	}
	return "", errors.New("sidecar: no python3 or python on the PATH has gemma-server: " +
		"set Config.Python or Config.Venv to one that has, or Config.Venv and Config.Install to have it installed")
}

// prepareVenv returns the environment's interpreter.
func (s *Sidecar) prepareVenv(ctx context.Context) (string, error) {
	python, err := filepath.Abs(filepath.Join(s.cfg.Venv, "bin", "python"))
	if err != nil {
		return "", fmt.Errorf("sidecar: Config.Venv: %w", err)
	}
	if _, err := os.Stat(python); err != nil {
		if s.cfg.Install == "" {
			return "", fmt.Errorf("sidecar: Config.Venv: %w: set Config.Install to have it made", err)
		}
		if err := s.makeVenv(ctx); err != nil {
			return "", err
		}
	}
	if s.cfg.Install == "" || s.serverIn(ctx, python) {
		return python, nil
	}
	s.report(gemma.Status{State: gemma.StateLoading, Stage: "installing " + s.cfg.Install})
	err = s.runTool(ctx, python, "-m", "pip", "install", "--disable-pip-version-check", s.cfg.Install)
	if err != nil {
		return "", fmt.Errorf("sidecar: installing %s into %s: %w", s.cfg.Install, s.cfg.Venv, err)
	}
	return python, nil
}

func (s *Sidecar) makeVenv(ctx context.Context) error {
	s.report(gemma.Status{State: gemma.StateLoading, Stage: "making the Python environment " + s.cfg.Venv})
	base := s.cfg.Python
	if base == "" {
		base = "python3"
	}
	_, before := os.Stat(s.cfg.Venv)
	path, err := lookPath(base)
	if err == nil {
		err = s.runTool(ctx, path, "-m", "venv", s.cfg.Venv)
	}
	if err == nil {
		return nil
	}
	if errors.Is(before, os.ErrNotExist) {
		os.RemoveAll(s.cfg.Venv) // half an environment would look like a whole one
	}
	return fmt.Errorf("sidecar: making the Python environment %s (on Debian that needs python3-venv): %w", s.cfg.Venv, err)
}

// serverIn reports whether gemma-server is installed for this interpreter. What
// it prints counts: its exit status may have gone to somebody else.
func (s *Sidecar) serverIn(ctx context.Context, python string) bool {
	cmd := exec.CommandContext(ctx, python, "-c", hasServer)
	cmd.Env = s.cfg.environ()
	output, _ := cmd.Output()
	return strings.Contains(string(output), serverFound)
}

// runTool runs a program to its end, its output in the log.
func (s *Sidecar) runTool(ctx context.Context, path string, args ...string) error {
	p, err := s.start(exec.Command(path, args...))
	if err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		p.kill()
		<-p.done
		return ended.Error(ctx)
	}
	if p.err != nil || !p.state.Success() {
		return p.exitError()
	}
	return nil
}

// lookPath returns an absolute path, which stays right when this program
// changes its directory.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}
