package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"strings"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/frames"
)

// options is what the command line says.
type options struct {
	urls    []string
	addr    string
	uds     string
	frames  string
	keyFile string
	model   string
	steps   int
	retries int
	verbose bool
	args    []string
}

// parseOptions returns no options where the program ends at once, but its exit
// code.
func parseOptions(args []string, stderr io.Writer) (opts *options, code int) {
	o := &options{}
	flags := flag.NewFlagSet("ask", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Func("url", "`address` of a server, http://host:port or unix:/path; may be given several times, and wins over -addr and -uds",
		func(url string) error { o.urls = append(o.urls, url); return nil })
	flags.StringVar(&o.addr, "addr", "127.0.0.1:20200", "`host:port` of the server")
	flags.StringVar(&o.uds, "uds", "", "`path` of the server's Unix socket; wins over -addr")
	flags.StringVar(&o.frames, "frames", "", "`path` of the server's frames, which are asked instead of HTTP")
	flags.StringVar(&o.keyFile, "api-key-file", "", "`file` with the API key, in its first line; without it the key is in the variable GEMMA_API_KEY")
	flags.StringVar(&o.model, "model", "", "`name` of the model, its version NAME@3 or label NAME:stable; without it the server's default answers")
	flags.IntVar(&o.steps, "steps", 0, "most tokens to generate; 0 leaves it to the server")
	flags.IntVar(&o.retries, "retries", 2, "how many times to try again while no server takes the prompt")
	flags.BoolVar(&o.verbose, "v", false, "say when it tries again, and why")
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: ask [flags] [prompt ...]\nThe prompt is the standard input where no argument gives it.")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil, 0
	} else if err != nil {
		return nil, 2
	}
	if o.steps < 0 || o.retries < 0 {
		fmt.Fprintln(stderr, "ask: -steps and -retries must not be negative")
		return nil, 2
	}
	if name := o.excluded(flags); name != "" {
		fmt.Fprintf(stderr, "ask: -frames excludes -%s, which is HTTP's alone\n", name)
		return nil, 2
	}
	o.args = flags.Args()
	return o, 0
}

// excluded is a flag that was given and has no sense beside -frames.
func (o *options) excluded(flags *flag.FlagSet) (name string) {
	flags.Visit(func(f *flag.Flag) {
		switch f.Name {
		case "url", "addr", "uds", "api-key-file", "retries", "v":
			if o.frames != "" {
				name = f.Name
			}
		}
	})
	return name
}

// asker is a client, of HTTP or of frames.
type asker interface {
	Stream(ctx context.Context, req gemma.Request) iter.Seq2[gemma.Chunk, error]
}

func (o *options) client(stderr io.Writer) (asker, error) {
	if o.frames != "" {
		conn, err := frames.Dial(context.Background(), o.frames)
		if err != nil {
			return nil, fmt.Errorf("%w (a server has frames with --frames)", err)
		}
		return conn, nil
	}
	key, err := o.apiKey()
	if err != nil {
		return nil, err
	}
	opts := []gemma.Option{gemma.WithAPIKey(key), gemma.WithRetries(o.retries)}
	if len(o.urls) > 0 {
		opts = append(opts, gemma.WithEndpoints(o.urls...))
	} else {
		opts = append(opts, gemma.WithBaseURL("http://"+o.addr), gemma.WithUnixSocket(o.uds))
	}
	if o.verbose {
		opts = append(opts, gemma.WithLogger(slog.New(slog.NewTextHandler(stderr, nil))))
	}
	return gemma.New(opts...), nil
}

func (o *options) apiKey() (string, error) {
	if o.keyFile == "" {
		return os.Getenv("GEMMA_API_KEY"), nil
	}
	text, err := os.ReadFile(o.keyFile)
	if err != nil {
		return "", fmt.Errorf("-api-key-file: %w", err)
	}
	for _, line := range strings.Split(string(text), "\n") {
		if key := strings.TrimSpace(line); key != "" {
			return key, nil
		}
	}
	return "", fmt.Errorf("-api-key-file %s: no key in it", o.keyFile)
}

// prompt is the arguments, or else the standard input less its last line end.
func (o *options) prompt(stdin io.Reader) (string, error) {
	if len(o.args) > 0 {
		return strings.Join(o.args, " "), nil
	}
	text, err := io.ReadAll(stdin)
	return strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r"), err
}
