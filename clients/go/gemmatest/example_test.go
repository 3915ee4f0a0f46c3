package gemmatest_test

import (
	"context"
	"errors"
	"fmt"
	"log"
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

// Options make a server what a test needs from the start.
func ExampleOption() {
	options := []gemmatest.Option{
		gemmatest.WithAPIKey("sesame"),
		gemmatest.WithReplies(gemmatest.Text("Welcome.")),
	}
	srv := gemmatest.NewServer(nil, options...)
	defer srv.Close()

	resp, err := srv.Client().Generate(context.Background(), gemma.Request{Prompt: "Open!"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(resp.Text)
	// Output: Welcome.
}

// A program that forgets its key fails in the test already.
func ExampleWithAPIKey() {
	srv := gemmatest.NewServer(nil, gemmatest.WithAPIKey("sesame"))
	defer srv.Close()

	_, err := gemma.New(gemma.WithBaseURL(srv.URL)).Generate(context.Background(), gemma.Request{Prompt: "Open!"})
	var api *gemma.APIError
	fmt.Println(errors.As(err, &api) && api.Code == gemma.CodeUnauthorized)
	_, err = srv.Client().Generate(context.Background(), gemma.Request{Prompt: "Open!"})
	fmt.Println(err)
	// Output:
	// true
	// <nil>
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

func ExampleWithStatus() {
	srv := gemmatest.NewServer(nil, gemmatest.WithStatus(gemma.Status{State: gemma.StateDraining}))
	defer srv.Close()

	_, err := srv.Client(gemma.WithRetries(0)).Generate(context.Background(), gemma.Request{Prompt: "Hi"})
	fmt.Println(errors.Is(err, gemma.ErrDraining))
	// Output: true
}

func ExampleWithModels() {
	srv := gemmatest.NewServer(nil, gemmatest.WithModels(
		gemma.Model{Name: "chat", Versions: []gemma.ModelVersion{{Version: 3}, {Version: 4, State: gemma.VersionLoading}}},
		gemma.Model{Name: "embed", Versions: []gemma.ModelVersion{{Version: 1}}},
	))
	defer srv.Close()

	models, err := srv.Client().Models(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	for _, model := range models {
		for _, version := range model.Versions {
			fmt.Println(model.Name, version.Version, version.State)
		}
	}
	// Output:
	// chat 3 AVAILABLE
	// chat 4 LOADING
	// embed 1 AVAILABLE
}
