package gemma

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestAPIErrorFields(t *testing.T) {
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Request-Id", "from-header")
		w.WriteHeader(400)
		io.WriteString(w, `{"error": {"type": "invalid_request_error", "message": "must be at least 0",
			"param": "top_k", "code": "invalid_value", "request_id": "r1"}}`)
	})
	want := APIError{Status: 400, Type: "invalid_request_error", Message: "must be at least 0",
		Param: "top_k", Code: CodeInvalidValue, RequestID: "r1"}
	const text = "gemma: HTTP 400: invalid_value: must be at least 0 (param top_k) (request r1)"
	for name, err := range everyCall(client) {
		var api *APIError
		if !errors.As(fmt.Errorf("wrapped: %w", err), &api) {
			t.Errorf("%s: %v is no *APIError", name, err)
			continue
		}
		if *api != want {
			t.Errorf("%s: got %+v, want %+v", name, *api, want)
		}
		if api.Error() != text {
			t.Errorf("%s: got %q, want %q", name, api.Error(), text)
		}
	}
}

// everyCall makes each kind of call once and returns the errors.
func everyCall(c *Client) map[string]error {
	ctx := context.Background()
	errs := map[string]error{}
	_, errs["Generate"] = c.Generate(ctx, Request{Prompt: "x"})
	_, errs["Echo"] = c.Echo(ctx, "x")
	_, errs["Ready"] = c.Ready(ctx)
	_, errs["Models"] = c.Models(ctx)
	errs["Stream"] = nil
	for _, err := range c.Stream(ctx, Request{Prompt: "x"}) {
		errs["Stream"] = err
	}
	return errs
}

func TestAPIErrorIs(t *testing.T) {
	sentinels := []error{ErrOverloaded, ErrLoading, ErrDraining, ErrDeadline, ErrTooLong}
	for _, tc := range []struct {
		err  APIError
		want error
	}{
		{APIError{Status: 429, Code: "overloaded"}, ErrOverloaded},
		{APIError{Status: 503, Code: "loading"}, ErrLoading},
		{APIError{Status: 503, Code: "draining"}, ErrDraining},
		{APIError{Status: 504, Code: "deadline"}, ErrDeadline},
		{APIError{Code: "deadline"}, ErrDeadline},
		{APIError{Status: 429}, ErrOverloaded},
		{APIError{Status: 504}, ErrDeadline},
		{APIError{Status: 413, Code: "request_entity_too_large"}, ErrTooLong},
		{APIError{Status: 413}, ErrTooLong},
		{APIError{Status: 503}, nil},
		{APIError{Status: 429, Code: "something_new"}, nil},
		{APIError{Status: 400, Code: "invalid_json"}, nil},
		{APIError{}, nil},
	} {
		for _, s := range sentinels {
			if got := errors.Is(fmt.Errorf("wrapped: %w", &tc.err), s); got != (s == tc.want) {
				t.Errorf("errors.Is(%+v, %v) = %v", tc.err, s, got)
			}
		}
	}
}

func TestErrorBodyNotFromServer(t *testing.T) {
	long := strings.Repeat("é ", 100_000)
	for _, tc := range []struct {
		name, body string
		status     int
		message    string
	}{
		{"html", "<html>\n  <b>Bad</b>\tGateway</html>", 502, "<html> <b>Bad</b> Gateway</html>"},
		{"empty", "", 503, "Service Unavailable"},
		{"other json", `{"detail": "Not Found"}`, 404, `{"detail": "Not Found"}`},
		{"error is no object", `{"error": "no"}`, 500, `{"error": "no"}`},
		{"null", `null`, 500, `null`},
		{"long", long, 500, long[:len("é ")*100] + "…"},
		{"redirect", "moved", 307, "moved"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			client := serve(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Location", "/elsewhere")
				w.Header().Set("X-Request-Id", "r2")
				w.WriteHeader(tc.status)
				io.WriteString(w, tc.body)
			})
			for name, err := range everyCall(client) {
				var api *APIError
				if !errors.As(err, &api) {
					t.Fatalf("%s: %v is no *APIError", name, err)
				}
				want := APIError{Status: tc.status, Message: tc.message, RequestID: "r2"}
				if *api != want {
					t.Errorf("%s: got %+v, want %+v", name, *api, want)
				}
				if !utf8.ValidString(api.Message) {
					t.Errorf("%s: message %q is not UTF-8", name, api.Message)
				}
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	for v, want := range map[string]time.Duration{
		"":                              0,
		"0":                             0,
		"7":                             7 * time.Second,
		"-7":                            0,
		"soon":                          0,
		"99999999999999":                0,
		"Mon, 02 Jan 2006 15:04:05 GMT": 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {v}}); got != want {
			t.Errorf("%q: got %v, want %v", v, got, want)
		}
	}
	date := time.Now().Add(time.Minute).UTC().Format(http.TimeFormat)
	if got := retryAfter(http.Header{"Retry-After": {date}}); got < 50*time.Second || got > time.Minute {
		t.Errorf("date a minute ahead: got %v", got)
	}

	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "3")
		w.WriteHeader(429)
		io.WriteString(w, `{"error": {"type": "t", "message": "m", "param": null, "code": "overloaded", "request_id": "r"}}`)
	})
	for name, err := range everyCall(client) {
		var api *APIError
		if !errors.As(err, &api) || api.RetryAfter != 3*time.Second || !errors.Is(err, ErrOverloaded) {
			t.Errorf("%s: got %+v", name, err)
		}
	}
}
