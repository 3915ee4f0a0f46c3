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

// newOpenAI is a client that shows every failure instead of trying again.
func newOpenAI(url string, opts ...option.RequestOption) *openai.Client {
	client := openai.NewClient(append([]option.RequestOption{
		option.WithBaseURL(url + "/v1/"), option.WithAPIKey("unused"), option.WithMaxRetries(0),
	}, opts...)...)
	return &client
}

// chat asks for the likeliest answer to one message.
func chat(text string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model:       model,
		Messages:    []openai.ChatCompletionMessageParamUnion{openai.UserMessage(text)},
		Temperature: openai.Float(0),
	}
}

// completion asks for the likeliest continuation.
func completion(prompt string) openai.CompletionNewParams {
	return openai.CompletionNewParams{
		Model:       model,
		Prompt:      openai.CompletionNewParamsPromptUnion{OfString: openai.String(prompt)},
		Temperature: openai.Float(0),
	}
}

// accumulate reads a whole stream as the library means it to be read.
func accumulate(t *testing.T, client *openai.Client, params openai.ChatCompletionNewParams) (*openai.ChatCompletionAccumulator, []openai.ChatCompletionChunk) {
	t.Helper()
	stream := client.Chat.Completions.NewStreaming(testContext(t), params)
	defer stream.Close()
	acc := &openai.ChatCompletionAccumulator{}
	var chunks []openai.ChatCompletionChunk
	for stream.Next() {
		chunk := stream.Current()
		if !acc.AddChunk(chunk) {
			t.Fatalf("the accumulator refused %s", chunk.RawJSON())
		}
		chunks = append(chunks, chunk)
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	return acc, chunks
}

// streamed reads a whole stream of completions.
func streamed(t *testing.T, client *openai.Client, params openai.CompletionNewParams) (text, finish string, usages []openai.CompletionUsage) {
	t.Helper()
	stream := client.Completions.NewStreaming(testContext(t), params)
	defer stream.Close()
	var id string
	for stream.Next() {
		chunk := stream.Current()
		if id == "" {
			id = chunk.ID
		}
		equal(t, "id", chunk.ID, id)
		if chunk.JSON.Usage.Valid() {
			usages = append(usages, chunk.Usage)
		}
		for _, choice := range chunk.Choices {
			text += choice.Text
			finish = string(choice.FinishReason)
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	return text, finish, usages
}

func checkUsage(t *testing.T, got openai.CompletionUsage, prompt, answer int) {
	t.Helper()
	equal(t, "prompt_tokens", got.PromptTokens, int64(prompt))
	equal(t, "completion_tokens", got.CompletionTokens, int64(answer))
	equal(t, "total_tokens", got.TotalTokens, int64(prompt+answer))
}

// checkOpenAIError takes any error of the API apart.
func checkOpenAIError(t *testing.T, err error, status int, code, param string) *openai.Error {
	t.Helper()
	var api *openai.Error
	if !errors.As(err, &api) {
		t.Fatalf("got %T %v, want an *openai.Error with status %d", err, err, status)
	}
	equal(t, "status", api.StatusCode, status)
	equal(t, "code", api.Code, code)
	equal(t, "param", api.Param, param)
	if api.Message == "" || api.Type == "" {
		t.Errorf("no message or no type in %s", api.RawJSON())
	}
	return api
}

func TestOpenAI_Chat(t *testing.T) {
	start := time.Now().Unix()
	got, err := newOpenAI(serverURL).Chat.Completions.New(testContext(t), chat("Hi"))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "choices", len(got.Choices), 1)
	choice := got.Choices[0]
	equal(t, "content", choice.Message.Content, chatText)
	equal(t, "role", string(choice.Message.Role), "assistant")
	equal(t, "finish_reason", choice.FinishReason, "stop")
	equal(t, "index", choice.Index, 0)
	equal(t, "model", got.Model, model)
	equal(t, "object", string(got.Object), "chat.completion")
	checkUsage(t, got.Usage, chatPromptTokens, chatAnswerTokens)
	if !strings.HasPrefix(got.ID, "chatcmpl-") {
		t.Errorf("id %q", got.ID)
	}
	if got.Created < start-1 || got.Created > time.Now().Unix()+1 {
		t.Errorf("created %d", got.Created)
	}
}

func TestOpenAI_ChatMessages(t *testing.T) {
	client := newOpenAI(serverURL)
	parts := []openai.ChatCompletionContentPartUnionParam{openai.TextContentPart("H"), openai.TextContentPart("i")}
	for _, tc := range []struct {
		name     string
		messages []openai.ChatCompletionMessageParamUnion
		want     string
	}{
		{"system", []openai.ChatCompletionMessageParamUnion{openai.SystemMessage("Be brief."), openai.UserMessage("Hi")}, "user\nBe brief.\n\nHi"},
		{"developer", []openai.ChatCompletionMessageParamUnion{openai.DeveloperMessage("Be brief."), openai.UserMessage("Hi")}, "user\nBe brief.\n\nHi"},
		{"turns", []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Hi"), openai.AssistantMessage("Yo"), openai.UserMessage("Well?")}, "user\nHi"},
		{"parts", []openai.ChatCompletionMessageParamUnion{openai.UserMessage(parts)}, "user\nHi"},
		{"other scripts", []openai.ChatCompletionMessageParamUnion{openai.UserMessage("héé 日本 🙂")}, "user\nhéé 日本 🙂"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			params := chat("")
			params.Messages = tc.messages
			got, err := client.Chat.Completions.New(testContext(t), params)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "content", got.Choices[0].Message.Content, tc.want)
			acc, _ := accumulate(t, client, params)
			equal(t, "streamed content", acc.Choices[0].Message.Content, tc.want)
		})
	}
}

func TestOpenAI_ChatStreamed(t *testing.T) {
	acc, chunks := accumulate(t, newOpenAI(serverURL), chat("Hi"))
	equal(t, "content", acc.Choices[0].Message.Content, chatText)
	equal(t, "role", string(acc.Choices[0].Message.Role), "assistant")
	equal(t, "finish_reason", acc.Choices[0].FinishReason, "stop")
	equal(t, "model", acc.Model, model)
	for i, chunk := range chunks {
		equal(t, "object", string(chunk.Object), "chat.completion.chunk")
		equal(t, "created", chunk.Created, chunks[0].Created)
		equal(t, "model", chunk.Model, model)
		equal(t, "choices of a chunk", len(chunk.Choices), 1)
		if last := i == len(chunks)-1; (chunk.Choices[0].FinishReason != "") != last {
			t.Errorf("chunk %d of %d: %s", i+1, len(chunks), chunk.RawJSON())
		}
		if chunk.JSON.Usage.Valid() {
			t.Errorf("usage that nobody asked for: %s", chunk.RawJSON())
		}
	}
	equal(t, "first delta's role", chunks[0].Choices[0].Delta.Role, "assistant")
}

func TestOpenAI_ChatStreamedUsage(t *testing.T) {
	params := chat("Hi")
	params.StreamOptions.IncludeUsage = openai.Bool(true)
	acc, chunks := accumulate(t, newOpenAI(serverURL), params)
	equal(t, "content", acc.Choices[0].Message.Content, chatText)
	checkUsage(t, acc.Usage, chatPromptTokens, chatAnswerTokens)
	equal(t, "choices of the last chunk", len(chunks[len(chunks)-1].Choices), 0)
}

func TestOpenAI_ChatStreamedPieceByPiece(t *testing.T) {
	needSlow(t)
	stream := newOpenAI(slowURL).Chat.Completions.NewStreaming(testContext(t), chat(strings.Repeat("ab", 10)))
	defer stream.Close()
	var pieces int
	var first, last time.Time
	for stream.Next() {
		if choices := stream.Current().Choices; len(choices) > 0 && choices[0].Delta.Content != "" {
			pieces++
			if first.IsZero() {
				first = time.Now()
			}
			last = time.Now()
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if pieces < 3 || last.Sub(first) < 100*time.Millisecond {
		t.Errorf("%d pieces within %v", pieces, last.Sub(first))
	}
}

func TestOpenAI_ChatLength(t *testing.T) {
	client := newOpenAI(serverURL)
	for name, set := range map[string]func(*openai.ChatCompletionNewParams){
		"max_completion_tokens": func(p *openai.ChatCompletionNewParams) { p.MaxCompletionTokens = openai.Int(3) },
		"max_tokens":            func(p *openai.ChatCompletionNewParams) { p.MaxTokens = openai.Int(3) },
	} {
		t.Run(name, func(t *testing.T) {
			params := chat("Hi")
			set(&params)
			params.StreamOptions.IncludeUsage = openai.Bool(true)
			acc, _ := accumulate(t, client, params)
			equal(t, "streamed content", acc.Choices[0].Message.Content, "us")
			equal(t, "streamed finish_reason", acc.Choices[0].FinishReason, "length")
			checkUsage(t, acc.Usage, chatPromptTokens, 3)
			params.StreamOptions = openai.ChatCompletionStreamOptionsParam{}
			got, err := client.Chat.Completions.New(testContext(t), params)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "content", got.Choices[0].Message.Content, "us")
			equal(t, "finish_reason", got.Choices[0].FinishReason, "length")
			checkUsage(t, got.Usage, chatPromptTokens, 3)
		})
	}
}

func TestOpenAI_ChatStop(t *testing.T) {
	client := newOpenAI(serverURL)
	for name, stop := range map[string]openai.ChatCompletionNewParamsStopUnion{
		"string": {OfString: openai.String("\n")},
		"list":   {OfStringArray: []string{"nowhere", "\nH"}},
	} {
		t.Run(name, func(t *testing.T) {
			params := chat("Hi")
			params.Stop = stop
			got, err := client.Chat.Completions.New(testContext(t), params)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "content", got.Choices[0].Message.Content, "user")
			equal(t, "finish_reason", got.Choices[0].FinishReason, "stop")
			acc, _ := accumulate(t, client, params)
			equal(t, "streamed content", acc.Choices[0].Message.Content, "user")
			equal(t, "streamed finish_reason", acc.Choices[0].FinishReason, "stop")
		})
	}
}

func TestOpenAI_ChatN(t *testing.T) {
	params := chat("Hi")
	params.N = openai.Int(2)
	got, err := newOpenAI(serverURL).Chat.Completions.New(testContext(t), params)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "choices", len(got.Choices), 2)
	for i, choice := range got.Choices {
		equal(t, "index", choice.Index, int64(i))
		equal(t, "content", choice.Message.Content, chatText)
		equal(t, "finish_reason", choice.FinishReason, "stop")
	}
	checkUsage(t, got.Usage, chatPromptTokens, 2*chatAnswerTokens)
}

