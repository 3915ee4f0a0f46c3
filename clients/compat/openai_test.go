package compat

import (
	"errors"
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
	checkTwoAnswers(t, *got)
}

func checkTwoAnswers(t *testing.T, got openai.ChatCompletion) {
	t.Helper()
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
	checkTwoAnswers(t, acc.ChatCompletion)
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
