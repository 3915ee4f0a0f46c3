package gemmatest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

// whole is an answer of /prompt, and the last event of a stream.
type whole struct {
	Response     string             `json:"response"`
	FinishReason gemma.FinishReason `json:"finish_reason"`
	Usage        gemma.Usage        `json:"usage"`
	Timings      timings            `json:"timings"`
	ModelVersion string             `json:"model_version"`
}

// part is any other event of a stream.
type part struct {
	Response string `json:"response"`
}

type timings struct {
	Parse    float64 `json:"parse_ms"`
	Tokenize float64 `json:"tokenize_ms"`
	Queue    float64 `json:"queue_ms"`
	Prefill  float64 `json:"prefill_ms"`
	Decode   float64 `json:"decode_ms"`
	Compile  float64 `json:"compile_ms"`
	Drafted  int     `json:"draft_tokens"`
	Accepted int     `json:"accepted_tokens"`
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

type errorBody struct {
	Error errorFacts `json:"error"`
}

type errorFacts struct {
	Type      string  `json:"type"`
	Message   string  `json:"message"`
	Param     *string `json:"param"`
	Code      *string `json:"code"`
	RequestID string  `json:"request_id"`
}

// write answers with JSON.
func (x *exchange) write(status int, body any) {
	x.w.Header().Set("Content-Type", "application/json")
	x.w.WriteHeader(status)
	x.w.Write(encode(body))
}

// event adds an event to a stream, which begins with the first one.
func (x *exchange) event(body any) {
	x.line(string(encode(body)))
}

func (x *exchange) line(data string) {
	if !x.streaming {
		x.streaming = true
		header := x.w.Header()
		header.Set("Content-Type", "text/event-stream; charset=utf-8")
		header.Set("Cache-Control", "no-cache")
		header.Set("X-Accel-Buffering", "no")
	}
	fmt.Fprintf(x.w, "data: %s\n\n", data)
	x.w.(http.Flusher).Flush()
}

// fail answers with an error, or ends the stream with it.
func (x *exchange) fail(err *gemma.APIError) {
	status := cmp.Or(err.Status, statusOf(err.Code))
	facts := errorFacts{
		Type:      cmp.Or(err.Type, typeOf(status)),
		Message:   cmp.Or(err.Message, http.StatusText(status)),
		Param:     orNull(err.Param),
		Code:      orNull(err.Code),
		RequestID: cmp.Or(err.RequestID, x.id),
	}
	if x.streaming {
		x.event(errorBody{facts})
		panic(http.ErrAbortHandler)
	}
	switch status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		x.w.Header().Set("X-Should-Retry", "true")
	case http.StatusGatewayTimeout:
		x.w.Header().Set("X-Should-Retry", "false")
	}
	x.retryAfter(err.RetryAfter)
	x.write(status, errorBody{facts})
}

// retryAfter sets the header, which has whole seconds.
func (x *exchange) retryAfter(d time.Duration) {
	if d > 0 {
		x.w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(d.Seconds()))))
	}
}

// statusOf is the status of an error that names only its code.
func statusOf(code string) int {
	switch code {
	case gemma.CodeOverloaded:
		return http.StatusTooManyRequests
	case gemma.CodeLoading, gemma.CodeStuck, gemma.CodeUnavailable, gemma.CodeDraining:
		return http.StatusServiceUnavailable
	case gemma.CodeDeadline:
		return http.StatusGatewayTimeout
	case gemma.CodeModelNotFound:
		return http.StatusNotFound
	case gemma.CodeTooLarge:
		return http.StatusRequestEntityTooLarge
	case gemma.CodeUnauthorized:
		return http.StatusUnauthorized
	case gemma.CodeInvalidJSON, gemma.CodeInvalidValue, gemma.CodeUnknownField, gemma.CodeContextLengthExceeded:
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}

// typeOf is the server's word for the kind of an error.
func typeOf(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "authentication_error"
	case http.StatusForbidden:
		return "permission_error"
	case http.StatusNotFound:
		return "not_found_error"
	case http.StatusTooManyRequests:
		return "rate_limit_error"
	case http.StatusInternalServerError:
		return "server_error"
	case http.StatusServiceUnavailable:
		return "unavailable_error"
	case http.StatusGatewayTimeout:
		return "timeout_error"
	}
	return "invalid_request_error"
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// encode takes the types of this package, which always have a JSON form.
func encode(body any) []byte {
	text, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	return text
}
