// Command ask sends one prompt to gemma-server and prints the answer as it is
// made.
//
//	ask [-url address ...] [-addr host:port] [-uds path] [-api-key-file path]
//	    [-model name] [-steps n] [-retries n] [-v] [prompt ...]
//	ask -frames path [-model name] [-steps n] [prompt ...]
//
// Without arguments the prompt is the standard input, less its last line end.
// With several -url the least busy server is asked, and another one when that
// takes no requests. The API key is the first in its file, or else the
// variable GEMMA_API_KEY. With -frames it asks over the server's frames, which
// have no keys, and where nothing is tried again.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/frames"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	opts, code := parseOptions(args, stderr)
	if opts == nil {
		return code
	}
	client, err := opts.client(stderr)
	if err != nil {
		complain(stderr, err)
		return 1
	}
	prompt, err := opts.prompt(stdin)
	if err != nil {
		fmt.Fprintln(stderr, "ask: reading the standard input:", err)
		return 1
	}
	if prompt == "" {
		fmt.Fprintln(stderr, "ask: the prompt is empty: give it as arguments or on the standard input")
		return 2
	}

	// Only now: while the prompt is being read, Ctrl-C should end the program.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	out := &lineWriter{w: stdout}
	err = answer(ctx, client, gemma.Request{Prompt: prompt, Model: opts.model, SamplingSteps: opts.steps}, out)
	if err == nil || out.written {
		if endErr := out.endLine(); err == nil {
			err = endErr
		}
	}
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "ask: interrupted")
	default:
		complain(stderr, err)
	}
	return 1
}

func complain(stderr io.Writer, err error) {
	fmt.Fprintln(stderr, "ask:", strings.TrimPrefix(strings.TrimPrefix(err.Error(), "gemma: "), "frames: "))
	if what := advice(err); what != "" {
		fmt.Fprintln(stderr, "ask:", what)
	}
}

func answer(ctx context.Context, client asker, req gemma.Request, out io.Writer) error {
	for chunk, err := range client.Stream(ctx, req) {
		if err != nil {
			return err
		}
		if _, err := io.WriteString(out, chunk.Text); err != nil {
			return fmt.Errorf("writing the answer: %w", err)
		}
	}
	return nil
}

// lineWriter knows whether its output ends with a newline.
type lineWriter struct {
	w       io.Writer
	written bool
	ended   bool
}

func (l *lineWriter) Write(p []byte) (int, error) {
	if len(p) > 0 {
		l.written = true
		l.ended = p[len(p)-1] == '\n'
	}
	return l.w.Write(p)
}

func (l *lineWriter) endLine() error {
	if l.ended {
		return nil
	}
	_, err := l.Write([]byte("\n"))
	return err
}

// advice says what to do about err, where there is something to do.
func advice(err error) string {
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		return "is gemma-server running? start it with ./run-gemma-server.sh"
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return "the answer was cut short; see the server's log, then ask again"
	}
	if errors.Is(err, gemma.ErrTooLong) || errors.Is(err, frames.ErrTooLong) {
		return "shorten the prompt"
	}
	var api *gemma.APIError
	if !errors.As(err, &api) {
		return ""
	}
	again := "try again in a moment"
	if api.RetryAfter > 0 {
		again = "try again in " + api.RetryAfter.Round(time.Second).String()
	}
	switch {
	case errors.Is(err, gemma.ErrLoading):
		return "the model is still loading; " + again
	case errors.Is(err, gemma.ErrDraining):
		return "the server is shutting down; start it again with ./run-gemma-server.sh"
	case errors.Is(err, gemma.ErrOverloaded):
		return "the server is busy; " + again
	case errors.Is(err, gemma.ErrDeadline):
		return "the answer took too long; ask for fewer tokens with -steps"
	case api.Code == gemma.CodeUnauthorized:
		return "give a key that the server knows with -api-key-file or in GEMMA_API_KEY"
	case api.Code == gemma.CodeModelNotFound, api.Code == gemma.CodeUnavailable:
		return "name a model or version that the server has with -model; GET /models tells which"
	case api.Code == gemma.CodeContextLengthExceeded:
		return "shorten the prompt"
	case api.Code == gemma.CodeGenerationFailed:
		return "the model or its device failed; see the server's log"
	}
	return ""
}
