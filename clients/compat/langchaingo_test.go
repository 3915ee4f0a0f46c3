package compat

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/tmc/langchaingo/llms"
	"github.com/tmc/langchaingo/llms/ollama"
	"github.com/tmc/langchaingo/llms/openai"
)

// The two ways that langchaingo has to the server. Its temperature is 0 where
// none is given.
func langChainOpenAI(t *testing.T, url string) llms.Model {
	t.Helper()
	llm, err := openai.New(openai.WithBaseURL(url+"/v1"), openai.WithToken("unused"), openai.WithModel(model))
	if err != nil {
		t.Fatal(err)
	}
	return llm
}

func langChainOllama(t *testing.T, url string) llms.Model {
	t.Helper()
	llm, err := ollama.New(ollama.WithServerURL(url), ollama.WithModel(model))
	if err != nil {
		t.Fatal(err)
	}
	return llm
}

func human(text string) []llms.MessageContent {
	return []llms.MessageContent{llms.TextParts(llms.ChatMessageTypeHuman, text)}
}

// content asks for one answer.
func content(t *testing.T, llm llms.Model, messages []llms.MessageContent, options ...llms.CallOption) *llms.ContentChoice {
	t.Helper()
	got, err := llm.GenerateContent(testContext(t), messages, options...)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "choices", len(got.Choices), 1)
	return got.Choices[0]
}

// both asks for an answer in one piece and for the same in pieces.
func both(t *testing.T, llm llms.Model, messages []llms.MessageContent, want, stop string, options ...llms.CallOption) (plain, streamed *llms.ContentChoice) {
	t.Helper()
	plain = content(t, llm, messages, options...)
	equal(t, "content", plain.Content, want)
	equal(t, "stop reason", plain.StopReason, stop)
	var pieces strings.Builder
	streamed = content(t, llm, messages, append(options, llms.WithStreamingFunc(func(_ context.Context, piece []byte) error {
		pieces.Write(piece)
		return nil
	}))...)
	equal(t, "pieces", pieces.String(), want)
	equal(t, "streamed content", streamed.Content, want)
	equal(t, "streamed stop reason", streamed.StopReason, stop)
	return plain, streamed
}

func checkInfo(t *testing.T, got *llms.ContentChoice) {
	t.Helper()
	equal(t, "PromptTokens", got.GenerationInfo["PromptTokens"], any(chatPromptTokens))
	equal(t, "CompletionTokens", got.GenerationInfo["CompletionTokens"], any(chatAnswerTokens))
	equal(t, "TotalTokens", got.GenerationInfo["TotalTokens"], any(chatPromptTokens+chatAnswerTokens))
}

func TestLangChainOpenAI_Chat(t *testing.T) {
	got := content(t, langChainOpenAI(t, serverURL), human("Hi"))
	equal(t, "content", got.Content, chatText)
	equal(t, "stop reason", got.StopReason, "stop")
	checkInfo(t, got)
}

func TestLangChainOpenAI_Streamed(t *testing.T) {
	_, streamed := both(t, langChainOpenAI(t, serverURL), human("Hi"), chatText, "stop")
	checkInfo(t, streamed)
}

func TestLangChainOpenAI_Call(t *testing.T) {
	got, err := llms.GenerateFromSinglePrompt(testContext(t), langChainOpenAI(t, serverURL), "Hi")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "text", got, chatText)
}

func TestLangChainOpenAI_Messages(t *testing.T) {
	messages := []llms.MessageContent{
		llms.TextParts(llms.ChatMessageTypeSystem, "Be brief."), llms.TextParts(llms.ChatMessageTypeHuman, "Hi"),
		llms.TextParts(llms.ChatMessageTypeAI, "Yo"), llms.TextParts(llms.ChatMessageTypeHuman, "a", "b"),
	}
	both(t, langChainOpenAI(t, serverURL), messages, "user\nBe brief.\n\nHi", "stop")
}

