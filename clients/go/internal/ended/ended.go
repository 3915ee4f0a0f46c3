// Package ended tells why a context ended.
package ended

import (
	"context"
	"errors"
	"fmt"
)

// Blame is err unless ctx has ended. Then it is an error in which errors.Is
// finds that of ctx: err may have the context's cause in its place, as what
// net/http returns has. The cause is told as text alone, for it may be the error
// of another request, and must not pass for that of this one.
func Blame(ctx context.Context, err error) error {
	if ctx.Err() == nil || context.Cause(ctx) == ctx.Err() && errors.Is(err, ctx.Err()) {
		return err
	}
	return fmt.Errorf("%w: %v", ctx.Err(), err)
}

// Error is that of a context that has ended, with its cause as text.
func Error(ctx context.Context) error { return Blame(ctx, context.Cause(ctx)) }
