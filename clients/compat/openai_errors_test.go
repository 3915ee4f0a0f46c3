package compat

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

func TestOpenAI_Models(t *testing.T) {
	client := newOpenAI(serverURL)
	var ids []string
	for pages := client.Models.ListAutoPaging(testContext(t)); ; {
		if !pages.Next() {
			if err := pages.Err(); err != nil {
				t.Fatal(err)
			}
			break
		}
		ids = append(ids, pages.Current().ID)
	}
	equal(t, "models", strings.Join(ids, " "), model)
	got, err := client.Models.Get(testContext(t), model)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "id", got.ID, model)
	equal(t, "object", string(got.Object), "model")
	if got.Created <= 0 || got.OwnedBy == "" {
		t.Errorf("got %s", got.RawJSON())
	}
	_, err = client.Models.Get(testContext(t), "some/other:model")
	checkOpenAIError(t, err, 404, "model_not_found", "model")
}

func TestOpenAI_BadRequest(t *testing.T) {
	client := newOpenAI(serverURL)
	for _, tc := range []struct {
		param, code string
		set         func(*openai.ChatCompletionNewParams)
	}{
		{"max_tokens", "invalid_value", func(p *openai.ChatCompletionNewParams) { p.MaxTokens = openai.Int(-1) }},
		{"max_completion_tokens", "invalid_value", func(p *openai.ChatCompletionNewParams) { p.MaxCompletionTokens = openai.Int(-1) }},
		{"temperature", "invalid_value", func(p *openai.ChatCompletionNewParams) { p.Temperature = openai.Float(-1) }},
		{"top_p", "invalid_value", func(p *openai.ChatCompletionNewParams) { p.TopP = openai.Float(1.5) }},
		{"n", "invalid_value", func(p *openai.ChatCompletionNewParams) { p.N = openai.Int(0) }},
		{"messages", "invalid_value", func(p *openai.ChatCompletionNewParams) {
			p.Messages = []openai.ChatCompletionMessageParamUnion{}
		}},
		{"messages", "context_length_exceeded", func(p *openai.ChatCompletionNewParams) {
			p.Messages = []openai.ChatCompletionMessageParamUnion{openai.UserMessage(strings.Repeat("x", 100_000))}
		}},
	} {
		t.Run(tc.param+" "+tc.code, func(t *testing.T) {
			params := chat("Hi")
			tc.set(&params)
			_, err := client.Chat.Completions.New(testContext(t), params)
			api := checkOpenAIError(t, err, 400, tc.code, tc.param)
			equal(t, "type", api.Type, "invalid_request_error")
			stream := client.Chat.Completions.NewStreaming(testContext(t), params)
			defer stream.Close()
			if stream.Next() {
				t.Errorf("a chunk: %s", stream.Current().RawJSON())
			}
			checkOpenAIError(t, stream.Err(), 400, tc.code, tc.param)
		})
	}
}

func TestOpenAI_CompletionBadRequest(t *testing.T) {
	params := completion("hello")
	params.MaxTokens = openai.Int(-1)
	_, err := newOpenAI(serverURL).Completions.New(testContext(t), params)
	checkOpenAIError(t, err, 400, "invalid_value", "max_tokens")
}

func TestOpenAI_ModelNotFound(t *testing.T) {
	client := newOpenAI(serverURL)
	chatParams, params := chat("Hi"), completion("Hi")
	chatParams.Model, params.Model = "nobody", "nobody"
	_, err := client.Chat.Completions.New(testContext(t), chatParams)
	checkOpenAIError(t, err, 404, "model_not_found", "model")
	_, err = client.Completions.New(testContext(t), params)
	checkOpenAIError(t, err, 404, "model_not_found", "model")
	stream := client.Chat.Completions.NewStreaming(testContext(t), chatParams)
	defer stream.Close()
	if stream.Next() {
		t.Errorf("a chunk: %s", stream.Current().RawJSON())
	}
	checkOpenAIError(t, stream.Err(), 404, "model_not_found", "model")
}

// What is not there must still be an answer that the library understands.
func TestOpenAI_NoSuchRoute(t *testing.T) {
	client := newOpenAI(serverURL)
	var api *openai.Error
	_, err := client.Images.Generate(testContext(t), openai.ImageGenerateParams{Prompt: "a cat"})
	if !errors.As(err, &api) {
		t.Fatalf("got %T %v, want an *openai.Error", err, err)
	}
	equal(t, "status", api.StatusCode, 404)
	if api.Message == "" {
		t.Errorf("no message in %s", api.RawJSON())
	}
	_, err = client.Models.Delete(testContext(t), model)
	if !errors.As(err, &api) {
		t.Fatalf("got %T %v, want an *openai.Error", err, err)
	}
	equal(t, "status", api.StatusCode, 405)
}

func TestOpenAI_RequestID(t *testing.T) {
	client := newOpenAI(serverURL)
	var first, second *http.Response
	for _, into := range []**http.Response{&first, &second} {
		if _, err := client.Chat.Completions.New(testContext(t), chat("Hi"), option.WithResponseInto(into)); err != nil {
			t.Fatal(err)
		}
	}
	a, b := first.Header.Get("X-Request-Id"), second.Header.Get("X-Request-Id")
	if a == "" || a == b {
		t.Errorf("request ids %q and %q", a, b)
	}
	params := chat("Hi")
	params.MaxTokens = openai.Int(-1)
	_, err := client.Chat.Completions.New(testContext(t), params)
	api := checkOpenAIError(t, err, 400, "invalid_value", "max_tokens")
	if api.Response.Header.Get("X-Request-Id") == "" {
		t.Error("no request id of a refused request")
	}
}