func TestLangChainOpenAI_Length(t *testing.T) {
	llm := langChainOpenAI(t, serverURL)
	both(t, llm, human("Hi"), "us", "length", llms.WithMaxTokens(3))
	both(t, llm, human("Hi"), "us", "length", llms.WithMaxTokens(3), openai.WithLegacyMaxTokensField())
}

func TestLangChainOpenAI_Stop(t *testing.T) {
	both(t, langChainOpenAI(t, serverURL), human("Hi"), "user", "stop", llms.WithStopWords([]string{"\n"}))
}

func TestLangChainOpenAI_N(t *testing.T) {
	got, err := langChainOpenAI(t, serverURL).GenerateContent(testContext(t), human("Hi"), llms.WithN(2))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "choices", len(got.Choices), 2)
	for _, choice := range got.Choices {
		equal(t, "content", choice.Content, chatText)
	}
}

func TestLangChainOpenAI_Sampling(t *testing.T) {
	llm := langChainOpenAI(t, serverURL)
	both(t, llm, human("Hi"), "USER\nhI", "stop", llms.WithTemperature(1), llms.WithSeed(1))
	both(t, llm, human("Hi"), chatText, "stop", llms.WithTemperature(1), llms.WithSeed(2))
}

// All it shows of an error is its text.
func TestLangChainOpenAI_Errors(t *testing.T) {
	llm := langChainOpenAI(t, serverURL)
	for name, tc := range map[string]struct {
		option llms.CallOption
		want   string
	}{
		"model":   {llms.WithModel("nobody"), "404"},
		"request": {llms.WithTemperature(-1), "400"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, options := range [][]llms.CallOption{
				{tc.option},
				{tc.option, llms.WithStreamingFunc(func(context.Context, []byte) error { return nil })},
			} {
				_, err := llm.GenerateContent(testContext(t), human("Hi"), options...)
				const text = "API returned unexpected status code: "
				if err == nil || !strings.HasPrefix(err.Error(), text+tc.want+": ") {
					t.Errorf("got %v, want %s%s and a reason", err, text, tc.want)
				}
			}
		})
	}
}

func TestLangChainOpenAI_CancelFreesSlot(t *testing.T) {
	needSlow(t)
	checkLangChainCancel(t, langChainOpenAI(t, slowURL))
}

func TestLangChainOpenAI_Deadline(t *testing.T) {
	needSlow(t)
	checkLangChainDeadline(t, langChainOpenAI(t, slowURL))
}

func TestLangChainOpenAI_Overloaded(t *testing.T) {
	needSlow(t)
	fillSlow(t)
	_, err := langChainOpenAI(t, slowURL).GenerateContent(testContext(t), human("Hi"))
	if err == nil || !strings.Contains(err.Error(), "429") {
		t.Errorf("got %v", err)
	}
}

func TestLangChainOllama_Chat(t *testing.T) {
	got := content(t, langChainOllama(t, serverURL), human("Hi"))
	equal(t, "content", got.Content, chatText)
	checkInfo(t, got)
}

func TestLangChainOllama_Streamed(t *testing.T) {
	_, streamed := both(t, langChainOllama(t, serverURL), human("Hi"), chatText, "")
	checkInfo(t, streamed)
}

func TestLangChainOllama_Call(t *testing.T) {
	got, err := llms.GenerateFromSinglePrompt(testContext(t), langChainOllama(t, serverURL), "Hi")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "text", got, chatText)
}

func TestLangChainOllama_Messages(t *testing.T) {
	messages := []llms.MessageContent{
		llms.TextParts(llms.ChatMessageTypeSystem, "Be brief."), llms.TextParts(llms.ChatMessageTypeHuman, "Hi"),
		llms.TextParts(llms.ChatMessageTypeAI, "Yo"), llms.TextParts(llms.ChatMessageTypeHuman, "Well?"),
	}
	both(t, langChainOllama(t, serverURL), messages, "user\nBe brief.\n\nHi", "")
}

