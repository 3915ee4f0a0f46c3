package frames

import (
	"context"
	"fmt"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

// Ready reports whether the server can answer prompts. A server that is still
// loading or already draining is a [gemma.Status], not an error: look at
// [gemma.Status.Ready].
func (c *Conn) Ready(ctx context.Context) (*gemma.Status, error) {
	op := c.operation("ready")
	status := &gemma.Status{}
	if err := c.ask(ctx, op.ID, op, status); err != nil {
		return nil, err
	}
	if status.State == "" {
		return nil, fmt.Errorf("frames: %w: no status", errUnexpected)
	}
	return status, nil
}