func TestOpenAI_ChatNStreamed(t *testing.T) {
	params := chat("Hi")
	params.N = openai.Int(2)
	params.StreamOptions.IncludeUsage = openai.Bool(true)
	acc, _ := accumulate(t, newOpenAI(serverURL), params)
	equal(t, "choices", len(acc.Choices), 2)
	for i, choice := range acc.Choices {
		equal(t, "index", choice.Index, int64(i))
		equal(t, "content", choice.Message.Content, chatText)
		equal(t, "finish_reason", choice.FinishReason, "stop")
	}
	checkUsage(t, acc.Usage, chatPromptTokens, 2*chatAnswerTokens)
}

// The fake model swaps the case of letters when the seed is odd and the
// temperature above 0.
func TestOpenAI_Sampling(t *testing.T) {
	client := newOpenAI(serverURL)
	unset := openai.CompletionNewParams{}.Temperature
	for name, tc := range map[string]struct {
		temperature float64
		seed        int64
		want        string
	}{
		"odd seed":            {1, 1, "HELLO"},
		"even seed":           {1, 2, "hello"},
		"no temperature":      {0, 1, "hello"},
		"default temperature": {-1, 1, "HELLO"},
	} {
		t.Run(name, func(t *testing.T) {
			params := completion("hello")
			params.Seed = openai.Int(tc.seed)
			params.Temperature = openai.Float(tc.temperature)
			if tc.temperature < 0 {
				params.Temperature = unset
			}
			got, err := client.Completions.New(testContext(t), params)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "text", got.Choices[0].Text, tc.want)
		})
	}
}

