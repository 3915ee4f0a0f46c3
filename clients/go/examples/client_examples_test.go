// Package examples tests the example programs beside it.
package examples

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/gemmatest"
)

// Whoever copies an example should get what it promises: each program is built
// and run against a fake server.
func TestClientExamples(t *testing.T) {
	const colours = "red: red\norange: orange\nyellow: yellow\ngreen: green\nblue: blue\nviolet: violet\n"
	busy := []gemmatest.Reply{gemmatest.Error(429, gemma.CodeOverloaded), gemmatest.Error(503, gemma.CodeLoading)}
	for _, tc := range []struct {
		name     string
		script   []gemmatest.Reply
		want     string
		requests int
	}{
		{"stream-and-stop", nil, "The sea is wide.\n", 1},
		{"several-servers", nil, "ready: true\none: one\ntwo: two\nthree: three\nfour: four\n", 5},
		{"handle-errors", busy, "Hello\na mistake in the request's sampling_steps: ", 4},
		{"many-at-once", nil, colours, 6},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := gemmatest.NewServer(t, gemmatest.WithReplies(tc.script...))
			url := srv.URL
			if tc.name == "several-servers" {
				gone := gemmatest.NewServer(nil)
				gone.Close()
				url = gone.URL + "," + url
			}
			program := filepath.Join(t.TempDir(), tc.name+".exe")
			if out, err := exec.Command("go", "build", "-o", program, "./"+tc.name).CombinedOutput(); err != nil {
				t.Fatalf("go build: %v\n%s", err, out)
			}
			var stderr bytes.Buffer
			cmd := exec.Command(program)
			cmd.Env = append(os.Environ(), "GEMMA_URL="+url, "GEMMA_API_KEY=")
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil || !strings.HasPrefix(string(out), tc.want) {
				t.Errorf("%v, got %q, want %q\n%s", err, out, tc.want, &stderr)
			}
			if got := len(srv.Requests()); got != tc.requests {
				t.Errorf("%d requests, want %d", got, tc.requests)
			}
		})
	}
}

// An example that needs a page is no example.
func TestExamplesAreShort(t *testing.T) {
	programs, err := filepath.Glob("*/main.go")
	if err != nil || len(programs) == 0 {
		t.Fatalf("programs %q, %v", programs, err)
	}
	for _, path := range programs {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if lines := bytes.Count(text, []byte("\n")); lines >= 60 {
			t.Errorf("%s has %d lines", path, lines)
		}
	}
}
