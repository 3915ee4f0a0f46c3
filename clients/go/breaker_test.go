package gemma

import (
	"testing"
	"time"
)

func TestBreaker(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	var b breaker
	fail := func(times int) {
		for range times {
			b.fail(now)
		}
	}
	check := func(what string, admits bool) {
		t.Helper()
		if b.admits(now) != admits {
			t.Errorf("%s: admits a request: %v", what, !admits)
		}
	}
	fail(breakerFailures - 1)
	b.succeed()
	fail(breakerFailures - 1)
	check("failures that are not in a row", true)
	fail(1)
	check("as many in a row", false)
	fail(30) // of requests that were under way

	now = now.Add(breakerWaitMin)
	check("when its time has come", true)
	if !b.enter() {
		t.Error("the first request is no probe")
	}
	check("while a probe is out", false)
	if b.enter() {
		t.Error("a second probe")
	}
	b.leave(false)
	check("another request leaves", false)
	b.leave(true)
	check("the probe was given up", true)

	for wait := 2 * breakerWaitMin; wait < 2*breakerWaitMax; wait *= 2 {
		b.leave(b.enter())
		fail(1)
		now = now.Add(min(wait, breakerWaitMax) - 1)
		check("before the longer time is over", false)
		now = now.Add(1)
		check("when it is", true)
	}
	b.leave(b.enter())
	b.succeed()
	check("after success", true)
	fail(breakerFailures)
	now = now.Add(breakerWaitMin)
	check("its time begins anew", true)
}
