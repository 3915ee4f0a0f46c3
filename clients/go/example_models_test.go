package gemma_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/gemmatest"
)

// Some requests try a new version, the rest stay with the client's.
func ExampleWithModel() {
	srv := gemmatest.NewServer(nil, gemmatest.WithModels(gemma.Model{Name: "chat", Versions: []gemma.ModelVersion{
		{Version: 3, Labels: []string{"stable"}}, {Version: 4},
	}}))
	defer srv.Close()

	client := gemma.New(gemma.WithBaseURL(srv.URL), gemma.WithModel("chat:stable"))
	for _, own := range []string{"", "chat@4"} {
		resp, err := client.Generate(context.Background(), gemma.Request{Prompt: "Hello", Model: own})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(resp.Text, "from version", resp.ModelVersion)
	}
	// Output:
	// Hello from version 3
	// Hello from version 4
}

// A name that the server does not have, and a version that has ended.
func ExampleWithModel_errors() {
	srv := gemmatest.NewServer(nil, gemmatest.WithModels(gemma.Model{Name: "chat", Versions: []gemma.ModelVersion{
		{Version: 2, State: gemma.VersionEnd}, {Version: 3},
	}}))
	defer srv.Close()

	for _, name := range []string{"chat@2", "chatt"} {
		client := gemma.New(gemma.WithBaseURL(srv.URL), gemma.WithModel(name), gemma.WithRetries(0))
		_, err := client.Generate(context.Background(), gemma.Request{Prompt: "Hello"})
		var api *gemma.APIError
		if !errors.As(err, &api) {
			log.Fatal(err)
		}
		switch api.Code {
		case gemma.CodeUnavailable:
			fmt.Println(name, "is gone")
		case gemma.CodeModelNotFound:
			fmt.Println(name, "never was")
		}
	}
	// Output:
	// chat@2 is gone
	// chatt never was
}

// Which versions could not be loaded?
func ExampleClient_Models() {
	srv := gemmatest.NewServer(nil, gemmatest.WithModels(gemma.Model{Name: "chat", Versions: []gemma.ModelVersion{
		{Version: 3}, {Version: 4, State: gemma.VersionEnd, Error: "no memory"},
	}}))
	defer srv.Close()

	models, err := gemma.New(gemma.WithBaseURL(srv.URL)).Models(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	for _, model := range models {
		for _, version := range model.Versions {
			if version.Failed() {
				fmt.Printf("%s@%d: %s\n", model.Name, version.Version, version.Error)
			}
		}
	}
	// Output: chat@4: no memory
}

func ExampleModel() {
	soon := time.Date(2026, 12, 1, 6, 0, 0, 0, time.UTC)
	srv := gemmatest.NewServer(nil, gemmatest.WithModels(
		gemma.Model{Name: "chat", Pinned: true},
		gemma.Model{Name: "embed", Loads: gemma.LoadsOnRequest, ExpiresAt: &soon},
	))
	defer srv.Close()

	models, err := gemma.New(gemma.WithBaseURL(srv.URL)).Models(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	for _, model := range models {
		switch {
		case model.ExpiresAt != nil:
			fmt.Println(model.Name, "is unloaded at", model.ExpiresAt.Format(time.Kitchen))
		case model.Default:
			fmt.Println(model.Name, "answers who names no model")
		}
	}
	// Output:
	// chat answers who names no model
	// embed is unloaded at 6:00AM
}

// Whose first request takes longer?
func ExampleLoads() {
	models := []gemma.Model{{Name: "chat", Loads: gemma.LoadsAtStart}, {Name: "embed", Loads: gemma.LoadsOnRequest}}
	for _, model := range models {
		fmt.Println(model.Name, model.Loads == gemma.LoadsOnRequest)
	}
	// Output:
	// chat false
	// embed true
}

// How much memory do the versions take, and who works?
func ExampleModelVersion() {
	srv := gemmatest.NewServer(nil, gemmatest.WithModels(gemma.Model{Name: "chat", Versions: []gemma.ModelVersion{
		{Version: 3, State: gemma.VersionUnloading, Bytes: 570 << 20, Requests: 2}, {Version: 4, Bytes: 570 << 20},
	}}))
	defer srv.Close()

	models, err := gemma.New(gemma.WithBaseURL(srv.URL)).Models(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	for _, version := range models[0].Versions {
		fmt.Println(version.Version, version.State, version.Bytes>>20, "MiB,", version.Requests, "requests")
	}
	// Output:
	// 3 UNLOADING 570 MiB, 2 requests
	// 4 AVAILABLE 570 MiB, 0 requests
}

func ExampleModelVersion_Failed() {
	for _, version := range []gemma.ModelVersion{
		{State: gemma.VersionEnd, Error: "no memory"},
		{State: gemma.VersionEnd}, // it was freed for a higher one
	} {
		fmt.Println(version.Failed())
	}
	// Output:
	// true
	// false
}

func ExampleVersionState() {
	for _, version := range []gemma.ModelVersion{
		{State: gemma.VersionStart}, {State: gemma.VersionLoading}, {State: gemma.VersionAvailable},
		{State: gemma.VersionUnloading}, {State: gemma.VersionEnd},
	} {
		switch version.State {
		case gemma.VersionStart, gemma.VersionLoading:
			fmt.Println("to come")
		case gemma.VersionAvailable:
			fmt.Println("here")
		case gemma.VersionUnloading, gemma.VersionEnd:
			fmt.Println("gone")
		}
	}
	// Output:
	// to come
	// to come
	// here
	// gone
	// gone
}
