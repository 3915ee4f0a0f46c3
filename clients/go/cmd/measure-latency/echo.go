package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

// warmup requests open each connection and settle both sides' caches.
const warmup = 10

// requestsLimit is how many times fit in some memory, and some hours.
const requestsLimit = 10_000_000

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

// lane sends the echo with this number and waits for it, one after the other.
type lane func(ctx context.Context, i int) error

// timeEcho prints how long echoes take that follow each other.
func timeEcho(ctx context.Context, opts options, stdout, stderr io.Writer) error {
	transport := opts.server.transports()[0]
	lanes, done, err := opts.lanes(ctx, transport, true, "http", opts.connections)
	if err != nil {
		return err
	}
	defer done()
	m, err := measure(ctx, lanes, opts.n)
	if err != nil {
		return err
	}
	what := "/echo of " + opts.server.String()
	if transport == "frames" {
		what = fmt.Sprintf("echoes of %d bytes, of %s", opts.bytes, opts.server.frames)
	}
	if err := m.print(stdout, opts.asJSON, what); err != nil {
		return err
	}
	if m.reconnects > 0 {
		fmt.Fprintf(stderr, "measure-latency: %d of the requests had to open a new connection, which their times include\n", m.reconnects)
	}
	return nil
}

// lanes opens so many connections; done closes them.
func (o options) lanes(ctx context.Context, transport string, keepAlive bool, through string, connections int) (lanes []lane, done func(), err error) {
	if transport == "frames" {
		return frameLanes(ctx, o, keepAlive, connections)
	}
	client := o.server.client(transport, keepAlive)
	depth := gemma.Depth(through)
	if through == "http" {
		depth = gemma.DepthHTTP
	}
	send := func(ctx context.Context, i int) error { return echo(ctx, client, depth, i) }
	return slices.Repeat([]lane{send}, connections), func() {}, nil
}

// measure times n echoes over these lanes.
func measure(ctx context.Context, lanes []lane, n int) (*measurement, error) {
	if _, err := sendAll(ctx, lanes, -warmup*len(lanes), 0); err != nil {
		return nil, err
	}
	var reconnects atomic.Int64
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			if !info.Reused {
				reconnects.Add(1)
			}
		},
	})
	begin := time.Now()
	times, err := sendAll(ctx, lanes, 0, n)
	if err != nil {
		return nil, err
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
		reconnects: int(reconnects.Load()),
	}, nil
}

// sendAll sends the echoes numbered from first to end, each as soon as one of
// the lanes is free, and returns their times.
func sendAll(ctx context.Context, lanes []lane, first, end int) ([]time.Duration, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	times := make([]time.Duration, end-first)
	var next atomic.Int64
	var running sync.WaitGroup
	for _, send := range lanes {
		running.Add(1)
		go func() {
			defer running.Done()
			for i := int(next.Add(1)) - 1; i < len(times) && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				start := time.Now()
				if err := send(ctx, first+i); err != nil {
					stop(err)
				}
				times[i] = time.Since(start)
			}
		}()
	}
	running.Wait()
	return times, context.Cause(ctx)
}

// echo sends a text that differs from request to request, so that an answer
// to another request does not pass.
func echo(ctx context.Context, client *gemma.Client, depth gemma.Depth, i int) error {
	sent := fmt.Sprintf("measure-latency %d é \"<&>\"", i)
	raw, err := client.EchoThrough(ctx, depth, sent)
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

func (m *measurement) print(w io.Writer, asJSON bool, what string) error {
	if asJSON {
		return json.NewEncoder(w).Encode(m)
	}
	unit, scale := "us", 1.0
	if m.P99 >= 10_000 {
		unit, scale = "ms", 1000
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s, requests timed: %d\n", what, m.N)
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
