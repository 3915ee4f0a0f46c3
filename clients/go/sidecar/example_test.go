//go:build unix

package sidecar_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/sidecar"
)

func Example() {
	ctx := context.Background()
	server, err := sidecar.Start(ctx, sidecar.Config{
		Python: os.Args[0], Env: []string{serverRole + "=1"}, // a stand-in; yours may be empty
	})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Stop(ctx)

	resp, err := server.Client().Generate(ctx, gemma.Request{Prompt: "The capital of France is"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(resp.Text)
	// Output: Paris.
}

func ExampleStart() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	server, err := sidecar.Start(ctx, sidecar.Config{
		Python: os.Args[0], Env: []string{serverRole + "=1"}, // a stand-in; see Config for yours
		OnProgress: func(status gemma.Status) { fmt.Println(status.State, status.Stage) },
	})
	if err != nil {
		log.Fatal(err) // with the last words of the server
	}
	defer server.Stop(context.Background())
	// Output:
	// loading starting Python
	// ready ready
}

func ExampleSidecar_Stop() {
	server, err := sidecar.Start(context.Background(), sidecar.Config{
		Python: os.Args[0], Env: []string{serverRole + "=1"},
	})
	if err != nil {
		log.Fatal(err)
	}
	// Running requests get ten seconds to finish.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := server.Stop(ctx); err != nil {
		log.Print(err)
	}
	<-server.Done()
	fmt.Println(server.Err())
	// Output: <nil>
}
