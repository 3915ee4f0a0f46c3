// Command ask-once starts a server, streams one answer, and stops the server.
//
// It needs a python3 with gemma-server on the PATH. GEMMA_FAKE=1 in the
// environment answers without a model.
package main

import (
	"context"
	"fmt"
	"log"
	"log/slog"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/sidecar"
)

func main() {
	ctx := context.Background()
	server, err := sidecar.Start(ctx, sidecar.Config{Logger: slog.Default()})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Stop(ctx)
	for chunk, err := range server.Client().Stream(ctx, gemma.Request{Prompt: "The capital of France is"}) {
		if err != nil {
			log.Panic(err)
		}
		fmt.Print(chunk.Text)
	}
}
