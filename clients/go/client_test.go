package gemma

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// serve starts a server that lives as long as the test. Its client sends each
// request once, so that a test sees what one answer does.
func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return New(WithBaseURL(srv.URL), WithRetries(0))
}

const goodAnswer = `{"response": "Hello", "finish_reason": "length",
	"usage": {"prompt_tokens": 3, "completion_tokens": 4, "cached_tokens": 2},
	"timings": {"queue_ms": 0.5, "prefill_ms": 1.5, "decode_ms": 2.5}, "model_version": "7"}`

func TestGenerate(t *testing.T) {
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "POST" || r.URL.Path != "/prompt" {
			t.Errorf("got %s %s", r.Method, r.URL.Path)
		}
		if got := r.Header.Get("Content-Type"); got != "application/json" {
			t.Errorf("Content-Type %q", got)
		}
		if got, ok := r.Header["X-Request-Timeout-Ms"]; ok {
			t.Errorf("X-Request-Timeout-Ms %q without a deadline", got)
		}
		w.Header().Set("X-Request-Id", "r3")
		io.WriteString(w, goodAnswer)
	})
	got, err := client.Generate(context.Background(), Request{Prompt: "Hi"})
	if err != nil {
		t.Fatal(err)
	}
	want := &Response{Text: "Hello", FinishReason: FinishLength, Usage: Usage{3, 4, 2}, Timings: Timings{QueueMS: 0.5, PrefillMS: 1.5, DecodeMS: 2.5}, ModelVersion: "7", RequestID: "r3"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestRequestOnTheWire(t *testing.T) {
	for _, tc := range []struct {
		name   string
		req    Request
		stream bool
		want   string
	}{
		{"least", Request{Prompt: "a"}, false, `{"prompt": "a"}`},
		{"stream", Request{Prompt: "a"}, true, `{"prompt": "a", "stream": true}`},
		{"zeros", Request{Prompt: "", Seed: Ptr[uint64](0), Stop: []string{}}, false,
			`{"prompt": "", "seed": 0}`},
		{"negative steps are the server's to refuse", Request{SamplingSteps: -1}, false, `{"prompt": "", "sampling_steps": -1}`},
		{"all", Request{"é<&>\n", "m@3", 7, 0.5, 40, 0.9, 0.1, Ptr[uint64](1 << 63), []string{"x", ""}, true, Ptr(false), "me",
			json.RawMessage(`{"type": "string"}`), "a*", []string{"b"}, "root ::= c"}, true,
			`{"prompt": "é<&>\n", "model": "m@3", "sampling_steps": 7, "temperature": 0.5, "top_k": 40, "top_p": 0.9, "min_p": 0.1,
			"seed": 9223372036854775808, "stop": ["x", ""], "ignore_eos": true, "cache_prompt": false, "cache_salt": "me",
			"response_schema": {"type": "string"}, "regex": "a*", "choice": ["b"], "grammar": "root ::= c", "stream": true}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			body, err := tc.req.encode(tc.stream)
			if err != nil {
				t.Fatal(err)
			}
			var got, want any
			if err := json.Unmarshal(body, &got); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal([]byte(tc.want), &want); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %s, want %s", body, tc.want)
			}
		})
	}
}

func TestRequestRefused(t *testing.T) {
	client := serve(t, func(w http.ResponseWriter, r *http.Request) { t.Error("a request was sent") })
	for name, req := range map[string]Request{
		"prompt":  {Prompt: "\xff"},
		"model":   {Prompt: "a", Model: "\xff"},
		"salt":    {Prompt: "a", CacheSalt: "\xff"},
		"stop":    {Prompt: "a", Stop: []string{"\xff"}},
		"regex":   {Prompt: "a", Regex: "\xff"},
		"choice":  {Prompt: "a", Choice: []string{"b", "\xff"}},
		"grammar": {Prompt: "a", Grammar: "\xff"},
	} {
		if _, err := client.Generate(context.Background(), req); err == nil || !strings.Contains(err.Error(), "UTF-8") {
			t.Errorf("%s: Generate: %v", name, err)
		}
		n := 0
		for _, err := range client.Stream(context.Background(), req) {
			n++
			if err == nil || !strings.Contains(err.Error(), "UTF-8") {
				t.Errorf("%s: Stream: %v", name, err)
			}
		}
		if n != 1 {
			t.Errorf("%s: Stream yielded %d times", name, n)
		}
	}
}

// What is too long for the server is told before it has been sent.
func TestTooLongRequest(t *testing.T) {
	var sent atomic.Int64
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		sent.Store(n)
		io.WriteString(w, goodAnswer)
	})
	prompt := strings.Repeat("x", bodyMax-len(`{"prompt":""}`))
	if _, err := client.Generate(context.Background(), Request{Prompt: prompt}); err != nil || sent.Swap(0) != bodyMax {
		t.Error(err)
	}
	_, err := client.Generate(context.Background(), Request{Prompt: prompt + "x"})
	_, err2 := client.Echo(context.Background(), prompt+"x")
	var err3 error
	for _, err3 = range client.Stream(context.Background(), Request{Prompt: prompt}) {
	}
	for _, err := range []error{err, err2, err3} {
		if !errors.Is(err, ErrTooLong) || sent.Load() != 0 {
			t.Errorf("%d bytes came, error %v", sent.Load(), err)
		}
	}
}

func TestUnexpectedAnswers(t *testing.T) {
	for _, body := range []string{"", "<html>", "{}", "[]", "null", `{"response": "a"`, `{"response": ["a"]}`} {
		client := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Request-Id", "r4")
			io.WriteString(w, body)
		})
		for name, err := range everyCall(client) {
			var api *APIError
			if err == nil || errors.As(err, &api) || !strings.Contains(err.Error(), "r4") {
				t.Errorf("%s of %q: error %v", name, body, err)
			}
		}
	}
}

func TestAnswerCutShort(t *testing.T) {
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(goodAnswer)))
		io.WriteString(w, goodAnswer[:20])
	})
	if _, err := client.Generate(context.Background(), Request{Prompt: "x"}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v", err)
	}
}

func TestDeadlineHeader(t *testing.T) {
	var header atomic.Value
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		header.Store(r.Header.Get("X-Request-Timeout-Ms"))
		w.WriteHeader(504)
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	check := func(name string) {
		t.Helper()
		ms, err := strconv.Atoi(header.Load().(string))
		if err != nil || ms < 30_000 || ms > 60_000 {
			t.Errorf("%s: X-Request-Timeout-Ms %q", name, header.Load())
		}
	}
	client.Generate(ctx, Request{})
	check("Generate")
	for range client.Stream(ctx, Request{}) {
	}
	check("Stream")
	client.Echo(ctx, 1)
	check("Echo")
	client.Ready(ctx)
	check("Ready")
	client.Models(ctx)
	check("Models")
}

// farContext is past its deadline without being done, as a context is for a
// moment while its timer fires.
type farContext struct{ context.Context }

func (farContext) Deadline() (time.Time, bool) { return time.Now().Add(-time.Second), true }

type transportFunc func(*http.Request) (*http.Response, error)

func (f transportFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestDeadlineHeaderIsAtLeastOne(t *testing.T) {
	var got string
	client := New(WithHTTPClient(&http.Client{Transport: transportFunc(func(r *http.Request) (*http.Response, error) {
		got = r.Header.Get("X-Request-Timeout-Ms")
		return nil, errors.New("enough")
	})}))
	client.Echo(farContext{context.Background()}, 1)
	if got != "1" {
		t.Errorf("X-Request-Timeout-Ms %q, want 1", got)
	}
}

func TestDeadlinePasses(t *testing.T) {
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // lets the server notice the client's going
		<-r.Context().Done()
	})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := client.Generate(ctx, Request{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestEcho(t *testing.T) {
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "POST" || r.URL.Path != "/echo" {
			t.Errorf("got %s %s", r.Method, r.URL.Path)
		}
		var in map[string]json.RawMessage
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || len(in) != 1 {
			t.Errorf("got %v, %v", in, err)
		}
		json.NewEncoder(w).Encode(map[string]any{"echo_prompt": in["prompt"]})
	})
	for _, v := range []string{`"text é \u0000"`, `null`, `false`, `12345678901234567890`, `[1,{"a":[]}]`, `{}`} {
		got, err := client.Echo(context.Background(), json.RawMessage(v))
		if err != nil {
			t.Errorf("%s: %v", v, err)
		} else if string(got) != v {
			t.Errorf("got %s, want %s", got, v)
		}
	}
	if got, err := client.Echo(context.Background(), nil); err != nil || string(got) != "null" {
		t.Errorf("nil: got %s, %v", got, err)
	}
	if _, err := client.Echo(context.Background(), func() {}); err == nil {
		t.Error("a function was echoed")
	}
}

func TestReady(t *testing.T) {
	for _, tc := range []struct {
		name, body string
		status     int
		want       Status
	}{
		{"ready", `{"status": "ready", "stage": "serving", "progress": 1.0, "model": "m"}`, 200,
			Status{State: StateReady, Stage: "serving", Progress: Ptr(1.0), Model: "m"}},
		{"loading", `{"status": "loading", "stage": "weights", "progress": 0.0, "model": "m"}`, 503,
			Status{State: StateLoading, Stage: "weights", Progress: Ptr(0.0), Model: "m", RetryAfter: 2 * time.Second}},
		{"draining", `{"status": "draining", "stage": "", "progress": null, "model": "m"}`, 503,
			Status{State: StateDraining, Model: "m", RetryAfter: 2 * time.Second}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			client := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method != "GET" || r.URL.Path != "/readyz" || r.Header.Get("Content-Type") != "" {
					t.Errorf("got %s %s", r.Method, r.URL.Path)
				}
				if tc.status == 503 {
					w.Header().Set("Retry-After", "2")
				}
				w.WriteHeader(tc.status)
				io.WriteString(w, tc.body)
			})
			got, err := client.Ready(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(*got, tc.want) {
				t.Errorf("got %+v, want %+v", *got, tc.want)
			}
			if got.Ready() != (tc.name == "ready") {
				t.Errorf("Ready() = %v", got.Ready())
			}
		})
	}
}

// socketPath is short: t.TempDir can exceed what a socket's address holds.
func socketPath(t *testing.T) string {
	dir, err := os.MkdirTemp("", "gemma")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func TestUnixSocket(t *testing.T) {
	path := socketPath(t)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Skip("no Unix sockets here:", err)
	}
	var host atomic.Value
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host.Store(r.Host)
		io.WriteString(w, goodAnswer)
	}))
	srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	defer srv.Close()
	for want, client := range map[string]*Client{
		"localhost":   New(WithUnixSocket(path)),
		"example:123": New(WithUnixSocket(path), WithBaseURL("http://example:123")),
	} {
		if got, err := client.Generate(context.Background(), Request{Prompt: "x"}); err != nil || got.Text != "Hello" {
			t.Errorf("got %v, %v", got, err)
		}
		if host.Load() != want {
			t.Errorf("Host %q, want %q", host.Load(), want)
		}
	}

	_, err = New(WithUnixSocket(path + "-none")).Ready(context.Background())
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no socket: error %v", err)
	}
}

// Whatever the answer was, its connection must serve the next request.
func TestKeepAlive(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch {
		case r.URL.Path == "/readyz":
			w.WriteHeader(503)
			io.WriteString(w, `{"status": "loading"}`)
		case r.URL.Path == "/echo":
			w.WriteHeader(502)
			io.WriteString(w, strings.Repeat("<p>", 5000))
		case strings.Contains(string(body), "stream"):
			w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
			io.WriteString(w, "data: {\"finish_reason\": \"stop\"}\n\n")
			w.(http.Flusher).Flush()
			io.WriteString(w, "data: [DONE]\n\n")
			w.(http.Flusher).Flush()
			time.Sleep(5 * time.Millisecond) // [DONE] comes before the end of the body
		default:
			io.WriteString(w, goodAnswer)
		}
	}))
	var conns atomic.Int32
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	client := New(WithBaseURL(srv.URL))
	for range 3 {
		everyCall(client)
	}
	if got := conns.Load(); got != 1 {
		t.Errorf("%d connections, want 1", got)
	}
}
