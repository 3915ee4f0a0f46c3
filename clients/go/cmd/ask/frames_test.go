package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/frames"
	"github.com/gemma-server/gemma-server/clients/go/internal/frametest"
)

func askFrames(path string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(append([]string{"-frames", path}, args...), strings.NewReader("from the input\n"), &out, &errs)
	return code, out.String(), errs.String()
}

func TestFrames(t *testing.T) {
	t.Setenv("GEMMA_API_KEY", "k-1") // does no harm
	path := frametest.Start(t, frametest.Repeat).Path
	for want, args := range map[string][]string{
		"why is it so?\n":  {"why is", "it so?"},
		"why i\n":          {"-steps", "5", "why is it so?"},
		"from the input\n": nil,
	} {
		if code, stdout, stderr := askFrames(path, args...); code != 0 || stdout != want || stderr != "" {
			t.Errorf("%q: got %d, %q, %q", args, code, stdout, stderr)
		}
	}
}

// The pieces must appear while the server is still at work.
func TestFramesPrintAsTheyCome(t *testing.T) {
	seen := make(chan struct{})
	path := frametest.Start(t, func(p *frametest.Peer, typ frames.Type, body []byte) {
		p.Send(frames.Piece, frametest.Object{"id": frametest.Parse(body).ID, "response": "Hello"})
		<-seen
		frametest.Repeat(p, typ, body)
	}).Path
	out, in := io.Pipe()
	go func() {
		run([]string{"-frames", path, " you"}, strings.NewReader(""), in, io.Discard)
		in.Close()
	}()
	buf := make([]byte, len("Hello"))
	if _, err := io.ReadFull(out, buf); err != nil || string(buf) != "Hello" {
		t.Fatalf("got %q, %v", buf, err)
	}
	close(seen)
	if rest, _ := io.ReadAll(out); string(rest) != " you\n" {
		t.Errorf("got %q", rest)
	}
}

func TestFramesErrors(t *testing.T) {
	busy := frametest.Start(t, func(p *frametest.Peer, _ frames.Type, body []byte) {
		p.Send(frames.Failed, frametest.Failure(frametest.Parse(body).ID, 429, gemma.CodeOverloaded, ""))
	}).Path
	short := frametest.Start(t, func(p *frametest.Peer, _ frames.Type, body []byte) {
		p.Send(frames.Piece, frametest.Object{"id": frametest.Parse(body).ID, "response": "Hello"})
		p.Break()
	}).Path
	for _, tc := range []struct {
		path, stdout string
		stderr       []string
	}{
		{busy, "", []string{"overloaded", "the server is busy"}},
		{short, "Hello\n", []string{"ask: the connection is of no more use", "cut short"}},
		{filepath.Join(t.TempDir(), "none"), "", []string{"ask: dial", "--frames", "is gemma-server running?"}},
	} {
		code, stdout, stderr := askFrames(tc.path, "x")
		if code != 1 || stdout != tc.stdout {
			t.Errorf("got %d, %q", code, stdout)
		}
		checkStderr(t, stderr, tc.stderr...)
	}
}

func TestFramesExcludeWhatIsHTTPs(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("k"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"-url", "http://localhost"}, {"-addr", "localhost:1"}, {"-uds", "s"}, {"-api-key-file", key}, {"-retries", "0"}, {"-v"},
	} {
		code, stdout, stderr := askFrames("none", append(args, "x")...)
		if code != 2 || stdout != "" {
			t.Errorf("%q: got %d, %q", args, code, stdout)
		}
		checkStderr(t, stderr, "-frames excludes "+args[0]+",")
	}
}
