package frames_test

import (
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/frames"
	"github.com/gemma-server/gemma-server/clients/go/internal/frametest"
)

// What no server sends ends the connection, and the error says what it was.
func TestNonsense(t *testing.T) {
	for want, nonsense := range map[string]struct {
		t     frames.Type
		body  string
		ofOne bool // it spoils one request alone
	}{
		"of type 9, which servers do not send":         {9, "", false},
		"of type 2, which servers do not send":         {frames.Request, `{"id":1}`, false},
		"of type 0, which nothing was sent for":        {frames.Echo, "x", false},
		"of type 1, which nothing was sent for":        {frames.Raw, "x", false},
		"of type 3: unexpected end of JSON":            {frames.Piece, `{"id":1`, false},
		"of type 3: json: cannot unmarshal string":     {frames.Piece, `{"id":"1"}`, false},
		"of type 4, about no request of this conn":     {frames.Finished, `{"id":2}`, false},
		"of type 3, about no request of this conn":     {frames.Piece, `{"response":"x"}`, false},
		`of an error: "{\"status\":500}"`:              {frames.Failed, `{"status":500}`, false},
		"of type 4: no finish_reason":                  {frames.Finished, `{"id":1}`, true},
		"of type 4: json: cannot unmarshal number":     {frames.Finished, `{"id":1,"response":7}`, true},
		`unexpected frame of an error: "{\"id\":1}"`:   {frames.Failed, `{"id":1}`, true},
		"of type 3: a piece of what should come whole": {frames.Piece, `{"id":1}`, true},
	} {
		conn := dial(t, func(p *frametest.Peer, _ frames.Type, _ []byte) { p.Send(nonsense.t, []byte(nonsense.body)) })
		var err error
		if strings.Contains(want, "whole") {
			_, err = conn.Generate(ctx, gemma.Request{Prompt: "x"})
		} else {
			_, err = collect(conn, ctx, "x")
		}
		if err == nil || !strings.Contains(err.Error(), "unexpected frame "+strings.TrimPrefix(want, "unexpected frame ")) ||
			errors.Is(err, io.EOF) || errors.Is(err, frames.ErrBroken) == nonsense.ofOne {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestLengthsThatCannotBe(t *testing.T) {
	for length, want := range map[uint32]error{0: frames.ErrEmpty, frames.MaxAnswer + 2: frames.ErrTooLong} {
		conn := dial(t, func(p *frametest.Peer, _ frames.Type, _ []byte) {
			p.SendBytes(binary.BigEndian.AppendUint32(nil, length))
		})
		if _, err := conn.Echo(ctx, nil); !errors.Is(err, want) || !errors.Is(err, frames.ErrBroken) {
			t.Errorf("length %d: %v", length, err)
		}
	}
}

// What comes late, or twice, is of a request that is over, and harms no other.
func TestDuplicates(t *testing.T) {
	conn := dial(t, func(p *frametest.Peer, typ frames.Type, body []byte) {
		for range 2 {
			p.Send(frames.Piece, frametest.Object{"id": frametest.Parse(body).ID, "response": "a"})
		}
		for range 2 {
			frametest.Repeat(p, typ, body)
			p.Send(frames.Failed, frametest.Failure(frametest.Parse(body).ID, 499, "cancelled", ""))
		}
	})
	for range 3 {
		if pieces, err := collect(conn, ctx, "b"); !slices.Equal(pieces, []string{"a", "a", "b", ""}) || err != nil {
			t.Errorf("got %q, %v", pieces, err)
		}
	}
}

// The pieces of two streams come in turns, and a third one's do not come at all.
func TestInterleavedStreams(t *testing.T) {
	waiting := make(chan frametest.Request, 3)
	conn := dial(t, func(p *frametest.Peer, _ frames.Type, body []byte) {
		if waiting <- frametest.Parse(body); len(waiting) < cap(waiting) {
			return
		}
		one, two := <-waiting, <-waiting
		for _, piece := range []string{"1", "2", "3"} {
			for _, req := range []frametest.Request{two, one} {
				p.Send(frames.Piece, frametest.Object{"id": req.ID, "response": req.Prompt + piece})
			}
		}
		for _, req := range []frametest.Request{one, two} {
			p.Send(frames.Finished, frametest.Object{"id": req.ID, "response": "", "finish_reason": "stop"})
		}
	})
	got := make(chan []string)
	for _, prompt := range []string{"a", "b", "c"} {
		go func() {
			if pieces, err := collect(conn, ctx, prompt); err == nil {
				got <- pieces
			}
		}()
	}
	for range 2 {
		pieces := <-got
		of := pieces[0][:1]
		if !slices.Equal(pieces, []string{of + "1", of + "2", of + "3", ""}) {
			t.Errorf("got %q", pieces)
		}
	}
}

// A loop that takes its time does not keep others from their answers, and gets
// all of its own.
func TestSlowLoop(t *testing.T) {
	const pieces = 50_000
	conn := dial(t, func(p *frametest.Peer, typ frames.Type, body []byte) {
		if typ == frames.Request {
			for range pieces {
				p.Send(frames.Piece, frametest.Object{"id": 1, "response": "x"})
			}
		}
		frametest.Repeat(p, typ, body)
	})
	n := 0
	for _, err := range conn.Stream(ctx, gemma.Request{Prompt: "x"}) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n > 1 {
			continue
		}
		if got, err := conn.Echo(ctx, []byte("meanwhile")); string(got) != "meanwhile" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if n != pieces+2 {
		t.Errorf("%d chunks", n)
	}
}

func TestFailures(t *testing.T) {
	conn := dial(t, func(p *frametest.Peer, typ frames.Type, body []byte) {
		failure := frametest.Failure(0, 429, gemma.CodeOverloaded, "prompt")
		failure["retry_after_s"] = 1.5
		switch typ {
		case frames.Request:
			failure["id"] = frametest.Parse(body).ID
		case frames.Raw:
			failure["about"] = frames.Raw
		case frames.Echo:
			frametest.Repeat(p, typ, body)
			return
		}
		p.Send(frames.Failed, failure)
	})
	for range 2 { // the connection goes on
		for name, err := range everyCall(conn) {
			if name == "Echo" {
				if err != nil {
					t.Errorf("Echo: %v", err)
				}
				continue
			}
			want := gemma.APIError{Status: 429, Type: "invalid_request_error", Message: "no", Param: "prompt",
				Code: gemma.CodeOverloaded, RequestID: "r1", RetryAfter: 1500 * time.Millisecond}
			var api *gemma.APIError
			if !errors.As(err, &api) || *api != want || !errors.Is(err, gemma.ErrOverloaded) || errors.Is(err, frames.ErrBroken) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// A stream that fails has its pieces before the error.
func TestFailureAmidAStream(t *testing.T) {
	conn := dial(t, func(p *frametest.Peer, _ frames.Type, body []byte) {
		id := frametest.Parse(body).ID
		p.Send(frames.Piece, frametest.Object{"id": id, "response": "a"})
		p.Send(frames.Failed, frametest.Failure(id, 504, gemma.CodeDeadline, ""))
	})
	if pieces, err := collect(conn, ctx, "x"); !slices.Equal(pieces, []string{"a"}) || !errors.Is(err, gemma.ErrDeadline) {
		t.Errorf("got %q, %v", pieces, err)
	}
}

// Why the server closes a connection is what every call gets, also when it did
// so before the call.
func TestRefusedConnection(t *testing.T) {
	conn := dial(t, func(p *frametest.Peer, _ frames.Type, _ []byte) {
		p.Send(frames.Failed, frametest.Failure(0, 429, "too_many_connections", ""))
		p.Break()
	})
	for range 2 {
		for name, err := range everyCall(conn) {
			var api *gemma.APIError
			if !errors.As(err, &api) || api.Code != "too_many_connections" || !errors.Is(err, frames.ErrBroken) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}
