package frames

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

// readBuffer holds many pieces, or an echo of some size, for one system call.
const readBuffer = 64 << 10

// ErrBroken: the connection is of no more use, to no call. It is in every such
// error, whether the other end is gone, has refused the connection, has sent what
// it should not, or Close was called. What else failed leaves the connection as it
// was.
var ErrBroken = errors.New("frames: the connection is of no more use")

// Conn is a connection to the server's frames. It is safe for concurrent use.
// When it breaks, every call on it fails with [ErrBroken], those that wait and
// those to come; [Dial] another one then.
type Conn struct {
	conn   net.Conn
	model  string // of requests that name none
	lastID atomic.Uint64

	writing chan struct{} // a token: who has put one in may write, and use out
	out     []byte
	raw     chan struct{} // a token for each raw frame that is not answered yet

	mu     sync.Mutex
	err    error            // why it broke
	calls  map[uint64]*call // requests that run
	echoes []*call          // in the order in which they were sent, as the answers come
	raws   []*call          // likewise
}

// Dial connects to the Unix socket at path. There is no handshake: whether the
// server can answer is what [Conn.Ready] says, and also a server that has too
// many connections says so to the first call.
//
// A program that outlives its server dials anew when a call fails with
// [ErrBroken]. Whether that call is then made again is for the program to say:
// the server may have worked on it.
//
// A mistake in the options is an error before anything is dialled.
func Dial(ctx context.Context, path string, opts ...Option) (*Conn, error) {
	model, err := modelOf(opts)
	if err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("frames: %w", err)
	}
	c := &Conn{
		conn:    conn,
		model:   model,
		writing: make(chan struct{}, 1),
		raw:     make(chan struct{}, rawsMax),
		calls:   map[uint64]*call{},
	}
	go c.read()
	return c, nil
}

// Close ends the connection, and with it all that runs on it. What waits for an
// answer gets an error that wraps [net.ErrClosed], and [ErrBroken].
func (c *Conn) Close() error {
	c.fail(net.ErrClosed)
	return nil
}

// read hands each frame to the call that waits for it, until the connection
// breaks.
func (c *Conn) read() {
	r := bufio.NewReaderSize(c.conn, readBuffer)
	for {
		t, body, err := Read(r, MaxAnswer)
		if err == nil {
			err = c.route(t, body)
		}
		if err != nil {
			c.fail(lost(err))
			return
		}
	}
}

// lost makes every way to lose the connection an io.ErrUnexpectedEOF, but not
// what the server said or sent.
func lost(err error) error {
	var api *gemma.APIError
	switch {
	case errors.As(err, &api), errors.Is(err, errUnexpected), errors.Is(err, ErrEmpty), errors.Is(err, ErrTooLong):
		return err
	case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF):
		return io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, err)
}

// fail ends the connection, for the first reason there is.
func (c *Conn) fail(reason error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	err := fmt.Errorf("%w: %w", ErrBroken, reason)
	c.err = err
	c.conn.Close()
	for _, waiting := range c.calls {
		waiting.put(arrival{err: err})
	}
	for _, waiting := range append(c.echoes, c.raws...) {
		waiting.put(arrival{err: err})
		waiting.over()
	}
	c.calls, c.echoes, c.raws = nil, nil, nil
}

// expect notes a call whose frame is about to be written.
func (c *Conn) expect(t Type, waiting *call) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return c.err
	case t == Echo:
		c.echoes = append(c.echoes, waiting)
	case t == Raw:
		c.raws = append(c.raws, waiting)
	default:
		c.calls[waiting.id] = waiting
	}
	return nil
}

// abandon has the server end a request that still runs. What had been sent
// before it did is dropped.
func (c *Conn) abandon(id uint64) {
	c.mu.Lock()
	_, runs := c.calls[id]
	delete(c.calls, id)
	c.mu.Unlock()
	if runs {
		// A connection that takes nothing at the moment must not hold up the caller.
		go c.write(context.Background(), Request, fmt.Appendf(nil, `{"id":%d,"op":"cancel"}`, id), nil)
	}
}
