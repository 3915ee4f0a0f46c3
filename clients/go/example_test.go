package gemma_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"os"

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
	srv := gemmatest.NewServer(nil)
	defer srv.Close()

	client := gemma.New(
		gemma.WithBaseURL(srv.URL),
		gemma.WithAPIKey(os.Getenv("GEMMA_API_KEY")),
		gemma.WithRetries(5),
		gemma.WithLogger(slog.Default()),
	)
	resp, err := client.Generate(context.Background(), gemma.Request{Prompt: "Hello"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(resp.Text)
	// Output: Hello
}

// A mistake in an option is the error of every call.
func ExampleNew_mistake() {
	client := gemma.New(gemma.WithBaseURL("localhost:20200"))
	_, err := client.Ready(context.Background())
	fmt.Println(err)
	// Output: gemma: base URL "localhost:20200" is not of the form http://host:port
}