func TestOpenAI_SamplingOptionsTaken(t *testing.T) {
	params := chat("Hi")
	params.TopP = openai.Float(0.9)
	params.FrequencyPenalty = openai.Float(0)
	params.PresencePenalty = openai.Float(0)
	params.User = openai.String("somebody")
	got, err := newOpenAI(serverURL).Chat.Completions.New(testContext(t), params,
		option.WithJSONSet("top_k", 40), option.WithJSONSet("min_p", 0.1))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "content", got.Choices[0].Message.Content, chatText)
}

func TestOpenAI_IgnoreEOS(t *testing.T) {
	params := completion("hello")
	params.MaxTokens = openai.Int(10)
	got, err := newOpenAI(serverURL).Completions.New(testContext(t), params, option.WithJSONSet("ignore_eos", true))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "finish_reason", string(got.Choices[0].FinishReason), "length")
	equal(t, "completion_tokens", got.Usage.CompletionTokens, 10)
}

func TestOpenAI_Completion(t *testing.T) {
	got, err := newOpenAI(serverURL).Completions.New(testContext(t), completion("hello"))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "choices", len(got.Choices), 1)
	equal(t, "text", got.Choices[0].Text, "hello")
	equal(t, "finish_reason", string(got.Choices[0].FinishReason), "stop")
	equal(t, "object", string(got.Object), "text_completion")
	equal(t, "model", got.Model, model)
	checkUsage(t, got.Usage, 6, 6)
	if !strings.HasPrefix(got.ID, "cmpl-") {
		t.Errorf("id %q", got.ID)
	}
}

