package gemma

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// waits replaces the client's sleep and notes what it was asked for.
func waits(c *Client) *[]time.Duration {
	var mu sync.Mutex
	noted := new([]time.Duration)
	c.sleep = func(ctx context.Context, d time.Duration) error {
		mu.Lock()
		defer mu.Unlock()
		*noted = append(*noted, d)
		return ctx.Err()
	}
	return noted
}

// answers serves /prompt with each of the answers in turn, and the last again
// and again. An answer is a status with headers, "name: value".
func answers(t *testing.T, list ...[]string) (url string, count func() int) {
	t.Helper()
	var mu sync.Mutex
	n := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		answer := list[min(n, len(list)-1)]
		n++
		mu.Unlock()
		for _, header := range answer[1:] {
			name, value, _ := strings.Cut(header, ": ")
			w.Header().Set(name, value)
		}
		status, _ := strconv.Atoi(answer[0])
		body, _ := io.ReadAll(r.Body)
		if status == 200 && bytes.Contains(body, []byte("stream")) {
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, lastEvent+"data: [DONE]\n\n")
			return
		}
		w.WriteHeader(status)
		if status == 200 {
			io.WriteString(w, goodAnswer)
		} else {
			io.WriteString(w, `{"error": {"message": "no", "code": "c`+answer[0]+`"}}`)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL, func() int {
		mu.Lock()
		defer mu.Unlock()
		return n
	}
}

// What may be sent again, and how often, is the whole promise of WithRetries.
func TestWhatIsRetried(t *testing.T) {
	for _, tc := range []struct {
		name     string
		answers  [][]string
		requests int
		status   int // of the error, 0 for none
	}{
		{"success", [][]string{{"200"}}, 1, 0},
		{"busy, then free", [][]string{{"429"}, {"200"}}, 2, 0},
		{"loading twice", [][]string{{"503"}, {"503"}, {"200"}}, 3, 0},
		{"busy for good", [][]string{{"429"}}, 3, 429},
		{"busy, but final", [][]string{{"429", "X-Should-Retry: false"}}, 1, 429},
		{"the server knows better", [][]string{{"500", "X-Should-Retry: True"}, {"200"}}, 2, 0},
		{"deadline", [][]string{{"504"}}, 1, 504},
		{"deadline, even if told otherwise", [][]string{{"504", "X-Should-Retry: true"}}, 1, 504},
		{"the header of a success means nothing", [][]string{{"200", "X-Should-Retry: true"}}, 1, 0},
		{"failure", [][]string{{"500"}}, 1, 500},
		{"mistake", [][]string{{"400"}}, 1, 400},
		{"no key", [][]string{{"401"}}, 1, 401},
		{"the longest wait", [][]string{{"503", "Retry-After: 30"}, {"200"}}, 2, 0},
		{"too long a wait", [][]string{{"503", "Retry-After: 31"}}, 1, 503},
	} {
		t.Run(tc.name, func(t *testing.T) {
			check := func(kind string, call func(*Client) error) {
				url, count := answers(t, tc.answers...)
				client := New(WithBaseURL(url))
				waits(client)
				err := call(client)
				var api *APIError
				if errors.As(err, &api) != (tc.status != 0) || (api != nil && api.Status != tc.status) || (api == nil && err != nil) {
					t.Errorf("%s: error %v", kind, err)
				}
				if count() != tc.requests {
					t.Errorf("%s: %d requests, want %d", kind, count(), tc.requests)
				}
			}
			check("Generate", func(c *Client) error {
				_, err := c.Generate(context.Background(), Request{Prompt: "x"})
				return err
			})
			check("Stream", func(c *Client) error {
				_, err := collect(context.Background(), c)
				return err
			})
		})
	}
}

func TestRetryWaits(t *testing.T) {
	url, _ := answers(t, []string{"429", "Retry-After: 7"}, []string{"503"}, []string{"503"}, []string{"200"})
	client := New(WithBaseURL(url), WithRetries(3))
	now := time.Now()
	client.pool.now = func() time.Time { return now }
	got := waits(client)
	if _, err := client.Generate(context.Background(), Request{Prompt: "x"}); err != nil {
		t.Fatal(err)
	}
	ranges := [][2]time.Duration{
		{7 * time.Second, 7*time.Second + backoffMin},
		{backoffMin, 2 * backoffMin},
		{2 * backoffMin, 4 * backoffMin},
	}
	if len(*got) != len(ranges) {
		t.Fatalf("waited %v", *got)
	}
	for i, d := range *got {
		if d < ranges[i][0] || d >= ranges[i][1] {
			t.Errorf("wait %d was %v, want it in %v", i+1, d, ranges[i])
		}
	}
	if d := backoff(1000); d != backoffMax {
		t.Errorf("wait 1000 is %v", d)
	}
}

