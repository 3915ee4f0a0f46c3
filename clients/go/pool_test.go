package gemma

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fleet is servers behind one client, of which each can be made to fail.
type fleet struct {
	client *Client
	now    time.Time
	down   []atomic.Bool
	count  []atomic.Int32
	log    bytes.Buffer
}

func newFleet(t *testing.T, size int, opts ...Option) *fleet {
	t.Helper()
	f := &fleet{now: time.Unix(1_000_000, 0), down: make([]atomic.Bool, size), count: make([]atomic.Int32, size)}
	var urls []string
	for i := range size {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			f.count[i].Add(1)
			if f.down[i].Load() {
				w.WriteHeader(503)
				io.WriteString(w, `{"status": "loading", "error": {"code": "loading"}}`)
				return
			}
			if r.URL.Path == "/readyz" {
				io.WriteString(w, `{"status": "ready", "model": "m`+string(rune('0'+i))+`"}`)
				return
			}
			if r.URL.Path == "/models" {
				io.WriteString(w, `{"models": [{"name": "m`+string(rune('0'+i))+`"}]}`)
				return
			}
			io.WriteString(w, goodAnswer)
		}))
		t.Cleanup(srv.Close)
		urls = append(urls, srv.URL)
	}
	log := slog.New(slog.NewTextHandler(&f.log, nil))
	f.client = New(append([]Option{WithEndpoints(urls...), WithLogger(log)}, opts...)...)
	f.client.pool.now = func() time.Time { return f.now }
	return f
}

// counts returns how many requests each server got since the last call.
func (f *fleet) counts() []int {
	counts := make([]int, len(f.count))
	for i := range f.count {
		counts[i] = int(f.count[i].Swap(0))
	}
	return counts
}

func (f *fleet) generate(times int) (err error) {
	for range times {
		_, e := f.client.Generate(context.Background(), Request{Prompt: "x"})
		err = errors.Join(err, e)
	}
	return err
}

func TestEqualsTakeTurns(t *testing.T) {
	f := newFleet(t, 3)
	if err := f.generate(9); err != nil {
		t.Error(err)
	}
	if got := f.counts(); !slices.Equal(got, []int{3, 3, 3}) {
		t.Errorf("requests %v", got)
	}
}

// Streams that are held open must turn the next requests elsewhere, until
// their loops end.
func TestLeastBusyFirst(t *testing.T) {
	var open [2]atomic.Int32
	var urls []string
	for i := range open {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			open[i].Add(1)
			w.Header().Set("Content-Type", "text/event-stream")
			io.Copy(io.Discard, r.Body)
			io.WriteString(w, "data: {\"response\": \"a\"}\n\n")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}))
		t.Cleanup(srv.Close)
		urls = append(urls, srv.URL)
	}
	client := New(WithEndpoints(urls...))
	// first reads the first piece of a stream and leaves the stream open.
	first := func() (leave func()) {
		begun, left := make(chan struct{}), make(chan struct{})
		over := make(chan struct{})
		go func() {
			defer close(over)
			for _, err := range client.Stream(context.Background(), Request{Prompt: "x"}) {
				if err != nil {
					t.Error(err)
				}
				close(begun)
				<-left
				break
			}
		}()
		<-begun
		return func() { close(left); <-over }
	}
	leave := []func(){first(), first(), first()} // on the servers 0, 1, 0
	leave[0]()
	leave[2]()
	leave = []func(){leave[1], first(), first()} // 0 and then either, so two of three
	if a, b := open[0].Load(), open[1].Load(); a+b != 5 || a < 3 {
		t.Errorf("streams %d and %d", a, b)
	}
	for _, leave := range leave {
		leave()
	}
	for _, e := range client.pool.endpoints {
		if e.inFlight != 0 {
			t.Errorf("%d requests count as in flight", e.inFlight)
		}
	}
}

