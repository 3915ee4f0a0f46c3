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

// timeEcho prints how long echoes take that follow each other.
func timeEcho(ctx context.Context, opts options, stdout, stderr io.Writer) error {
	client := opts.server.client(opts.server.transports()[0], true)
	m, err := measure(ctx, client, gemma.DepthHTTP, opts.n, 1)
	if err != nil {
		return err
	}
	if err := m.print(stdout, opts.asJSON, opts.server.String()); err != nil {
		return err
	}
	if m.reconnects > 0 {
		fmt.Fprintf(stderr, "measure-latency: %d of the requests had to open a new connection, which their times include\n", m.reconnects)
	}
	return nil
}

// measure times n echoes, over so many connections at once.
func measure(ctx context.Context, client *gemma.Client, depth gemma.Depth, n, connections int) (*measurement, error) {
	if _, err := sendAll(ctx, client, depth, -warmup*connections, 0, connections); err != nil {
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
	times, err := sendAll(ctx, client, depth, 0, n, connections)
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
// the connections is free, and returns their times.
func sendAll(ctx context.Context, client *gemma.Client, depth gemma.Depth, first, end, connections int) ([]time.Duration, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	times := make([]time.Duration, end-first)
	var next atomic.Int64
	var running sync.WaitGroup
	for range connections {
		running.Add(1)
		go func() {
			defer running.Done()
			for i := int(next.Add(1)) - 1; i < len(times) && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				start := time.Now()
				if err := echo(ctx, client, depth, first+i); err != nil {
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
