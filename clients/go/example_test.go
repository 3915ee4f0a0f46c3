package gemma_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/gemmatest"
)

func Example() {
	srv := gemmatest.NewServer(nil) // stands in for gemma-server
	defer srv.Close()

	client := gemma.New(gemma.WithBaseURL(srv.URL))
	for chunk, err := range client.Stream(context.Background(), gemma.Request{Prompt: "Hello"}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(chunk.Text)
	}
	// Output: Hello
}

func ExampleNew() {
	client := gemma.New(
		gemma.WithUnixSocket("/run/gemma/socket"),
		gemma.WithAPIKey(os.Getenv("GEMMA_API_KEY")),
		gemma.WithRetries(5),
		gemma.WithLogger(slog.Default()),
	)
	_, err := client.Ready(context.Background())
	fmt.Println(err != nil) // nobody listens there
	// Output: true
}

func ExampleClient_Generate() {
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(gemmatest.Text("Paris.")))
	defer srv.Close()

	client := gemma.New(gemma.WithBaseURL(srv.URL))
	resp, err := client.Generate(context.Background(), gemma.Request{
		Prompt:        "The capital of France is",
		SamplingSteps: 16,
		Stop:          []string{"\n"},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(resp.Text)
	fmt.Println(resp.FinishReason, resp.Usage.CompletionTokens)
	// Output:
	// Paris.
	// stop 7
}

func ExampleClient_Stream() {
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(gemmatest.Text("One, ", "two.")))
	defer srv.Close()

	client := gemma.New(gemma.WithBaseURL(srv.URL))
	for chunk, err := range client.Stream(context.Background(), gemma.Request{Prompt: "Count:"}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(chunk.Text)
		if chunk.FinishReason != "" {
			fmt.Printf("\n%d tokens\n", chunk.Usage.CompletionTokens)
		}
	}
	// Output:
	// One, two.
	// 10 tokens
}

// A break ends the request: the server stops working on it.
func ExampleClient_Stream_break() {
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(gemmatest.Text("One. ", "Two. ", "Three.")))
	defer srv.Close()

	client := gemma.New(gemma.WithBaseURL(srv.URL))
	for chunk, err := range client.Stream(context.Background(), gemma.Request{Prompt: "Count:"}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(chunk.Text)
		break
	}
	// Output: One.
}

func ExampleClient_Echo() {
	srv := gemmatest.NewServer(nil)
	defer srv.Close()

	raw, err := gemma.New(gemma.WithBaseURL(srv.URL)).Echo(context.Background(), []int{1, 2})
	fmt.Println(string(raw), err)
	// Output: [1,2] <nil>
}

func ExampleClient_Ready() {
	loading := gemma.Status{State: gemma.StateLoading, Stage: "weights", Progress: gemma.Ptr(0.25)}
	srv := gemmatest.NewServer(nil, gemmatest.WithStatus(loading))
	defer srv.Close()

	st, err := gemma.New(gemma.WithBaseURL(srv.URL)).Ready(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%v: %s, %s %.0f%%\n", st.Ready(), st.State, st.Stage, 100**st.Progress)
	// Output: false: loading, weights 25%
}

func ExampleWithEndpoints() {
	one, two := gemmatest.NewServer(nil), gemmatest.NewServer(nil)
	defer one.Close()
	defer two.Close()

	client := gemma.New(gemma.WithEndpoints(one.URL, two.URL))
	for range 4 {
		if _, err := client.Generate(context.Background(), gemma.Request{Prompt: "Hello"}); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println(len(one.Requests()), len(two.Requests()))
	// Output: 2 2
}

func ExampleWithRetries() {
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(
		gemmatest.Error(503, gemma.CodeLoading), gemmatest.Text("Hello.")))
	defer srv.Close()

	client := gemma.New(gemma.WithBaseURL(srv.URL), gemma.WithRetries(1))
	resp, err := client.Generate(context.Background(), gemma.Request{Prompt: "Hi"})
	fmt.Println(resp.Text, err)
	// Output: Hello. <nil>
}

func ExampleWithAPIKey() {
	srv := gemmatest.NewServer(nil, gemmatest.WithAPIKey("sesame"))
	defer srv.Close()

	for _, key := range []string{"sesame", "pepper"} {
		client := gemma.New(gemma.WithBaseURL(srv.URL), gemma.WithAPIKey(key))
		_, err := client.Generate(context.Background(), gemma.Request{Prompt: "Hi"})
		var api *gemma.APIError
		fmt.Println(errors.As(err, &api) && api.Code == gemma.CodeUnauthorized)
	}
	// Output:
	// false
	// true
}

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

func ExamplePtr() {
	req := gemma.Request{Prompt: "Hi", Temperature: 0.7, Seed: gemma.Ptr[uint64](0)}
	fmt.Println(*req.Seed)
	// Output: 0
}