// The library rounds its time limit down to whole seconds when it tells it:
// this limit is told as 0.
func TestOpenAI_ShortTimeLimit(t *testing.T) {
	client := newOpenAI(serverURL, option.WithRequestTimeout(900*time.Millisecond))
	got, err := client.Chat.Completions.New(testContext(t), chat("Hi"))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "content", got.Choices[0].Message.Content, chatText)
}

func TestOpenAI_Deadline(t *testing.T) {
	needSlow(t)
	client := newOpenAI(slowURL)
	ctx, cancel := context.WithTimeout(testContext(t), 300*time.Millisecond)
	defer cancel()
	if _, err := client.Chat.Completions.New(ctx, chat(long)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("plain: got %v", err)
	}
	waitLoad(t, 0, 0)
	ctx, cancel = context.WithTimeout(testContext(t), 800*time.Millisecond)
	defer cancel()
	stream := client.Chat.Completions.NewStreaming(ctx, chat(long))
	defer stream.Close()
	for stream.Next() {
	}
	if err := stream.Err(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("streamed: got %v", err)
	}
	waitLoad(t, 0, 0)
}

// A time limit that the server keeps itself is not worth another attempt.
func TestOpenAI_DeadlineKeptByServer(t *testing.T) {
	needSlow(t)
	attempts := 0
	client := newOpenAI(slowURL, option.WithMaxRetries(2), option.WithHeader("X-Request-Timeout-Ms", "400"),
		option.WithMiddleware(func(r *http.Request, next option.MiddlewareNext) (*http.Response, error) {
			attempts++
			return next(r)
		}))
	_, err := client.Chat.Completions.New(testContext(t), chat(long))
	checkOpenAIError(t, err, 504, "deadline", "")
	equal(t, "attempts", attempts, 1)
}

func TestOpenAI_CancelFreesSlot(t *testing.T) {
	needSlow(t)
	client := newOpenAI(slowURL)
	t.Run("plain", func(t *testing.T) {
		stop := background(t, func(ctx context.Context) error {
			_, err := client.Chat.Completions.New(ctx, chat(long))
			return err
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
		stream := client.Chat.Completions.NewStreaming(ctx, chat(long))
		defer stream.Close()
		if !stream.Next() {
			t.Fatal(stream.Err())
		}
		waitLoad(t, 1, 0)
		cancel()
		for stream.Next() {
		}
		if err := stream.Err(); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		waitLoad(t, 0, 0)
	})
	t.Run("closed", func(t *testing.T) {
		params := completion(long)
		params.MaxTokens = openai.Int(500)
		stream := client.Completions.NewStreaming(testContext(t), params)
		if !stream.Next() {
			t.Fatal(stream.Err())
		}
		waitLoad(t, 1, 0)
		stream.Close()
		waitLoad(t, 0, 0)
	})
	t.Run("waiting", func(t *testing.T) {
		busy, waiting := fillSlow(t)
		if err := waiting(); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		waitLoad(t, 1, 0)
		busy()
	})
}

// fillSlow takes the slow server's only slot and the one place in its line,
// until the test ends or both are left.
func fillSlow(t *testing.T) (busy, waiting func() error) {
	t.Helper()
	client := newOpenAI(slowURL)
	request := func(ctx context.Context) error {
		_, err := client.Chat.Completions.New(ctx, chat(long))
		return err
	}
	busy = background(t, request)
	waitLoad(t, 1, 0)
	waiting = background(t, request)
	waitLoad(t, 1, 1)
	return busy, waiting
}

func TestOpenAI_Overloaded(t *testing.T) {
	needSlow(t)
	fillSlow(t)
	client := newOpenAI(slowURL)
	_, err := client.Chat.Completions.New(testContext(t), chat("Hi"))
	api := checkOpenAIError(t, err, 429, "overloaded", "")
	if api.Response.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	stream := client.Chat.Completions.NewStreaming(testContext(t), chat("Hi"))
	defer stream.Close()
	if stream.Next() {
		t.Errorf("a chunk: %s", stream.Current().RawJSON())
	}
	checkOpenAIError(t, stream.Err(), 429, "overloaded", "")
}

func TestOpenAI_OverloadedRetried(t *testing.T) {
	needSlow(t)
	busy, waiting := fillSlow(t)
	checkRetried(t, slowURL, 429, func() {
		waiting()
		busy()
	})
}

// checkRetried makes a request that is refused with this status until resolve
// is called, and then answered.
func checkRetried(t *testing.T, url string, status int, resolve func()) {
	t.Helper()
	var statuses []int
	client := newOpenAI(url, option.WithMaxRetries(2),
		option.WithMiddleware(func(r *http.Request, next option.MiddlewareNext) (*http.Response, error) {
			resp, err := next(r)
			if err == nil {
				statuses = append(statuses, resp.StatusCode)
				if resp.StatusCode == status {
					resolve()
				}
			}
			return resp, err
		}))
	got, err := client.Chat.Completions.New(testContext(t), chat("Hi"))
	if err != nil {
		t.Fatalf("after %v: %v", statuses, err)
	}
	equal(t, "content", got.Choices[0].Message.Content, chatText)
	if len(statuses) < 2 || statuses[0] != status || statuses[len(statuses)-1] != 200 {
		t.Errorf("answers %v", statuses)
	}
}
