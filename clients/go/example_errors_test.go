package gemma_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/gemmatest"
)

func ExampleAPIError() {
	busy := &gemma.APIError{Code: gemma.CodeOverloaded, RetryAfter: 3 * time.Second}
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(gemmatest.Reply{Err: busy}))
	defer srv.Close()

	client := gemma.New(gemma.WithBaseURL(srv.URL), gemma.WithRetries(0))
	_, err := client.Generate(context.Background(), gemma.Request{Prompt: "Hi"})
	var api *gemma.APIError
	if errors.As(err, &api) {
		fmt.Println(errors.Is(err, gemma.ErrOverloaded), api.Status, api.Code, api.RetryAfter)
	}
	// Output: true 429 overloaded 3s
}

func ExampleAPIError_is() {
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(
		gemmatest.Error(429, gemma.CodeOverloaded),
		gemmatest.Error(503, gemma.CodeLoading),
		gemmatest.Error(503, gemma.CodeDraining),
		gemmatest.Error(504, gemma.CodeDeadline)))
	defer srv.Close()

	client := gemma.New(gemma.WithBaseURL(srv.URL), gemma.WithRetries(0))
	for range 4 {
		_, err := client.Generate(context.Background(), gemma.Request{Prompt: "Hi"})
		switch {
		case errors.Is(err, gemma.ErrOverloaded), errors.Is(err, gemma.ErrLoading):
			fmt.Println("later")
		case errors.Is(err, gemma.ErrDraining):
			fmt.Println("elsewhere")
		case errors.Is(err, gemma.ErrDeadline):
			fmt.Println("with more time")
		}
	}
	// Output:
	// later
	// later
	// elsewhere
	// with more time
}

// A body above 1 MiB is not even sent.
func ExampleAPIError_tooLong() {
	client := gemma.New() // nobody needs to be there
	_, err := client.Generate(context.Background(), gemma.Request{Prompt: strings.Repeat("x", 2<<20)})
	fmt.Println(errors.Is(err, gemma.ErrTooLong))
	// Output: true
}

// The code says who can do something about an error.
func ExampleAPIError_code() {
	answers := []gemmatest.Reply{
		{Err: &gemma.APIError{Code: gemma.CodeContextLengthExceeded, Param: "prompt"}},
		{Err: &gemma.APIError{Code: gemma.CodeUnauthorized}},
		{Err: &gemma.APIError{Code: gemma.CodeGenerationFailed, RequestID: "3f2a"}},
	}
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(answers...))
	defer srv.Close()

	client := gemma.New(gemma.WithBaseURL(srv.URL))
	for range answers {
		_, err := client.Generate(context.Background(), gemma.Request{Prompt: "Hi"})
		var api *gemma.APIError
		if !errors.As(err, &api) {
			continue
		}
		switch api.Code {
		case gemma.CodeInvalidJSON, gemma.CodeInvalidValue, gemma.CodeUnknownField, gemma.CodeContextLengthExceeded, gemma.CodeTooLarge:
			fmt.Println("the caller: mend", api.Param)
		case gemma.CodeUnauthorized:
			fmt.Println("whoever set the API key")
		case gemma.CodeOverloaded, gemma.CodeLoading, gemma.CodeStuck, gemma.CodeDraining, gemma.CodeDeadline:
			fmt.Println("nobody: a matter of time")
		case gemma.CodeGenerationFailed:
			fmt.Println("whoever reads the server's log: request", api.RequestID)
		}
	}
	// Output:
	// the caller: mend prompt
	// whoever set the API key
	// whoever reads the server's log: request 3f2a
}
