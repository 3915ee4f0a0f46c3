package frames

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/gemma-server/gemma-server/clients/go/internal/wire"
)

// operation begins every request.
type operation struct {
	ID uint64 `json:"id"`
	Op string `json:"op"`
}

func (c *Conn) operation(name string) operation {
	return operation{ID: c.lastID.Add(1), Op: name}
}

// send sends a request, whose operation has this id.
func (c *Conn) send(ctx context.Context, id uint64, request any) (*call, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("frames: encoding the request: %w", err)
	}
	waiting := newCall(id)
	return waiting, c.write(ctx, Request, body, waiting)
}

// ask sends a request and decodes its answer, which comes whole.
func (c *Conn) ask(ctx context.Context, id uint64, request, answer any) error {
	waiting, err := c.send(ctx, id, request)
	if err != nil {
		return err
	}
	defer c.abandon(id)
	a, err := waiting.next(ctx)
	if err == nil && a.t == Piece {
		err = a.unexpected(errors.New("a piece of what should come whole"))
	}
	if err != nil {
		return err
	}
	return a.decode(answer)
}

func (a *arrival) decode(v any) error {
	if err := json.Unmarshal(a.body, v); err != nil {
		return a.unexpected(err)
	}
	return nil
}

func (a *arrival) unexpected(err error) error {
	return fmt.Errorf("frames: %w of type %d: %w in %q", errUnexpected, a.t, err, wire.Excerpt(a.body))
}
