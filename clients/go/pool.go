package gemma

import (
	"cmp"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// pool spreads requests over endpoints: the least busy first, and those whose
// breaker is open only when there is no other.
type pool struct {
	log *slog.Logger
	now func() time.Time

	mu        sync.Mutex
	endpoints []*endpoint
	next      int // where the search begins, so that equals take turns
}

// place is a request's place on an endpoint.
type place struct {
	pool     *pool
	endpoint *endpoint
	probe    bool
}

// take finds a place for a request, on next if that is set.
func (p *pool) take(past tried, next *endpoint) *place {
	p.mu.Lock()
	defer p.mu.Unlock()
	if next == nil {
		next = p.best(past)
	}
	p.next = (slices.Index(p.endpoints, next) + 1) % len(p.endpoints)
	return p.enter(next)
}

// each takes a place on every endpoint.
func (p *pool) each() []*place {
	p.mu.Lock()
	defer p.mu.Unlock()
	places := make([]*place, len(p.endpoints))
	for i, e := range p.endpoints {
		places[i] = p.enter(e)
	}
	return places
}

func (p *pool) enter(e *endpoint) *place {
	e.inFlight++
	return &place{p, e, e.breaker.enter()}
}

// best is an endpoint that was not tried yet before one that was, of these one
// that admits requests, of these the least busy. Where none admits requests, it
// is the one whose probe is due soonest.
func (p *pool) best(past tried) *endpoint {
	now := p.now()
	shut := func(e *endpoint) bool { return !e.breaker.admits(now) }
	rank := func(e *endpoint) (rank int) {
		if past.has(e) {
			rank = 2
		}
		if shut(e) {
			rank++
		}
		return rank
	}
	order := append(slices.Clone(p.endpoints[p.next:]), p.endpoints[:p.next]...)
	return slices.MinFunc(order, func(a, b *endpoint) int {
		byRank, byDue := cmp.Compare(rank(a), rank(b)), 0
		if shut(a) {
			byDue = a.breaker.due.Compare(b.breaker.due)
		}
		return cmp.Or(byRank, byDue, cmp.Compare(a.inFlight, b.inFlight))
	})
}

// hasOther reports whether an endpoint that was not tried admits requests.
func (p *pool) hasOther(past tried) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	return slices.ContainsFunc(p.endpoints, func(e *endpoint) bool {
		return !past.has(e) && e.breaker.admits(now)
	})
}

// succeed notes that the endpoint works.
func (l *place) succeed() {
	l.note(func(b *breaker) { b.succeed() })
}

// fail notes that the endpoint is not there or takes no requests.
func (l *place) fail() {
	l.note(func(b *breaker) { b.fail(l.pool.now()) })
}

// abandon notes that the request was given up before its endpoint answered.
func (l *place) abandon() {
	l.note(func(*breaker) {})
}

func (l *place) note(change func(*breaker)) {
	p, b := l.pool, &l.endpoint.breaker
	p.mu.Lock()
	before := b.open()
	b.leave(l.probe)
	change(b)
	after, wait := b.open(), b.wait
	p.mu.Unlock()
	switch {
	case after && !before:
		p.log.Warn("gemma: leaving a server out", "endpoint", l.endpoint.name, "for", wait)
	case before && !after:
		p.log.Info("gemma: a server is back", "endpoint", l.endpoint.name)
	}
}

// leave ends the request's time on the endpoint.
func (l *place) leave() {
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	l.endpoint.inFlight--
}

// placedBody leaves the place when the body is closed.
type placedBody struct {
	io.ReadCloser
	leave func()
}

func (b *placedBody) Close() error {
	defer b.leave()
	return b.ReadCloser.Close()
}
