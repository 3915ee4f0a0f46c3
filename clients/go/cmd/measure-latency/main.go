// Command measure-latency times the /echo endpoint of gemma-server: what a
// request costs before any work of the model.
//
//	measure-latency [-addr host] [-port n] [-uds path] [-n count] [-json]
//
// The requests go one after the other over one keep-alive connection.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http/httptrace"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

// warmup requests open the connection and settle both sides' caches.
const warmup = 10

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("measure-latency", flag.ContinueOnError)
	flags.SetOutput(stderr)
	addr := flags.String("addr", "127.0.0.1", "`host` of the server")
	port := flags.Int("port", 20200, "port of the server")
	uds := flags.String("uds", "", "`path` of the server's Unix socket; wins over -addr and -port")
	n := flags.Int("n", 1000, "requests to time")
	asJSON := flags.Bool("json", false, "print one JSON object instead of a table")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	usage := ""
	switch {
	case flags.NArg() > 0:
		usage = fmt.Sprintf("unexpected argument %q", flags.Arg(0))
	case *n < 1:
		usage = "-n must be at least 1"
	case *port < 1 || *port > 65535:
		usage = "-port must be from 1 to 65535"
	}
	if usage != "" {
		fmt.Fprintln(stderr, "measure-latency:", usage)
		return 2
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	server := net.JoinHostPort(*addr, strconv.Itoa(*port))
	client := gemma.New(gemma.WithBaseURL("http://"+server), gemma.WithUnixSocket(*uds), gemma.WithRetries(0))
	if *uds != "" {
		server = *uds
	}
	m, err := measure(ctx, client, *n)
	if err == nil {
		err = m.print(stdout, *asJSON, server)
	}
	if err != nil {
		fmt.Fprintln(stderr, "measure-latency:", strings.TrimPrefix(err.Error(), "gemma: "))
		var dial *net.OpError
		if errors.As(err, &dial) && dial.Op == "dial" {
			fmt.Fprintln(stderr, "measure-latency: is gemma-server running? start it with ./run-gemma-server.sh")
		}
		return 1
	}
	if m.reconnects > 0 {
		fmt.Fprintf(stderr, "measure-latency: %d of the requests had to open a new connection, which their times include\n", m.reconnects)
	}
	return 0
}

// measurement is what -json prints.
type measurement struct {
	N          int     `json:"n"`
	Mean       float64 `json:"mean_us"`
	P50        float64 `json:"p50_us"`
	P90        float64 `json:"p90_us"`
	P99        float64 `json:"p99_us"`
	Rate       float64 `json:"requests_per_s"`
	reconnects int
}

func measure(ctx context.Context, client *gemma.Client, n int) (*measurement, error) {
	for i := range warmup {
		if err := echo(ctx, client, -1-i); err != nil {
			return nil, err
		}
	}
	reconnects := 0
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			if !info.Reused {
				reconnects++
			}
		},
	})
	times := make([]time.Duration, 0, min(n, 1<<20))
	begin := time.Now()
	for i := range n {
		start := time.Now()
		if err := echo(ctx, client, i); err != nil {
			return nil, err
		}
		times = append(times, time.Since(start))
	}
	total := time.Since(begin)

	var sum time.Duration
	for _, t := range times {
		sum += t
	}
	slices.Sort(times)
	return &measurement{
		N:          n,
		Mean:       micros(sum) / float64(n),
		P50:        micros(percentile(times, 50)),
		P90:        micros(percentile(times, 90)),
		P99:        micros(percentile(times, 99)),
		Rate:       float64(n) / total.Seconds(),
		reconnects: reconnects,
	}, nil
}

// echo sends a text that differs from request to request, so that an answer
// to another request does not pass.
func echo(ctx context.Context, client *gemma.Client, i int) error {
	sent := fmt.Sprintf("measure-latency %d é \"<&>\"", i)
	raw, err := client.Echo(ctx, sent)
	if err != nil {
		return err
	}
	var got any
	if err := json.Unmarshal(raw, &got); err != nil {
		return err
	}
	if got != any(sent) {
		return fmt.Errorf("the echo is wrong: sent %q, got %.200s", sent, raw)
	}
	return nil
}

// percentile is the least of the sorted times that p percent of them do not
// exceed (the nearest-rank definition), so always a time that was measured.
func percentile(sorted []time.Duration, p int) time.Duration {
	rank := (p*len(sorted) + 99) / 100
	return sorted[rank-1]
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func (m *measurement) print(w io.Writer, asJSON bool, server string) error {
	if asJSON {
		return json.NewEncoder(w).Encode(m)
	}
	unit, scale := "us", 1.0
	if m.P99 >= 10_000 {
		unit, scale = "ms", 1000
	}
	var b strings.Builder
	fmt.Fprintf(&b, "/echo of %s, requests timed: %d\n", server, m.N)
	for _, row := range []struct {
		name string
		us   float64
	}{{"mean", m.Mean}, {"p50", m.P50}, {"p90", m.P90}, {"p99", m.P99}} {
		fmt.Fprintf(&b, "%-4s %12.1f %s\n", row.name, row.us/scale, unit)
	}
	fmt.Fprintf(&b, "%-4s %12.1f requests/s\n", "rate", m.Rate)
	_, err := io.WriteString(w, b.String())
	return err
}
