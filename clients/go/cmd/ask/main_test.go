package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
)

const (
	piece = "data: {\"response\": \"Hello\"}\n\n"
	last  = "data: {\"response\": \" you\", \"finish_reason\": \"stop\"}\n\n"
	done  = "data: [DONE]\n\n"
)

func events(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, body)
	}
}

func refusal(status int, code string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "5")
		w.WriteHeader(status)
		io.WriteString(w, `{"error": {"type": "t", "message": "the message", "param": null, "code": "`+code+`", "request_id": "r9"}}`)
	}
}

func start(t *testing.T, h http.HandlerFunc) (addr string) {
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// ask runs the program, which tries nothing again unless args say so.
func ask(stdin string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(append([]string{"-retries", "0"}, args...), strings.NewReader(stdin), &out, &errs)
	return code, out.String(), errs.String()
}

func TestRequest(t *testing.T) {
	var got map[string]any
	addr := start(t, func(w http.ResponseWriter, r *http.Request) {
		got = nil
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			t.Error(err)
		}
		events(piece+last+done)(w, r)
	})
	for _, tc := range []struct {
		name, stdin string
		args        []string
		prompt      string
		steps       any
		model       any
	}{
		{"arguments", "not this", []string{"why is", "it so?"}, "why is it so?", nil, nil},
		{"steps", "", []string{"-steps", "7", "a", "-b"}, "a -b", 7.0, nil},
		{"model", "", []string{"-model", "chat:stable", "a"}, "a", nil, "chat:stable"},
		{"standard input", "line 1\nline 2\n", nil, "line 1\nline 2", nil, nil},
		{"carriage return", "a\r\n", nil, "a", nil, nil},
		{"only the last line end goes", " a\n\n", nil, " a\n", nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, stdout, stderr := ask(tc.stdin, append([]string{"-addr", addr}, tc.args...)...)
			if code != 0 || stdout != "Hello you\n" || stderr != "" {
				t.Errorf("got %d, %q, %q", code, stdout, stderr)
			}
			if got["prompt"] != tc.prompt || got["sampling_steps"] != tc.steps || got["model"] != tc.model || got["stream"] != true {
				t.Errorf("sent %v", got)
			}
		})
	}
}

func TestEndsWithOneNewline(t *testing.T) {
	for body, want := range map[string]string{
		last + done: " you\n",
		"data: {\"response\": \"a\\n\", \"finish_reason\": \"stop\"}\n\n" + done: "a\n",
		"data: {\"response\": \"\", \"finish_reason\": \"stop\"}\n\n" + done:     "\n",
	} {
		if code, stdout, _ := ask("", "-addr", start(t, events(body)), "x"); code != 0 || stdout != want {
			t.Errorf("%q: got %d, %q", body, code, stdout)
		}
	}
}

// The pieces must appear while the server is still at work.
func TestPrintsAsItComes(t *testing.T) {
	seen := make(chan struct{})
	addr := start(t, func(w http.ResponseWriter, r *http.Request) {
		events(piece)(w, r)
		w.(http.Flusher).Flush()
		select {
		case <-seen:
			io.WriteString(w, last+done)
		case <-r.Context().Done():
		}
	})
	out, in := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- run([]string{"-addr", addr, "x"}, strings.NewReader(""), in, io.Discard)
		in.Close()
	}()
	buf := make([]byte, len("Hello"))
	if _, err := io.ReadFull(out, buf); err != nil || string(buf) != "Hello" {
		t.Fatalf("got %q, %v", buf, err)
	}
	close(seen)
	rest, _ := io.ReadAll(out)
	if string(rest) != " you\n" || <-code != 0 {
		t.Errorf("got %q", rest)
	}
}

func TestUnixSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "ask")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Skip("no Unix sockets here:", err)
	}
	srv := &http.Server{Handler: events(last + done)}
	go srv.Serve(l)
	defer srv.Close()
	// The address leads nowhere, so the socket must win.
	code, stdout, stderr := ask("", "-addr", "127.0.0.1:1", "-uds", path, "x")
	if code != 0 || stdout != " you\n" {
		t.Errorf("got %d, %q, %q", code, stdout, stderr)
	}
}

func TestErrors(t *testing.T) {
	for _, tc := range []struct {
		name    string
		handler http.HandlerFunc
		stdout  string
		stderr  []string
	}{
		{"loading", refusal(503, "loading"), "", []string{"the message", "r9", "still loading", "5s"}},
		{"draining", refusal(503, "draining"), "", []string{"shutting down", "./run-gemma-server.sh"}},
		{"overloaded", refusal(429, "overloaded"), "", []string{"busy", "5s"}},
		{"no key", refusal(401, "unauthorized"), "", []string{"-api-key-file", "GEMMA_API_KEY"}},
		{"no such model", refusal(404, "model_not_found"), "", []string{"-model", "GET /models"}},
		{"deadline", refusal(504, "deadline"), "", []string{"-steps"}},
		{"too long", refusal(400, "context_length_exceeded"), "", []string{"shorten"}},
		{"far too long", refusal(413, "request_entity_too_large"), "", []string{"shorten"}},
		{"failed", refusal(500, "generation_failed"), "", []string{"see the server's log"}},
		{"other", refusal(400, "invalid_value"), "", []string{"ask: HTTP 400: invalid_value: the message"}},
		{"cut short", events(piece), "Hello\n", []string{"cut short", "log"}},
		{"error amid the stream", events(piece + "data: {\"error\": {\"message\": \"boom\"}}\n\n"), "Hello\n", []string{"ask: boom"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, stdout, stderr := ask("", "-addr", start(t, tc.handler), "x")
			if code != 1 || stdout != tc.stdout {
				t.Errorf("got %d, %q", code, stdout)
			}
			checkStderr(t, stderr, tc.stderr...)
		})
	}
}

