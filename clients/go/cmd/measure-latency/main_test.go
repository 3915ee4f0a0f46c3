package main

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// byDefinition looks for the least time that at least p percent of the times
// do not exceed, counting anew for each candidate.
func byDefinition(times []time.Duration, p int) time.Duration {
	best := time.Duration(-1)
	for _, candidate := range times {
		count := 0
		for _, t := range times {
			if t <= candidate {
				count++
			}
		}
		if count*100 >= p*len(times) && (best < 0 || candidate < best) {
			best = candidate
		}
	}
	return best
}

func TestPercentile(t *testing.T) {
	rng := rand.New(rand.NewSource(1))
	for n := 1; n <= 210; n++ {
		times := make([]time.Duration, n)
		for i := range times {
			times[i] = time.Duration(rng.Intn(n)) // with repetitions
		}
		sorted := slices.Sorted(slices.Values(times))
		for _, p := range []int{1, 50, 90, 99, 100} {
			if got, want := percentile(sorted, p), byDefinition(times, p); got != want {
				t.Errorf("p%d of %d: got %d, want %d", p, n, got, want)
			}
		}
	}
}

// echoServer counts connections and requests.
type echoServer struct {
	*httptest.Server
	conns, requests atomic.Int32
	damage          func(prompt []byte) []byte
	close           bool
	key             string
}

func startEcho(t *testing.T, s *echoServer) *echoServer {
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		if s.key != "" && r.Header.Get("Authorization") != "Bearer "+s.key {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		var in struct{ Prompt json.RawMessage }
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.URL.Path != "/echo" {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		if s.damage != nil {
			in.Prompt = s.damage(in.Prompt)
		}
		if s.close {
			w.Header().Set("Connection", "close")
		}
		io.WriteString(w, `{"echo_prompt": `+string(in.Prompt)+`}`)
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.conns.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func (s *echoServer) run(args ...string) (code int, stdout, stderr string) {
	port := s.Listener.Addr().(*net.TCPAddr).Port
	return measureLatency(append([]string{"-addr", "127.0.0.1", "-port", strconv.Itoa(port)}, args...)...)
}

func measureLatency(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestJSON(t *testing.T) {
	s := startEcho(t, &echoServer{})
	code, stdout, stderr := s.run("-n", "50", "-json")
	if code != 0 || stderr != "" {
		t.Fatalf("got %d, %q", code, stderr)
	}
	dec := json.NewDecoder(strings.NewReader(stdout))
	var got map[string]float64
	if err := dec.Decode(&got); err != nil {
		t.Fatal(err)
	}
	if _, err := dec.Token(); err != io.EOF {
		t.Errorf("more than one JSON object: %q", stdout)
	}
	keys := make([]string, 0, len(got))
	for k, v := range got {
		keys = append(keys, k)
		if v <= 0 {
			t.Errorf("%s is %v", k, v)
		}
	}
	slices.Sort(keys)
	if want := []string{"mean_us", "n", "p50_us", "p90_us", "p99_us", "requests_per_s"}; !slices.Equal(keys, want) {
		t.Errorf("keys %q, want %q", keys, want)
	}
	if got["n"] != 50 || got["p50_us"] > got["p90_us"] || got["p90_us"] > got["p99_us"] {
		t.Errorf("got %v", got)
	}
	// One request follows the other, so the mean time bounds the rate.
	if got["requests_per_s"]*got["mean_us"] > 1e6*1.001 {
		t.Errorf("rate above what the mean allows: %v", got)
	}
	if n := s.conns.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	if n := s.requests.Load(); n != 50+warmup {
		t.Errorf("%d requests, want %d", n, 50+warmup)
	}
}

func TestAPIKey(t *testing.T) {
	t.Setenv("GEMMA_API_KEY", "k-1")
	s := startEcho(t, &echoServer{key: "k-1"})
	if code, _, stderr := s.run("-n", "3"); code != 0 {
		t.Errorf("got %d, %q", code, stderr)
	}
}

func TestTable(t *testing.T) {
	code, stdout, stderr := startEcho(t, &echoServer{}).run("-n", "1")
	if code != 0 || stderr != "" {
		t.Fatalf("got %d, %q", code, stderr)
	}
	lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
	if len(lines) != 6 {
		t.Fatalf("got %q", stdout)
	}
	for i, name := range []string{"mean", "p50", "p90", "p99", "rate"} {
		if line := lines[i+1]; !regexp.MustCompile(`^` + name + ` +\d+\.\d (us|ms|requests/s)$`).MatchString(line) {
			t.Errorf("line %q", line)
		}
		if strings.Index(lines[i+1], ".") != strings.Index(lines[1], ".") {
			t.Errorf("not aligned: %q", stdout)
		}
	}
}

func TestTableUnits(t *testing.T) {
	for p99, want := range map[float64]string{9_999: "p99        9999.0 us\n", 12_340: "p99          12.3 ms\n"} {
		var out bytes.Buffer
		if err := (&measurement{N: 1, P99: p99}).print(&out, false, "server"); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("got %q, %v; want %q", out.String(), err, want)
		}
	}
}

func TestWrongEcho(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"changed":    func(p []byte) []byte { return bytes.Replace(p, []byte("measure"), []byte("Measure"), 1) },
		"other type": func(p []byte) []byte { return append(append([]byte{'['}, p...), ']') },
		"null":       func([]byte) []byte { return []byte("null") },
		"stale":      func([]byte) []byte { return []byte(`"measure-latency -1 é \"<&>\""`) },
	} {
		code, stdout, stderr := startEcho(t, &echoServer{damage: damage}).run("-n", "3", "-json")
		if code != 1 || stdout != "" || !strings.Contains(stderr, "measure-latency: the echo is wrong") {
			t.Errorf("%s: got %d, %q, %q", name, code, stdout, stderr)
		}
	}
}

func TestReconnectsAreTold(t *testing.T) {
	code, _, stderr := startEcho(t, &echoServer{close: true}).run("-n", "3")
	if code != 0 || !strings.Contains(stderr, "3 of the requests had to open a new connection") {
		t.Errorf("got %d, %q", code, stderr)
	}
}

func TestUnixSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "lat")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Skip("no Unix sockets here:", err)
	}
	srv := &http.Server{Handler: startEcho(t, &echoServer{}).Config.Handler}
	go srv.Serve(l)
	defer srv.Close()
	code, stdout, stderr := measureLatency("-port", "1", "-uds", path, "-n", "3")
	if code != 0 || !strings.Contains(stdout, path) {
		t.Errorf("got %d, %q, %q", code, stdout, stderr)
	}
}

func TestNoServer(t *testing.T) {
	code, stdout, stderr := measureLatency("-uds", filepath.Join(t.TempDir(), "none"))
	if code != 1 || stdout != "" || !strings.Contains(stderr, "./run-gemma-server.sh") {
		t.Errorf("got %d, %q, %q", code, stdout, stderr)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{"-n", "0"}, {"-n", "-1"}, {"-n", "x"}, {"-n", "10000001"}, {"-n", "9000000000000000000"}, {"-connections", "0"}, {"-connections", "4097"}, {"-port", "0"}, {"-port", "65536"}, {"-nope"}, {"extra"},
	} {
		if code, stdout, stderr := measureLatency(args...); code != 2 || stdout != "" || stderr == "" {
			t.Errorf("%q: got %d, %q, %q", args, code, stdout, stderr)
		}
	}
	if code, _, _ := measureLatency("-h"); code != 0 {
		t.Errorf("-h: got %d", code)
	}
}
