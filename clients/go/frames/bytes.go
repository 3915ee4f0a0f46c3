package frames

import "context"

// Echo sends bytes and returns what comes back, which should be the same. It
// costs no work of the model: it checks the connection and measures its latency.
func (c *Conn) Echo(ctx context.Context, body []byte) ([]byte, error) {
	return c.exchange(ctx, Echo, body)
}

// Raw sends what the served model takes and returns what it gives; of Gemma a
// prompt and its answer. The server works on the raw frames of one connection
// one after the other: use several connections to have several at work. One
// whose ctx has ended goes on there.
func (c *Conn) Raw(ctx context.Context, body []byte) ([]byte, error) {
	return c.exchange(ctx, Raw, body)
}

func (c *Conn) exchange(ctx context.Context, t Type, body []byte) ([]byte, error) {
	waiting := newCall(0)
	if err := c.write(ctx, t, body, waiting); err != nil {
		return nil, err
	}
	a, err := waiting.next(ctx)
	return a.body, err
}
