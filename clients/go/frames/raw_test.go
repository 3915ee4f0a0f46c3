package frames_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/gemma-server/gemma-server/clients/go/frames"
	"github.com/gemma-server/gemma-server/clients/go/internal/frametest"
)

// hold answers each raw frame when it gets a token, and notes what came.
func hold(t *testing.T) (conn *frames.Conn, came chan string, tokens chan struct{}) {
	came, tokens = make(chan string, 100), make(chan struct{}, 100)
	return dial(t, func(p *frametest.Peer, typ frames.Type, body []byte) {
		came <- string(body)
		go func() {
			<-tokens
			p.Send(typ, []byte("?"))
		}()
	}), came, tokens
}

// Beyond 16 raw frames the server would refuse more, so they wait, and each
// answer lets one go.
func TestRawFramesWaitForAPlace(t *testing.T) {
	conn, came, tokens := hold(t)
	var running sync.WaitGroup
	for i := range 40 {
		running.Add(1)
		go func() {
			defer running.Done()
			if _, err := conn.Raw(ctx, fmt.Append(nil, i)); err != nil {
				t.Error(err)
			}
		}()
	}
	for range 16 {
		<-came
	}
	for range 24 {
		time.Sleep(time.Millisecond)
		if len(came) > 0 {
			t.Fatal("more raw frames than the server takes")
		}
		tokens <- struct{}{}
		<-came
	}
	for range 16 {
		tokens <- struct{}{}
	}
	running.Wait()
}

// A place is free again when its answer has come, not when its caller has gone;
// who waits for one heeds his context, and the connection's end.
func TestWaitingForAPlaceEnds(t *testing.T) {
	conn, came, tokens := hold(t)
	soon, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	var running sync.WaitGroup
	for range 20 {
		running.Add(1)
		go func() {
			defer running.Done()
			if _, err := conn.Raw(soon, nil); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		}()
	}
	running.Wait()
	if len(came) != 16 {
		t.Errorf("%d raw frames came", len(came))
	}
	tokens <- struct{}{}
	for range 2 { // what is not sent keeps no place
		if _, err := conn.Raw(ctx, make([]byte, frames.MaxBody+1)); !errors.Is(err, frames.ErrTooLong) {
			t.Errorf("got %v", err)
		}
	}
	waits := make(chan error)
	go func() { _, err := conn.Raw(ctx, nil); waits <- err }()
	for range 17 {
		<-came
	}
	go func() { _, err := conn.Raw(ctx, nil); waits <- err }()
	conn.Close()
	for range 2 {
		if err := <-waits; !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v", err)
		}
	}
}
