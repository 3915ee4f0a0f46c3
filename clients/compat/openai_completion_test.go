package compat

import (
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
)

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