// Each attempt tells the server what is left of the deadline then, and no wait
// begins that the deadline would cut.
func TestRetryAndDeadline(t *testing.T) {
	var mu sync.Mutex
	var left []int
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		ms, _ := strconv.Atoi(r.Header.Get("X-Request-Timeout-Ms"))
		left = append(left, ms)
		w.WriteHeader(503)
	})
	client.retries = 2
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client.sleep = func(context.Context, time.Duration) error { return sleep(ctx, 5*time.Millisecond) }
	client.Generate(ctx, Request{Prompt: "x"})
	mu.Lock()
	defer mu.Unlock()
	if len(left) != 3 || left[0] <= left[1] || left[1] <= left[2] {
		t.Errorf("told the server %v ms", left)
	}

	url, count := answers(t, []string{"503", "Retry-After: 20"})
	client = New(WithBaseURL(url))
	got := waits(client)
	ctx, cancel = context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	_, err := client.Generate(ctx, Request{Prompt: "x"})
	var api *APIError
	if !errors.As(err, &api) || api.RetryAfter != 20*time.Second || count() != 1 || len(*got) != 0 {
		t.Errorf("%d requests, waits %v, error %v", count(), *got, err)
	}
}

func TestCancelWhileWaiting(t *testing.T) {
	url, count := answers(t, []string{"429", "Retry-After: 20"})
	client := New(WithBaseURL(url))
	ctx, cancel := context.WithCancel(context.Background())
	client.sleep = func(ctx context.Context, d time.Duration) error {
		cancel()
		return sleep(ctx, d)
	}
	_, err := client.Generate(ctx, Request{Prompt: "x"})
	if !errors.Is(err, context.Canceled) || !errors.Is(err, ErrOverloaded) && !strings.Contains(err.Error(), "c429") || count() != 1 {
		t.Errorf("%d requests, error %v", count(), err)
	}
}

// A connection that cannot be made is tried again; one that is lost after the
// request went out is not, since the server may have done the work.
func TestConnectionErrors(t *testing.T) {
	path := socketPath(t)
	client := New(WithUnixSocket(path))
	client.sleep = func(context.Context, time.Duration) error {
		l, err := net.Listen("unix", path) // the server comes up in the meantime
		if err != nil {
			t.Skip("no Unix sockets here:", err)
		}
		srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(
			func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, goodAnswer) })}}
		srv.Start()
		t.Cleanup(srv.Close)
		return nil
	}
	if _, err := client.Generate(context.Background(), Request{Prompt: "x"}); err != nil {
		t.Error(err)
	}

	var requests atomic.Int32
	client = serve(t, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		panic(http.ErrAbortHandler)
	})
	client.retries = 2
	got := waits(client)
	if _, err := client.Generate(context.Background(), Request{Prompt: "x"}); err == nil || requests.Load() != 1 || len(*got) != 0 {
		t.Errorf("%d requests, waits %v, error %v", requests.Load(), *got, err)
	}
}

// A body that a retry leaves open would keep its connection from the next try.
func TestRetriesKeepTheConnection(t *testing.T) {
	var conns, requests atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) < 3 {
			w.WriteHeader(503)
			io.WriteString(w, strings.Repeat("busy ", 5000))
			return
		}
		io.WriteString(w, goodAnswer)
	}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	client := New(WithBaseURL(srv.URL))
	waits(client)
	if _, err := client.Generate(context.Background(), Request{Prompt: "x"}); err != nil {
		t.Error(err)
	}
	if got := conns.Load(); got != 1 {
		t.Errorf("%d connections, want 1", got)
	}
	if n := client.pool.endpoints[0].inFlight; n != 0 {
		t.Errorf("%d requests count as in flight", n)
	}
}

func TestReadyIsNotRetried(t *testing.T) {
	url, count := answers(t, []string{"503"})
	client := New(WithBaseURL(url))
	waits(client)
	if _, err := client.Ready(context.Background()); err == nil || count() != 1 {
		t.Errorf("%d requests, error %v", count(), err)
	}
}

func TestLogger(t *testing.T) {
	url, _ := answers(t, []string{"429", "Retry-After: 1"}, []string{"200"})
	var log bytes.Buffer
	host := strings.TrimPrefix(url, "http://")
	client := New(WithBaseURL("http://user:password@"+host), WithAPIKey("sesame"), WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
	waits(client)
	if _, err := client.Generate(context.Background(), Request{Prompt: "private"}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) != 1 || !strings.Contains(lines[0], "level=INFO") || !strings.Contains(lines[0], host) || !strings.Contains(lines[0], "429") {
		t.Errorf("logged %q", lines)
	}
	if slices.ContainsFunc([]string{"sesame", "private", "password"}, func(s string) bool { return strings.Contains(log.String(), s) }) {
		t.Errorf("logged %q", lines)
	}
}

func TestAPIKey(t *testing.T) {
	for key, want := range map[string]string{"": "", "k-1": "Bearer k-1"} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if got := r.Header.Get("Authorization"); got != want {
				t.Errorf("%s: Authorization %q, want %q", r.URL.Path, got, want)
			}
			w.WriteHeader(401)
		}))
		everyCall(New(WithBaseURL(srv.URL), WithAPIKey(key)))
		srv.Close()
	}
}
