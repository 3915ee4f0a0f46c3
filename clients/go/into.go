package gemma

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// ErrUnfinished is the error of an answer that reached its most tokens before
// it was whole.
var ErrUnfinished = errors.New("gemma: the answer was cut before it was whole; raise SamplingSteps")

// Generator is what [Into] asks: a [Client], or a connection of frames.
type Generator interface {
	Generate(ctx context.Context, req Request) (*Response, error)
}

// Into asks for an answer that is a T, as JSON, and reads it. The server lets
// the model write nothing else; see [SchemaFor] for what that is. It does not
// tell the model: say in the prompt what is wanted. A Schema in req wins over
// that of T.
//
// An answer that SamplingSteps cut is [ErrUnfinished].
func Into[T any](ctx context.Context, from Generator, req Request) (T, error) {
	var into T
	if req.Schema == nil {
		schema, err := SchemaFor[T]()
		if err != nil {
			return into, err
		}
		req.Schema = schema
	}
	resp, err := from.Generate(ctx, req)
	if err != nil {
		return into, err
	}
	if resp.FinishReason != FinishStop {
		return into, ErrUnfinished
	}
	if err := json.Unmarshal([]byte(resp.Text), &into); err != nil {
		return into, fmt.Errorf("gemma: reading the answer%s: %w", forRequest(resp.RequestID), err)
	}
	return into, nil
}
