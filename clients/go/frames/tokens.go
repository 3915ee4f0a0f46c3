package frames

import (
	"context"
	"fmt"

	"github.com/gemma-server/gemma-server/clients/go/internal/wire"
)

// Tokens is a text in the model's tokens.
type Tokens struct {
	// IDs begin with the one that every prompt gets in front.
	IDs   []int `json:"tokens"`
	Count int   `json:"count"`
	// MaxModelLen is how many tokens a prompt and its answer may have together.
	MaxModelLen int `json:"max_model_len"`
}

// Tokenize splits a prompt into tokens, without any work of the model.
func (c *Conn) Tokenize(ctx context.Context, prompt string) (*Tokens, error) {
	if err := wire.CheckText("prompt", prompt); err != nil {
		return nil, fmt.Errorf("frames: %w", err)
	}
	op := c.operation("tokenize")
	request := struct {
		operation
		Prompt string `json:"prompt"`
		Model  string `json:"model,omitempty"`
	}{op, prompt, c.model}
	tokens := &Tokens{}
	if err := c.ask(ctx, op.ID, request, tokens); err != nil {
		return nil, err
	}
	return tokens, nil
}
