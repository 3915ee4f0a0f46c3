// Command stream-and-stop prints the first sentence of an answer as it is made,
// and then leaves the stream, which frees the server for others. Ctrl-C does
// the same.
//
//	GEMMA_URL=http://127.0.0.1:20200 stream-and-stop
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	// The deadline travels to the server, which then stops working too.
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()

	client := gemma.New(gemma.WithBaseURL(cmp.Or(os.Getenv("GEMMA_URL"), gemma.DefaultBaseURL)))
	prompt := gemma.Request{Prompt: "The sea is wide. The sky is wider."}
	for chunk, err := range client.Stream(ctx, prompt) {
		if errors.Is(err, context.Canceled) {
			fmt.Println("(interrupted)")
			return
		}
		if err != nil {
			log.Fatal(err)
		}
		text, _, end := strings.Cut(chunk.Text, ".")
		fmt.Print(text)
		if end {
			fmt.Println(".")
			break // closes the connection
		}
	}
}
