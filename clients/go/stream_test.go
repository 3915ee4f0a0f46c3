package gemma

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

// serveEvents streams each string at once, and then ends the body in order.
func serveEvents(t *testing.T, writes ...string) *Client {
	t.Helper()
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("X-Request-Id", "r5")
		w.WriteHeader(200)
		for _, s := range writes {
			io.WriteString(w, s)
			w.(http.Flusher).Flush()
		}
	})
}

func collect(ctx context.Context, c *Client) (chunks []Chunk, err error) {
	for chunk, e := range c.Stream(ctx, Request{Prompt: "x"}) {
		if err != nil {
			return nil, errors.New("something was yielded after an error")
		}
		if err = e; err == nil {
			chunks = append(chunks, chunk)
		}
	}
	return chunks, err
}

const lastEvent = `data: {"response": "!", "finish_reason": "stop",
data: "usage": {"prompt_tokens": 1, "completion_tokens": 2, "cached_tokens": 0},
data: "timings": {"queue_ms": 1, "prefill_ms": 2, "decode_ms": 3}, "model_version": "7"}

`

func TestStream(t *testing.T) {
	client := serveEvents(t, ": hello\n\n", "data: {\"response\": \"Hel", "lo\"}\n\ndata: {\"response\":\" é\"}\n\n:\n\n", lastEvent, "data: [DONE]\n\n", "data: after\n\n")
	want := []Chunk{
		{Text: "Hello"},
		{Text: " é"},
		{Text: "!", FinishReason: FinishStop, Usage: &Usage{1, 2, 0}, Timings: &Timings{QueueMS: 1, PrefillMS: 2, DecodeMS: 3}, ModelVersion: "7"},
	}
	seq := client.Stream(context.Background(), Request{Prompt: "x"})
	for range 2 { // each loop is a request of its own
		var got []Chunk
		for chunk, err := range seq {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, chunk)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

func TestStreamRequest(t *testing.T) {
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		var in map[string]any
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		if in["stream"] != true || r.Method != "POST" || r.URL.Path != "/prompt" || r.Header.Get("Accept") != "text/event-stream" {
			t.Errorf("got %s %s %v %v", r.Method, r.URL.Path, r.Header, in)
		}
		w.WriteHeader(400)
	})
	collect(context.Background(), client)
}

func TestStreamHugeLine(t *testing.T) {
	huge := strings.Repeat("x", 1<<20)
	chunks, err := collect(context.Background(), serveEvents(t, `data: {"response": "`+huge+"\"}\n\n", lastEvent, "data: [DONE]\n\n"))
	if err != nil || len(chunks) != 2 || chunks[0].Text != huge {
		t.Errorf("%d chunks, error %v", len(chunks), err)
	}
}

