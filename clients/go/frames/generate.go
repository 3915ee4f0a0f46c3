package frames

import (
	"context"
	"errors"
	"fmt"
	"iter"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/internal/wire"
)

// generation asks for an answer to a prompt.
type generation struct {
	operation
	gemma.Request
	Stream  bool  `json:"stream,omitempty"`
	Timeout int64 `json:"timeout_ms,omitempty"`
}

func (c *Conn) generation(ctx context.Context, req gemma.Request, stream bool) (*generation, error) {
	if err := req.CheckText(); err != nil {
		return nil, fmt.Errorf("frames: %w", err)
	}
	if req.Model == "" {
		req.Model = c.model
	}
	return &generation{c.operation("generate"), req, stream, wire.Timeout(ctx)}, nil
}

var errNoReason = errors.New("no finish_reason")

// Generate sends a prompt and waits for the whole answer, which has no
// RequestID here. When ctx ends, the server stops too.
func (c *Conn) Generate(ctx context.Context, req gemma.Request) (*gemma.Response, error) {
	g, err := c.generation(ctx, req, false)
	if err != nil {
		return nil, err
	}
	resp := &gemma.Response{}
	if err := c.ask(ctx, g.ID, g, resp); err != nil {
		return nil, err
	}
	if resp.FinishReason == "" {
		return nil, fmt.Errorf("frames: %w: %w", errUnexpected, errNoReason)
	}
	return resp, nil
}

// Stream sends a prompt and yields the answer piece by piece as the model makes
// it. The request is sent when a loop over the sequence begins, once for each
// loop. Leaving the loop or cancelling ctx cancels the request at once, and
// nothing else that runs on the connection.
//
// An error is yielded last, with an empty [gemma.Chunk]. When the connection
// breaks it wraps [ErrBroken] and, unless the server said why,
// [io.ErrUnexpectedEOF], so a loop that ends without an error has seen the whole
// answer. Another stream then needs another connection: [Dial] anew. A loop may
// be slow: what comes meanwhile is kept.
func (c *Conn) Stream(ctx context.Context, req gemma.Request) iter.Seq2[gemma.Chunk, error] {
	return func(yield func(gemma.Chunk, error) bool) {
		if err := c.stream(ctx, req, yield); err != nil {
			yield(gemma.Chunk{}, err)
		}
	}
}

// stream returns nil both at the end of the answer and after a break.
func (c *Conn) stream(ctx context.Context, req gemma.Request, yield func(gemma.Chunk, error) bool) error {
	g, err := c.generation(ctx, req, true)
	if err != nil {
		return err
	}
	waiting, err := c.send(ctx, g.ID, g)
	if err != nil {
		return err
	}
	defer c.abandon(g.ID)
	// The loop may be busy with a piece when ctx ends.
	stop := context.AfterFunc(ctx, func() { c.abandon(g.ID) })
	defer stop()
	for {
		a, err := waiting.next(ctx)
		if err != nil {
			return err
		}
		var chunk gemma.Chunk
		if err := a.decode(&chunk); err != nil {
			return err
		}
		if a.t == Finished && chunk.FinishReason == "" {
			return a.unexpected(errNoReason)
		}
		if !yield(chunk, nil) || a.t == Finished {
			return nil
		}
	}
}
