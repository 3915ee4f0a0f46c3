// Package frametest is a server of frames for tests, without Python.
package frametest

import (
	"bufio"
	"encoding/json"
	"log"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/gemma-server/gemma-server/clients/go/frames"
)

// Answer is told of each frame that comes over a connection, in their order. It
// may answer later, or not at all.
type Answer func(p *Peer, t frames.Type, body []byte)

// Server listens on a Unix socket.
type Server struct {
	Path     string
	listener net.Listener
	mu       sync.Mutex
	peers    []*Peer
}

// Start starts a server that ends with the test. Where t is nil, in an Example,
// Close ends it.
func Start(t testing.TB, answer Answer) *Server {
	dir, err := os.MkdirTemp("", "frames") // t.TempDir() may be too long for a socket
	if err != nil {
		log.Panic(err)
	}
	s := &Server{Path: filepath.Join(dir, "s")}
	if s.listener, err = net.Listen("unix", s.Path); err != nil {
		log.Panic(err)
	}
	go s.serve(answer)
	if t != nil {
		t.Cleanup(s.Close)
	}
	return s
}

// Close ends the server and all connections.
func (s *Server) Close() {
	s.listener.Close()
	s.Disconnect()
	os.RemoveAll(filepath.Dir(s.Path))
}

// Disconnect breaks all connections.
func (s *Server) Disconnect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		p.Break()
	}
}

// Connections is how many there have been.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.peers)
}

func (s *Server) serve(answer Answer) {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		p := &Peer{conn: conn}
		s.mu.Lock()
		s.peers = append(s.peers, p)
		s.mu.Unlock()
		go p.serve(answer)
	}
}

// Peer is a connection, as the server has it.
type Peer struct {
	conn net.Conn
	mu   sync.Mutex
}

func (p *Peer) serve(answer Answer) {
	defer p.Break()
	r := bufio.NewReader(p.conn)
	for {
		t, body, err := frames.Read(r, frames.MaxBody)
		if err != nil {
			return
		}
		answer(p, t, body)
	}
}

// Send sends a frame, whose body is bytes or becomes JSON.
func (p *Peer) Send(t frames.Type, body any) {
	text, isBytes := body.([]byte)
	if !isBytes {
		var err error
		if text, err = json.Marshal(body); err != nil {
			log.Panic(err)
		}
	}
	p.SendBytes(frames.Append(nil, t, text))
}

// SendBytes sends what need not be a frame.
func (p *Peer) SendBytes(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn.Write(b)
}

// Break closes the connection.
func (p *Peer) Break() { p.conn.Close() }
