package gemmatest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"reflect"
	"testing"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

var ctx = context.Background()

// collect reads a whole stream.
func collect(c *gemma.Client, ctx context.Context) (pieces []string, err error) {
	for chunk, err := range c.Stream(ctx, gemma.Request{Prompt: "x"}) {
		if err != nil {
			return pieces, err
		}
		pieces = append(pieces, chunk.Text)
	}
	return pieces, nil
}

// The client must make of each failure what it makes of the server's.
func TestFailures(t *testing.T) {
	srv := NewServer(t)
	client := srv.Client(gemma.WithRetries(0))
	for name, tc := range map[string]struct {
		reply   Reply
		pieces  int
		is      error // what errors.Is finds
		inWhole error // without a stream, if another
	}{
		"overloaded": {Reply{Err: &gemma.APIError{Code: gemma.CodeOverloaded, RetryAfter: time.Second}}, 0, gemma.ErrOverloaded, nil},
		"loading":    {Error(503, gemma.CodeLoading), 0, gemma.ErrLoading, nil},
		"amid":       {Reply{Pieces: []string{"a", "b"}, Err: &gemma.APIError{Code: gemma.CodeDeadline}}, 2, gemma.ErrDeadline, nil},
		"break":      {Reply{Pieces: []string{"a"}, Break: true}, 1, io.ErrUnexpectedEOF, io.EOF},
	} {
		srv.Script(tc.reply, tc.reply)
		pieces, err := collect(client, ctx)
		if len(pieces) != tc.pieces || !errors.Is(err, tc.is) {
			t.Errorf("%s: %q, %v", name, pieces, err)
		}
		if tc.inWhole == nil {
			tc.inWhole = tc.is
		}
		_, err = client.Generate(ctx, gemma.Request{Prompt: "x"})
		if !errors.Is(err, tc.inWhole) {
			t.Errorf("%s: Generate: %v", name, err)
		}
		var api *gemma.APIError
		if errors.As(err, &api) && (api.RequestID == "" || api.Type == "" || api.RetryAfter != tc.reply.Err.RetryAfter) {
			t.Errorf("%s: %+v", name, api)
		}
	}
}

// A held stream is under way until the test lets it go, however long that is.
func TestHold(t *testing.T) {
	hold := make(chan struct{})
	srv := NewServer(t, WithReplies(Reply{Pieces: []string{"a", "b"}, Hold: hold}))
	var pieces []string
	for chunk, err := range srv.Client().Stream(ctx, gemma.Request{Prompt: "x"}) {
		if err != nil {
			t.Fatal(err)
		}
		if pieces = append(pieces, chunk.Text); len(pieces) == 1 {
			close(hold)
		}
	}
	if len(pieces) != 3 {
		t.Errorf("got %q", pieces)
	}
}

// A test that fails in the middle must not hang in Close.
func TestCloseBreaksOff(t *testing.T) {
	srv := NewServer(nil, WithAnswer(func(gemma.Request) Reply { return Reply{Pieces: []string{"a"}, Hold: make(chan struct{})} }))
	for _, err := range srv.Client().Stream(ctx, gemma.Request{Prompt: "x"}) {
		if err == nil {
			srv.Close()
		} else if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(err)
		}
	}
	srv.Close()
}

// The server keeps the client's time limit, in both kinds of answer.
func TestDelaysAndDeadline(t *testing.T) {
	srv := NewServer(t)
	slow := Reply{Pieces: []string{"a", "b"}, Delay: time.Millisecond, PieceDelay: time.Millisecond}
	srv.Script(slow, slow)
	begin := time.Now()
	if pieces, err := collect(srv.Client(), ctx); err != nil || len(pieces) != 3 || time.Since(begin) < 3*time.Millisecond {
		t.Errorf("%q, %v after %v", pieces, err, time.Since(begin))
	}
	begin = time.Now()
	resp, err := srv.Client().Generate(ctx, gemma.Request{Prompt: "x"})
	if err != nil || resp.Text != "ab" || resp.Timings.DecodeMS < 2 || time.Since(begin) < 3*time.Millisecond {
		t.Errorf("%+v, %v", resp, err)
	}
	srv.Script(Reply{Delay: time.Hour}, Reply{Pieces: []string{"a"}, Hold: make(chan struct{})})
	limited := srv.Client(gemma.WithHTTPClient(&http.Client{Transport: hasty{}}))
	for _, pieces := range []int{0, 1} {
		if got, err := collect(limited, ctx); len(got) != pieces || !errors.Is(err, gemma.ErrDeadline) {
			t.Errorf("%q, %v", got, err)
		}
	}
}

// hasty leaves the time limit to the server, so that the client's own clock
// cannot be first.
type hasty struct{}

func (hasty) RoundTrip(r *http.Request) (*http.Response, error) {
	r.Header.Set("X-Request-Timeout-Ms", "5")
	return http.DefaultTransport.RoundTrip(r)
}

