package compat

import (
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/ollama/ollama/api"
	"github.com/openai/openai-go/v3"
)

// The fake model draws a token with probability 1/2, and holds the next ones
// for 1/4, 1/8 and so on.
func checkLogprob(t *testing.T, what string, got float64, rank int) {
	t.Helper()
	if want := -float64(rank) * math.Ln2; math.Abs(got-want) > 1e-4 {
		t.Errorf("%s: logprob %v, want %v", what, got, want)
	}
}

// isMarker is whether this is a control token, which has no text in an answer
// whether or not it has one here.
func isMarker(token string) bool {
	return token == "" || strings.HasPrefix(token, "<") && strings.HasSuffix(token, ">") && len(token) > 2
}

// scored is a token with its logprob, as either library has it.
type scored struct {
	token   string
	logprob float64
}

// checkToken is for a drawn token, which the fake model always finds the
// likeliest, and the likeliest in its place.
func checkToken(t *testing.T, drawn scored, top []scored, wantTop int) {
	t.Helper()
	checkLogprob(t, drawn.token, drawn.logprob, 1)
	equal(t, drawn.token+": top_logprobs", len(top), wantTop)
	for i, other := range top {
		checkLogprob(t, drawn.token+": "+other.token, other.logprob, i+1)
		if i == 0 {
			equal(t, "first of top_logprobs", other.token, drawn.token)
		}
	}
}

func checkChatLogprobs(t *testing.T, got []openai.ChatCompletionTokenLogprob, text string, top int) {
	t.Helper()
	var joined strings.Builder
	for _, token := range got {
		var others []scored
		for _, other := range token.TopLogprobs {
			others = append(others, scored{other.Token, other.Logprob})
		}
		checkToken(t, scored{token.Token, token.Logprob}, others, top)
		if isMarker(token.Token) {
			continue
		}
		joined.WriteString(token.Token)
		bytes := make([]byte, len(token.Bytes))
		for i, b := range token.Bytes {
			bytes[i] = byte(b)
		}
		equal(t, "bytes", string(bytes), token.Token)
	}
	equal(t, "tokens", joined.String(), text)
}

func TestOpenAI_ChatLogprobs(t *testing.T) {
	client := newOpenAI(serverURL)
	for _, top := range []int{0, 1, 5} {
		params := chat("Hi")
		params.Logprobs = openai.Bool(true)
		if top > 0 {
			params.TopLogprobs = openai.Int(int64(top))
		}
		got, err := client.Chat.Completions.New(testContext(t), params)
		if err != nil {
			t.Fatal(err)
		}
		plain := got.Choices[0].Logprobs.Content
		checkChatLogprobs(t, plain, chatText, top)
		acc, _ := accumulate(t, client, params)
		streamed := acc.Choices[0].Logprobs.Content
		checkChatLogprobs(t, streamed, chatText, top)
		equal(t, "content", acc.Choices[0].Message.Content, chatText)
		equal(t, "streamed tokens", len(streamed), len(plain))
	}
}

func TestOpenAI_ChatWithoutLogprobs(t *testing.T) {
	got, err := newOpenAI(serverURL).Chat.Completions.New(testContext(t), chat("Hi"))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "logprobs", len(got.Choices[0].Logprobs.Content), 0)
}

func TestOpenAI_ChatLogprobsRefused(t *testing.T) {
	client := newOpenAI(serverURL)
	params := chat("Hi")
	params.Logprobs = openai.Bool(true)
	params.TopLogprobs = openai.Int(21)
	_, err := client.Chat.Completions.New(testContext(t), params)
	checkOpenAIError(t, err, 400, "invalid_value", "top_logprobs")
}

func checkCompletionLogprobs(t *testing.T, got openai.CompletionChoiceLogprobs, text string, offset int) {
	t.Helper()
	n := len(got.Tokens)
	if len(got.TokenLogprobs) != n || len(got.TopLogprobs) != n || len(got.TextOffset) != n {
		t.Fatalf("lists of different lengths: %s", got.RawJSON())
	}
	var joined strings.Builder
	for i, token := range got.Tokens {
		checkLogprob(t, token, got.TokenLogprobs[i], 1)
		top, ok := got.TopLogprobs[i][token]
		if !ok {
			t.Errorf("%q is not in %v", token, got.TopLogprobs[i])
		}
		checkLogprob(t, token+" in top_logprobs", top, 1)
		if isMarker(token) {
			continue
		}
		equal(t, "text_offset of "+token, got.TextOffset[i], int64(offset+joined.Len()))
		joined.WriteString(token)
	}
	equal(t, "tokens", joined.String(), text)
}

func TestOpenAI_CompletionLogprobs(t *testing.T) {
	params := completion("hello")
	params.Logprobs = openai.Int(3)
	got, err := newOpenAI(serverURL).Completions.New(testContext(t), params)
	if err != nil {
		t.Fatal(err)
	}
	checkCompletionLogprobs(t, got.Choices[0].Logprobs, "hello", 0)
}

func TestOpenAI_CompletionLogprobsStreamed(t *testing.T) {
	params := completion("hello")
	params.Logprobs = openai.Int(3)
	stream := newOpenAI(serverURL).Completions.NewStreaming(testContext(t), params)
	defer stream.Close()
	var text, tokens string
	for stream.Next() {
		for _, choice := range stream.Current().Choices {
			var piece string
			for _, token := range choice.Logprobs.Tokens {
				if !isMarker(token) {
					piece += token
				}
			}
			if piece != "" {
				checkCompletionLogprobs(t, choice.Logprobs, piece, len(tokens))
			}
			text += choice.Text
			tokens += piece
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	equal(t, "text", text, "hello")
	equal(t, "tokens", tokens, "hello")
}

func checkOllamaLogprobs(t *testing.T, got []api.Logprob, top int) (text string) {
	t.Helper()
	for _, token := range got {
		var others []scored
		for _, other := range token.TopLogprobs {
			others = append(others, scored{other.Token, other.Logprob})
		}
		checkToken(t, scored{token.Token, token.Logprob}, others, top)
		if !isMarker(token.Token) {
			text += token.Token
		}
	}
	return text
}

func TestOllama_ChatLogprobs(t *testing.T) {
	client := newOllama(t, serverURL)
	for _, stream := range []*bool{whole, nil} {
		answers, text := converse(t, client, &api.ChatRequest{Messages: say("Hi"), Stream: stream, Logprobs: true, TopLogprobs: 2, Options: likeliest()})
		var tokens string
		for _, answer := range answers {
			tokens += checkOllamaLogprobs(t, answer.Logprobs, 2)
		}
		equal(t, "text", text, chatText)
		equal(t, "tokens", tokens, chatText)
	}
}

func TestOllama_GenerateLogprobs(t *testing.T) {
	client := newOllama(t, serverURL)
	var all [][]api.Logprob
	for _, stream := range []*bool{whole, nil} {
		answers, text := generate(t, client, &api.GenerateRequest{Prompt: "hello", Raw: true, Stream: stream, Logprobs: true, Options: likeliest()})
		var tokens string
		var one []api.Logprob
		for _, answer := range answers {
			tokens += checkOllamaLogprobs(t, answer.Logprobs, 0)
			one = append(one, answer.Logprobs...)
		}
		equal(t, "text", text, "hello")
		equal(t, "tokens", tokens, "hello")
		all = append(all, one)
	}
	if !reflect.DeepEqual(all[0], all[1]) {
		t.Errorf("plain %+v, streamed %+v", all[0], all[1])
	}
}
