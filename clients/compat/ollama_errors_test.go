package compat

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ollama/ollama/api"
)

func TestOllama_ModelNotFound(t *testing.T) {
	client := newOllama(t, serverURL)
	for name, stream := range map[string]*bool{"plain": whole, "streamed": nil} {
		t.Run(name, func(t *testing.T) {
			err := client.Chat(testContext(t), &api.ChatRequest{Model: "x", Messages: say("Hi"), Stream: stream}, func(api.ChatResponse) error { return nil })
			checkOllamaError(t, err, 404, "model 'x' not found")
			err = client.Generate(testContext(t), &api.GenerateRequest{Model: "x", Prompt: "Hi", Stream: stream}, func(api.GenerateResponse) error { return nil })
			checkOllamaError(t, err, 404, "model 'x' not found")
		})
	}
}

func TestOllama_BadRequest(t *testing.T) {
	client := newOllama(t, serverURL)
	for name, options := range map[string]map[string]any{
		"temperature": {"temperature": -1},
		"top_p":       {"top_p": 1.5},
		"stop":        {"stop": 7},
	} {
		t.Run(name, func(t *testing.T) {
			err := client.Chat(testContext(t), &api.ChatRequest{Model: model, Messages: say("Hi"), Options: options}, func(api.ChatResponse) error { return nil })
			checkOllamaError(t, err, 400, "")
			if !strings.Contains(err.Error(), name) {
				t.Errorf("%v does not name %s", err, name)
			}
		})
	}
}

// What is not there must still be an answer that the library understands.
func TestOllama_NoSuchRoute(t *testing.T) {
	err := newOllama(t, serverURL).Disconnect(testContext(t), "key")
	checkOllamaError(t, err, 404, "")
}

func TestOllama_Deadline(t *testing.T) {
	needSlow(t)
	ctx, cancel := context.WithTimeout(testContext(t), 300*time.Millisecond)
	defer cancel()
	req := &api.ChatRequest{Model: model, Messages: say(long), Stream: whole, Options: likeliest()}
	err := newOllama(t, slowURL).Chat(ctx, req, func(api.ChatResponse) error { return nil })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	waitLoad(t, 0, 0)
}

func TestOllama_CancelFreesSlot(t *testing.T) {
	needSlow(t)
	client := newOllama(t, slowURL)
	t.Run("plain", func(t *testing.T) {
		stop := background(t, func(ctx context.Context) error {
			req := &api.ChatRequest{Model: model, Messages: say(long), Stream: whole, Options: likeliest()}
			return client.Chat(ctx, req, func(api.ChatResponse) error { return nil })
		})
		waitLoad(t, 1, 0)
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		waitLoad(t, 0, 0)
	})
	t.Run("streamed", func(t *testing.T) {
		ctx, cancel := context.WithCancel(testContext(t))
		defer cancel()
		answers := 0
		// The library takes the end of a cancelled stream for a proper one.
		client.Generate(ctx, &api.GenerateRequest{Model: model, Prompt: long, Options: likeliest()}, func(r api.GenerateResponse) error {
			if answers++; answers == 1 {
				waitLoad(t, 1, 0)
				cancel()
			}
			if r.Done {
				t.Error("the answer came to its end")
			}
			return nil
		})
		if answers == 0 {
			t.Error("no answer")
		}
		waitLoad(t, 0, 0)
	})
	t.Run("left", func(t *testing.T) {
		enough := errors.New("enough")
		req := &api.ChatRequest{Model: model, Messages: say(long), Options: likeliest()}
		err := client.Chat(testContext(t), req, func(api.ChatResponse) error { return enough })
		if !errors.Is(err, enough) {
			t.Errorf("got %v", err)
		}
		waitLoad(t, 0, 0)
	})
}

func TestOllama_Overloaded(t *testing.T) {
	needSlow(t)
	fillSlow(t)
	client := newOllama(t, slowURL)
	for name, stream := range map[string]*bool{"plain": whole, "streamed": nil} {
		t.Run(name, func(t *testing.T) {
			req := &api.ChatRequest{Model: model, Messages: say("Hi"), Stream: stream, Options: likeliest()}
			err := client.Chat(testContext(t), req, func(api.ChatResponse) error { return nil })
			checkOllamaError(t, err, 429, "")
		})
	}
}
