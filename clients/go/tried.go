package gemma

import (
	"errors"
	"math/rand/v2"
	"time"
)

// tried has the endpoints that a request was on in vain, and how each refused
// it: nil are those that could not be reached.
type tried map[*endpoint]*refusal

// refusal is an answer that asks for patience.
type refusal struct {
	err    error
	again  time.Time     // before which there is no sense in asking again
	spread time.Duration // random: keeps many clients from coming back at once
}

// add notes how an attempt failed, the first being 1.
func (t tried) add(at *endpoint, err error, attempt int, now time.Time) {
	var answer *APIError
	if !errors.As(err, &answer) {
		t[at] = nil
		return
	}
	wait, spread := answer.RetryAfter, backoffMin
	if wait == 0 {
		spread = backoff(attempt) / 2
		wait = spread
	}
	t[at] = &refusal{err, now.Add(wait), rand.N(spread)}
}

// next is the endpoint that answered whose time comes first; nil where none
// answered.
func (t tried) next() (next *endpoint) {
	for e, r := range t {
		if r != nil && (next == nil || r.again.Before(t[next].again)) {
			next = e
		}
	}
	return next
}

// has reports whether the request was on the endpoint.
func (t tried) has(e *endpoint) bool {
	_, has := t[e]
	return has
}

// verdict is the error of a request that is given up: that of the endpoint that
// comes first, which says when to come back, else the last.
func (t tried) verdict(next *endpoint, last error) error {
	if next == nil {
		return last
	}
	return t[next].err
}