func checkStderr(t *testing.T, stderr string, parts ...string) {
	t.Helper()
	for _, line := range strings.Split(strings.TrimSuffix(stderr, "\n"), "\n") {
		if !strings.HasPrefix(line, "ask: ") {
			t.Errorf("line %q of the errors", line)
		}
	}
	for _, part := range parts {
		if !strings.Contains(stderr, part) {
			t.Errorf("no %q in %q", part, stderr)
		}
	}
}

func TestNoServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	for _, args := range [][]string{
		{"-addr", addr, "x"},
		{"-uds", filepath.Join(t.TempDir(), "none"), "x"},
	} {
		code, stdout, stderr := ask("", args...)
		if code != 1 || stdout != "" {
			t.Errorf("%v: got %d, %q", args, code, stdout)
		}
		checkStderr(t, stderr, "is gemma-server running? start it with ./run-gemma-server.sh")
	}
}

// One server loads and another is free: the answer comes from that one, and -v
// says why.
func TestSeveralServers(t *testing.T) {
	loading := "http://" + start(t, refusal(503, "loading"))
	free := "http://" + start(t, events(last+done))
	// The addresses take turns, so the first prompt goes to the first one.
	code, stdout, stderr := ask("", "-url", loading, "-url", free, "-retries", "1", "-v", "x")
	if code != 0 || stdout != " you\n" {
		t.Errorf("got %d, %q", code, stdout)
	}
	if !strings.Contains(stderr, "trying again") || !strings.Contains(stderr, loading) {
		t.Errorf("said %q", stderr)
	}
}

func TestAPIKey(t *testing.T) {
	var got atomic.Value
	addr := start(t, func(w http.ResponseWriter, r *http.Request) {
		got.Store(r.Header.Get("Authorization"))
		events(last+done)(w, r)
	})
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("\n k-1 \nk-2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GEMMA_API_KEY", "k-3")
	for want, args := range map[string][]string{
		"Bearer k-1": {"-addr", addr, "-api-key-file", file, "x"},
		"Bearer k-3": {"-addr", addr, "x"},
	} {
		if code, _, stderr := ask("", args...); code != 0 || got.Load() != want {
			t.Errorf("got %d, %q, sent %q, want %q", code, stderr, got.Load(), want)
		}
	}
	code, _, stderr := ask("", "-api-key-file", file+"-none", "x")
	if code != 1 {
		t.Errorf("got %d", code)
	}
	checkStderr(t, stderr, "-api-key-file")
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{"-nope", "x"},
		{"-steps", "-1", "x"},
		{"-steps", "many", "x"},
		{"-retries", "-1", "x"},
		{""},
		{},
	} {
		if code, stdout, stderr := ask("\n", args...); code != 2 || stdout != "" || stderr == "" {
			t.Errorf("%q: got %d, %q, %q", args, code, stdout, stderr)
		}
	}
	if code, _, stderr := ask("", "-h"); code != 0 || !strings.Contains(stderr, "usage: ask") {
		t.Errorf("-h: got %d, %q", code, stderr)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestBrokenFiles(t *testing.T) {
	var errs bytes.Buffer
	if code := run(nil, iotest.ErrReader(errors.New("bad tape")), io.Discard, &errs); code != 1 {
		t.Errorf("got %d", code)
	}
	checkStderr(t, errs.String(), "bad tape")

	errs.Reset()
	args := []string{"-addr", start(t, events(piece+last+done)), "x"}
	if code := run(args, strings.NewReader(""), brokenWriter{}, &errs); code != 1 {
		t.Errorf("got %d", code)
	}
	checkStderr(t, errs.String(), "disk full")
}

func TestInterrupt(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no process can interrupt itself here")
	}
	gone := make(chan struct{})
	addr := start(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		events(piece)(w, r)
		w.(http.Flusher).Flush()
		self, err := os.FindProcess(os.Getpid())
		if err == nil {
			err = self.Signal(os.Interrupt)
		}
		if err != nil {
			t.Error(err)
			return
		}
		<-r.Context().Done()
		close(gone)
	})
	// The signal may overtake the piece.
	code, stdout, stderr := ask("", "-addr", addr, "x")
	if code != 1 || (stdout != "Hello\n" && stdout != "") || stderr != "ask: interrupted\n" {
		t.Errorf("got %d, %q, %q", code, stdout, stderr)
	}
	<-gone
}
