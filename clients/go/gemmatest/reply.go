package gemmatest

import (
	"strings"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

// Reply is one answer to /prompt. A request that wants no stream gets the
// Pieces as one text.
type Reply struct {
	// Pieces of the text, each an event of its own in a stream.
	Pieces []string
	// FinishReason is [gemma.FinishStop] where it is not set.
	FinishReason gemma.FinishReason
	// Usage, where it is not set, counts a byte of prompt or answer as a token.
	Usage *gemma.Usage

	// Delay is how long the answer takes to begin.
	Delay time.Duration
	// PieceDelay is how long each piece takes.
	PieceDelay time.Duration
	// Hold, if not nil, keeps the answer back until it is closed, behind the
	// first piece of a stream. With it a test needs no delays.
	Hold <-chan struct{}

	// Err takes the place of the answer. In a stream with Pieces it comes
	// behind these and breaks the stream, as a failure on the way does.
	Err *gemma.APIError
	// Break breaks the connection, in a stream behind the Pieces.
	Break bool
}

// Text is an answer, in a stream an event for each piece.
func Text(pieces ...string) Reply { return Reply{Pieces: pieces} }

// Error is an error answer, such as Error(429, gemma.CodeOverloaded). It has no
// Retry-After, which would have a client wait a second at least; a [Reply] with
// an Err of your own may.
func Error(status int, code string) Reply {
	return Reply{Err: &gemma.APIError{Status: status, Code: code}}
}

// Repeat answers with the prompt, a byte a token, until it is over, a text of
// Stop would begin, or SamplingSteps is reached. A [Server] answers so when it
// is not told otherwise.
func Repeat(req gemma.Request) Reply {
	steps := req.SamplingSteps
	if steps == 0 {
		steps = defaultSteps
	}
	text, reason, drawn := repeat(req.Prompt, steps, req.Stop)
	return Reply{
		Pieces:       strings.Split(strings.ToValidUTF8(text, "\uFFFD"), ""),
		FinishReason: reason,
		Usage:        &gemma.Usage{PromptTokens: 1 + len(req.Prompt), CompletionTokens: drawn},
	}
}

func repeat(prompt string, steps int, stops []string) (text string, reason gemma.FinishReason, drawn int) {
	for drawn = 1; drawn <= min(steps, len(prompt)); drawn++ {
		text = prompt[:drawn]
		for _, stop := range stops {
			if before, found := strings.CutSuffix(text, stop); found {
				return before, gemma.FinishStop, drawn
			}
		}
	}
	if steps > len(prompt) {
		return text, gemma.FinishStop, drawn // the last one drawn ends the text
	}
	return text, gemma.FinishLength, steps
}

func (r Reply) text() string { return strings.Join(r.Pieces, "") }

// usage counts what the reply does not say itself.
func (r Reply) usage(prompt string) gemma.Usage {
	if r.Usage != nil {
		return *r.Usage
	}
	return gemma.Usage{PromptTokens: 1 + len(prompt), CompletionTokens: 1 + len(r.text())}
}
