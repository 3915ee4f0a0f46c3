package frames

import (
	"context"
	"fmt"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/internal/wire"
)

// Score is how likely the model finds each token of a prompt.
type Score struct {
	Logprobs Logprobs      `json:"logprobs"`
	Usage    gemma.Usage   `json:"usage"`
	Timings  gemma.Timings `json:"timings"`
}

// Logprobs has an item for each token of a prompt, the one that every prompt
// gets in front included.
type Logprobs struct {
	Tokens []string `json:"tokens"`
	// Values are natural logarithms; nil for the first token, before which
	// there is nothing.
	Values []*float64 `json:"token_logprobs"`
	// Top has the likeliest tokens in each one's place, as many as were asked
	// for.
	Top []map[string]float64 `json:"top_logprobs"`
	// Offsets are where in the prompt the tokens begin, in characters.
	Offsets []int `json:"text_offset"`
}

// Score rates a prompt, and names as many of the likeliest tokens in each
// token's place, 20 at most. When ctx ends, the server stops too.
func (c *Conn) Score(ctx context.Context, prompt string, top int) (*Score, error) {
	if err := wire.CheckText("prompt", prompt); err != nil {
		return nil, fmt.Errorf("frames: %w", err)
	}
	op := c.operation("score")
	request := struct {
		operation
		Prompt  string `json:"prompt"`
		Model   string `json:"model,omitempty"`
		Top     int    `json:"top_logprobs,omitempty"`
		Timeout int64  `json:"timeout_ms,omitempty"`
	}{op, prompt, c.model, top, wire.Timeout(ctx)}
	score := &Score{}
	if err := c.ask(ctx, op.ID, request, score); err != nil {
		return nil, err
	}
	return score, nil
}
