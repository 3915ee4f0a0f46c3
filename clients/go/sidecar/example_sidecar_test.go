//go:build unix

package sidecar_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/sidecar"
)

// A web service that has its own model.
func ExampleSidecar() {
	server, err := sidecar.Start(context.Background(), sidecar.Config{
		Python: os.Args[0], Env: []string{serverRole + "=1"}, // a stand-in
	})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Stop(context.Background())

	capital := func(w http.ResponseWriter, r *http.Request) {
		prompt := "The capital of " + r.FormValue("of") + " is"
		resp, err := server.Client().Generate(r.Context(), gemma.Request{Prompt: prompt})
		if err != nil {
			http.Error(w, "no answer", http.StatusBadGateway)
			return
		}
		fmt.Fprint(w, resp.Text)
	}
	w := httptest.NewRecorder()
	capital(w, httptest.NewRequest("GET", "/capital?of=France", nil))
	fmt.Println(w.Body)
	// Output: Paris.
}

func ExampleSidecar_Client() {
	server, err := sidecar.Start(context.Background(), sidecar.Config{
		ClientOptions: []gemma.Option{gemma.WithRetries(5)},         // to outlast a restart
		Python:        os.Args[0], Env: []string{serverRole + "=1"}, // a stand-in
	})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Stop(context.Background())

	client := server.Client() // for the whole program
	st, err := client.Ready(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(st.State)
	// Output: ready
}

// A program that has no sense without the model ends with it.
func ExampleSidecar_Done() {
	server, err := sidecar.Start(context.Background(), sidecar.Config{
		CrashLimit: 1,                                            // do not start it again
		Python:     os.Args[0], Env: []string{serverRole + "=1"}, // a stand-in
	})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Stop(context.Background())

	go server.Client().Generate(context.Background(), gemma.Request{Prompt: "crash"}) // as the stand-in does then
	asked, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	select {
	case <-asked.Done():
		fmt.Println("asked to stop")
	case <-server.Done():
		fmt.Println("the model is gone")
	}
	// Output: the model is gone
}

func ExampleSidecar_Err() {
	server, err := sidecar.Start(context.Background(), sidecar.Config{
		CrashLimit: 1,                                            // do not start it again
		Python:     os.Args[0], Env: []string{serverRole + "=1"}, // a stand-in
	})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Stop(context.Background())
	fmt.Println(server.Err()) // it runs

	server.Client().Generate(context.Background(), gemma.Request{Prompt: "crash"}) // as the stand-in does then
	<-server.Done()
	var exit *sidecar.ExitError
	if errors.As(server.Err(), &exit) {
		fmt.Println(exit)
	}
	// Output:
	// <nil>
	// exit status 1: no memory left
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
