package frames

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/gemma-server/gemma-server/clients/go/internal/wire"
)

// errUnexpected: the other end does not speak the protocol.
var errUnexpected = errors.New("unexpected frame")

// route hands a frame to its call. An error is the connection's end: whoever
// waits for the frame that should have come would wait for ever.
func (c *Conn) route(t Type, body []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch t {
	case Echo:
		return deliver(&c.echoes, arrival{t: t, body: body})
	case Raw:
		return deliver(&c.raws, arrival{t: t, body: body})
	case Piece, Finished, Failed:
	default:
		return fmt.Errorf("%w of type %d, which servers do not send", errUnexpected, t)
	}
	var told struct {
		ID    *uint64 `json:"id"`
		About Type    `json:"about"` // without an id: the type of the frame at fault
	}
	if err := json.Unmarshal(body, &told); err != nil {
		return fmt.Errorf("%w of type %d: %w in %q", errUnexpected, t, err, wire.Excerpt(body))
	}
	switch {
	case told.ID == nil && t == Failed && told.About == Raw:
		return deliver(&c.raws, arrival{err: readFailure(body)})
	case told.ID == nil && t == Failed: // the server closes, or we have sent what we should not
		return readFailure(body)
	case told.ID == nil, *told.ID > c.lastID.Load():
		return fmt.Errorf("%w of type %d, about no request of this connection: %q", errUnexpected, t, wire.Excerpt(body))
	}
	// What is not there is of a request that was abandoned.
	if waiting, runs := c.calls[*told.ID]; runs {
		if t != Piece {
			delete(c.calls, *told.ID)
		}
		waiting.put(arrival{t: t, body: body})
	}
	return nil
}

// deliver hands what came to the call that was sent first.
func deliver(queue *[]*call, a arrival) error {
	if len(*queue) == 0 {
		return fmt.Errorf("%w of type %d, which nothing was sent for", errUnexpected, a.t)
	}
	waiting := (*queue)[0]
	(*queue)[0] = nil
	*queue = (*queue)[1:]
	waiting.put(a)
	waiting.over()
	return nil
}
