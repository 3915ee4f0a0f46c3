package gemma

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gemma-server/gemma-server/clients/go/internal/wire"
)

// The values of [APIError] Code.
const (
	CodeInvalidJSON           = "invalid_json"
	CodeInvalidValue          = "invalid_value"
	CodeUnknownField          = "unknown_field"
	CodeContextLengthExceeded = "context_length_exceeded"
	CodeTooLarge              = "request_entity_too_large"
	CodeUnauthorized          = "unauthorized"
	CodeModelNotFound         = "model_not_found"
	CodeOverloaded            = "overloaded"
	CodeLoading               = "loading"
	CodeStuck                 = "stuck"       // the device does not answer
	CodeUnavailable           = "unavailable" // this version of the model has ended
	CodeDraining              = "draining"
	CodeDeadline              = "deadline"
	CodeGenerationFailed      = "generation_failed"
)

// Errors that [errors.Is] finds in an [*APIError]; ErrTooLong also comes without
// one.
var (
	// ErrOverloaded: the queue is full; try again after RetryAfter.
	ErrOverloaded = errors.New("gemma: server overloaded")
	// ErrLoading: the model is not loaded yet; try again after RetryAfter.
	ErrLoading = errors.New("gemma: model loading")
	// ErrDraining: the server is shutting down.
	ErrDraining = errors.New("gemma: server draining")
	// ErrDeadline: the server gave up because the deadline had passed. The
	// client's own clock may strike first, with [context.DeadlineExceeded].
	ErrDeadline = errors.New("gemma: deadline passed on the server")
	// ErrTooLong: the request has a longer body than a server takes, which is 1
	// MiB. The client does not even send it; a proxy may take less, and answer
	// with status 413.
	ErrTooLong = errors.New("gemma: request too long")
)

// APIError is an error answer of the server, or of something in between, such
// as a proxy; then only Status, Message and perhaps RetryAfter are set.
type APIError struct {
	Status     int           // the HTTP status; 0 for an error amid a stream, which began with 200
	Type       string        // the kind of error
	Message    string        // for people; an excerpt of the body if that is not the server's JSON
	Param      string        // the field of the request at fault, if any
	Code       string        // for programs: one of the Code constants, or empty
	RequestID  string        // names the request in the server's log
	RetryAfter time.Duration // that the server asks to wait before another try; 0 if it does not say
}

// Error says everything but RetryAfter in one line.
func (e *APIError) Error() string {
	var b strings.Builder
	b.WriteString("gemma: ")
	if e.Status != 0 {
		fmt.Fprintf(&b, "HTTP %d: ", e.Status)
	}
	for _, s := range []string{e.Code, e.Type} {
		if s != "" {
			b.WriteString(s + ": ")
			break
		}
	}
	b.WriteString(e.Message)
	if e.Param != "" {
		fmt.Fprintf(&b, " (param %s)", e.Param)
	}
	b.WriteString(forRequest(e.RequestID))
	return b.String()
}

// Is matches the package's Err variables.
func (e *APIError) Is(target error) bool {
	code := e.Code
	if code == "" {
		// A proxy gives no code, but these statuses leave no doubt.
		switch e.Status {
		case http.StatusTooManyRequests:
			code = CodeOverloaded
		case http.StatusRequestEntityTooLarge:
			code = CodeTooLarge
		case http.StatusGatewayTimeout:
			code = CodeDeadline
		}
	}
	switch target {
	case ErrOverloaded:
		return code == CodeOverloaded
	case ErrLoading:
		return code == CodeLoading
	case ErrDraining:
		return code == CodeDraining
	case ErrDeadline:
		return code == CodeDeadline
	case ErrTooLong:
		return code == CodeTooLarge
	}
	return false
}

// newAPIError adds to the server's error what the headers say.
func newAPIError(o *wire.Error, status int, header http.Header) *APIError {
	e := &APIError{
		Status:     status,
		Type:       o.Type,
		Message:    o.Message,
		Param:      o.Param,
		Code:       o.Code,
		RequestID:  o.RequestID,
		RetryAfter: retryAfter(header),
	}
	if e.RequestID == "" {
		e.RequestID = header.Get("X-Request-Id")
	}
	return e
}

// readAPIError takes any body, for it may be a proxy's.
func readAPIError(status int, header http.Header, body []byte) *APIError {
	var envelope struct {
		Error *wire.Error `json:"error"`
	}
	if json.Unmarshal(body, &envelope) == nil && envelope.Error != nil {
		return newAPIError(envelope.Error, status, header)
	}
	message := wire.Excerpt(body)
	if message == "" {
		message = http.StatusText(status)
	}
	return newAPIError(&wire.Error{Message: message}, status, header)
}

func retryAfter(header http.Header) time.Duration {
	v := header.Get("Retry-After")
	if seconds, err := strconv.ParseUint(v, 10, 32); err == nil {
		return time.Duration(seconds) * time.Second
	}
	// Proxies may give a date.
	if at, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}
