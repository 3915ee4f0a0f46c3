// Package gemma is a client of gemma-server, which serves a Gemma model over
// HTTP on the loopback interface or a Unix socket.
//
// Make one [Client] with [New] and share it: it is safe for concurrent use and
// keeps its connections alive between calls.
//
// A request that the server did not take, because it is busy, still loading or
// not there, is tried again a few times; see [WithRetries]. What the server has
// begun to answer, or may have begun to work on, is never sent twice.
package gemma

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"
)

// Client talks to gemma-server. It is safe for concurrent use.
type Client struct {
	pool    *pool
	apiKey  string
	model   *string // of requests that name none
	retries int
	log     *slog.Logger
	sleep   func(context.Context, time.Duration) error
	err     error // a mistake in the options, returned by every call
}

// Generate sends a prompt and waits for the whole answer. An error answer of
// the server is an [*APIError].
func (c *Client) Generate(ctx context.Context, req Request) (*Response, error) {
	body, err := c.encode(req, false)
	if err != nil {
		return nil, err
	}
	ans, err := c.call(ctx, outgoing{method: http.MethodPost, path: "/prompt", accept: "application/json", body: body})
	if err != nil {
		return nil, err
	}
	if ans.status != http.StatusOK {
		return nil, ans.apiError()
	}
	resp := &Response{RequestID: ans.requestID()}
	if err := ans.decode(resp); err != nil {
		return nil, err
	}
	if resp.FinishReason == "" {
		return nil, ans.unexpected(errors.New("no finish_reason"))
	}
	return resp, nil
}

// Depth is how far an echo goes before it comes back.
type Depth string

// The depths, each with what those before it take.
const (
	DepthHTTP   Depth = ""       // the server's handler, with all checks of a prompt
	DepthQueue  Depth = "queue"  // the thread that runs the model, once it comes by
	DepthDevice Depth = "device" // one empty dispatch to the device
)

// Echo sends v as JSON and returns what the server sends back, which costs no
// work of the model: it checks the connection and measures its latency.
func (c *Client) Echo(ctx context.Context, v any) (json.RawMessage, error) {
	return c.EchoThrough(ctx, DepthHTTP, v)
}

// EchoThrough is [Client.Echo] to a depth. Beyond DepthHTTP the server's default
// model has to be loaded, whatever [WithModel] says.
func (c *Client) EchoThrough(ctx context.Context, depth Depth, v any) (json.RawMessage, error) {
	query := ""
	if depth != DepthHTTP {
		query = url.Values{"through": {string(depth)}}.Encode()
	}
	body, err := json.Marshal(struct {
		Prompt any `json:"prompt"`
	}{v})
	if err != nil {
		return nil, fmt.Errorf("gemma: encoding the request: %w", err)
	}
	ans, err := c.call(ctx, outgoing{method: http.MethodPost, path: "/echo", query: query, accept: "application/json", body: body})
	if err != nil {
		return nil, err
	}
	if ans.status != http.StatusOK {
		return nil, ans.apiError()
	}
	var out struct {
		Prompt json.RawMessage `json:"echo_prompt"`
	}
	if err := ans.decode(&out); err != nil {
		return nil, err
	}
	if out.Prompt == nil {
		return nil, ans.unexpected(errors.New("no echo_prompt"))
	}
	return out.Prompt, nil
}

// CloseIdleConnections closes the connections to all servers that no request
// uses at the moment. A client that is no longer needed holds them, and a
// goroutine or two for each, for a minute otherwise; it goes on working, too.
//
// Those of [WithHTTPClient] are closed for whoever else uses that client.
func (c *Client) CloseIdleConnections() {
	if c.err != nil {
		return
	}
	for _, e := range c.pool.endpoints {
		e.http.CloseIdleConnections()
	}
}

// encode is the body of a request, with the client's model where it names none.
func (c *Client) encode(req Request, stream bool) ([]byte, error) {
	if req.Model == "" && c.model != nil {
		req.Model = *c.model
	}
	return req.encode(stream)
}

func (c *Client) call(ctx context.Context, out outgoing) (*answer, error) {
	resp, err := c.send(ctx, out)
	if err != nil {
		return nil, err
	}
	return readAnswer(ctx, resp, out.path)
}
