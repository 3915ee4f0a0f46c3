package main

import (
	"encoding/json"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// bothWays is an echo server on a port and a socket, which notes how deep the
// echoes want to go.
type bothWays struct {
	*echoServer
	socket string
	mu     sync.Mutex
	depths map[string]int
}

func startBothWays(t *testing.T) *bothWays {
	t.Helper()
	s := &bothWays{echoServer: &echoServer{}, depths: map[string]int{}}
	dir, err := os.MkdirTemp("", "lat")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s.socket = filepath.Join(dir, "s")
	listener, err := net.Listen("unix", s.socket)
	if err != nil {
		t.Skip("no Unix sockets here:", err)
	}
	echo := startEcho(t, s.echoServer).Config.Handler
	counted := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.depths[r.URL.Query().Get("through")]++
		s.mu.Unlock()
		echo.ServeHTTP(w, r)
	})
	s.Config.Handler = counted
	srv := &http.Server{Handler: counted}
	go srv.Serve(listener)
	t.Cleanup(func() { srv.Close() })
	return s
}

// The table has a line for every way, and each was really gone.
func TestLadder(t *testing.T) {
	s := startBothWays(t)
	code, stdout, stderr := s.run("-uds", s.socket, "-ladder", "-n", "40")
	if code != 0 || stderr != "" {
		t.Fatalf("got %d, %q", code, stderr)
	}
	seen := map[string]bool{}
	lines := strings.Split(strings.TrimSpace(stdout), "\n")[2:]
	for _, line := range lines {
		fields := strings.Fields(line)
		seen[strings.Join(fields[:4], " ")] = true
		mean, _ := strconv.ParseFloat(fields[4], 64)
		if len(fields) != 8 || mean <= 0 {
			t.Errorf("line %q", line)
		}
	}
	if len(lines) != 24 || len(seen) != 24 || !seen["unix no 32 device"] || !seen["tcp yes 1 http"] {
		t.Errorf("got %q", stdout)
	}
	// Of each depth: two transports, kept or not, over 1 and over 32.
	want := 4*(40+warmup) + 4*(40+warmup*connectionsMax)
	for _, through := range []string{"", "queue", "device"} {
		if s.depths[through] != want {
			t.Errorf("%d echoes through %q, want %d", s.depths[through], through, want)
		}
	}
}

func TestLadderJSON(t *testing.T) {
	s := startBothWays(t)
	code, stdout, stderr := measureLatency("-uds", s.socket, "-ladder", "-json", "-n", "3")
	var rungs []map[string]any
	if err := json.Unmarshal([]byte(stdout), &rungs); code != 0 || err != nil || len(rungs) != 12 {
		t.Fatalf("got %d, %v, %q, %q", code, err, stdout, stderr)
	}
	for _, rung := range rungs {
		if rung["transport"] != "unix" || rung["n"] != 3.0 || rung["p99_us"].(float64) <= 0 {
			t.Errorf("got %v", rung)
		}
	}
}

func TestLadderTellsWhereItBroke(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("through") {
			w.WriteHeader(503)
			return
		}
		body, _ := io.ReadAll(r.Body)
		io.WriteString(w, strings.Replace(string(body), "prompt", "echo_prompt", 1))
	}))
	defer srv.Close()
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	code, _, stderr := measureLatency("-port", port, "-ladder", "-n", "2")
	if code != 1 || !strings.Contains(stderr, "over tcp through queue") {
		t.Errorf("got %d, %q", code, stderr)
	}
}

// The parts add up to the whole, and the server's own are among them.
func TestPrompt(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, `{"response": "x", "finish_reason": "stop", "usage": {"completion_tokens": 7},
			"timings": {"queue_ms": 0.001, "prefill_ms": 0.002, "decode_ms": 0.003}}`)
	}))
	defer srv.Close()
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	code, stdout, stderr := measureLatency("-port", port, "-prompt", "Hi", "-n", "4", "-json")
	var got map[string]float64
	if err := json.Unmarshal([]byte(stdout), &got); code != 0 || err != nil {
		t.Fatalf("got %d, %v, %q", code, err, stderr)
	}
	if got["queue_us"] != 1 || got["prefill_us"] != 2 || got["decode_us"] != 3 || got["completion_tokens"] != 7 {
		t.Errorf("got %v", got)
	}
	sum := 0.0
	for name, value := range got {
		if strings.HasSuffix(name, "_us") && name != "total_us" {
			sum += value
		}
	}
	if math.Abs(sum-got["total_us"]) > 1 || got["dial_us"] <= 0 {
		t.Errorf("the parts are %v of %v", sum, got)
	}
	code, stdout, _ = measureLatency("-port", port, "-prompt", "Hi", "-n", "2")
	if lines := strings.Split(strings.TrimSpace(stdout), "\n"); code != 0 || len(lines) != 5 || !strings.Contains(lines[4], "mean") {
		t.Errorf("got %d, %q", code, stdout)
	}
}
