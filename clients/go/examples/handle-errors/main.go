// Command handle-errors tells apart what can go wrong, and what to do about it.
//
//	GEMMA_URL=http://127.0.0.1:20200 handle-errors
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

func main() {
	client := gemma.New(
		gemma.WithBaseURL(cmp.Or(os.Getenv("GEMMA_URL"), gemma.DefaultBaseURL)),
		gemma.WithAPIKey(os.Getenv("GEMMA_API_KEY")),
		gemma.WithRetries(4), // while the server is busy or still loading
	)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, req := range []gemma.Request{
		{Prompt: "Hello", SamplingSteps: 8},
		{Prompt: "Hello", SamplingSteps: -1},
	} {
		resp, err := client.Generate(ctx, req)
		if err != nil {
			fmt.Println(advice(err))
			continue
		}
		fmt.Println(resp.Text)
	}
}

func advice(err error) string {
	var api *gemma.APIError
	switch {
	case errors.Is(err, gemma.ErrOverloaded), errors.Is(err, gemma.ErrLoading):
		return "still busy after all retries: " + err.Error()
	case errors.Is(err, gemma.ErrDeadline), errors.Is(err, context.DeadlineExceeded):
		return "too slow: ask for fewer tokens or allow more time"
	case errors.As(err, &api) && api.Param != "":
		return fmt.Sprintf("a mistake in the request's %s: %s", api.Param, api.Message)
	case errors.As(err, &api):
		return fmt.Sprintf("refused with status %d; the server's log has more under %s", api.Status, api.RequestID)
	}
	return "no answer: " + err.Error()
}
