package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/gemma-server/gemma-server/clients/go/internal/realpython"
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
	cmd.Env = append(os.Environ(), "GEMMA_FAKE=1", "PATH="+filepath.Dir(realpython.Path(t))+":"+os.Getenv("PATH"))
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
