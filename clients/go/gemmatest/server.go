// Package gemmatest is a fake gemma-server for tests of programs that use
// package gemma. It needs neither Python nor a model, and speaks the same HTTP.
//
// Left alone it repeats the prompt, a byte a token, as gemma-server does with
// --fake. [Reply] values say otherwise: what to answer, how slowly, and how to
// fail. What of /prompt it does not have is a list of prompts in one request,
// which package gemma does not send.
//
//	func TestMine(t *testing.T) {
//		srv := gemmatest.NewServer(t, gemmatest.WithReplies(gemmatest.Text("Hello", " you")))
//		got := mine(srv.Client())
//		...
//	}
package gemmatest

import (
	"net/http/httptest"
	"slices"
	"sync"
	"testing"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

// Server is a fake gemma-server on a port of the loopback interface. It is safe
// for concurrent use.
type Server struct {
	// URL is its address, as [gemma.WithBaseURL] and [gemma.WithEndpoints] take it.
	URL string

	http   *httptest.Server
	apiKey string
	closed chan struct{} // ends what is still being answered
	once   sync.Once

	mu       sync.Mutex
	status   gemma.Status
	models   []gemma.Model // none: the one that the status names
	script   []Reply
	answer   func(gemma.Request) Reply
	requests []Request
}

// Option changes how [NewServer] sets up a [Server].
type Option func(*Server)

// WithReplies is what the server answers to /prompt, one to each request in
// the order of their arrival. When all are used up it goes on as [WithAnswer]
// says.
func WithReplies(replies ...Reply) Option {
	return func(s *Server) { s.script = slices.Clone(replies) }
}

// WithAnswer has a function answer /prompt, in place of [Repeat]. It may be
// called by several requests at once.
func WithAnswer(answer func(gemma.Request) Reply) Option {
	return func(s *Server) { s.answer = answer }
}

// WithStatus is what /readyz tells; see [Server.SetStatus].
func WithStatus(status gemma.Status) Option {
	return func(s *Server) { s.status = status }
}

// WithAPIKey refuses requests without this key, but for /healthz and /readyz.
// [Server.Client] has the key.
func WithAPIKey(key string) Option {
	return func(s *Server) { s.apiKey = key }
}

// NewServer starts a server that is closed when the test ends. Outside of
// tests tb may be nil; then call [Server.Close].
func NewServer(tb testing.TB, opts ...Option) *Server {
	one := 1.0
	s := &Server{
		closed: make(chan struct{}),
		status: gemma.Status{State: gemma.StateReady, Stage: "ready", Progress: &one, Model: "fake"},
		answer: Repeat,
	}
	for _, opt := range opts {
		opt(s)
	}
	s.http = httptest.NewServer(s.handler())
	s.URL = s.http.URL
	if tb != nil {
		tb.Cleanup(s.Close)
	}
	return s
}

// Close stops the server and breaks off what it is answering.
func (s *Server) Close() {
	s.once.Do(func() {
		close(s.closed)
		s.http.Close()
	})
}

// Client returns a client of this server, with its API key and then opts.
func (s *Server) Client(opts ...gemma.Option) *gemma.Client {
	own := []gemma.Option{gemma.WithBaseURL(s.URL), gemma.WithAPIKey(s.apiKey)}
	return gemma.New(append(own, opts...)...)
}

// Script adds to what [WithReplies] has.
func (s *Server) Script(replies ...Reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script = append(s.script, replies...)
}

// SetStatus changes what /readyz tells. While the state is not
// [gemma.StateReady], /prompt, and /echo through the queue or the device, answer
// 503 with the code "loading" or "draining" and the status' RetryAfter; /readyz
// asks for 2 seconds, as the real server's.
func (s *Server) SetStatus(status gemma.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status = status
}

func (s *Server) currentStatus() gemma.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Requests returns what has come so far, the oldest first: each request from
// the moment that its body was read.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

func (s *Server) note(r Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r)
}

// reply is what comes next in the script, or else the answer of the function.
func (s *Server) reply(req gemma.Request) Reply {
	s.mu.Lock()
	if len(s.script) > 0 {
		defer s.mu.Unlock()
		next := s.script[0]
		s.script = s.script[1:]
		return next
	}
	s.mu.Unlock()
	return s.answer(req)
}
