package frames

import (
	"context"
	"fmt"
	"sync"

	"github.com/gemma-server/gemma-server/clients/go/internal/ended"
)

// arrival is a frame that came for a call, or an error instead.
type arrival struct {
	t    Type
	body []byte
	err  error
}

// call waits for the answer to a frame, of which a stream has many.
type call struct {
	id   uint64 // of a request
	over func() // called when a frame without an id is answered

	mu      sync.Mutex
	arrived []arrival
	signal  chan struct{} // has a token when something has arrived
}

func newCall(id uint64) *call {
	return &call{id: id, over: func() {}, signal: make(chan struct{}, 1)}
}

// put never waits: a slow loop over one stream must not hold up the others.
func (c *call) put(a arrival) {
	c.mu.Lock()
	c.arrived = append(c.arrived, a)
	c.mu.Unlock()
	select {
	case c.signal <- struct{}{}:
	default:
	}
}

func (c *call) take() (a arrival, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.arrived) == 0 {
		return arrival{}, false
	}
	a = c.arrived[0]
	c.arrived[0] = arrival{}
	c.arrived = c.arrived[1:]
	return a, true
}

// next waits for the next arrival.
func (c *call) next(ctx context.Context) (arrival, error) {
	for ctx.Err() == nil {
		if a, ok := c.take(); ok {
			return a, a.failure()
		}
		select {
		case <-c.signal:
		case <-ctx.Done():
		}
	}
	return arrival{}, fmt.Errorf("frames: %w", ended.Error(ctx))
}

func (a *arrival) failure() error {
	if a.t == Failed {
		return readFailure(a.body)
	}
	return a.err
}