func TestOpenAI_CompletionStreamed(t *testing.T) {
	client := newOpenAI(serverURL)
	params := completion("hello, héé 日本 🙂")
	params.MaxTokens = openai.Int(100) // it is 16 by default
	text, finish, usages := streamed(t, client, params)
	equal(t, "text", text, "hello, héé 日本 🙂")
	equal(t, "finish_reason", finish, "stop")
	equal(t, "usages", len(usages), 0)
	params = completion("hello")
	params.StreamOptions.IncludeUsage = openai.Bool(true)
	text, finish, usages = streamed(t, client, params)
	equal(t, "text", text, "hello")
	equal(t, "finish_reason", finish, "stop")
	equal(t, "usages", len(usages), 1)
	checkUsage(t, usages[0], 6, 6)
}

func TestOpenAI_CompletionLength(t *testing.T) {
	client := newOpenAI(serverURL)
	params := completion("hello")
	params.MaxTokens = openai.Int(2)
	got, err := client.Completions.New(testContext(t), params)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "text", got.Choices[0].Text, "he")
	equal(t, "finish_reason", string(got.Choices[0].FinishReason), "length")
	text, finish, _ := streamed(t, client, params)
	equal(t, "streamed text", text, "he")
	equal(t, "streamed finish_reason", finish, "length")
}

func TestOpenAI_CompletionDefaultLength(t *testing.T) {
	got, err := newOpenAI(serverURL).Completions.New(testContext(t), completion(strings.Repeat("x", 20)))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "text", got.Choices[0].Text, strings.Repeat("x", 16))
	equal(t, "finish_reason", string(got.Choices[0].FinishReason), "length")
}

func TestOpenAI_CompletionStop(t *testing.T) {
	client := newOpenAI(serverURL)
	for name, stop := range map[string]openai.CompletionNewParamsStopUnion{
		"string": {OfString: openai.String("ll")},
		"list":   {OfStringArray: []string{"nowhere", "llo"}},
	} {
		t.Run(name, func(t *testing.T) {
			params := completion("hello")
			params.Stop = stop
			got, err := client.Completions.New(testContext(t), params)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "text", got.Choices[0].Text, "he")
			equal(t, "finish_reason", string(got.Choices[0].FinishReason), "stop")
			text, finish, _ := streamed(t, client, params)
			equal(t, "streamed text", text, "he")
			equal(t, "streamed finish_reason", finish, "stop")
		})
	}
}

