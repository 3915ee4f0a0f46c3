package compat

import (
	"os"
	"strings"
	"testing"

	"github.com/ollama/ollama/api"
	"github.com/tmc/langchaingo/llms"
)

// TestLoading asks a server whose model is there once there is a file.
func TestLoading(t *testing.T) {
	url, gate := os.Getenv("GEMMA_COMPAT_LOADING_URL"), os.Getenv("GEMMA_COMPAT_LOADING_GATE")
	if url == "" {
		t.Skip("GEMMA_COMPAT_LOADING_URL is not set")
	}
	t.Run("OpenAI", func(t *testing.T) {
		_, err := newOpenAI(url).Chat.Completions.New(testContext(t), chat("Hi"))
		checkOpenAIError(t, err, 503, "loading", "")
	})
	t.Run("Ollama", func(t *testing.T) {
		req := &api.ChatRequest{Model: model, Messages: say("Hi")}
		err := newOllama(t, url).Chat(testContext(t), req, func(api.ChatResponse) error { return nil })
		checkOllamaError(t, err, 503, "")
	})
	for name, llm := range map[string]llms.Model{"langchaingo openai": langChainOpenAI(t, url), "langchaingo ollama": langChainOllama(t, url)} {
		t.Run(name, func(t *testing.T) {
			_, err := llm.GenerateContent(testContext(t), human("Hi"))
			if err == nil || !strings.Contains(err.Error(), "loading") && !strings.Contains(err.Error(), "503") {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("OpenAI retried", func(t *testing.T) {
		checkRetried(t, url, 503, func() {
			if err := os.WriteFile(gate, nil, 0o600); err != nil {
				t.Error(err)
			}
		})
	})
}
