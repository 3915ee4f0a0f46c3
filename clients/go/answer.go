package gemma

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/gemma-server/gemma-server/clients/go/internal/ended"
)

// Far above any error the server writes, so that a proxy's page cannot fill
// the memory.
const errorBodyMax = 64 << 10

// answer is an HTTP answer whose body has been read to its end.
type answer struct {
	path   string
	status int
	header http.Header
	body   []byte
}

// readAnswer reads and closes the body of resp.
func readAnswer(ctx context.Context, resp *http.Response, path string) (*answer, error) {
	defer resp.Body.Close()
	var from io.Reader = resp.Body
	if resp.StatusCode != http.StatusOK {
		from = io.LimitReader(resp.Body, errorBodyMax)
	}
	body, err := io.ReadAll(from)
	if err != nil {
		return nil, fmt.Errorf("gemma: reading the answer of %s%s: %w",
			path, forRequest(resp.Header.Get("X-Request-Id")), ended.Blame(ctx, err))
	}
	return &answer{path: path, status: resp.StatusCode, header: resp.Header, body: body}, nil
}

func (a *answer) requestID() string { return a.header.Get("X-Request-Id") }

func (a *answer) apiError() *APIError { return readAPIError(a.status, a.header, a.body) }

func (a *answer) decode(v any) error {
	if err := json.Unmarshal(a.body, v); err != nil {
		return a.unexpected(err)
	}
	return nil
}

func (a *answer) unexpected(err error) error {
	return fmt.Errorf("gemma: unexpected answer of %s%s: %w", a.path, forRequest(a.requestID()), err)
}

func forRequest(id string) string {
	if id == "" {
		return ""
	}
	return " (request " + id + ")"
}
