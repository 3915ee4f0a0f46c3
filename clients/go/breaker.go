package gemma

import "time"

const (
	// breakerFailures in a row open a breaker.
	breakerFailures = 3
	breakerWaitMin  = time.Second
	breakerWaitMax  = 30 * time.Second
)

// breaker is a circuit breaker: after failures in a row it opens, and its
// endpoint is left out. When its time has come, one request probes the
// endpoint; success closes the breaker, failure opens it for longer.
type breaker struct {
	failures int // in a row
	wait     time.Duration
	due      time.Time // when an open breaker lets the next probe through
	probing  bool
}

func (b *breaker) open() bool { return b.failures >= breakerFailures }

// admits reports whether a request should go through now.
func (b *breaker) admits(now time.Time) bool {
	return !b.open() || (!b.probing && !now.Before(b.due))
}

// enter lets a request through, admitted or not, and says whether it is the
// probe.
func (b *breaker) enter() (probe bool) {
	if !b.open() || b.probing {
		return false
	}
	b.probing = true
	return true
}

// leave ends a probe that came to no result, or before its result is noted.
func (b *breaker) leave(probe bool) {
	if probe {
		b.probing = false
	}
}

func (b *breaker) succeed() {
	b.failures, b.wait = 0, 0
}

// fail counts a failure. Those of an open breaker before its time are of
// requests that were under way, or had nowhere else to go, and tell nothing new.
func (b *breaker) fail(now time.Time) {
	if b.open() && now.Before(b.due) {
		return
	}
	b.failures++
	if b.open() {
		b.wait = min(max(breakerWaitMin, 2*b.wait), breakerWaitMax)
		b.due = now.Add(b.wait)
	}
}
