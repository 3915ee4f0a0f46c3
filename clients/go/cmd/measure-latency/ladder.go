package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
)

// connectionsMax is how many connections the ladder has at once.
const connectionsMax = 32

// rung is one way to send echoes, and how long they took.
type rung struct {
	Transport   string `json:"transport"`
	KeepAlive   bool   `json:"keep_alive"`
	Connections int    `json:"connections"`
	Through     string `json:"through"`
	measurement
}

// climb times echoes in every way there is, and prints each as it is done.
func climb(ctx context.Context, opts options, stdout io.Writer) error {
	if !opts.asJSON {
		fmt.Fprintf(stdout, "/echo of %s, requests timed on each line: %d\n", opts.server, opts.n)
		if opts.server.frames != "" {
			fmt.Fprintf(stdout, "frames of %s, of %d bytes\n", opts.server.frames, opts.bytes)
		}
		fmt.Fprintf(stdout, "%-6s %-10s %11s %-7s %10s %10s %10s %11s\n",
			"over", "kept alive", "connections", "through", "mean us", "p50 us", "p99 us", "requests/s")
	}
	rungs := opts.rungs()
	for i := range rungs {
		if err := rungs[i].measure(ctx, opts); err != nil {
			return fmt.Errorf("over %s through %s: %w", rungs[i].Transport, rungs[i].Through, err)
		}
		if !opts.asJSON {
			rungs[i].print(stdout)
		}
	}
	if opts.asJSON {
		return json.NewEncoder(stdout).Encode(rungs)
	}
	return nil
}

// rungs are all ways, the shortest first.
func (o options) rungs() []rung {
	var rungs []rung
	for _, transport := range o.server.transports() {
		for _, keepAlive := range []bool{true, false} {
			for _, connections := range []int{1, connectionsMax} {
				for _, through := range depths(transport) {
					rungs = append(rungs, rung{Transport: transport, KeepAlive: keepAlive, Connections: connections, Through: through})
				}
			}
		}
	}
	return rungs
}

// depths are how far an echo can go.
func depths(transport string) []string {
	if transport == "frames" {
		return []string{"frame"}
	}
	return []string{"http", "queue", "device"}
}

func (r *rung) measure(ctx context.Context, opts options) error {
	lanes, done, err := opts.lanes(ctx, r.Transport, r.KeepAlive, r.Through, r.Connections)
	if err != nil {
		return err
	}
	defer done()
	m, err := measure(ctx, lanes, opts.n)
	if err == nil {
		r.measurement = *m
	}
	return err
}

func (r *rung) print(w io.Writer) {
	kept := "no"
	if r.KeepAlive {
		kept = "yes"
	}
	fmt.Fprintf(w, "%-6s %-10s %11d %-7s %10.1f %10.1f %10.1f %11.1f\n",
		r.Transport, kept, r.Connections, r.Through, r.Mean, r.P50, r.P99, r.Rate)
}
