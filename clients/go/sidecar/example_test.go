//go:build unix

package sidecar_test

import (
	"context"
	"errors"
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

func ExampleConfig() {
	cfg := sidecar.Config{
		Model:        "/models/gemma-3-1b-it.gguf",
		Args:         []string{"--slots", "4", "--model-name", "assistant"},
		StartTimeout: time.Hour, // a large model on a slow disk
		CrashLimit:   10,

		Python: os.Args[0], Env: []string{serverRole + "=1"}, // a stand-in
	}
	server, err := sidecar.Start(context.Background(), cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer server.Stop(context.Background())

	st, err := server.Client().Ready(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(st.Model)
	// Output: assistant
}

// Several models, and what to log of them.
func ExampleConfig_models() {
	server, err := sidecar.Start(context.Background(), sidecar.Config{
		ModelConfig:   "models.toml",
		ClientOptions: []gemma.Option{gemma.WithModel("chat")},
		OnModels: func(models []gemma.Model) {
			for _, model := range models {
				for _, version := range model.Versions {
					if version.Failed() {
						fmt.Printf("version %d of %s failed: %s\n", version.Version, model.Name, version.Error)
					}
				}
			}
		},

		Python: os.Args[0], Env: []string{serverRole + "=1"}, // a stand-in
	})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Stop(context.Background())
	// Output: version 4 of chat failed: no memory
}

// A server with a setting that cannot work says which.
func ExampleExitError() {
	_, err := sidecar.Start(context.Background(), sidecar.Config{
		Args:   []string{"--slots", "0"},
		Python: os.Args[0], Env: []string{serverRole + "=1"}, // a stand-in
	})
	var exit *sidecar.ExitError
	if errors.As(err, &exit) && exit.State.ExitCode() == 2 {
		fmt.Println("mend the settings:", exit)
	}
	// Output: mend the settings: exit status 2: gemma-server: --slots (GEMMA_SLOTS): Input should be greater than or equal to 1
}
