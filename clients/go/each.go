package gemma

import (
	"context"
	"net/http"
)

// askEach asks all servers at once, each a single time. The first answer that
// will do is the one, else the first in the order of the servers, else the
// first one's error.
func askEach[T any](ctx context.Context, c *Client, path string, read func(*answer) (*T, error), willDo func(*T) bool) (*T, error) {
	if c.err != nil {
		return nil, c.err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	places := c.pool.each()
	found, errs := make([]*T, len(places)), make([]error, len(places))
	answered := make(chan int, len(places))
	for i, at := range places {
		go func() {
			found[i], errs[i] = askOne(ctx, c, at, path, read)
			answered <- i
		}()
	}
	for range places {
		if i := <-answered; errs[i] == nil && willDo(found[i]) {
			return found[i], nil
		}
	}
	for _, one := range found {
		if one != nil {
			return one, nil
		}
	}
	return nil, errs[0]
}

func askOne[T any](ctx context.Context, c *Client, at *place, path string, read func(*answer) (*T, error)) (*T, error) {
	resp, err := c.attempt(ctx, at, outgoing{method: http.MethodGet, path: path, accept: "application/json"})
	if err != nil {
		return nil, err
	}
	ans, err := readAnswer(ctx, resp, path)
	if err != nil {
		return nil, err
	}
	return read(ans)
}
