package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What the README shows is this program, to the letter.
func TestIsInTheReadme(t *testing.T) {
	program, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, code, _ := strings.Cut(string(program), "\npackage main\n")
	if !strings.Contains(string(readme), "```go\npackage main\n"+code+"```\n") {
		t.Error("README.md has another program")
	}
}

// The program of the README, as anybody would run it, on the fake.
func TestAsksOnce(t *testing.T) {
	program := filepath.Join(t.TempDir(), "ask-once")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), "GEMMA_FAKE=1", "PATH="+filepath.Dir(python(t))+":"+os.Getenv("PATH"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil || stdout.String() != "The capital of France is" {
		t.Fatalf("got %q, %v, %s", stdout.String(), err, stderr.String())
	}
	started := regexp.MustCompile(`gemma-server started pid=(\d+) socket=(\S+)`).FindStringSubmatch(stderr.String())
	if started == nil {
		t.Fatalf("the log does not tell of a server: %s", stderr.String())
	}
	line, _ := os.ReadFile("/proc/" + started[1] + "/cmdline")
	if _, err := os.Stat(started[2]); err == nil || strings.Contains(string(line), "gemma_server") {
		t.Error("the server is left")
	}
}

// python is an interpreter with gemma-server.
func python(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("GEMMA_PYTHON"); path != "" {
		return path
	}
	path, err := filepath.Abs("../../../../.venv/bin/python")
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		reason := "no Python with gemma-server here: set GEMMA_PYTHON, or run scripts/venv.sh demo: " + err.Error()
		if os.Getenv("CI") != "" {
			t.Fatal(reason)
		}
		t.Skip(reason)
	}
	return path
}
