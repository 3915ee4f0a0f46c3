package gemma

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// sibling is the error of another request, for which a context was ended. It
// says nothing of this one.
var sibling = &APIError{Status: 429, Code: CodeOverloaded, Message: "the sibling's"}

func checkCause(t *testing.T, name string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) || errors.Is(err, ErrOverloaded) || errors.Is(err, io.ErrUnexpectedEOF) ||
		!strings.Contains(err.Error(), "the sibling's") {
		t.Errorf("%s: error %v", name, err)
	}
}

func TestCauseOfAContext(t *testing.T) {
	calls := map[string]func(context.Context, *Client) error{
		"Generate": func(ctx context.Context, c *Client) error {
			_, err := c.Generate(ctx, Request{Prompt: "x"})
			return err
		},
		"Stream": func(ctx context.Context, c *Client) error {
			_, err := collect(ctx, c)
			return err
		},
		"Ready": func(ctx context.Context, c *Client) error {
			_, err := c.Ready(ctx)
			return err
		},
	}
	for when, begin := range map[string]string{"before": "", "amid": "data: {\"response\": \"a\"}\n\n"} {
		for name, call := range calls {
			name += " " + when + " its answer"
			came := make(chan struct{}, 2)
			client := serve(t, func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				if begin != "" {
					w.Header().Set("Content-Type", "text/event-stream")
					io.WriteString(w, begin)
					w.(http.Flusher).Flush()
				}
				came <- struct{}{}
				<-r.Context().Done()
			})
			ctx, cancel := context.WithCancelCause(context.Background())
			go func() { <-came; cancel(sibling) }()
			checkCause(t, name, call(ctx, client), context.Canceled)

			ctx, stop := context.WithTimeoutCause(context.Background(), 10*time.Millisecond, sibling)
			checkCause(t, name, call(ctx, client), context.DeadlineExceeded)
			stop()
		}
	}
}

func TestCauseInAWait(t *testing.T) {
	url, _ := answers(t, []string{"503"})
	client := New(WithBaseURL(url))
	ctx, cancel := context.WithCancelCause(context.Background())
	client.sleep = func(ctx context.Context, _ time.Duration) error {
		cancel(sibling)
		return sleep(ctx, time.Hour)
	}
	_, err := client.Generate(ctx, Request{Prompt: "x"})
	checkCause(t, "in a wait", err, context.Canceled)
}
