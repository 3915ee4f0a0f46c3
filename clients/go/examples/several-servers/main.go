// Command several-servers asks a few servers behind one client. Each prompt
// goes to the least busy one; a server that is down is left out.
//
//	GEMMA_URL=http://127.0.0.1:20200,unix:/run/gemma/2.sock several-servers
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"log/slog"
	"os"
	"strings"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

func main() {
	addresses := strings.Split(cmp.Or(os.Getenv("GEMMA_URL"), gemma.DefaultBaseURL), ",")
	client := gemma.New(
		gemma.WithEndpoints(addresses...),
		gemma.WithRetries(len(addresses)),
		gemma.WithLogger(slog.Default()), // says when a server is left out, and when it is back
	)
	ctx := context.Background()
	status, err := client.Ready(ctx) // asks all at once
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("ready:", status.Ready())
	for _, prompt := range []string{"one", "two", "three", "four"} {
		resp, err := client.Generate(ctx, gemma.Request{Prompt: prompt, SamplingSteps: 16})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: %s\n", prompt, resp.Text)
	}
}
