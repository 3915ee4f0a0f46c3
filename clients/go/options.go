package gemma

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"
)

// DefaultBaseURL is where gemma-server listens unless told otherwise.
const DefaultBaseURL = "http://127.0.0.1:20200"

type config struct {
	baseURL    string
	socket     string
	endpoints  []string
	httpClient *http.Client
	apiKey     string
	model      *string
	retries    int
	log        *slog.Logger
}

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

// WithEndpoints spreads the requests over several servers with the same model.
// Each address is of the form "http://host:port" or "unix:/path/of/socket". It
// takes the place of [WithBaseURL] and [WithUnixSocket]; without addresses it
// changes nothing.
//
// A request goes to the server that has the fewest of this client's requests
// under way, and is tried again on another one first; see [WithRetries]. A
// server that is not there, or answers with status 503, three times in a row is
// left out. After a second, and then after longer and longer up to half a
// minute, one request probes whether it is back. When all are left out, a
// request tries the one whose probe is due soonest.
//
// Not there is also a server that has taken no connection within three seconds,
// or when the context's deadline has passed. One that takes connections and
// never answers counts for nothing, neither good nor bad, since it may be at
// work: give requests deadlines, and look with [Client.Ready].
func WithEndpoints(addresses ...string) Option {
	return func(c *config) { c.endpoints = addresses }
}

// WithHTTPClient replaces the default HTTP client, for instance to go through
// a proxy or to add headers. Mind that an [http.Client] Timeout also cuts a
// running [Client.Stream]; a context deadline additionally tells the server. How
// long it takes to give up dialling is for its transport to say.
func WithHTTPClient(hc *http.Client) Option {
	return func(c *config) { c.httpClient = hc }
}

// WithAPIKey sends key with every request, as a server that was started with
// --api-key-file wants it. An empty key sends none.
func WithAPIKey(key string) Option {
	return func(c *config) { c.apiKey = key }
}

// WithModel names the model of every request that names none itself, as
// [Request.Model] does: "chat", its version "chat@2" or the version of a label
// "chat:stable". What of that there is, is for the server to say, which answers
// 404 with [CodeModelNotFound] where there is none. The name must not be empty:
// without this option the server's default model answers.
//
// Echoes are of no model: beyond [DepthHTTP] they go through the default one.
func WithModel(name string) Option {
	return func(c *config) { c.model = &name }
}

// WithRetries sets how many times a request is tried again; the default is 2,
// and 0 never does.
//
// Tried again is what the server did not take: an answer with status 429 or
// 503, or with an X-Should-Retry header that says so, and a connection that
// could not be made. All of that comes before the first byte of an answer. An
// answer with status 504 is final, and so is a connection lost after a request
// went out, since the server may have worked on it.
//
// In between it waits a little longer than Retry-After says, or without that a
// random time that grows with each try. It does not wait where another server
// of [WithEndpoints] is left to try. When none is, it waits for the one whose
// time comes first, and asks that one; those that could not be reached are
// tried again only where none answered. Where the context's deadline leaves no
// room for the wait, or it is longer than half a minute, that server's error is
// returned at once.
func WithRetries(n int) Option {
	return func(c *config) { c.retries = n }
}

// WithLogger tells log of each retry, at level info, and of each server that is
// left out for a while (see [WithEndpoints]), at level warn. Prompts, answers
// and keys are never logged. Without a logger nothing is.
func WithLogger(log *slog.Logger) Option {
	return func(c *config) {
		if log != nil {
			c.log = log
		}
	}
}

// New returns a client of the server at [DefaultBaseURL] unless an option says
// otherwise. It does not connect. A mistake in the options, such as a base URL
// without a scheme, is the error of every call on the client.
//
// The default HTTP client uses no proxy and follows no redirect: prompts go to
// the address given and nowhere else.
func New(opts ...Option) *Client {
	cfg := config{retries: defaultRetries, log: slog.New(silent{})}
	for _, opt := range opts {
		opt(&cfg)
	}
	if err := cfg.check(); err != nil {
		return &Client{err: err}
	}
	endpoints, err := cfg.connectTo()
	return &Client{
		pool:    &pool{log: cfg.log, now: time.Now, endpoints: endpoints},
		apiKey:  cfg.apiKey,
		model:   cfg.model,
		retries: cfg.retries,
		log:     cfg.log,
		sleep:   sleep,
		err:     err,
	}
}

func (c *config) check() error {
	switch {
	case len(c.endpoints) > 0 && (c.baseURL != "" || c.socket != ""):
		return errors.New("gemma: WithEndpoints excludes WithBaseURL and WithUnixSocket; name all servers in it")
	case c.retries < 0:
		return fmt.Errorf("gemma: WithRetries(%d): the number must not be negative", c.retries)
	case c.model != nil && *c.model == "":
		return errors.New("gemma: WithModel: the name is empty; leave the option out for the server's default model")
	case strings.ContainsFunc(c.apiKey, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return errors.New("gemma: WithAPIKey: a key has no spaces and line ends, and only ASCII; trim what was read from a file")
	}
	return nil
}

// connectTo makes the endpoints that the options name.
func (c *config) connectTo() ([]*endpoint, error) {
	if len(c.endpoints) == 0 {
		if c.baseURL == "" && c.socket == "" {
			c.baseURL = DefaultBaseURL
		}
		e, err := newEndpoint(c.baseURL, c.socket, c.httpClient)
		return []*endpoint{e}, err
	}
	var endpoints []*endpoint
	for _, address := range c.endpoints {
		e, err := parseEndpoint(address, c.httpClient)
		if err != nil {
			return nil, err
		}
		endpoints = append(endpoints, e)
	}
	return endpoints, nil
}
