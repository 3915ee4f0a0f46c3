package gemma

import (
	"context"
	"errors"
	"net/http"
)

const readyPath = "/readyz"

// Ready reports whether the server can answer prompts. A server that is still
// loading or already draining is a [Status], not an error: look at
// [Status.Ready]. Unlike other calls it is never tried again.
//
// Of several servers all are asked at once. The first that is ready is the
// answer; without one it is the first in the order of [WithEndpoints] that
// told its status, else the first's error.
func (c *Client) Ready(ctx context.Context) (*Status, error) {
	if c.err != nil {
		return nil, c.err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	places := c.pool.each()
	statuses, errs := make([]*Status, len(places)), make([]error, len(places))
	answered := make(chan int, len(places))
	for i, at := range places {
		go func() {
			statuses[i], errs[i] = c.readyAt(ctx, at)
			answered <- i
		}()
	}
	for range places {
		if i := <-answered; errs[i] == nil && statuses[i].Ready() {
			return statuses[i], nil
		}
	}
	for _, st := range statuses {
		if st != nil {
			return st, nil
		}
	}
	return nil, errs[0]
}

func (c *Client) readyAt(ctx context.Context, at *place) (*Status, error) {
	resp, err := c.attempt(ctx, at, outgoing{method: http.MethodGet, path: readyPath, accept: "application/json"})
	if err != nil {
		return nil, err
	}
	ans, err := readAnswer(ctx, resp, readyPath)
	if err != nil {
		return nil, err
	}
	return ans.readiness()
}

func (a *answer) readiness() (*Status, error) {
	if a.status != http.StatusOK && a.status != http.StatusServiceUnavailable {
		return nil, a.apiError()
	}
	st := &Status{RetryAfter: retryAfter(a.header)}
	err := a.decode(st)
	if err == nil && st.State != "" {
		return st, nil
	}
	if a.status != http.StatusOK {
		return nil, a.apiError() // a 503 that is not the server's own
	}
	if err == nil {
		err = a.unexpected(errors.New("no status"))
	}
	return nil, err
}
