//go:build unix

package sidecar_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/internal/realpython"
	"github.com/gemma-server/gemma-server/clients/go/sidecar"
)

// What this test's program is when these variables are set.
const (
	parentRole = "SIDECAR_TEST_PARENT" // a program that starts a sidecar with this Python, and stays
	serverRole = "SIDECAR_TEST_SERVER" // a server in Go, in Python's place
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(serverRole) != "":
		serve(os.Args)
	case os.Getenv(parentRole) != "":
		var seen record
		if _, err := sidecar.Start(context.Background(), fake(os.Getenv(parentRole), &seen)); err != nil {
			log.Fatal(err)
		}
		fmt.Println(seen.last("pid"))
		select {}
	}
	os.Exit(m.Run())
}

// serve is as much of a server as an example needs.
func serve(args []string) {
	flag := func(name string) string {
		if i := slices.Index(args, name); i >= 0 {
			return args[i+1]
		}
		return ""
	}
	if flag("--slots") == "0" {
		fmt.Fprintln(os.Stderr, "gemma-server: --slots (GEMMA_SLOTS): Input should be greater than or equal to 1")
		os.Exit(2)
	}
	listener, err := net.Listen("unix", flag("--uds"))
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"status": "ready", "stage": "ready", "progress": 1, "model": %q}`, flag("--model-name"))
	})
	http.HandleFunc("/models", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"models": [{"name": "chat", "versions": [
			{"version": 3, "state": "AVAILABLE"}, {"version": 4, "state": "END", "error": "no memory"}]}]}`)
	})
	http.HandleFunc("/prompt", func(w http.ResponseWriter, r *http.Request) {
		if body, _ := io.ReadAll(r.Body); bytes.Contains(body, []byte("crash")) {
			fmt.Fprintln(os.Stderr, "no memory left")
			os.Exit(1)
		}
		io.WriteString(w, `{"response": " Paris.", "finish_reason": "stop"}`)
	})
	log.Fatal(http.Serve(listener, nil))
}

// fake is a configuration without a model.
func fake(python string, seen *record) sidecar.Config {
	return sidecar.Config{
		Python:       python,
		Args:         []string{"--fake"},
		Logger:       slog.New(seen),
		BackoffMin:   10 * time.Millisecond,
		StartTimeout: time.Minute,
	}
}

// script is an executable that takes Python's place.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "python")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// patched is a Python that runs these statements before it starts the server.
func patched(t *testing.T, statements string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "patched_gemma_server.py")
	text := "import functools, os, signal, time\n" +
		"from gemma_server.cli.main import main\nfrom gemma_server.serving import loader\n" + statements + "\nmain()\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return script(t, "shift 2 # -m gemma_server\nexec "+realpython.Path(t)+" "+path+` "$@"`)
}

func start(t *testing.T, cfg sidecar.Config) *sidecar.Sidecar {
	t.Helper()
	s, err := sidecar.Start(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		s.Stop(now)
	})
	return s
}

// answers reports whether the server repeats the prompt, as the fake does.
func answers(s *sidecar.Sidecar) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	resp, err := s.Client().Generate(ctx, gemma.Request{Prompt: "hello"})
	return err == nil && resp.Text == "hello"
}

func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain until ", what)
		}
	}
}

// server reports whether this process runs and is gemma-server; one that has
// ended and waits for its parent has no command line.
func server(pid int) bool {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.Contains(string(line), "gemma_server")
}

// worker is the one child of the server, 0 while there is none.
func worker(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Skip("this system does not tell a process's children: ", err)
	}
	child, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	return child
}

func kill9(t *testing.T, pid int) {
	t.Helper()
	if !server(pid) {
		t.Fatalf("process %d is not a server", pid)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// record is a log that remembers the servers that started, and all messages.
type record struct {
	mu       sync.Mutex
	started  []slog.Record
	messages []string
}

func (r *record) Enabled(context.Context, slog.Level) bool { return true }
func (r *record) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r *record) WithGroup(string) slog.Handler            { return r }

func (r *record) Handle(_ context.Context, entry slog.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if entry.Message == "gemma-server started" {
		r.started = append(r.started, entry)
	}
	r.messages = append(r.messages, entry.Message)
	return nil
}

// last is what the log says of the server that started last.
func (r *record) last(key string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	value := ""
	if len(r.started) > 0 {
		r.started[len(r.started)-1].Attrs(func(attr slog.Attr) bool {
			if attr.Key == key {
				value = attr.Value.String()
			}
			return true
		})
	}
	return value
}

func (r *record) pid() int {
	pid, _ := strconv.Atoi(r.last("pid"))
	return pid
}

func (r *record) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.started)
}

func (r *record) has(text string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Contains(strings.Join(r.messages, "\n"), text)
}

// runAsParent runs this test's program in the role of one that starts a sidecar.
func runAsParent(t *testing.T, python string) (cmd *exec.Cmd, pid int) {
	t.Helper()
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), parentRole+"="+python)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal("the program that starts a sidecar did not: ", err)
	}
	return cmd, pid
}
