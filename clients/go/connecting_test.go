package gemma

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hole has a dialer that swallows packets for these addresses.
func hole(addresses ...string) dialFunc {
	dialer := net.Dialer{ControlContext: func(ctx context.Context, _, address string, _ syscall.RawConn) error {
		for _, hole := range addresses {
			if strings.Contains(hole, address) {
				<-ctx.Done()
				return ctx.Err()
			}
		}
		return nil
	}}
	return dialer.DialContext
}

// silentServer takes connections and never answers.
func silentServer(t *testing.T) string {
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// A server is to blame for the connection that it did not take in time, not for
// the time that an answer takes.
func TestWhatCountsAsAFailure(t *testing.T) {
	silent, swallowing := silentServer(t), nobody(t)
	const soon = 10 * time.Millisecond
	deadline := func() (context.Context, func()) { return context.WithTimeout(context.Background(), soon) }
	cancelled := func() (context.Context, func()) {
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(soon, cancel)
		return ctx, cancel
	}
	past := func() (context.Context, func()) { return context.WithTimeout(context.Background(), -soon) }
	endless := func() (context.Context, func()) { return context.Background(), func() {} }
	for _, tc := range []struct {
		name    string
		url     string
		context func() (context.Context, func())
		timeout time.Duration // of the http.Client
		counts  bool
	}{
		{"deadline, not connected", swallowing, deadline, 0, true},
		{"timeout, not connected", swallowing, endless, soon, true},
		{"cancelled, not connected", swallowing, cancelled, 0, false},
		{"past, not connected", swallowing, past, 0, false},
		{"deadline, connected", silent, deadline, 0, false},
		{"timeout, connected", silent, endless, soon, false},
		{"cancelled, connected", silent, cancelled, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hc := &http.Client{Transport: &http.Transport{DialContext: hole(swallowing)}, Timeout: tc.timeout}
			client := New(WithBaseURL(tc.url), WithHTTPClient(hc), WithRetries(0))
			ctx, cancel := tc.context()
			defer cancel()
			if _, err := client.Generate(ctx, Request{Prompt: "x"}); err == nil {
				t.Error("an answer")
			}
			e := client.pool.endpoints[0]
			if (e.breaker.failures > 0) != tc.counts || e.inFlight != 0 {
				t.Errorf("%d failures, %d requests in flight", e.breaker.failures, e.inFlight)
			}
		})
	}
}

// Packets that vanish cost a retry, not the whole deadline.
func TestDialTakesNotAllTheTime(t *testing.T) {
	swallowing := nobody(t)
	good, _ := answers(t, []string{"200"})
	hc := &http.Client{Transport: &http.Transport{DialContext: within(10*time.Millisecond, hole(swallowing))}}
	client := New(WithEndpoints(swallowing, good), WithHTTPClient(hc))
	waited := waits(client)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := client.Generate(ctx, Request{Prompt: "x"}); err != nil || len(*waited) != 1 {
		t.Errorf("waited %v, error %v", *waited, err)
	}
}

func TestDialHasALimit(t *testing.T) {
	std := http.DefaultTransport
	defer func() { http.DefaultTransport = std }()
	var left time.Duration
	http.DefaultTransport = &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		deadline, _ := ctx.Deadline()
		left = time.Until(deadline)
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	}}
	New(WithRetries(0)).Generate(context.Background(), Request{Prompt: "x"})
	if left <= 0 || left > dialTimeout {
		t.Errorf("the limit is %v", left)
	}
}
