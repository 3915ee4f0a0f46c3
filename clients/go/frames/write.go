package frames

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/gemma-server/gemma-server/clients/go/internal/ended"
)

const (
	// promptly is how long a caller waits for the server to take its frame,
	// before the caller goes back to watching its context.
	promptly = 10 * time.Millisecond
	// stalled is how long the server may take nothing.
	stalled = 30 * time.Second
)

// write sends a frame, in one system call as a rule. Where a call waits for its
// answer, it is noted in the order in which the frames go out.
func (c *Conn) write(ctx context.Context, t Type, body []byte, waiting *call) error {
	if len(body) > MaxBody {
		return fmt.Errorf("%w: its body has %d bytes, and the server takes %d", ErrTooLong, len(body), MaxBody)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("frames: %w", ended.Error(ctx))
	}
	select {
	case c.writing <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("frames: %w", ended.Error(ctx))
	}
	if waiting != nil {
		if err := c.expect(t, waiting); err != nil {
			<-c.writing
			return err
		}
	}
	c.out = Append(c.out[:0], t, body)
	c.conn.SetWriteDeadline(time.Now().Add(promptly))
	n, err := c.conn.Write(c.out)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		go c.writeRest(c.out[n:])
		return nil
	}
	<-c.writing
	c.note(err)
	return nil
}

// writeRest ends a frame that the server does not take at once: the connection
// is of no use behind half a frame.
func (c *Conn) writeRest(rest []byte) {
	c.conn.SetWriteDeadline(time.Now().Add(stalled))
	_, err := c.conn.Write(rest)
	<-c.writing
	c.note(err)
}

// note leaves it to the reader to tell why nothing can be written: the server
// may have said so before it closed the connection.
func (c *Conn) note(err error) {
	if err != nil {
		c.conn.SetReadDeadline(time.Now().Add(time.Second))
	}
}
