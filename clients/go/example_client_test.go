package gemma_test

import (
	"context"
	"fmt"
	"log"
	"sync"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/gemmatest"
)

// One client serves any number of goroutines.
func ExampleClient() {
	srv := gemmatest.NewServer(nil)
	defer srv.Close()

	client := gemma.New(gemma.WithBaseURL(srv.URL))
	prompts := []string{"One", "Two", "Three"}
	answers := make([]string, len(prompts))
	var all sync.WaitGroup
	for i, prompt := range prompts {
		all.Add(1)
		go func() {
			defer all.Done()
			resp, err := client.Generate(context.Background(), gemma.Request{Prompt: prompt})
			if err != nil {
				log.Fatal(err)
			}
			answers[i] = resp.Text
		}()
	}
	all.Wait()
	fmt.Println(answers)
	// Output: [One Two Three]
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

// A probe that goes as far as the device finds one that hangs.
func ExampleClient_EchoThrough() {
	srv := gemmatest.NewServer(nil)
	defer srv.Close()

	client := gemma.New(gemma.WithBaseURL(srv.URL))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	raw, err := client.EchoThrough(ctx, gemma.DepthDevice, "ping")
	fmt.Println(string(raw), err)
	// Output: "ping" <nil>
}

// The first depth that fails tells which part of a server is stuck.
func ExampleDepth() {
	srv := gemmatest.NewServer(nil)
	defer srv.Close()

	client := gemma.New(gemma.WithBaseURL(srv.URL), gemma.WithRetries(0))
	for _, depth := range []gemma.Depth{gemma.DepthHTTP, gemma.DepthQueue, gemma.DepthDevice} {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		_, err := client.EchoThrough(ctx, depth, "ping")
		cancel()
		fmt.Printf("%q: %v\n", depth, err)
	}
	// Output:
	// "": <nil>
	// "queue": <nil>
	// "device": <nil>
}

// A client for a single task leaves nothing open.
func ExampleClient_CloseIdleConnections() {
	srv := gemmatest.NewServer(nil)
	defer srv.Close()

	client := gemma.New(gemma.WithBaseURL(srv.URL))
	defer client.CloseIdleConnections()
	resp, err := client.Generate(context.Background(), gemma.Request{Prompt: "Hello"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(resp.Text)
	// Output: Hello
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
