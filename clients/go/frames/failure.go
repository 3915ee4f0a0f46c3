package frames

import (
	"encoding/json"
	"fmt"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/internal/wire"
)

// readFailure is the error that a frame tells of.
func readFailure(body []byte) error {
	var failure struct {
		Status     int         `json:"status"`
		Error      *wire.Error `json:"error"`
		RetryAfter float64     `json:"retry_after_s"`
	}
	if err := json.Unmarshal(body, &failure); err != nil || failure.Error == nil {
		return fmt.Errorf("%w of an error: %q", errUnexpected, wire.Excerpt(body))
	}
	return &gemma.APIError{
		Status:     failure.Status,
		Type:       failure.Error.Type,
		Message:    failure.Error.Message,
		Param:      failure.Error.Param,
		Code:       failure.Error.Code,
		RequestID:  failure.Error.RequestID,
		RetryAfter: time.Duration(failure.RetryAfter * float64(time.Second)),
	}
}
