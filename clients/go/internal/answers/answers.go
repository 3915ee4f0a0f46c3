// Package answers has what a server that was started with --fake answers,
// whatever carries it.
package answers

import (
	"context"
	"iter"
	"strings"
	"testing"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

// Client is what asks: over HTTP, or over frames.
type Client interface {
	Generate(context.Context, gemma.Request) (*gemma.Response, error)
	Stream(context.Context, gemma.Request) iter.Seq2[gemma.Chunk, error]
}

// Check asks for texts, whole and streamed, and compares.
func Check(ctx context.Context, t *testing.T, client Client) {
	t.Helper()
	for _, tc := range []struct {
		req    gemma.Request
		text   string
		reason gemma.FinishReason
		tokens int
		pieces int
	}{
		{gemma.Request{Prompt: "Hello"}, "Hello", gemma.FinishStop, 6, 5},
		{gemma.Request{Prompt: "Hello", SamplingSteps: 4}, "Hell", gemma.FinishLength, 4, 4},
		{gemma.Request{Prompt: "Hello", SamplingSteps: 5}, "Hello", gemma.FinishLength, 5, 5},
		{gemma.Request{Prompt: "é日x", SamplingSteps: 50}, "é日x", gemma.FinishStop, 7, 3},
		{gemma.Request{Prompt: "aé", SamplingSteps: 2}, "a\uFFFD", gemma.FinishLength, 2, 2},
		{gemma.Request{Prompt: "abcdef", Stop: []string{"cd"}}, "ab", gemma.FinishStop, 4, 2},
		{gemma.Request{Prompt: "abcdef", Stop: []string{"cd", "f"}}, "ab", gemma.FinishStop, 4, 2},
		{gemma.Request{Prompt: "abcdef", Stop: []string{"cd"}, SamplingSteps: 3}, "abc", gemma.FinishLength, 3, 3},
		{gemma.Request{Prompt: strings.Repeat("x", 200)}, strings.Repeat("x", 128), gemma.FinishLength, 128, 128},
	} {
		usage := gemma.Usage{PromptTokens: 1 + len(tc.req.Prompt), CompletionTokens: tc.tokens}
		resp, err := client.Generate(ctx, tc.req)
		if err != nil || resp.Text != tc.text || resp.FinishReason != tc.reason || read(resp.Usage) != usage {
			t.Errorf("Generate of %+v: %+v, %v", tc.req, resp, err)
		}
		var text string
		var last gemma.Chunk
		n := 0
		for chunk, err := range client.Stream(ctx, tc.req) {
			if err != nil {
				t.Fatal(err)
			}
			text, last = text+chunk.Text, chunk
			n++
		}
		if text != tc.text || n != tc.pieces+1 || last.FinishReason != tc.reason || read(*last.Usage) != usage || last.Timings == nil {
			t.Errorf("Stream of %+v: %q in %d chunks, at last %+v", tc.req, text, n, last)
		}
	}
}

// read is the usage, had the prompt been read whole: what is cached depends on
// what was asked before.
func read(usage gemma.Usage) gemma.Usage {
	usage.CachedTokens = 0
	return usage
}
