package gemma_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

// fakeServer stands in for gemma-server and gives one fixed body.
func fakeServer(contentType, body string) *httptest.Server {
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		io.WriteString(w, body)
	}))
}

func ExampleClient_Generate() {
	srv := fakeServer("application/json", `{"response": "Paris.", "finish_reason": "stop",
		"usage": {"prompt_tokens": 6, "completion_tokens": 2, "cached_tokens": 0},
		"timings": {"queue_ms": 0.1, "prefill_ms": 8.0, "decode_ms": 12.0}}`)
	defer srv.Close()

	client := gemma.New(gemma.WithBaseURL(srv.URL))
	resp, err := client.Generate(context.Background(), gemma.Request{
		Prompt:        "The capital of France is",
		SamplingSteps: 16,
		Stop:          []string{"\n"},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(resp.Text)
	fmt.Println(resp.FinishReason, resp.Usage.CompletionTokens)
	// Output:
	// Paris.
	// stop 2
}

func ExampleClient_Stream() {
	srv := fakeServer("text/event-stream", `data: {"response": "One, "}

data: {"response": "two."}

data: {"response": "", "finish_reason": "stop", "usage": {"completion_tokens": 5}, "timings": {}}

data: [DONE]

`)
	defer srv.Close()

	client := gemma.New(gemma.WithBaseURL(srv.URL))
	for chunk, err := range client.Stream(context.Background(), gemma.Request{Prompt: "Count:"}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(chunk.Text)
		if chunk.FinishReason != "" {
			fmt.Printf("\n%d tokens\n", chunk.Usage.CompletionTokens)
		}
	}
	// Output:
	// One, two.
	// 5 tokens
}
