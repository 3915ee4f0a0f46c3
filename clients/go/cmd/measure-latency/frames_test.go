package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gemma-server/gemma-server/clients/go/frames"
	"github.com/gemma-server/gemma-server/clients/go/internal/frametest"
)

// startFrames counts the echoes by their length.
func startFrames(t *testing.T) (srv *frametest.Server, echoes map[int]*atomic.Int64) {
	echoes = map[int]*atomic.Int64{3072: {}, 100: {}}
	return frametest.Start(t, func(p *frametest.Peer, typ frames.Type, body []byte) {
		if n := echoes[len(body)]; n == nil || typ != frames.Echo {
			t.Errorf("a frame of type %d with %d bytes", typ, len(body))
		} else {
			n.Add(1)
		}
		p.Send(typ, body)
	}), echoes
}

func TestFrames(t *testing.T) {
	for _, tc := range []struct {
		args        []string
		size, conns int
	}{
		{nil, 3072, 1},
		{[]string{"-bytes", "100", "-connections", "4"}, 100, 4},
	} {
		srv, echoes := startFrames(t)
		code, stdout, stderr := measureLatency(append([]string{"-frames", srv.Path, "-n", "50", "-json"}, tc.args...)...)
		var got map[string]float64
		if err := json.Unmarshal([]byte(stdout), &got); code != 0 || err != nil || stderr != "" {
			t.Fatalf("got %d, %v, %q", code, err, stderr)
		}
		if len(got) != 6 || got["n"] != 50 || got["p50_us"] <= 0 || got["p50_us"] > got["p99_us"] || got["requests_per_s"] <= 0 {
			t.Errorf("got %v", got)
		}
		if n := srv.Connections(); n != tc.conns {
			t.Errorf("%d connections, want %d", n, tc.conns)
		}
		if n := echoes[tc.size].Load(); n != int64(50+warmup*tc.conns) {
			t.Errorf("%d echoes", n)
		}
	}
}

func TestFramesTable(t *testing.T) {
	srv, _ := startFrames(t)
	code, stdout, stderr := measureLatency("-frames", srv.Path, "-n", "2")
	lines := strings.Split(stdout, "\n")
	if code != 0 || stderr != "" || lines[0] != fmt.Sprintf("echoes of 3072 bytes, of %s, requests timed: 2", srv.Path) || len(lines) != 7 {
		t.Errorf("got %d, %q, %q", code, stdout, stderr)
	}
}

func TestFramesWrongEcho(t *testing.T) {
	for want, answer := range map[string]frametest.Answer{
		"the echo is wrong: sent 3072 bytes, got 3072 in a frame of type 0": func(p *frametest.Peer, typ frames.Type, body []byte) {
			body[0]++
			p.Send(typ, body)
		},
		`type 255: "{\"error`: func(p *frametest.Peer, _ frames.Type, _ []byte) {
			p.Send(frames.Failed, frametest.Failure(0, 429, "too_many_connections", ""))
		},
		"EOF": func(p *frametest.Peer, _ frames.Type, _ []byte) { p.Break() },
	} {
		code, stdout, stderr := measureLatency("-frames", frametest.Start(t, answer).Path, "-n", "3")
		if code != 1 || stdout != "" || !strings.HasPrefix(stderr, "measure-latency: ") || !strings.Contains(stderr, want) {
			t.Errorf("got %d, %q, %q", code, stdout, stderr)
		}
	}
}

func TestNoFrames(t *testing.T) {
	for _, args := range [][]string{nil, {"-ladder"}} {
		code, _, stderr := measureLatency(append(args, "-frames", filepath.Join(t.TempDir(), "none"))...)
		if code != 1 || !strings.Contains(stderr, "./run-gemma-server.sh") {
			t.Errorf("%q: got %d, %q", args, code, stderr)
		}
	}
}

// The frames come behind the other ways, in as many lines as they have.
func TestLadderWithFrames(t *testing.T) {
	s := startBothWays(t)
	srv, echoes := startFrames(t)
	code, stdout, stderr := s.run("-frames", srv.Path, "-ladder", "-n", "40")
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	if code != 0 || stderr != "" || len(lines) != 3+12+4 || !strings.HasPrefix(lines[15], "frames yes                  1 frame ") {
		t.Fatalf("got %d, %q, %q", code, stdout, stderr)
	}
	if n := echoes[3072].Load(); n != 2*(40+warmup)+2*(40+warmup*connectionsMax) {
		t.Errorf("%d echoes", n)
	}
	// Kept: 1 and 32; anew: one for each echo.
	if n := srv.Connections(); n != 1+32+40+warmup+40+warmup*connectionsMax {
		t.Errorf("%d connections", n)
	}
}

func TestLadderOfFramesAlone(t *testing.T) {
	srv, _ := startFrames(t)
	code, stdout, stderr := measureLatency("-frames", srv.Path, "-ladder", "-json", "-n", "3")
	var rungs []rung
	if err := json.Unmarshal([]byte(stdout), &rungs); code != 0 || err != nil || len(rungs) != 4 {
		t.Fatalf("got %d, %v, %q, %q", code, err, stdout, stderr)
	}
	for i, want := range []rung{
		{Transport: "frames", KeepAlive: true, Connections: 1, Through: "frame"},
		{Transport: "frames", KeepAlive: true, Connections: 32, Through: "frame"},
		{Transport: "frames", KeepAlive: false, Connections: 1, Through: "frame"},
		{Transport: "frames", KeepAlive: false, Connections: 32, Through: "frame"},
	} {
		got := rungs[i]
		if got.N != 3 || got.P99 <= 0 {
			t.Errorf("got %+v", got)
		}
		if got.measurement = (measurement{}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

func TestConnections(t *testing.T) {
	s := startEcho(t, &echoServer{})
	if code, _, stderr := s.run("-n", "50", "-connections", "3"); code != 0 || stderr != "" {
		t.Errorf("got %d, %q", code, stderr)
	}
	if n := s.requests.Load(); n != 50+3*warmup {
		t.Errorf("%d requests", n)
	}
}

func TestUsageOfFrames(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"-frames", "f", "-prompt", "x"}, "-prompt and -frames exclude each other"},
		{[]string{"-frames", "f", "-uds", "s"}, "-frames and -uds exclude each other without -ladder"},
		{[]string{"-frames", "f", "-addr", "h"}, "-frames and -addr exclude each other without -ladder"},
		{[]string{"-frames", "f", "-port", "1"}, "-frames and -port exclude each other without -ladder"},
		{[]string{"-frames", "f", "-bytes", "7"}, "-bytes must be from 8 to 1048576"},
		{[]string{"-frames", "f", "-bytes", "1048577"}, "-bytes must be from 8 to 1048576"},
		{[]string{"-frames", "f", "-connections", "0"}, "-connections must be from 1 to 4096"},
		{[]string{"-frames", "f", "-connections", "4097"}, "-connections must be from 1 to 4096"},
		{[]string{"-ladder", "-connections", "2"}, "-ladder and -connections exclude each other"},
		{[]string{"-ladder", "-prompt", "x"}, "-ladder and -prompt exclude each other"},
		{[]string{"-bytes", "100"}, "-bytes is of -frames alone"},
	} {
		if code, stdout, stderr := measureLatency(tc.args...); code != 2 || stdout != "" || stderr != "measure-latency: "+tc.want+"\n" {
			t.Errorf("%q: got %d, %q, %q", tc.args, code, stdout, stderr)
		}
	}
}