func TestStreamCutShort(t *testing.T) {
	for name, writes := range map[string][]string{
		"nothing":            {},
		"after a piece":      {"data: {\"response\": \"a\"}\n\n"},
		"after the last":     {lastEvent},
		"within [DONE]":      {lastEvent, "data: [DO"},
		"[DONE] not closed":  {lastEvent, "data: [DONE]\n"},
		"[DONE] in a remark": {lastEvent, ": [DONE]\n\n"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := collect(context.Background(), serveEvents(t, writes...))
			if !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "r5") {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestStreamConnectionLost(t *testing.T) {
	for name, linger := range map[string]int{"closed": 1, "reset": 0} {
		t.Run(name, func(t *testing.T) {
			client := serve(t, func(w http.ResponseWriter, r *http.Request) {
				conn, buf, err := w.(http.Hijacker).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				conn.(*net.TCPConn).SetLinger(linger)
				buf.WriteString("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
				buf.WriteString("16\r\ndata: {\"response\":\"\"}\n\r\n1\r\n\n\r\n")
				buf.Flush()
				time.Sleep(20 * time.Millisecond) // a reset overtakes what is not read yet
			})
			chunks, err := collect(context.Background(), client)
			if len(chunks) != 1 || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%d chunks, error %v", len(chunks), err)
			}
		})
	}
}

func TestStreamErrorEvent(t *testing.T) {
	const event = `data: {"error": {"type": "timeout", "message": "too late", "param": null, "code": "deadline", "request_id": "r6"}}` + "\n\n"
	for name, after := range map[string]string{"end": "", "more": lastEvent + "data: [DONE]\n\n"} {
		chunks, err := collect(context.Background(), serveEvents(t, "data: {\"response\": \"a\"}\n\n", event, after))
		var api *APIError
		if len(chunks) != 1 || !errors.As(err, &api) || !errors.Is(err, ErrDeadline) {
			t.Fatalf("%s: %d chunks, error %v", name, len(chunks), err)
		}
		if want := (APIError{Type: "timeout", Message: "too late", Code: CodeDeadline, RequestID: "r6"}); *api != want {
			t.Errorf("%s: got %+v, want %+v", name, *api, want)
		}
	}
}

func TestStreamUnexpected(t *testing.T) {
	for _, events := range []string{
		"data: {\n\ndata: [DONE]\n\n",
		"data: text\n\ndata: [DONE]\n\n",
		"data:\n\ndata: [DONE]\n\n",
		"data: [DONE]\n\n",
		"data: {\"response\": \"a\"}\n\ndata: [DONE]\n\n",
	} {
		_, err := collect(context.Background(), serveEvents(t, events))
		if err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q: error %v", events, err)
		}
	}
	client := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, goodAnswer) })
	if _, err := collect(context.Background(), client); err == nil || !strings.Contains(err.Error(), "content type") {
		t.Errorf("no event stream: error %v", err)
	}
}

// serveEndless streams pieces until the client goes; gone is closed then.
func serveEndless(t *testing.T) (client *Client, gone chan struct{}) {
	gone = make(chan struct{})
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.Copy(io.Discard, r.Body)
		for r.Context().Err() == nil {
			io.WriteString(w, "data: {\"response\": \"a\"}\n\n")
			w.(http.Flusher).Flush()
			time.Sleep(time.Millisecond)
		}
		close(gone)
	}), gone
}

func waitFor(t *testing.T, gone <-chan struct{}) {
	t.Helper()
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Fatal("the server does not see the client go")
	}
}

func TestStreamBreak(t *testing.T) {
	client, gone := serveEndless(t)
	n := 0
	for _, err := range client.Stream(context.Background(), Request{}) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 3 {
			break
		}
	}
	waitFor(t, gone)
}

func TestStreamPanic(t *testing.T) {
	client, gone := serveEndless(t)
	func() {
		defer func() { recover() }()
		for range client.Stream(context.Background(), Request{}) {
			panic("in the loop")
		}
	}()
	waitFor(t, gone)
}

func TestStreamCancel(t *testing.T) {
	client, gone := serveEndless(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var last error
	n := 0
	for _, err := range client.Stream(ctx, Request{}) {
		last = err
		if n++; n == 3 {
			cancel()
		}
	}
	if !errors.Is(last, context.Canceled) || errors.Is(last, io.ErrUnexpectedEOF) {
		t.Errorf("error %v", last)
	}
	waitFor(t, gone)
}

// Pieces that came at once with the one in whose turn the loop was cancelled are
// not yielded any more.
func TestStreamCancelWithPiecesAtHand(t *testing.T) {
	client := serveEvents(t, strings.Repeat("data: {\"response\": \"a\"}\n\n", 100)+lastEvent+"data: [DONE]\n\n")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	n := 0
	var last error
	for chunk, err := range client.Stream(ctx, Request{Prompt: "x"}) {
		if last = err; chunk.Text != "" {
			n++
		}
		cancel()
	}
	if n != 1 || !errors.Is(last, context.Canceled) {
		t.Errorf("%d pieces, error %v", n, last)
	}
}

// A server that does not end the body after [DONE] must not hold up the caller.
func TestStreamBodyLeftOpen(t *testing.T) {
	gone := make(chan struct{})
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, lastEvent+"data: [DONE]\n\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		close(gone)
	})
	chunks, err := collect(context.Background(), client)
	if len(chunks) != 1 || err != nil {
		t.Errorf("%d chunks, error %v", len(chunks), err)
	}
	waitFor(t, gone)
}
