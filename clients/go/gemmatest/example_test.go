package gemmatest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/gemmatest"
)

// In a test its t stands in place of nil, and closes the server.
func ExampleNewServer() {
	srv := gemmatest.NewServer(nil)
	defer srv.Close()

	resp, err := srv.Client().Generate(context.Background(), gemma.Request{Prompt: "Hello", SamplingSteps: 4})
	fmt.Println(resp.Text, resp.FinishReason, err)
	fmt.Println(srv.Requests()[0].Prompt.SamplingSteps)
	// Output:
	// Hell length <nil>
	// 4
}

func ExampleWithReplies() {
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(
		gemmatest.Error(429, gemma.CodeOverloaded),
		gemmatest.Text("One, ", "two."),
		gemmatest.Reply{Pieces: []string{"One, "}, Break: true},
	))
	defer srv.Close()

	client := srv.Client() // which tries again after the 429
	for range 2 {
		for chunk, err := range client.Stream(context.Background(), gemma.Request{Prompt: "Count:"}) {
			fmt.Printf("%q %v\n", chunk.Text, err != nil)
		}
	}
	// Output:
	// "One, " false
	// "two." false
	// "" false
	// "One, " false
	// "" true
}

func ExampleWithAnswer() {
	srv := gemmatest.NewServer(nil, gemmatest.WithAnswer(func(req gemma.Request) gemmatest.Reply {
		return gemmatest.Text(strings.ToUpper(req.Prompt))
	}))
	defer srv.Close()

	resp, err := srv.Client().Generate(context.Background(), gemma.Request{Prompt: "hello"})
	fmt.Println(resp.Text, err)
	// Output: HELLO <nil>
}

func ExampleServer_SetStatus() {
	srv := gemmatest.NewServer(nil, gemmatest.WithStatus(gemma.Status{State: gemma.StateLoading, Stage: "weights"}))
	defer srv.Close()
	client := srv.Client(gemma.WithRetries(0))

	_, err := client.Generate(context.Background(), gemma.Request{Prompt: "hello"})
	fmt.Println(errors.Is(err, gemma.ErrLoading))
	srv.SetStatus(gemma.Status{State: gemma.StateReady})
	resp, err := client.Generate(context.Background(), gemma.Request{Prompt: "hello"})
	fmt.Println(resp.Text, err)
	// Output:
	// true
	// hello <nil>
}

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

func ExampleRepeat() {
	reply := gemmatest.Repeat(gemma.Request{Prompt: "Hello", Stop: []string{"lo"}})
	fmt.Printf("%q %s %d\n", reply.Pieces, reply.FinishReason, reply.Usage.CompletionTokens)
	// Output: ["H" "e" "l"] stop 5
}
