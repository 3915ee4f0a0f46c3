package gemma

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/gemma-server/gemma-server/clients/go/internal/ended"
	"github.com/gemma-server/gemma-server/clients/go/internal/wire"
)

// bodyMax is how many bytes of a request the server takes.
const bodyMax = 1 << 20

// endpoint is one server, and how to reach it.
type endpoint struct {
	name string // for logs
	base *url.URL
	http *http.Client

	// Of the pool, under its lock.
	inFlight int
	breaker  breaker
}

// outgoing is a request as it goes out, once for each try.
type outgoing struct {
	method, path, query, accept string
	body                        []byte
}

// parseEndpoint takes http://host:port or unix:/path.
func parseEndpoint(address string, hc *http.Client) (*endpoint, error) {
	socket, isSocket := strings.CutPrefix(address, "unix:")
	switch {
	case !isSocket:
		return newEndpoint(address, "", hc)
	case socket == "":
		return nil, fmt.Errorf("gemma: endpoint %q: the path of the socket is missing", address)
	}
	return newEndpoint("", socket, hc)
}

func newEndpoint(baseURL, socket string, hc *http.Client) (*endpoint, error) {
	if socket != "" && hc != nil {
		return nil, errors.New("gemma: a Unix socket and WithHTTPClient exclude each other")
	}
	if socket != "" && baseURL == "" {
		baseURL = "http://localhost"
	}
	base, err := parseBaseURL(baseURL)
	if err != nil {
		return nil, err
	}
	name := base.Redacted()
	if socket != "" {
		name = "unix:" + socket
	}
	if hc == nil {
		hc = newHTTPClient(socket)
	}
	return &endpoint{name: name, base: base, http: hc}, nil
}

func parseBaseURL(base string) (*url.URL, error) {
	u, err := url.Parse(base)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("gemma: base URL %q is not of the form http://host:port", redact(base))
	}
	return u, nil
}

// redact leaves out a user and password, which url.URL finds only in addresses
// that are in order.
func redact(address string) string {
	if at := strings.LastIndex(address, "@"); at >= 0 {
		return "..." + address[at:]
	}
	return address
}

// do sends the request once, with the time that the context still has, and
// leaves the body of the answer open.
func (e *endpoint) do(ctx context.Context, out outgoing, apiKey string) (*http.Response, error) {
	target := e.base.JoinPath(out.path)
	target.RawQuery = out.query
	req, err := http.NewRequestWithContext(ctx, out.method, target.String(), bytes.NewReader(out.body))
	if err != nil {
		return nil, fmt.Errorf("gemma: %w", err)
	}
	req.Header.Set("Accept", out.accept)
	if out.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if apiKey != "" {
		req.Header.Set("Authorization", "Bearer "+apiKey)
	}
	if left := wire.Timeout(ctx); left > 0 {
		req.Header.Set("X-Request-Timeout-Ms", strconv.FormatInt(left, 10))
	}
	resp, err := e.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("gemma: %w", ended.Blame(ctx, err))
	}
	return resp, nil
}
