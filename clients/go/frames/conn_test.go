package frames_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/frames"
	"github.com/gemma-server/gemma-server/clients/go/internal/frametest"
)

var ctx = context.Background()

func dial(t testing.TB, answer frametest.Answer) *frames.Conn {
	t.Helper()
	return dialPath(t, frametest.Start(t, answer).Path)
}

func dialPath(t testing.TB, path string) *frames.Conn {
	t.Helper()
	conn, err := frames.Dial(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// collect reads a whole stream.
func collect(conn *frames.Conn, ctx context.Context, prompt string) (pieces []string, err error) {
	for chunk, e := range conn.Stream(ctx, gemma.Request{Prompt: prompt}) {
		if err != nil {
			return nil, errors.New("something was yielded after an error")
		}
		if err = e; err == nil {
			pieces = append(pieces, chunk.Text)
		}
	}
	return pieces, err
}

// everyCall makes each kind of call at once and returns the errors.
func everyCall(conn *frames.Conn) map[string]error {
	var mu sync.Mutex
	errs := map[string]error{}
	var running sync.WaitGroup
	for name, call := range map[string]func() error{
		"Echo":     func() error { _, err := conn.Echo(ctx, nil); return err },
		"Raw":      func() error { _, err := conn.Raw(ctx, nil); return err },
		"Generate": func() error { _, err := conn.Generate(ctx, gemma.Request{Prompt: "x"}); return err },
		"Stream":   func() error { _, err := collect(conn, ctx, "x"); return err },
		"Tokenize": func() error { _, err := conn.Tokenize(ctx, "x"); return err },
		"Score":    func() error { _, err := conn.Score(ctx, "x", 0); return err },
		"Ready":    func() error { _, err := conn.Ready(ctx); return err },
	} {
		running.Add(1)
		go func() {
			defer running.Done()
			err := call()
			mu.Lock()
			defer mu.Unlock()
			errs[name] = err
		}()
	}
	running.Wait()
	return errs
}

func TestManyAtOnce(t *testing.T) {
	srv := frametest.Start(t, frametest.Repeat)
	conn := dialPath(t, srv.Path)
	var running sync.WaitGroup
	for i := range 32 {
		running.Add(1)
		go func() {
			defer running.Done()
			for j := range 20 {
				text := fmt.Sprintf("%d, %d", i, j)
				echo, err := conn.Echo(ctx, []byte(text))
				raw, err2 := conn.Raw(ctx, []byte("raw "+text))
				pieces, err3 := collect(conn, ctx, text)
				if err := errors.Join(err, err2, err3); err != nil {
					t.Error(err)
				} else if string(echo) != text || string(raw) != "raw "+text || strings.Join(pieces, "") != text {
					t.Errorf("got %q, %q, %q, want %q", echo, raw, pieces, text)
				}
			}
		}()
	}
	running.Wait()
	if n := srv.Connections(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// A connection that ends fails whatever waits, and whatever comes.
func TestBrokenConnection(t *testing.T) {
	left := 7
	conn := dial(t, func(p *frametest.Peer, typ frames.Type, body []byte) {
		if left--; left == 0 {
			p.Break()
		}
	})
	for range 2 {
		for name, err := range everyCall(conn) {
			if !errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(err, frames.ErrBroken) || !strings.HasPrefix(err.Error(), "frames: ") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestClose(t *testing.T) {
	came := make(chan struct{}, 7)
	conn := dial(t, func(*frametest.Peer, frames.Type, []byte) { came <- struct{}{} })
	go func() {
		for range cap(came) {
			<-came
		}
		conn.Close()
	}()
	for range 2 {
		for name, err := range everyCall(conn) {
			if !errors.Is(err, net.ErrClosed) || !errors.Is(err, frames.ErrBroken) || errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

// A server that takes nothing for a while holds up nobody beyond his context,
// and half a frame does not spoil what comes later.
func TestStalledServer(t *testing.T) {
	release := make(chan struct{})
	conn := dial(t, func(p *frametest.Peer, typ frames.Type, body []byte) {
		<-release
		frametest.Repeat(p, typ, body)
	})
	soon, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	for range 4 {
		if _, err := conn.Echo(soon, make([]byte, frames.MaxBody)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	}
	if waited := time.Since(begin); waited > 5*time.Second {
		t.Errorf("waited for %v", waited)
	}
	close(release)
	if got, err := conn.Echo(ctx, []byte("still here")); string(got) != "still here" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestTooLongBody(t *testing.T) {
	conn := dial(t, frametest.Repeat)
	long := strings.Repeat("x", frames.MaxBody+1)
	_, err := conn.Raw(ctx, []byte(long))
	_, err2 := conn.Generate(ctx, gemma.Request{Prompt: long})
	for _, err := range []error{err, err2} {
		if !errors.Is(err, frames.ErrTooLong) || errors.Is(err, frames.ErrBroken) {
			t.Errorf("got %v", err)
		}
	}
	if got, err := conn.Echo(ctx, []byte(long[1:])); len(got) != frames.MaxBody || err != nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestBrokenText(t *testing.T) {
	conn := dial(t, func(_ *frametest.Peer, _ frames.Type, body []byte) { t.Errorf("sent %q", body) })
	_, err := conn.Generate(ctx, gemma.Request{Prompt: "\xff"})
	_, err2 := collect(conn, ctx, "\xff")
	_, err3 := conn.Tokenize(ctx, "\xff")
	_, err4 := conn.Score(ctx, "\xff", 0)
	for _, err := range []error{err, err2, err3, err4} {
		if err == nil || err.Error() != "frames: the prompt is not valid UTF-8" {
			t.Errorf("got %v", err)
		}
	}
}

func TestNoServer(t *testing.T) {
	_, err := frames.Dial(ctx, t.TempDir()+"/none")
	var dial *net.OpError
	if !errors.As(err, &dial) || dial.Op != "dial" {
		t.Errorf("got %v", err)
	}
}
