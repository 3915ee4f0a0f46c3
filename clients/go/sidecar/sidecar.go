// Package sidecar runs gemma-server for a Go program, as if the model were a
// library.
//
// [Start] runs the Python server on a private Unix socket and waits until it
// is ready; [Sidecar.Client] asks it. A server that dies is started again. It
// never outlives the program: the server also ends when the program is killed.
// All that stays then is the empty directory of its socket, gemma-* among the
// temporary files. A program that is killed while it installs the server leaves
// that to go on: pip ends by itself.
//
// It needs a Unix, as the server does.
package sidecar

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/internal/ended"
)

const socketName = "s" // short, see socketPathMax

// Sidecar is a running server. It is safe for concurrent use.
type Sidecar struct {
	cfg         Config
	python      string
	workDir     string // where relative paths begin
	dir         string // holds the socket, for us alone
	connections *http.Transport
	client      *gemma.Client
	probe       *gemma.Client // looks how the server is
	crashes     crashes
	reported    gemma.Status
	outcomes    outcomes           // that were reported
	drain       context.CancelFunc // Stop was called
	kill        context.CancelFunc // and waited long enough
	done        chan struct{}
	err         error // set before done is closed
}

// Client returns the client of this server. It stays the same when the server
// is started again; requests under way fail then, and those that find no server
// are tried again as often as the client's retries allow.
func (s *Sidecar) Client() *gemma.Client { return s.client }

// Done returns a channel that is closed when the server has ended for good:
// after [Sidecar.Stop], or because it crashed too often; see [Sidecar.Err].
func (s *Sidecar) Done() <-chan struct{} { return s.done }

// Err says why the sidecar gave up. It is nil while it runs, and after
// [Sidecar.Stop].
func (s *Sidecar) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// Stop ends the server and waits until it is gone. Running requests may finish
// until ctx ends or the server's --drain-timeout is over; then they are cut
// off. It is an error if ctx ended first. Stop may be called more than once.
func (s *Sidecar) Stop(ctx context.Context) error {
	s.drain()
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
	}
	select {
	case <-s.done: // both at once
		return nil
	default:
	}
	s.kill()
	<-s.done
	return fmt.Errorf("sidecar: the server had not finished its requests and was killed: %w", ended.Error(ctx))
}

func (s *Sidecar) socket() string { return filepath.Join(s.dir, socketName) }

// remove leaves no connection and no file behind.
func (s *Sidecar) remove() {
	s.connections.CloseIdleConnections()
	os.RemoveAll(s.dir)
}
