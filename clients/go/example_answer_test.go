package gemma_test

import (
	"context"
	"fmt"
	"log"
	"strings"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/gemmatest"
)

// What is not set is not sent, and left to the server.
func ExampleRequest() {
	srv := gemmatest.NewServer(nil)
	defer srv.Close()

	client := gemma.New(gemma.WithBaseURL(srv.URL))
	_, err := client.Generate(context.Background(), gemma.Request{
		Prompt:        "Once upon a time",
		SamplingSteps: 200,
		Temperature:   0.8,
		TopP:          0.95,
		Stop:          []string{"The end"},
	})
	fmt.Println(string(srv.Requests()[0].Body), err)
	// Output: {"prompt":"Once upon a time","sampling_steps":200,"temperature":0.8,"top_p":0.95,"stop":["The end"]} <nil>
}

func ExamplePtr() {
	req := gemma.Request{Prompt: "Hi", Temperature: 0.7, Seed: gemma.Ptr[uint64](0)}
	fmt.Println(*req.Seed)
	// Output: 0
}

func ExampleResponse() {
	srv := gemmatest.NewServer(nil)
	defer srv.Close()

	client := gemma.New(gemma.WithBaseURL(srv.URL))
	resp, err := client.Generate(context.Background(), gemma.Request{Prompt: "To be or not", SamplingSteps: 5})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(resp.Text)
	fmt.Println(resp.FinishReason, resp.Usage.CompletionTokens)
	fmt.Println(resp.RequestID != "") // to look it up in the server's log
	// Output:
	// To be
	// length 5
	// true
}

// The last chunk has what a Response has besides the text.
func ExampleChunk() {
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(gemmatest.Text("One, ", "two.")))
	defer srv.Close()

	client := gemma.New(gemma.WithBaseURL(srv.URL))
	var text strings.Builder
	var last gemma.Chunk
	for chunk, err := range client.Stream(context.Background(), gemma.Request{Prompt: "Count:"}) {
		if err != nil {
			log.Fatal(err)
		}
		text.WriteString(chunk.Text)
		last = chunk
	}
	fmt.Println(text.String(), last.FinishReason, last.Usage.PromptTokens, last.Usage.CompletionTokens)
	// Output: One, two. stop 7 10
}

// An answer that was cut off goes on when it becomes part of the prompt.
func ExampleFinishReason() {
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(
		gemmatest.Reply{Pieces: []string{" One,"}, FinishReason: gemma.FinishLength},
		gemmatest.Reply{Pieces: []string{" two."}, FinishReason: gemma.FinishStop}))
	defer srv.Close()

	client := gemma.New(gemma.WithBaseURL(srv.URL))
	text, reason := "Count:", gemma.FinishLength
	for reason == gemma.FinishLength {
		resp, err := client.Generate(context.Background(), gemma.Request{Prompt: text})
		if err != nil {
			log.Fatal(err)
		}
		text, reason = text+resp.Text, resp.FinishReason
	}
	fmt.Println(text)
	// Output: Count: One, two.
}

// Prompts that begin alike save work.
func ExampleUsage() {
	counted := &gemma.Usage{PromptTokens: 200, CachedTokens: 150, CompletionTokens: 20}
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(gemmatest.Reply{Usage: counted}))
	defer srv.Close()

	resp, err := gemma.New(gemma.WithBaseURL(srv.URL)).Generate(context.Background(), gemma.Request{Prompt: "Hi"})
	if err != nil {
		log.Fatal(err)
	}
	u := resp.Usage
	fmt.Printf("read %d tokens, wrote %d, %d%% of the prompt from the cache\n",
		u.PromptTokens-u.CachedTokens, u.CompletionTokens, 100*u.CachedTokens/u.PromptTokens)
	// Output: read 50 tokens, wrote 20, 75% of the prompt from the cache
}

func ExampleTimings() {
	slow := gemmatest.Reply{Pieces: []string{"One, ", "two."}, PieceDelay: 10 * time.Millisecond}
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(slow))
	defer srv.Close()

	resp, err := gemma.New(gemma.WithBaseURL(srv.URL)).Generate(context.Background(), gemma.Request{Prompt: "Count:"})
	if err != nil {
		log.Fatal(err)
	}
	if t := resp.Timings; t.QueueMS > t.PrefillMS+t.DecodeMS {
		fmt.Println("it waited for others")
	} else {
		fmt.Println("it was the model's own time")
	}
	// Output: it was the model's own time
}
