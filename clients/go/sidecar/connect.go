package sidecar

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

// connect makes the clients of the socket. They share connections that Stop
// can close: a server that drains waits for idle ones, too. The one that looks
// how the server is has the caller's key, but nothing to tell the caller's log.
func (s *Sidecar) connect() {
	s.connections = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", s.socket())
		},
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     time.Minute, // the server closes them after 75 s
		DisableCompression:  true,
	}
	options := []gemma.Option{
		gemma.WithBaseURL("http://localhost"),
		gemma.WithHTTPClient(&http.Client{Transport: s.connections}),
	}
	s.client = gemma.New(slices.Concat(s.cfg.ClientOptions, options)...)
	silent := gemma.WithLogger(slog.New(slog.NewTextHandler(io.Discard, nil)))
	s.probe = gemma.New(slices.Concat(s.cfg.ClientOptions, options, []gemma.Option{silent})...)
}
