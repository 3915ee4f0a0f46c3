package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"

	"github.com/gemma-server/gemma-server/clients/go/frames"
)

// numberSize is how many bytes of a body make it differ from all others.
const numberSize = 8

// frameLane has a connection for itself, which is the shortest way there is: no
// other goroutine reads.
type frameLane struct {
	conn      net.Conn
	forget    func() bool
	r         *bufio.Reader
	body, out []byte
}

// frameLanes opens so many connections, or none where each echo has its own.
func frameLanes(ctx context.Context, opts options, keepAlive bool, connections int) (lanes []lane, done func(), err error) {
	var open []*frameLane
	done = func() {
		for _, l := range open {
			l.close()
		}
	}
	for range connections {
		if !keepAlive {
			lanes = append(lanes, opts.echoAnew)
			continue
		}
		l, err := openFrames(ctx, opts)
		if err != nil {
			done()
			return nil, nil, err
		}
		open = append(open, l)
		lanes = append(lanes, l.echo)
	}
	return lanes, done, nil
}

// openFrames connects, until close is called or ctx ends.
func openFrames(ctx context.Context, opts options) (*frameLane, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", opts.server.frames)
	if err != nil {
		return nil, err
	}
	l := &frameLane{conn: conn, r: bufio.NewReader(conn), body: make([]byte, opts.bytes)}
	l.forget = context.AfterFunc(ctx, func() { conn.Close() })
	return l, nil
}

func (l *frameLane) close() {
	l.forget()
	l.conn.Close()
}

func (l *frameLane) echo(_ context.Context, i int) error {
	binary.LittleEndian.PutUint64(l.body, uint64(i))
	l.out = frames.Append(l.out[:0], frames.Echo, l.body)
	if _, err := l.conn.Write(l.out); err != nil {
		return err
	}
	t, got, err := frames.Read(l.r, frames.MaxBody)
	if err != nil {
		return err
	}
	if t != frames.Echo || !bytes.Equal(got, l.body) {
		return fmt.Errorf("the echo is wrong: sent %d bytes, got %d in a frame of type %d: %.200q", len(l.body), len(got), t, got)
	}
	return nil
}

// echoAnew opens a connection for one echo.
func (o options) echoAnew(ctx context.Context, i int) error {
	l, err := openFrames(ctx, o)
	if err != nil {
		return err
	}
	defer l.close()
	return l.echo(ctx, i)
}
