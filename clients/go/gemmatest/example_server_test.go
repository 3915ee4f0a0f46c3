package gemmatest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/gemmatest"
)

func ExampleServer() {
	srv := gemmatest.NewServer(nil)
	defer srv.Close()

	// A program that is under test gets the address as its users give it.
	client := gemma.New(gemma.WithBaseURL(srv.URL))
	st, err := client.Ready(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(st.State, st.Model)
	// Output: ready fake
}

func ExampleServer_Client() {
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(gemmatest.Error(503, gemma.CodeLoading)))
	defer srv.Close()

	client := srv.Client(gemma.WithRetries(0)) // so that a test sees the error
	_, err := client.Generate(context.Background(), gemma.Request{Prompt: "Hi"})
	fmt.Println(errors.Is(err, gemma.ErrLoading))
	// Output: true
}

// A server that goes away amid an answer.
func ExampleServer_Close() {
	never := make(chan struct{})
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(gemmatest.Reply{Pieces: []string{"One, ", "two."}, Hold: never}))
	defer srv.Close() // closing twice does no harm

	for chunk, err := range srv.Client().Stream(context.Background(), gemma.Request{Prompt: "Count:"}) {
		fmt.Printf("%q %t\n", chunk.Text, errors.Is(err, io.ErrUnexpectedEOF))
		if err == nil {
			srv.Close()
		}
	}
	// Output:
	// "One, " false
	// "" true
}

// What did the program really ask for?
func ExampleServer_Requests() {
	srv := gemmatest.NewServer(nil)
	defer srv.Close()

	for _, prompt := range []string{"One", "Two"} {
		if _, err := srv.Client().Generate(context.Background(), gemma.Request{Prompt: prompt}); err != nil {
			log.Fatal(err)
		}
	}
	for _, req := range srv.Requests() {
		fmt.Println(req.Path, req.Prompt.Prompt)
	}
	// Output:
	// /prompt One
	// /prompt Two
}

// A Request has what came over the wire, and what it means.
func ExampleRequest() {
	srv := gemmatest.NewServer(nil, gemmatest.WithAPIKey("sesame"))
	defer srv.Close()

	for _, err := range srv.Client().Stream(context.Background(), gemma.Request{Prompt: "Hi", TopK: 40}) {
		if err != nil {
			log.Fatal(err)
		}
	}
	req := srv.Requests()[0]
	fmt.Println(req.Method, req.Path, req.Header.Get("Authorization"))
	fmt.Println(string(req.Body))
	fmt.Println(req.Prompt.TopK, req.Stream)
	// Output:
	// POST /prompt Bearer sesame
	// {"prompt":"Hi","top_k":40,"stream":true}
	// 40 true
}

// Replies may be added as a test goes on.
func ExampleServer_Script() {
	srv := gemmatest.NewServer(nil)
	defer srv.Close()
	client := srv.Client()

	for _, answer := range []string{"Yes.", "No."} {
		srv.Script(gemmatest.Text(answer))
		resp, err := client.Generate(context.Background(), gemma.Request{Prompt: "Is it so?"})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(resp.Text)
	}
	// Output:
	// Yes.
	// No.
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

// A program that waits for a version until it is loaded.
func ExampleServer_SetModels() {
	version := gemma.ModelVersion{Version: 1, State: gemma.VersionLoading}
	srv := gemmatest.NewServer(nil, gemmatest.WithModels(gemma.Model{Name: "chat", Versions: []gemma.ModelVersion{version}}))
	defer srv.Close()
	client := srv.Client(gemma.WithRetries(0))

	_, err := client.Generate(context.Background(), gemma.Request{Prompt: "hello"})
	fmt.Println(errors.Is(err, gemma.ErrLoading))
	version.State = gemma.VersionAvailable
	srv.SetModels(gemma.Model{Name: "chat", Versions: []gemma.ModelVersion{version}})
	resp, err := client.Generate(context.Background(), gemma.Request{Prompt: "hello"})
	fmt.Println(resp.Text, err)
	// Output:
	// true
	// hello <nil>
}
