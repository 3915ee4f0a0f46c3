package gemma

import (
	"context"
	"net"
	"net/http"
	"time"
)

const (
	// The server closes idle connections after 75 s; closing first keeps a
	// request from racing with that close.
	idleConnTimeout = 60 * time.Second
	idleConnsMax    = 64
	// dialTimeout leaves time to try another server: without it one that
	// swallows packets takes all that a context has.
	dialTimeout = 3 * time.Second
)

// newHTTPClient connects to the Unix socket unless its path is empty.
func newHTTPClient(socket string) *http.Client {
	transport := &http.Transport{}
	// A program may have replaced the default transport by another type.
	if std, ok := http.DefaultTransport.(*http.Transport); ok {
		transport = std.Clone()
	}
	transport.Proxy = nil
	transport.MaxIdleConnsPerHost = idleConnsMax
	transport.IdleConnTimeout = idleConnTimeout
	transport.DisableCompression = true // no gain on loopback, and it would hold back stream pieces
	if transport.DialContext == nil {
		transport.DialContext = (&net.Dialer{}).DialContext
	}
	if socket != "" {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}
	}
	transport.DialContext = within(dialTimeout, transport.DialContext)
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// within dials for so long at most.
func within(limit time.Duration, dial dialFunc) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		return dial(ctx, network, address)
	}
}
