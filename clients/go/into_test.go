package gemma_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/gemmatest"
)

type person struct {
	Name string    `json:"name"`
	Age  uint8     `json:"age"`
	Born time.Time `json:"born"`
	Next *person   `json:"next"`
}

// The fake engine writes what it may; the answer fits the struct all the same.
func TestIntoOfARealServer(t *testing.T) {
	url := os.Getenv("GEMMA_TEST_URL")
	if url == "" {
		t.Skip("GEMMA_TEST_URL is not set")
	}
	ctx, client := context.Background(), gemma.New(gemma.WithBaseURL(url))
	if _, err := gemma.Into[person](ctx, client, gemma.Request{Prompt: "x", SamplingSteps: 500}); err != nil {
		t.Error(err)
	}
	if _, err := gemma.Into[person](ctx, client, gemma.Request{Prompt: "x", SamplingSteps: 3}); !errors.Is(err, gemma.ErrUnfinished) {
		t.Errorf("got %v, want ErrUnfinished", err)
	}
	for want, req := range map[string]gemma.Request{
		"7-7":  {Prompt: "x", Regex: "7-7"},
		"nein": {Prompt: "nein", Choice: []string{"ja", "nein"}},
		"aaa":  {Prompt: "x", Grammar: `root ::= "aaa"`},
	} {
		if resp, err := client.Generate(ctx, req); err != nil || resp.Text != want {
			t.Errorf("got %v, %v, want %q", resp, err, want)
		}
	}
}

func TestIntoSaysWhatIsWrong(t *testing.T) {
	srv := gemmatest.NewServer(t, gemmatest.WithReplies(
		gemmatest.Text(`{"name": "Ada", "age": 300}`), gemmatest.Error(429, gemma.CodeOverloaded)))
	ctx, client := context.Background(), gemma.New(gemma.WithBaseURL(srv.URL), gemma.WithRetries(0))
	if got, err := gemma.Into[person](ctx, client, gemma.Request{Prompt: "x"}); err == nil {
		t.Errorf("got %v, but no uint8 holds 300", got)
	}
	if _, err := gemma.Into[person](ctx, client, gemma.Request{Prompt: "x"}); !errors.Is(err, gemma.ErrOverloaded) {
		t.Errorf("got %v, want ErrOverloaded", err)
	}
	if _, err := gemma.Into[chan int](ctx, client, gemma.Request{Prompt: "x"}); err == nil {
		t.Error("a channel was read from JSON")
	}
	if n := len(srv.Requests()); n != 2 {
		t.Errorf("%d requests", n)
	}
}
