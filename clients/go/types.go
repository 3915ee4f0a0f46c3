package gemma

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/gemma-server/gemma-server/clients/go/internal/wire"
)

// Request is one prompt and how to sample its answer. Only Prompt is needed.
//
// A field left at its zero value is not sent, and the server's default holds.
// For most that default is zero as well, so nothing is lost: temperature 0 is
// greedy, and top_k and min_p 0 are off. The exceptions: an unset TopP means 1,
// off (nobody needs 0, which would be greedy again), and Seed is a pointer, since
// an unset seed is drawn at random while 0 is a seed like any other.
type Request struct {
	// Prompt is the text to continue. It must be valid UTF-8.
	Prompt string `json:"prompt"`
	// Model names one of the server's models: "chat", its version "chat@3" or
	// the version of a label "chat:stable". Empty is the model of [WithModel], else
	// the server's default.
	Model string `json:"model,omitempty"`
	// SamplingSteps is the most tokens to generate; 0 leaves it to the server,
	// whose default is 128 or its own limit, whichever is less.
	SamplingSteps int `json:"sampling_steps,omitempty"`
	// Temperature flattens the distribution; at 0 the likeliest token always
	// wins, and TopK, TopP, MinP and Seed do nothing.
	Temperature float64 `json:"temperature,omitempty"`
	// TopK keeps the k likeliest tokens.
	TopK int `json:"top_k,omitempty"`
	// TopP keeps the likeliest tokens that together reach probability p.
	TopP float64 `json:"top_p,omitempty"`
	// MinP drops tokens below p times the likeliest token's probability.
	MinP float64 `json:"min_p,omitempty"`
	// Seed makes sampling repeatable; see [Ptr].
	Seed *uint64 `json:"seed,omitempty"`
	// Stop ends the answer where one of these texts would begin.
	Stop []string `json:"stop,omitempty"`
	// IgnoreEOS generates SamplingSteps tokens even past the model's own end.
	IgnoreEOS bool `json:"ignore_eos,omitempty"`
	// CachePrompt false reads the whole prompt, and leaves nothing for others
	// to begin with; see [Ptr].
	CachePrompt *bool `json:"cache_prompt,omitempty"`
	// CacheSalt keeps what is read among requests with the same salt.
	CacheSalt string `json:"cache_salt,omitempty"`

	// The answer can be made to be something, in one of four ways. It is whole
	// when it ends with [FinishStop]. Stop and IgnoreEOS do not go with them.

	// Schema is a JSON schema that the answer fits; see [SchemaFor] and [Into].
	Schema json.RawMessage `json:"response_schema,omitempty"`
	// Regex matches the whole answer.
	Regex string `json:"regex,omitempty"`
	// Choice has the answer among its texts.
	Choice []string `json:"choice,omitempty"`
	// Grammar is a context-free grammar, in llama.cpp's GBNF or in Lark.
	Grammar string `json:"grammar,omitempty"`
}

// Ptr returns a pointer to v, as the seed of a [Request] needs it:
//
//	gemma.Request{Prompt: "Hi", Temperature: 0.7, Seed: gemma.Ptr[uint64](0)}
func Ptr[T any](v T) *T { return &v }

// CheckText reports a text in r that is not valid UTF-8, which JSON cannot hold.
func (r Request) CheckText() error {
	return errors.Join(wire.CheckText("prompt", r.Prompt), wire.CheckText("model", r.Model), wire.CheckText("stop text", r.Stop...),
		wire.CheckText("cache salt", r.CacheSalt), wire.CheckText("regex", r.Regex), wire.CheckText("choice", r.Choice...),
		wire.CheckText("grammar", r.Grammar))
}

func (r Request) encode(stream bool) ([]byte, error) {
	if err := r.CheckText(); err != nil {
		return nil, fmt.Errorf("gemma: %w", err)
	}
	body, err := json.Marshal(struct {
		Request
		Stream bool `json:"stream,omitempty"`
	}{r, stream})
	if err != nil {
		return nil, fmt.Errorf("gemma: encoding the request: %w", err)
	}
	return body, nil
}

// FinishReason says why an answer ended.
type FinishReason string

// The values of [FinishReason].
const (
	FinishStop   FinishReason = "stop"   // the model or a stop text ended it
	FinishLength FinishReason = "length" // it reached SamplingSteps, or the context is full
)

// Response is the whole answer to a prompt.
type Response struct {
	Text         string       `json:"response"`
	FinishReason FinishReason `json:"finish_reason"`
	Usage        Usage        `json:"usage"`
	Timings      Timings      `json:"timings"`
	// ModelVersion is the number of the model's version that answered.
	ModelVersion string `json:"model_version"`
	// RequestID names the request in the server's log.
	RequestID string `json:"-"`
}

// Chunk is one piece of a streamed answer. All but Text is set in the last chunk
// only, whose Text may be empty.
type Chunk struct {
	Text         string       `json:"response"`
	FinishReason FinishReason `json:"finish_reason"`
	Usage        *Usage       `json:"usage"`
	Timings      *Timings     `json:"timings"`
	ModelVersion string       `json:"model_version"`
}

// Usage counts the tokens of a request.
type Usage struct {
	// PromptTokens counts the prompt's, the first one that every prompt gets included.
	PromptTokens int `json:"prompt_tokens"`
	// CompletionTokens counts all tokens drawn, the one that ended the answer included.
	CompletionTokens int `json:"completion_tokens"`
	// CachedTokens of the prompt's tokens needed no prefill.
	CachedTokens int `json:"cached_tokens"`
}

// Timings says where the server spent a request's time, in milliseconds, and
// how much of the answer it foresaw.
type Timings struct {
	QueueMS   float64 `json:"queue_ms"`   // waiting for a slot
	PrefillMS float64 `json:"prefill_ms"` // reading the prompt, up to the first token
	DecodeMS  float64 `json:"decode_ms"`  // from the first token to the last

	DraftTokens    int `json:"draft_tokens"`    // tokens that were foreseen from the text
	AcceptedTokens int `json:"accepted_tokens"` // those of them that came true
}

// State is the phase of the server's life.
type State string

// The values of [State].
const (
	StateLoading  State = "loading"
	StateReady    State = "ready"
	StateStuck    State = "stuck" // the device does not answer, and may be replaced
	StateDraining State = "draining"
)

// Status is how far the server is.
type Status struct {
	State State  `json:"status"`
	Stage string `json:"stage"` // what it is doing within the state
	// Progress goes from 0 to 1; nil where the server cannot tell.
	Progress *float64 `json:"progress"`
	Model    string   `json:"model"`
	// RetryAfter is when to ask again, as the server suggests; 0 if it does not.
	RetryAfter time.Duration `json:"-"`
}

// Ready reports whether the server can answer prompts.
func (s *Status) Ready() bool { return s.State == StateReady }