func TestLangChainOllama_Length(t *testing.T) {
	_, streamed := both(t, langChainOllama(t, serverURL), human("Hi"), "us", "", llms.WithMaxTokens(3))
	equal(t, "CompletionTokens", streamed.GenerationInfo["CompletionTokens"], any(3))
}

func TestLangChainOllama_Stop(t *testing.T) {
	both(t, langChainOllama(t, serverURL), human("Hi"), "user", "", llms.WithStopWords([]string{"\n"}))
}

func TestLangChainOllama_Sampling(t *testing.T) {
	llm := langChainOllama(t, serverURL)
	both(t, llm, human("Hi"), "USER\nhI", "", llms.WithTemperature(1), llms.WithSeed(1))
	both(t, llm, human("Hi"), chatText, "", llms.WithTemperature(1), llms.WithSeed(2), llms.WithTopK(40), llms.WithTopP(0.9))
}

func TestLangChainOllama_ModelNotFound(t *testing.T) {
	_, err := langChainOllama(t, serverURL).GenerateContent(testContext(t), human("Hi"), llms.WithModel("x"))
	if err == nil || !strings.Contains(err.Error(), "model 'x' not found") {
		t.Errorf("got %v", err)
	}
}

func TestLangChainOllama_CancelFreesSlot(t *testing.T) {
	needSlow(t)
	checkLangChainCancel(t, langChainOllama(t, slowURL))
}

func TestLangChainOllama_Deadline(t *testing.T) {
	needSlow(t)
	checkLangChainDeadline(t, langChainOllama(t, slowURL))
}

func TestLangChainOllama_Overloaded(t *testing.T) {
	needSlow(t)
	fillSlow(t)
	if _, err := langChainOllama(t, slowURL).GenerateContent(testContext(t), human("Hi")); err == nil {
		t.Error("no error")
	}
}

// checkCut is for a request that was ended early. langchaingo's Ollama client
// streams whether or not it is asked to, and takes a stream that was cut off
// for a whole one, so that there may be no error.
func checkCut(t *testing.T, got *llms.ContentResponse, err error) {
	t.Helper()
	if err == nil && len(got.Choices[0].Content) >= len(long) {
		t.Error("the whole answer came")
	}
}

// checkLangChainCancel leaves in every way there is.
func checkLangChainCancel(t *testing.T, llm llms.Model) {
	t.Helper()
	t.Run("plain", func(t *testing.T) {
		stop := background(t, func(ctx context.Context) error {
			got, err := llm.GenerateContent(ctx, human(long))
			checkCut(t, got, err)
			return err
		})
		waitLoad(t, 1, 0)
		stop()
		waitLoad(t, 0, 0)
	})
	t.Run("streamed", func(t *testing.T) {
		begun := make(chan struct{}, 1000)
		stop := background(t, func(ctx context.Context) error {
			_, err := llm.GenerateContent(ctx, human(long), llms.WithStreamingFunc(func(context.Context, []byte) error {
				begun <- struct{}{}
				return nil
			}))
			return err
		})
		select {
		case <-begun:
		case <-testContext(t).Done():
			t.Fatal("no piece")
		}
		waitLoad(t, 1, 0)
		stop()
		waitLoad(t, 0, 0)
	})
	t.Run("left", func(t *testing.T) {
		enough := errors.New("enough")
		_, err := llm.GenerateContent(testContext(t), human(long), llms.WithStreamingFunc(func(context.Context, []byte) error { return enough }))
		if !errors.Is(err, enough) {
			t.Errorf("got %v", err)
		}
		waitLoad(t, 0, 0)
	})
}

func checkLangChainDeadline(t *testing.T, llm llms.Model) {
	t.Helper()
	ctx, cancel := context.WithTimeout(testContext(t), 300*time.Millisecond)
	defer cancel()
	got, err := llm.GenerateContent(ctx, human(long))
	checkCut(t, got, err)
	waitLoad(t, 0, 0)
}
