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
	return askEach(ctx, c, readyPath, (*answer).readiness, (*Status).Ready)
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