func TestOpenAI_CompletionPrompts(t *testing.T) {
	const bos, first = 2, 6 // the fake vocabulary: control tokens, then one for each byte
	client := newOpenAI(serverURL)
	for _, tc := range []struct {
		name   string
		prompt openai.CompletionNewParamsPromptUnion
		n      int64
		want   []string
	}{
		{"strings", openai.CompletionNewParamsPromptUnion{OfArrayOfStrings: []string{"one", "two", "three"}}, 1, []string{"one", "two", "three"}},
		{"strings and n", openai.CompletionNewParamsPromptUnion{OfArrayOfStrings: []string{"one", "two"}}, 2, []string{"one", "one", "two", "two"}},
		{"tokens", openai.CompletionNewParamsPromptUnion{OfArrayOfTokens: []int64{bos, first + 'h', first + 'i'}}, 1, []string{"hi"}},
		{"lists of tokens", openai.CompletionNewParamsPromptUnion{OfArrayOfTokenArrays: [][]int64{{bos, first + 'h'}, {bos, first + 'i'}}}, 1, []string{"h", "i"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			params := completion("")
			params.Prompt = tc.prompt
			params.N = openai.Int(tc.n)
			got, err := client.Completions.New(testContext(t), params)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "choices", len(got.Choices), len(tc.want))
			for i, choice := range got.Choices {
				equal(t, "index", choice.Index, int64(i))
				equal(t, "text", choice.Text, tc.want[i])
				equal(t, "finish_reason", string(choice.FinishReason), "stop")
			}
		})
	}
}

func TestOpenAI_CompletionEcho(t *testing.T) {
	params := completion("hello")
	params.Echo = openai.Bool(true)
	params.MaxTokens = openai.Int(2)
	got, err := newOpenAI(serverURL).Completions.New(testContext(t), params)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "text", got.Choices[0].Text, "hellohe")
}

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
		request := func(ctx context.Context) error {
			_, err := client.Chat.Completions.New(ctx, chat(long))
			return err
		}
		busy := background(t, request)
		waitLoad(t, 1, 0)
		waiting := background(t, request)
		waitLoad(t, 1, 1)
		if err := waiting(); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		waitLoad(t, 1, 0)
		busy()
	})
}

// fillSlow takes the slow server's only slot and the one place in its line.
func fillSlow(t *testing.T) (leave func()) {
	t.Helper()
	client := newOpenAI(slowURL)
	request := func(ctx context.Context) error {
		_, err := client.Chat.Completions.New(ctx, chat(long))
		return err
	}
	busy := background(t, request)
	waitLoad(t, 1, 0)
	waiting := background(t, request)
	waitLoad(t, 1, 1)
	return func() {
		waiting()
		busy()
	}
}

func TestOpenAI_Overloaded(t *testing.T) {
	needSlow(t)
	leave := fillSlow(t)
	defer leave()
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
	leave := fillSlow(t)
	var statuses []int
	client := newOpenAI(slowURL, option.WithMaxRetries(2),
		option.WithMiddleware(func(r *http.Request, next option.MiddlewareNext) (*http.Response, error) {
			resp, err := next(r)
			if err == nil {
				statuses = append(statuses, resp.StatusCode)
				if resp.StatusCode == 429 {
					leave()
				}
			}
			return resp, err
		}))
	got, err := client.Chat.Completions.New(testContext(t), chat("Hi"))
	if err != nil {
		t.Fatalf("after %v: %v", statuses, err)
	}
	equal(t, "content", got.Choices[0].Message.Content, chatText)
	if len(statuses) < 2 || statuses[0] != 429 || statuses[len(statuses)-1] != 200 {
		t.Errorf("answers %v", statuses)
	}
}
