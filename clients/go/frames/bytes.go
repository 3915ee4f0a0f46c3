package frames

import (
	"context"
	"fmt"

	"github.com/gemma-server/gemma-server/clients/go/internal/ended"
)

// rawsMax is how many raw frames the server takes from one connection before
// it has answered any.
const rawsMax = 16

// Echo sends bytes and returns what comes back, which should be the same. It
// costs no work of the model: it checks the connection and measures its latency.
func (c *Conn) Echo(ctx context.Context, body []byte) ([]byte, error) {
	return c.exchange(ctx, Echo, body, newCall(0))
}

// Raw sends what the served model takes and returns what it gives; of Gemma a
// prompt and its answer. The server works on the raw frames of one connection
// one after the other, and takes 16 ahead; more wait here. Use several
// connections to have several at work. One whose ctx has ended goes on there.
func (c *Conn) Raw(ctx context.Context, body []byte) ([]byte, error) {
	select {
	case c.raw <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("frames: %w", ended.Error(ctx))
	}
	waiting := newCall(0)
	waiting.over = func() { <-c.raw }
	return c.exchange(ctx, Raw, body, waiting)
}

func (c *Conn) exchange(ctx context.Context, t Type, body []byte, waiting *call) ([]byte, error) {
	if err := c.write(ctx, t, body, waiting); err != nil {
		waiting.over()
		return nil, err
	}
	a, err := waiting.next(ctx)
	return a.body, err
}
