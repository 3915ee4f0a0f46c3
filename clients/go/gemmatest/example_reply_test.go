package gemmatest_test

import (
	"context"
	"fmt"
	"log"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/gemmatest"
)

// A held stream is under way for as long as the test wants it to be.
func ExampleReply() {
	hold := make(chan struct{})
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(gemmatest.Reply{Pieces: []string{"a", "b"}, Hold: hold}))
	defer srv.Close()

	for chunk, err := range srv.Client().Stream(context.Background(), gemma.Request{Prompt: "x"}) {
		fmt.Printf("%q %v\n", chunk.Text, err)
		if chunk.Text == "a" {
			close(hold)
		}
	}
	// Output:
	// "a" <nil>
	// "b" <nil>
	// "" <nil>
}

func ExampleText() {
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(gemmatest.Text("One, ", "two.")))
	defer srv.Close()

	for chunk, err := range srv.Client().Stream(context.Background(), gemma.Request{Prompt: "Count:"}) {
		fmt.Printf("%q %s %v\n", chunk.Text, chunk.FinishReason, err)
	}
	// Output:
	// "One, "  <nil>
	// "two."  <nil>
	// "" stop <nil>
}

// How does a program cope with a server that is busy?
func ExampleError() {
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(gemmatest.Error(429, gemma.CodeOverloaded)))
	defer srv.Close()

	resp, err := srv.Client().Generate(context.Background(), gemma.Request{Prompt: "Hi"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(resp.Text, len(srv.Requests()))
	// Output: Hi 2
}

func ExampleRepeat() {
	reply := gemmatest.Repeat(gemma.Request{Prompt: "Hello", Stop: []string{"lo"}})
	fmt.Printf("%q %s %d\n", reply.Pieces, reply.FinishReason, reply.Usage.CompletionTokens)
	// Output: ["H" "e" "l"] stop 5
}
