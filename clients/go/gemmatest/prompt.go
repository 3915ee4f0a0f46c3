package gemmatest

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

func (x *exchange) prompt() {
	problem := x.problem
	if problem == nil {
		problem = x.choose()
	}
	if loading := x.notReady(); loading != nil {
		problem = loading
	}
	if problem == nil {
		var cancel func()
		cancel, problem = x.limitTime()
		defer cancel()
	}
	if problem != nil {
		x.fail(problem)
		return
	}
	reply := x.server.reply(x.request.Prompt)
	if x.request.Stream && (len(reply.Pieces) > 0 || reply.Err == nil) {
		problem = x.stream(reply)
	} else {
		problem = x.whole(reply)
	}
	if problem != nil {
		x.fail(problem)
	}
}

// notReady is the error of what needs a model that is ready.
func (x *exchange) notReady() *gemma.APIError {
	st := x.server.currentStatus()
	if st.Ready() {
		return nil
	}
	return &gemma.APIError{Status: 503, Code: string(st.State), Message: "the server is " + string(st.State), RetryAfter: st.RetryAfter}
}

// limitTime ends the context with X-Request-Timeout-Ms.
func (x *exchange) limitTime() (cancel func(), problem *gemma.APIError) {
	const name = "X-Request-Timeout-Ms"
	v := x.request.Header.Get(name)
	if v == "" {
		return func() {}, nil
	}
	ms, err := strconv.ParseInt(v, 10, 64)
	if err != nil || ms < 1 || ms > 1_000_000_000 {
		return func() {}, invalid(name, name+" must be a whole number of milliseconds from 1 to 1000000000")
	}
	x.ctx, cancel = context.WithTimeout(x.ctx, time.Duration(ms)*time.Millisecond)
	return cancel, nil
}

// beforeEnd waits as long as the reply holds back its end, and returns what
// comes instead of it; a broken reply does not return.
func (x *exchange) beforeEnd(reply Reply) *gemma.APIError {
	if problem := x.wait(reply.Hold); problem != nil {
		return problem
	}
	if reply.Err != nil {
		return reply.Err
	}
	if reply.Break {
		panic(http.ErrAbortHandler)
	}
	return nil
}

// whole answers in one piece.
func (x *exchange) whole(reply Reply) *gemma.APIError {
	if problem := x.pause(reply.Delay); problem != nil {
		return problem
	}
	first := time.Now()
	if problem := x.pause(time.Duration(len(reply.Pieces)) * reply.PieceDelay); problem != nil {
		return problem
	}
	if problem := x.beforeEnd(reply); problem != nil {
		return problem
	}
	x.write(200, x.end(reply, reply.text(), first))
	return nil
}

// stream answers piece by piece. A problem before the first one is an answer
// with a status, one behind it an event and then a broken body.
func (x *exchange) stream(reply Reply) *gemma.APIError {
	if problem := x.pause(reply.Delay); problem != nil {
		return problem
	}
	first := time.Now()
	for i, piece := range reply.Pieces {
		if i == 1 {
			if problem := x.wait(reply.Hold); problem != nil {
				return problem
			}
		}
		if problem := x.pause(reply.PieceDelay); problem != nil {
			return problem
		}
		x.event(part{piece})
	}
	if problem := x.beforeEnd(reply); problem != nil {
		return problem
	}
	x.event(x.end(reply, "", first))
	x.line("[DONE]")
	return nil
}

// end is the answer's last part, which tells how it ended and what it took.
func (x *exchange) end(reply Reply, text string, first time.Time) whole {
	reason := reply.FinishReason
	if reason == "" {
		reason = gemma.FinishStop
	}
	return whole{
		Response:     text,
		FinishReason: reason,
		Usage:        reply.usage(x.request.Prompt.Prompt),
		Timings:      timings{Prefill: milliseconds(first.Sub(x.began)), Decode: milliseconds(time.Since(first))},
		ModelVersion: strconv.Itoa(x.version),
	}
}

func (x *exchange) pause(d time.Duration) *gemma.APIError {
	if d <= 0 {
		return nil
	}
	over := make(chan struct{})
	defer time.AfterFunc(d, func() { close(over) }).Stop()
	return x.wait(over)
}

// wait waits for the channel, if there is one, but no longer than the client,
// its time limit and the server last.
func (x *exchange) wait(until <-chan struct{}) *gemma.APIError {
	if until == nil {
		return nil
	}
	select {
	case <-until:
		return nil
	case <-x.server.closed:
	case <-x.ctx.Done():
	}
	if errors.Is(x.ctx.Err(), context.DeadlineExceeded) {
		return &gemma.APIError{Status: 504, Code: gemma.CodeDeadline, Message: "the time allowed for this request is over"}
	}
	panic(http.ErrAbortHandler)
}
