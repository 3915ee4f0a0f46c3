package frames_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/frames"
	"github.com/gemma-server/gemma-server/clients/go/internal/frametest"
)

// endless sends a piece for each request and nothing else, and notes what came.
func endless(t *testing.T) (*frames.Conn, <-chan frametest.Request) {
	came := make(chan frametest.Request, 10)
	return dial(t, func(p *frametest.Peer, typ frames.Type, body []byte) {
		if typ == frames.Echo {
			p.Send(typ, body)
			return
		}
		req := frametest.Parse(body)
		if req.Stream {
			p.Send(frames.Piece, frametest.Object{"id": req.ID, "response": "a"})
		}
		came <- req
	}), came
}

// wasCancelled expects a request and then its cancellation.
func wasCancelled(t *testing.T, came <-chan frametest.Request) {
	t.Helper()
	id := (<-came).ID
	select {
	case next := <-came:
		if next.Op != "cancel" || next.ID != id {
			t.Errorf("got %+v, want request %d cancelled", next, id)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the request is not cancelled")
	}
}

func TestLeavingALoopCancels(t *testing.T) {
	conn, came := endless(t)
	for _, err := range conn.Stream(ctx, gemma.Request{Prompt: "x"}) {
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	wasCancelled(t, came)
	func() {
		defer func() { recover() }()
		for range conn.Stream(ctx, gemma.Request{Prompt: "x"}) {
			panic("in the loop")
		}
	}()
	wasCancelled(t, came)
	if got, err := conn.Echo(ctx, []byte("still here")); string(got) != "still here" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// The server hears of it while the loop is still busy with a piece.
func TestCancelledStream(t *testing.T) {
	conn, came := endless(t)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var last error
	n := 0
	for _, err := range conn.Stream(ctx, gemma.Request{Prompt: "x"}) {
		last = err
		if n++; n == 1 {
			cancel()
			wasCancelled(t, came)
		}
	}
	if n != 2 || !errors.Is(last, context.Canceled) {
		t.Errorf("%d chunks, %v", n, last)
	}
}

func TestCancelledCalls(t *testing.T) {
	conn, came := endless(t)
	for name, call := range map[string]func(context.Context) error{
		"Generate": func(ctx context.Context) error {
			_, err := conn.Generate(ctx, gemma.Request{Prompt: "x"})
			return err
		},
		"Score":    func(ctx context.Context) error { _, err := conn.Score(ctx, "x", 0); return err },
		"Tokenize": func(ctx context.Context) error { _, err := conn.Tokenize(ctx, "x"); return err },
		"Ready":    func(ctx context.Context) error { _, err := conn.Ready(ctx); return err },
	} {
		soon, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		if err := call(soon); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
		wasCancelled(t, came)
		if err := call(soon); !errors.Is(err, context.DeadlineExceeded) || len(came) > 0 {
			t.Errorf("%s: %v, and %d requests sent after the end of the context", name, err, len(came))
		}
	}
}

func TestDeadlineTravels(t *testing.T) {
	conn, came := endless(t)
	soon, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	go conn.Generate(ctx, gemma.Request{Prompt: "x"})
	if req := <-came; req.Timeout != 0 {
		t.Errorf("without a deadline: %+v", req)
	}
	for _, call := range []func(){
		func() { conn.Generate(soon, gemma.Request{Prompt: "x"}) },
		func() { collect(conn, soon, "x") },
		func() { conn.Score(soon, "x", 0) },
	} {
		go call()
		if req := <-came; req.Timeout < 50_000 || req.Timeout > 60_000 {
			t.Errorf("got %+v", req)
		}
	}
}

// An echo that nobody waits for any more does not pass for the next one.
func TestAbandonedEcho(t *testing.T) {
	hold := make(chan struct{})
	conn := dial(t, func(p *frametest.Peer, typ frames.Type, body []byte) {
		<-hold
		p.Send(typ, body)
	})
	soon, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := conn.Echo(soon, []byte("first")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	close(hold)
	if got, err := conn.Echo(ctx, []byte("second")); string(got) != "second" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// A context may end because of another request's error, which says nothing of
// this one.
func TestCauseOfAContext(t *testing.T) {
	conn, came := endless(t)
	ctx, cancel := context.WithCancelCause(ctx)
	go func() { <-came; cancel(gemma.ErrOverloaded) }()
	_, err := conn.Generate(ctx, gemma.Request{Prompt: "x"})
	_, err2 := conn.Echo(ctx, nil)
	for _, err := range []error{err, err2} {
		if !errors.Is(err, context.Canceled) || errors.Is(err, gemma.ErrOverloaded) || !strings.Contains(err.Error(), "overloaded") {
			t.Errorf("got %v", err)
		}
	}
}
