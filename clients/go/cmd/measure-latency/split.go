package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http/httptrace"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

// parts are where the time of an answer went, in microseconds, in the order of
// a request's life.
type parts struct {
	Dial    float64 `json:"dial_us"`
	Write   float64 `json:"write_us"`
	Queue   float64 `json:"queue_us"`
	Prefill float64 `json:"prefill_us"`
	Decode  float64 `json:"decode_us"`
	Server  float64 `json:"server_us"` // the rest of the wait: HTTP, JSON, tokens to text
	Read    float64 `json:"read_us"`
	Total   float64 `json:"total_us"`
	Tokens  int     `json:"completion_tokens"`
}

// split prints the parts of each answer as it comes, and their mean.
func split(ctx context.Context, opts options, stdout io.Writer) error {
	// A connection for each, so that dialling is among the parts.
	client := opts.server.client(opts.server.transports()[0], false)
	if !opts.asJSON {
		fmt.Fprintf(stdout, "answers of %s, times in us\n", opts.server)
		fmt.Fprintf(stdout, "%6s %9s %9s %9s %9s %9s %9s %9s %9s %7s\n",
			"", "dial", "write", "queue", "prefill", "decode", "server", "read", "total", "tokens")
	}
	var sum parts
	for i := range opts.n {
		p, err := answerParts(ctx, client, gemma.Request{Prompt: opts.prompt, SamplingSteps: opts.steps})
		if err != nil {
			return err
		}
		if !opts.asJSON {
			p.print(stdout, fmt.Sprint(i+1))
		}
		sum.add(p)
	}
	mean := sum.over(opts.n)
	if opts.asJSON {
		return json.NewEncoder(stdout).Encode(mean)
	}
	mean.print(stdout, "mean")
	return nil
}

// answerParts times one answer.
func answerParts(ctx context.Context, client *gemma.Client, req gemma.Request) (parts, error) {
	var begin, dialed, written, answered time.Time
	begin = time.Now()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:              func(httptrace.GotConnInfo) { dialed = time.Now() },
		WroteRequest:         func(httptrace.WroteRequestInfo) { written = time.Now() },
		GotFirstResponseByte: func() { answered = time.Now() },
	})
	resp, err := client.Generate(ctx, req)
	if err != nil {
		return parts{}, err
	}
	end := time.Now()
	t := resp.Timings
	p := parts{
		Dial:    micros(dialed.Sub(begin)),
		Write:   micros(written.Sub(dialed)),
		Queue:   1000 * t.QueueMS,
		Prefill: 1000 * t.PrefillMS,
		Decode:  1000 * t.DecodeMS,
		Read:    micros(end.Sub(answered)),
		Total:   micros(end.Sub(begin)),
		Tokens:  resp.Usage.CompletionTokens,
	}
	p.Server = micros(answered.Sub(written)) - p.Queue - p.Prefill - p.Decode
	return p, nil
}

func (p *parts) each() []*float64 {
	return []*float64{&p.Dial, &p.Write, &p.Queue, &p.Prefill, &p.Decode, &p.Server, &p.Read, &p.Total}
}

func (p *parts) add(other parts) {
	values := other.each()
	for i, value := range p.each() {
		*value += *values[i]
	}
	p.Tokens += other.Tokens
}

func (p parts) over(n int) parts {
	for _, value := range p.each() {
		*value /= float64(n)
	}
	p.Tokens /= n
	return p
}

func (p parts) print(w io.Writer, name string) {
	fmt.Fprintf(w, "%6s", name)
	for _, value := range p.each() {
		fmt.Fprintf(w, " %9.1f", *value)
	}
	fmt.Fprintf(w, " %7d\n", p.Tokens)
}
