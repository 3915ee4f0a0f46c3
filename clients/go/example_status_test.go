package gemma_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/gemmatest"
)

func ExampleStatus() {
	loading := gemma.Status{State: gemma.StateLoading, Stage: "weights", Model: "gemma", RetryAfter: 2 * time.Second}
	srv := gemmatest.NewServer(nil, gemmatest.WithStatus(loading))
	defer srv.Close()

	st, err := gemma.New(gemma.WithBaseURL(srv.URL)).Ready(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	progress := "no telling how far"
	if st.Progress != nil {
		progress = fmt.Sprintf("%.0f%%", 100**st.Progress)
	}
	fmt.Printf("%s: %s, %s; ask again in %s\n", st.Model, st.Stage, progress, st.RetryAfter)
	// Output: gemma: weights, no telling how far; ask again in 2s
}

// A program that is ready when its server is.
func ExampleStatus_Ready() {
	srv := gemmatest.NewServer(nil)
	defer srv.Close()

	client := gemma.New(gemma.WithBaseURL(srv.URL))
	readyz := func(w http.ResponseWriter, r *http.Request) {
		st, err := client.Ready(r.Context())
		if err != nil || !st.Ready() {
			http.Error(w, "the model is not there", http.StatusServiceUnavailable)
		}
	}
	for _, state := range []gemma.State{gemma.StateLoading, gemma.StateReady} {
		srv.SetStatus(gemma.Status{State: state})
		w := httptest.NewRecorder()
		readyz(w, httptest.NewRequest("GET", "/readyz", nil))
		fmt.Println(state, w.Code)
	}
	// Output:
	// loading 503
	// ready 200
}

func ExampleState() {
	srv := gemmatest.NewServer(nil, gemmatest.WithStatus(gemma.Status{State: gemma.StateDraining}))
	defer srv.Close()

	st, err := gemma.New(gemma.WithBaseURL(srv.URL)).Ready(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	switch st.State {
	case gemma.StateLoading:
		fmt.Println("wait for it")
	case gemma.StateReady:
		fmt.Println("ask it")
	case gemma.StateStuck, gemma.StateDraining:
		fmt.Println("look for another one")
	}
	// Output: look for another one
}
