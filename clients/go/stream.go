package gemma

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"mime"
	"net/http"
	"time"

	"github.com/gemma-server/gemma-server/clients/go/internal/ended"
	"github.com/gemma-server/gemma-server/clients/go/internal/wire"
)

// drainWait is how long a finished stream may take to close. The server does
// so at once; reading to that end is what lets the connection be used again.
const drainWait = 250 * time.Millisecond

// Stream sends a prompt and yields the answer piece by piece as the model
// makes it. The request is sent when a loop over the sequence begins, once for
// each loop. Leaving the loop or cancelling ctx closes the connection, which
// makes the server stop generating; behind the end of ctx no piece is yielded.
//
// An error is yielded last, with an empty [Chunk]. An error answer, or an
// error the server reports amid the stream, is an [*APIError]. A stream that
// ends early otherwise gives an error that wraps [io.ErrUnexpectedEOF], so a
// loop that ends without an error has seen the whole answer.
func (c *Client) Stream(ctx context.Context, req Request) iter.Seq2[Chunk, error] {
	return func(yield func(Chunk, error) bool) {
		if err := c.stream(ctx, req, yield); err != nil {
			yield(Chunk{}, err)
		}
	}
}

// event is what the data of one server-sent event may hold.
type event struct {
	Chunk
	Error *wire.Error `json:"error"`
}

// stream returns nil both at the end of the answer and after a break.
func (c *Client) stream(ctx context.Context, req Request, yield func(Chunk, error) bool) error {
	body, err := c.encode(req, true)
	if err != nil {
		return err
	}
	streamCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := c.send(streamCtx, outgoing{method: http.MethodPost, path: "/prompt", accept: "text/event-stream", body: body})
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		ans, err := readAnswer(ctx, resp, "/prompt")
		if err != nil {
			return err
		}
		return ans.apiError()
	}
	defer resp.Body.Close()
	requestID := resp.Header.Get("X-Request-Id")
	fail := func(err error) error {
		return fmt.Errorf("gemma: stream%s: %w", forRequest(requestID), err)
	}
	contentType := resp.Header.Get("Content-Type")
	if mediaType, _, _ := mime.ParseMediaType(contentType); mediaType != "text/event-stream" {
		return fail(fmt.Errorf("unexpected content type %q", contentType))
	}

	dec := newDecoder(resp.Body)
	finished := false
	for {
		data, err := dec.next()
		if err != nil {
			return fail(endOfStream(ctx, err))
		}
		if string(data) == "[DONE]" {
			break
		}
		var ev event
		if err := json.Unmarshal(data, &ev); err != nil {
			return fail(fmt.Errorf("event %q: %w", wire.Excerpt(data), err))
		}
		if ev.Error != nil {
			return newAPIError(ev.Error, 0, resp.Header)
		}
		finished = finished || ev.FinishReason != ""
		if ctx.Err() != nil { // what has come already is not wanted any more
			return fail(ended.Error(ctx))
		}
		if !yield(ev.Chunk, nil) {
			return nil
		}
	}
	if !finished {
		return fail(errors.New("[DONE] without a finish_reason"))
	}
	defer time.AfterFunc(drainWait, cancel).Stop()
	io.Copy(io.Discard, io.LimitReader(resp.Body, errorBodyMax))
	return nil
}

// endOfStream makes every way to lose the connection an io.ErrUnexpectedEOF,
// and leaves alone what the caller's context or the decoder brought about.
func endOfStream(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ended.Blame(ctx, err)
	case err == io.EOF:
		return io.ErrUnexpectedEOF
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, errEventTooLarge):
		return err
	}
	return fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, err)
}
