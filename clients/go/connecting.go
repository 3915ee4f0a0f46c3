package gemma

import (
	"context"
	"errors"
	"net"
	"net/http/httptrace"
	"sync/atomic"
)

// watchConnecting has a context for a request, and tells whether that waits for
// a connection. A transport that does not say so never does.
func watchConnecting(ctx context.Context) (connecting func() bool, traced context.Context) {
	var waits atomic.Bool
	return waits.Load, httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn: func(string) { waits.Store(true) },
		GotConn: func(httptrace.GotConnInfo) { waits.Store(false) },
	})
}

// gaveUp reports whether a request failed because we waited no longer, which
// says nothing about its server; but it does where the time was over before there
// was a connection.
func gaveUp(ctx context.Context, err error, connecting bool) bool {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return true
	case connecting, isDial(err):
		return false
	}
	// The time may be that of an http.Client.
	return ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded)
}

// isDial reports whether a connection could not be made.
func isDial(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}