// One server of three goes away and comes back: no request fails, it is left
// out, probed by one request at a time, and taken in again.
func TestFailingServerIsLeftOut(t *testing.T) {
	f := newFleet(t, 3)
	got := waits(f.client)
	f.down[1].Store(true)
	if err := f.generate(30); err != nil {
		t.Error(err)
	}
	if counts := f.counts(); counts[1] != breakerFailures || counts[0]+counts[2] != 30 {
		t.Errorf("requests %v", counts)
	}
	f.now = f.now.Add(breakerWaitMin)
	if err := f.generate(6); err != nil {
		t.Error(err)
	}
	if counts := f.counts(); counts[1] != 1 {
		t.Errorf("requests %v, want one probe", counts)
	}
	f.down[1].Store(false)
	f.now = f.now.Add(2 * breakerWaitMin)
	if err := f.generate(9); err != nil {
		t.Error(err)
	}
	if counts := f.counts(); counts[1] < 3 {
		t.Errorf("requests %v, want a third each", counts)
	}
	if slices.Max(*got) != 0 {
		t.Errorf("waited %v with another server at hand", *got)
	}
	for _, part := range []string{"level=WARN", "leaving a server out", "is back", f.client.pool.endpoints[1].name} {
		if strings.Count(f.log.String(), part) == 0 {
			t.Errorf("no %q in the log", part)
		}
	}
}

// With all left out, requests still go to the one that is due soonest, so that
// the first that is back is found at once.
func TestAllLeftOut(t *testing.T) {
	f := newFleet(t, 2, WithRetries(0))
	f.down[0].Store(true)
	f.down[1].Store(true)
	for range 2 * breakerFailures {
		f.now = f.now.Add(time.Millisecond)
		if err := f.generate(1); !errors.Is(err, ErrLoading) {
			t.Errorf("error %v", err)
		}
	}
	f.counts()
	f.down[0].Store(false)
	if err := f.generate(1); err != nil {
		t.Error(err)
	}
	if got := f.counts(); !slices.Equal(got, []int{1, 0}) {
		t.Errorf("requests %v", got)
	}
}

// A context that ends says nothing about the server.
func TestCancelIsNoFailure(t *testing.T) {
	f := newFleet(t, 1)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for range 2 * breakerFailures {
		f.client.Generate(ctx, Request{Prompt: "x"})
	}
	if e := f.client.pool.endpoints[0]; e.breaker.failures != 0 || e.inFlight != 0 {
		t.Errorf("endpoint %+v", e)
	}
}

func TestReadyOfSeveral(t *testing.T) {
	f := newFleet(t, 3)
	f.down[0].Store(true)
	f.down[1].Store(true)
	st, err := f.client.Ready(context.Background())
	if err != nil || !st.Ready() || st.Model != "m2" {
		t.Errorf("got %+v, %v", st, err)
	}
	f.down[2].Store(true)
	if st, err = f.client.Ready(context.Background()); err != nil || st.State != StateLoading {
		t.Errorf("got %+v, %v", st, err)
	}

	if _, err := New(WithEndpoints(nobody(t), nobody(t))).Ready(context.Background()); err == nil {
		t.Error("ready without a server")
	}
}

// The race detector reads along.
func TestManyAtOnce(t *testing.T) {
	f := newFleet(t, 3)
	waits(f.client)
	f.down[2].Store(true)
	var wg sync.WaitGroup
	for range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := f.generate(8); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	if counts := f.counts(); counts[0]+counts[1] != 128 || counts[0] < 32 || counts[1] < 32 {
		t.Errorf("requests %v", counts)
	}
}

// Looking whether a server is ready must not have it left out while it loads.
func TestReadyIsNoFailure(t *testing.T) {
	f := newFleet(t, 1)
	f.down[0].Store(true)
	for range 2 * breakerFailures {
		if st, err := f.client.Ready(context.Background()); err != nil || st.State != StateLoading {
			t.Errorf("got %+v, %v", st, err)
		}
	}
	if e := f.client.pool.endpoints[0]; e.breaker.failures != 0 || e.inFlight != 0 {
		t.Errorf("endpoint %+v", e)
	}
}
