// Package gemma is a client of gemma-server, which serves a Gemma model over
// HTTP on the loopback interface or a Unix socket.
//
// Make one [Client] with [New] and share it: it is safe for concurrent use and
// keeps its connections alive between calls. The client never retries; the
// RetryAfter field of an [APIError] says when a retry makes sense.
package gemma

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// DefaultBaseURL is where gemma-server listens unless told otherwise.
const DefaultBaseURL = "http://127.0.0.1:20200"

const (
	// The server closes idle connections after 75 s; closing first keeps a
	// request from racing with that close.
	idleConnTimeout = 60 * time.Second
	idleConnsMax    = 64
	// Far above any error the server writes, so that a proxy's page cannot
	// fill the memory.
	errorBodyMax = 64 << 10
)

// Client talks to one gemma-server. It is safe for concurrent use.
type Client struct {
	base *url.URL
	http *http.Client
	err  error // a mistake in the options, returned by every call
}

type config struct {
	baseURL    string
	socket     string
	httpClient *http.Client
}

// maxTimeoutMs is the longest X-Request-Timeout-Ms that the server takes.
const maxTimeoutMs = 1_000_000_000

// Option changes how [New] builds a [Client].
type Option func(*config)

// WithBaseURL sets the server's address, such as "http://127.0.0.1:20200".
// A path in it is kept as a prefix of every request's path.
func WithBaseURL(base string) Option {
	return func(c *config) { c.baseURL = base }
}

// WithUnixSocket connects through the Unix socket at path; the base URL then
// only fills the Host header. An empty path changes nothing. It cannot be
// combined with [WithHTTPClient], whose transport decides how to connect.
func WithUnixSocket(path string) Option {
	return func(c *config) { c.socket = path }
}

// WithHTTPClient replaces the default HTTP client, for instance to go through
// a proxy or to add headers. Mind that an [http.Client] Timeout also cuts a
// running [Client.Stream]; a context deadline additionally tells the server.
func WithHTTPClient(hc *http.Client) Option {
	return func(c *config) { c.httpClient = hc }
}

// New returns a client of the server at [DefaultBaseURL] unless an option says
// otherwise. It does not connect. A mistake in the options, such as a base URL
// without a scheme, is the error of every call on the client.
//
// The default HTTP client uses no proxy and follows no redirect: prompts go to
// the address given and nowhere else.
func New(opts ...Option) *Client {
	var cfg config
	for _, opt := range opts {
		opt(&cfg)
	}
	if cfg.baseURL == "" {
		cfg.baseURL = DefaultBaseURL
		if cfg.socket != "" {
			cfg.baseURL = "http://localhost"
		}
	}
	c := &Client{http: cfg.httpClient}
	if c.http == nil {
		c.http = newHTTPClient(cfg.socket)
	} else if cfg.socket != "" {
		c.err = errors.New("gemma: WithUnixSocket and WithHTTPClient exclude each other")
		return c
	}
	c.base, c.err = parseBaseURL(cfg.baseURL)
	return c
}

func parseBaseURL(base string) (*url.URL, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, fmt.Errorf("gemma: base URL: %w", err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("gemma: base URL %q is not of the form http://host:port", base)
	}
	return u, nil
}

func newHTTPClient(socket string) *http.Client {
	transport := &http.Transport{}
	// A program may have replaced the default transport by another type.
	if std, ok := http.DefaultTransport.(*http.Transport); ok {
		transport = std.Clone()
	}
	transport.Proxy = nil
	transport.MaxIdleConnsPerHost = idleConnsMax
	transport.IdleConnTimeout = idleConnTimeout
	transport.DisableCompression = true // no gain on loopback, and it would hold back stream pieces
	if socket != "" {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}
	}
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Generate sends a prompt and waits for the whole answer. An error answer of
// the server is an [*APIError].
func (c *Client) Generate(ctx context.Context, req Request) (*Response, error) {
	body, err := req.encode(false)
	if err != nil {
		return nil, err
	}
	ans, err := c.call(ctx, http.MethodPost, "/prompt", body)
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

// Echo sends v as JSON and returns what the server sends back, which costs no
// work of the model: it checks the connection and measures its latency.
func (c *Client) Echo(ctx context.Context, v any) (json.RawMessage, error) {
	body, err := json.Marshal(struct {
		Prompt any `json:"prompt"`
	}{v})
	if err != nil {
		return nil, fmt.Errorf("gemma: encoding the request: %w", err)
	}
	ans, err := c.call(ctx, http.MethodPost, "/echo", body)
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

// Ready reports whether the server can answer prompts. A server that is still
// loading or already draining is a [Status], not an error: look at
// [Status.Ready].
func (c *Client) Ready(ctx context.Context) (*Status, error) {
	ans, err := c.call(ctx, http.MethodGet, "/readyz", nil)
	if err != nil {
		return nil, err
	}
	if ans.status != http.StatusOK && ans.status != http.StatusServiceUnavailable {
		return nil, ans.apiError()
	}
	st := &Status{RetryAfter: retryAfter(ans.header)}
	err = ans.decode(st)
	if err == nil && st.State != "" {
		return st, nil
	}
	if ans.status != http.StatusOK {
		return nil, ans.apiError() // a 503 that is not the server's own
	}
	if err == nil {
		err = ans.unexpected(errors.New("no status"))
	}
	return nil, err
}

// answer is an HTTP answer whose body has been read to its end.
type answer struct {
	path   string
	status int
	header http.Header
	body   []byte
}

func (a *answer) requestID() string { return a.header.Get("X-Request-Id") }

func (a *answer) apiError() *APIError { return newAPIError(a.status, a.header, a.body) }

func (a *answer) decode(v any) error {
	if err := json.Unmarshal(a.body, v); err != nil {
		return a.unexpected(err)
	}
	return nil
}

func (a *answer) unexpected(err error) error {
	return fmt.Errorf("gemma: unexpected answer of %s%s: %w", a.path, forRequest(a.requestID()), err)
}

func (c *Client) call(ctx context.Context, method, path string, body []byte) (*answer, error) {
	resp, err := c.send(ctx, method, path, "application/json", body)
	if err != nil {
		return nil, err
	}
	return readAnswer(resp, path)
}

// send leaves the body of the answer open.
func (c *Client) send(ctx context.Context, method, path, accept string, body []byte) (*http.Response, error) {
	if c.err != nil {
		return nil, c.err
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base.JoinPath(path).String(), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("gemma: %w", err)
	}
	req.Header.Set("Accept", accept)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if deadline, ok := ctx.Deadline(); ok {
		left := min(max(1, time.Until(deadline).Milliseconds()), maxTimeoutMs)
		req.Header.Set("X-Request-Timeout-Ms", strconv.FormatInt(left, 10))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("gemma: %w", err)
	}
	return resp, nil
}

func readAnswer(resp *http.Response, path string) (*answer, error) {
	defer resp.Body.Close()
	var from io.Reader = resp.Body
	if resp.StatusCode != http.StatusOK {
		from = io.LimitReader(resp.Body, errorBodyMax)
	}
	body, err := io.ReadAll(from)
	if err != nil {
		return nil, fmt.Errorf("gemma: reading the answer of %s%s: %w",
			path, forRequest(resp.Header.Get("X-Request-Id")), err)
	}
	return &answer{path: path, status: resp.StatusCode, header: resp.Header, body: body}, nil
}

func forRequest(id string) string {
	if id == "" {
		return ""
	}
	return " (request " + id + ")"
}
