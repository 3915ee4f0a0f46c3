// Command measure-latency times what a request to gemma-server costs.
//
//	measure-latency [-addr host] [-port n] [-uds path] [-n count] [-connections n] [-json]
//	measure-latency -frames path [-bytes n] ...
//	measure-latency -ladder ...
//	measure-latency -prompt text [-steps n] ...
//
// By default it times /echo, which is a request without any work of the model,
// one after the other over one keep-alive connection, or with -connections over
// several at once. With -frames it times frames instead, which are echoed as
// they are. With -ladder it goes every way there is, and prints a table: over
// TCP, the Unix socket and the frames, with connections kept and not, over 1 and
// 32 of them, and as deep as the handler, the engine's queue and the device.
// With -prompt it times the parts of real answers.
//
// A server that wants an API key gets that of the variable GEMMA_API_KEY.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"

	"github.com/gemma-server/gemma-server/clients/go/frames"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// options are what the command line says.
type options struct {
	server      server
	n           int
	connections int
	bytes       int
	asJSON      bool
	ladder      bool
	prompt      string
	steps       int
}

func run(args []string, stdout, stderr io.Writer) int {
	opts, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errTold):
		return 2
	case err != nil:
		fmt.Fprintln(stderr, "measure-latency:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	switch {
	case opts.ladder:
		err = climb(ctx, opts, stdout)
	case opts.prompt != "":
		err = split(ctx, opts, stdout)
	default:
		err = timeEcho(ctx, opts, stdout, stderr)
	}
	if err == nil {
		return 0
	}
	fmt.Fprintln(stderr, "measure-latency:", strings.TrimPrefix(strings.TrimPrefix(err.Error(), "gemma: "), "frames: "))
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		fmt.Fprintln(stderr, "measure-latency: is gemma-server running? start it with ./run-gemma-server.sh")
	}
	return 1
}

// errTold is a mistake that the flag package has already told of.
var errTold = errors.New("told")

func parse(args []string, stderr io.Writer) (options, error) {
	opts := options{}
	flags := flag.NewFlagSet("measure-latency", flag.ContinueOnError)
	flags.SetOutput(stderr)
	addr := flags.String("addr", "127.0.0.1", "`host` of the server")
	port := flags.Int("port", 20200, "port of the server")
	flags.StringVar(&opts.server.socket, "uds", "", "`path` of the server's Unix socket; wins over -addr and -port, but for -ladder")
	flags.StringVar(&opts.server.frames, "frames", "", "`path` of the server's frames, which are timed instead of HTTP, and with -ladder besides")
	flags.IntVar(&opts.bytes, "bytes", 3072, "length of the frames' bodies")
	flags.IntVar(&opts.connections, "connections", 1, "connections at once")
	flags.IntVar(&opts.n, "n", 0, "requests to time, by default 1000, and 10 with -prompt")
	flags.BoolVar(&opts.asJSON, "json", false, "print JSON instead of a table")
	flags.BoolVar(&opts.ladder, "ladder", false, "time /echo in every way; over all of -uds, -port and -frames that are given")
	flags.StringVar(&opts.prompt, "prompt", "", "time the parts of answers to this `text`")
	flags.IntVar(&opts.steps, "steps", 16, "tokens of each of these answers")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return opts, err
	} else if err != nil {
		return opts, errTold
	}
	given := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if !given["n"] {
		opts.n = 1000
		if opts.prompt != "" {
			opts.n = 10
		}
	}
	if opts.server.socket == "" && opts.server.frames == "" || opts.ladder && (given["addr"] || given["port"]) {
		opts.server.address = net.JoinHostPort(*addr, strconv.Itoa(*port))
	}
	switch {
	case flags.NArg() > 0:
		return opts, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case opts.n < 1 || opts.n > requestsLimit:
		return opts, fmt.Errorf("-n must be from 1 to %d", requestsLimit)
	case *port < 1 || *port > 65535:
		return opts, errors.New("-port must be from 1 to 65535")
	case opts.steps < 1:
		return opts, errors.New("-steps must be at least 1")
	case opts.connections < 1 || opts.connections > connectionsLimit:
		return opts, fmt.Errorf("-connections must be from 1 to %d", connectionsLimit)
	case opts.bytes < numberSize || opts.bytes > frames.MaxBody:
		return opts, fmt.Errorf("-bytes must be from %d to %d", numberSize, frames.MaxBody)
	}
	return opts, excluded(given)
}

// excluded refuses flags that have no sense together.
func excluded(given map[string]bool) error {
	for _, pair := range [][2]string{
		{"ladder", "prompt"}, {"ladder", "connections"}, {"prompt", "connections"}, {"prompt", "frames"},
	} {
		if given[pair[0]] && given[pair[1]] {
			return fmt.Errorf("-%s and -%s exclude each other", pair[0], pair[1])
		}
	}
	for _, name := range []string{"addr", "port", "uds"} {
		if given["frames"] && given[name] && !given["ladder"] {
			return fmt.Errorf("-frames and -%s exclude each other without -ladder", name)
		}
	}
	if given["bytes"] && !given["frames"] {
		return errors.New("-bytes is of -frames alone")
	}
	return nil
}
