package main

import (
	"cmp"
	"context"
	"net"
	"net/http"
	"os"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

// connectionsLimit is how many connections the server's frames take.
const connectionsLimit = 4096

// server is where to send requests: at least one of these is set.
type server struct {
	address string // host:port
	socket  string // of a file
	frames  string // the socket of its frames, a file too
}

// String is the address that is used where only one can be.
func (s server) String() string {
	return cmp.Or(s.socket, s.address, s.frames)
}

// transports are the ways to reach the server.
func (s server) transports() []string {
	var names []string
	if s.address != "" {
		names = append(names, "tcp")
	}
	if s.socket != "" {
		names = append(names, "unix")
	}
	if s.frames != "" {
		names = append(names, "frames")
	}
	return names
}

// client reaches the server in one of these ways. It never tries again: a
// second try would count as latency.
func (s server) client(transport string, keepAlive bool) *gemma.Client {
	t := &http.Transport{
		DisableKeepAlives:   !keepAlive,
		DisableCompression:  true,
		MaxIdleConnsPerHost: connectionsLimit,
	}
	base := "http://" + s.address
	if transport == "unix" {
		base = "http://localhost"
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", s.socket)
		}
	}
	return gemma.New(gemma.WithBaseURL(base), gemma.WithHTTPClient(&http.Client{Transport: t}),
		gemma.WithAPIKey(os.Getenv("GEMMA_API_KEY")), gemma.WithRetries(0))
}
