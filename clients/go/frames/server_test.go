package frames_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/frames"
	"github.com/gemma-server/gemma-server/clients/go/internal/answers"
	"github.com/gemma-server/gemma-server/clients/go/internal/frametest"
	"github.com/gemma-server/gemma-server/clients/go/internal/realpython"
	"github.com/gemma-server/gemma-server/clients/go/sidecar"
)

// realServer starts gemma-server with the fake model and returns the socket of
// its frames.
func realServer(t *testing.T) (path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "frames")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "f")
	server, err := sidecar.Start(ctx, sidecar.Config{
		Python:       realpython.Path(t),
		Args:         []string{"--fake", "--frames", path},
		StartTimeout: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		now, cancel := context.WithCancel(ctx)
		cancel()
		server.Stop(now)
	})
	return path
}

// onEachServer runs a test against the fake and the real one: the fake is worth
// something only while it says what the server says.
func onEachServer(t *testing.T, test func(t *testing.T, conn *frames.Conn)) {
	t.Run("frametest", func(t *testing.T) { test(t, dial(t, frametest.Repeat)) })
	t.Run("gemma-server", func(t *testing.T) {
		t.Parallel()
		test(t, dialPath(t, realServer(t)))
	})
}

func TestConnSeesTheSame(t *testing.T) {
	onEachServer(t, func(t *testing.T, conn *frames.Conn) {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if got, err := conn.Echo(ctx, []byte{0, 255}); !bytes.Equal(got, []byte{0, 255}) || err != nil {
			t.Errorf("Echo: %x, %v", got, err)
		}
		if got, err := conn.Raw(ctx, []byte("hé")); string(got) != "hé" || err != nil {
			t.Errorf("Raw: %q, %v", got, err)
		}
		if st, err := conn.Ready(ctx); err != nil || !st.Ready() || st.Stage != "ready" || *st.Progress != 1 || st.Model != "fake" {
			t.Errorf("Ready: %+v, %v", st, err)
		}
		tokens, err := conn.Tokenize(ctx, "ab")
		if want := (&frames.Tokens{IDs: []int{2, 103, 104}, Count: 3, MaxModelLen: 2048}); !reflect.DeepEqual(tokens, want) || err != nil {
			t.Errorf("Tokenize: %+v, %v", tokens, err)
		}
		score, err := conn.Score(ctx, "ab", 1)
		if err != nil || !slices.Equal(score.Logprobs.Tokens, []string{"<bos>", "a", "b"}) || !slices.Equal(score.Logprobs.Offsets, []int{0, 0, 1}) ||
			score.Logprobs.Values[0] != nil || *score.Logprobs.Values[2] > -0.69 || score.Logprobs.Top[1]["a"] > -0.69 || score.Usage.PromptTokens != 3 {
			t.Errorf("Score: %+v, %v", score, err)
		}
		answers.Check(ctx, t, conn)
		_, err = conn.Generate(ctx, gemma.Request{Prompt: "x", SamplingSteps: -1})
		var api *gemma.APIError
		if !errors.As(err, &api) || api.Status != 400 || api.Code != gemma.CodeInvalidValue || api.Param != "sampling_steps" ||
			api.Type != "invalid_request_error" || api.RequestID == "" {
			t.Errorf("a mistake: %+v", err)
		}
	})
}

// What only the real one does.
func TestRealServer(t *testing.T) {
	t.Parallel()
	path := realServer(t)
	conn := dialPath(t, path)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := conn.Raw(ctx, []byte{255}); !isCode(err, gemma.CodeInvalidValue) {
		t.Errorf("raw bytes that are no text: %v", err)
	}
	if _, err := conn.Generate(ctx, gemma.Request{Prompt: strings.Repeat("x", 3000)}); !isCode(err, gemma.CodeContextLengthExceeded) {
		t.Errorf("a long prompt: %v", err)
	}
	var running sync.WaitGroup
	for i := range 48 {
		running.Add(1)
		go func() {
			defer running.Done()
			prompt := strings.Repeat("x", 10+i)
			pieces, err := collect(conn, ctx, prompt)
			raw, err2 := conn.Raw(ctx, []byte(prompt))
			echo, err3 := conn.Echo(ctx, bytes.Repeat([]byte{byte(i)}, 20_000*i))
			if err := errors.Join(err, err2, err3); err != nil || strings.Join(pieces, "") != prompt || string(raw) != prompt || len(echo) != 20_000*i {
				t.Errorf("%q: %q, %q, %d bytes, %v", prompt, pieces, raw, len(echo), err)
			}
			for range conn.Stream(ctx, gemma.Request{Prompt: prompt}) {
				break
			}
		}()
	}
	running.Wait()
	if st, err := conn.Ready(ctx); err != nil || !st.Ready() {
		t.Errorf("after all that: %+v, %v", st, err)
	}
}

func isCode(err error, code string) bool {
	var api *gemma.APIError
	return errors.As(err, &api) && api.Code == code
}

func TestExchangesOfTheVectors(t *testing.T) {
	path := realServer(t)
	for _, exchange := range readVectors(t).Exchanges {
		t.Run(exchange.Name, func(t *testing.T) {
			conn, r := plain(t, path)
			for _, frame := range exchange.Sent {
				conn.Write(frames.Append(nil, frame.Type, frame.body(t)))
			}
			for _, want := range exchange.Answers {
				typ, body, err := frames.Read(r, frames.MaxAnswer)
				if err != nil || typ != want.Type || !has(t, body, want) {
					t.Fatalf("got %d, %q, %v; want %d, %q", typ, body, err, want.Type, want.body(t))
				}
			}
			// Nothing else comes: the next answer is that to another echo.
			conn.Write(frames.Append(nil, frames.Echo, []byte("the end")))
			if typ, body, err := frames.Read(r, frames.MaxAnswer); typ != frames.Echo || string(body) != "the end" || err != nil {
				t.Errorf("then came %d, %q, %v", typ, body, err)
			}
		})
	}
	for _, broken := range readVectors(t).Broken {
		t.Run(broken.Name, func(t *testing.T) {
			conn, r := plain(t, path)
			conn.Write(unhex(t, broken.Wire))
			typ, body, err := frames.Read(r, frames.MaxAnswer)
			want := content{JSON: json.RawMessage(`{"error": {"code": "` + broken.Code + `"}}`)}
			if err != nil || typ != frames.Failed || !has(t, body, want) {
				t.Fatalf("got %d, %q, %v", typ, body, err)
			}
			if _, _, err := frames.Read(r, frames.MaxAnswer); err == nil {
				t.Error("the connection goes on")
			}
		})
	}
}

// plain is a connection without a client.
func plain(t *testing.T, path string) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	return conn, bufio.NewReader(conn)
}

// has reports whether a body is the one that is wanted, of JSON whether it has
// the fields that are.
func has(t *testing.T, body []byte, want content) bool {
	t.Helper()
	if want.JSON == nil {
		return bytes.Equal(body, want.body(t))
	}
	var got, wanted any
	if err := errors.Join(json.Unmarshal(body, &got), json.Unmarshal(want.JSON, &wanted)); err != nil {
		t.Fatalf("%v in %q", err, body)
	}
	return includes(got, wanted)
}

func includes(got, want any) bool {
	fields, isObject := want.(map[string]any)
	if !isObject {
		return reflect.DeepEqual(got, want)
	}
	object, isObject := got.(map[string]any)
	for name, value := range fields {
		if _, there := object[name]; !there || !includes(object[name], value) {
			return false
		}
	}
	return isObject
}
