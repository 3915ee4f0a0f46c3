package gemma

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/gemma-server/gemma-server/clients/go/internal/ended"
)

const (
	defaultRetries = 2
	backoffMin     = 200 * time.Millisecond
	backoffMax     = 5 * time.Second
	// retryAfterMax is the longest Retry-After that is waited for.
	retryAfterMax = 30 * time.Second
)

// send tries until a server takes the request or there is no sense in trying
// again. It leaves the body of the answer open; to close it is to leave the
// endpoint.
func (c *Client) send(ctx context.Context, out outgoing) (*http.Response, error) {
	if c.err != nil {
		return nil, c.err
	}
	if len(out.body) > bodyMax {
		return nil, fmt.Errorf("%w: its body has %d bytes, and the server takes %d", ErrTooLong, len(out.body), bodyMax)
	}
	past := tried{}
	var next *endpoint // that the wait was for
	for attempt := 1; ; attempt++ {
		at := c.pool.take(past, next)
		resp, err := c.attempt(ctx, at, out)
		if attempt > c.retries || !retryable(resp, err) {
			return resp, err
		}
		if resp != nil {
			err = failure(ctx, resp, out.path)
		}
		past.add(at.endpoint, err, attempt, c.pool.now())
		var wait time.Duration
		var worthwhile bool
		if next, wait, worthwhile = c.plan(ctx, past, attempt); !worthwhile {
			return nil, past.verdict(next, err)
		}
		c.log.InfoContext(ctx, "gemma: trying again", "path", out.path, "endpoint", at.endpoint.name,
			"attempt", attempt, "wait", wait, "error", err)
		if stopped := c.sleep(ctx, wait); stopped != nil {
			return nil, fmt.Errorf("gemma: %w while waiting to try again after %w", stopped, err)
		}
	}
}

// plan says whom to ask next, nil for whoever is left, and how long to wait
// before. Where that is too long it is not worthwhile.
func (c *Client) plan(ctx context.Context, past tried, attempt int) (next *endpoint, wait time.Duration, worthwhile bool) {
	if c.pool.hasOther(past) {
		return nil, 0, fits(ctx, 0)
	}
	next = past.next()
	if next == nil { // nobody is there
		half := backoff(attempt) / 2
		wait = half + rand.N(half)
		return nil, wait, fits(ctx, wait)
	}
	asked, spread := past[next].again.Sub(c.pool.now()), past[next].spread
	wait = max(0, asked+spread)
	return next, wait, asked <= retryAfterMax && fits(ctx, wait)
}

// attempt sends the request once and notes how the endpoint fares.
func (c *Client) attempt(ctx context.Context, at *place, out outgoing) (*http.Response, error) {
	connecting, traced := watchConnecting(ctx)
	resp, err := at.endpoint.do(traced, out, c.apiKey)
	switch {
	case err != nil && gaveUp(ctx, err, connecting()):
		at.abandon()
	case err == nil && out.path == readyPath && resp.StatusCode == http.StatusServiceUnavailable:
		at.abandon() // it told what it was asked for
	case err != nil || resp.StatusCode == http.StatusServiceUnavailable:
		at.fail()
	default:
		at.succeed()
	}
	if err != nil {
		at.leave()
		return nil, err
	}
	resp.Body = &placedBody{resp.Body, sync.OnceFunc(at.leave)}
	return resp, nil
}

// retryable reports whether the server certainly did not work on the request.
func retryable(resp *http.Response, err error) bool {
	if err != nil {
		return isDial(err)
	}
	status := resp.StatusCode
	if status < 400 || status == http.StatusGatewayTimeout {
		return false
	}
	switch strings.ToLower(resp.Header.Get("X-Should-Retry")) {
	case "true":
		return true
	case "false":
		return false
	}
	return status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable
}

// backoff is about how long to wait behind an attempt, the first being 1.
func backoff(attempt int) time.Duration {
	return min(backoffMin<<min(attempt-1, 10), backoffMax)
}

// fits reports whether the context's deadline leaves time behind the wait.
func fits(ctx context.Context, wait time.Duration) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() == nil && (!ok || wait < time.Until(deadline))
}

// failure is the error in resp, whose body it reads and closes.
func failure(ctx context.Context, resp *http.Response, path string) error {
	ans, err := readAnswer(ctx, resp, path)
	if err != nil {
		return err
	}
	return ans.apiError()
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ended.Error(ctx)
	}
}