func TestRequests(t *testing.T) {
	srv := NewServer(t, WithAPIKey("k"))
	client := srv.Client()
	client.Generate(ctx, gemma.Request{Prompt: "one", Model: "fake", Seed: gemma.Ptr[uint64](7), Stop: []string{"z"}, CachePrompt: gemma.Ptr(false), CacheSalt: "s"})
	collect(client, ctx)
	client.EchoThrough(ctx, gemma.DepthQueue, "two")
	got := srv.Requests()
	if len(got) != 3 || got[0].Prompt.Prompt != "one" || got[0].Prompt.Model != "fake" || got[0].Prompt.CacheSalt != "s" || *got[0].Prompt.CachePrompt || *got[0].Prompt.Seed != 7 || got[0].Prompt.Stop[0] != "z" || got[0].Stream ||
		!got[1].Stream || got[1].Header.Get("Accept") != "text/event-stream" ||
		got[2].Path != "/echo" || got[2].Query.Get("through") != "queue" || string(got[2].Body) != `{"prompt":"two"}` {
		t.Errorf("got %+v", got)
	}
	_, err := srv.Client(gemma.WithAPIKey("other")).Generate(ctx, gemma.Request{Prompt: "x"})
	var api *gemma.APIError
	if !errors.As(err, &api) || api.Code != gemma.CodeUnauthorized {
		t.Errorf("another key: %v", err)
	}
}

// A name finds what the server finds by it.
func TestModelNames(t *testing.T) {
	srv := NewServer(t, WithModels(
		gemma.Model{Name: "embed", Versions: []gemma.ModelVersion{{Version: 7, State: gemma.VersionLoading}}},
		gemma.Model{Name: "chat", Default: true, Versions: []gemma.ModelVersion{
			{Version: 2, State: gemma.VersionEnd, Error: "why"}, {Version: 4, Labels: []string{"canary"}}, {Version: 3, Labels: []string{"stable"}},
			{Version: 5, State: gemma.VersionUnloading, Labels: []string{"old"}}}}))
	client := srv.Client(gemma.WithRetries(0))
	for name, want := range map[string]string{
		"": "4", "chat": "4", "chat:latest": "4", "chat@3": "3", "chat:stable": "3", "chat:canary": "4",
		"chat@2": gemma.CodeUnavailable, "chat:old": gemma.CodeUnavailable, "embed": gemma.CodeLoading, "embed@7": gemma.CodeLoading,
		"chat@9": gemma.CodeModelNotFound, "chat:none": gemma.CodeModelNotFound, "chat3": gemma.CodeModelNotFound,
		"fake": gemma.CodeModelNotFound,
	} {
		resp, err := client.Generate(ctx, gemma.Request{Prompt: "x", Model: name})
		got := ""
		var api *gemma.APIError
		if errors.As(err, &api) {
			got = api.Code
		} else if err == nil {
			got = resp.ModelVersion
		}
		if got != want {
			t.Errorf("%q: got %s (%v), want %s", name, got, err, want)
		}
	}
	srv.SetModels()
	if _, err := client.Generate(ctx, gemma.Request{Prompt: "x", Model: "fake"}); err != nil {
		t.Error(err)
	}
}

func TestModels(t *testing.T) {
	mine := []gemma.Model{{Name: "a", Versions: []gemma.ModelVersion{{Version: 1, Bytes: 3}}}, {Name: "b", Versions: []gemma.ModelVersion{{Version: 2, Bytes: 4}}}}
	srv := NewServer(t)
	srv.SetModels(mine...)
	mine[0].Name, mine[0].Versions[0].Version = "changed", 9
	var got models
	resp, err := http.Get(srv.URL + "/models")
	if err == nil {
		defer resp.Body.Close()
		err = json.NewDecoder(resp.Body).Decode(&got)
	}
	if err != nil || got.Memory.Booked != 7 || got.Memory.Limit != nil || len(got.Models) != 2 {
		t.Fatalf("got %+v, %v", got, err)
	}
	for i, want := range []gemma.Model{
		{Name: "a", Default: true, Loads: gemma.LoadsAtStart, Versions: []gemma.ModelVersion{{Version: 1, State: gemma.VersionAvailable, Labels: []string{}, Bytes: 3}}},
		{Name: "b", Loads: gemma.LoadsAtStart, Versions: []gemma.ModelVersion{{Version: 2, State: gemma.VersionAvailable, Labels: []string{}, Bytes: 4}}},
	} {
		if !reflect.DeepEqual(got.Models[i], want) {
			t.Errorf("got %+v, want %+v", got.Models[i], want)
		}
	}
}

// A program's start-up meets a server that loads, and then one that is ready.
func TestStatus(t *testing.T) {
	srv := NewServer(t, WithStatus(gemma.Status{State: gemma.StateLoading, Stage: "weights", Progress: gemma.Ptr(0.5), Model: "m"}))
	client := srv.Client(gemma.WithRetries(0))
	st, err := client.Ready(ctx)
	if err != nil || st.Ready() || st.Stage != "weights" || *st.Progress != 0.5 || st.RetryAfter != 2*time.Second {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := client.Generate(ctx, gemma.Request{Prompt: "x"}); !errors.Is(err, gemma.ErrLoading) {
		t.Errorf("error %v", err)
	}
	for depth, want := range map[gemma.Depth]error{gemma.DepthHTTP: nil, gemma.DepthQueue: gemma.ErrLoading, gemma.DepthDevice: gemma.ErrLoading} {
		if _, err := client.EchoThrough(ctx, depth, 1); !errors.Is(err, want) {
			t.Errorf("an echo through %q: %v", depth, err)
		}
	}
	srv.SetStatus(gemma.Status{State: gemma.StateReady, Model: "m"})
	if st, err := client.Ready(ctx); err != nil || !st.Ready() || st.Progress != nil {
		t.Errorf("%+v, %v", st, err)
	}
}
