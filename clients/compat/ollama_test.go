package compat

import (
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ollama/ollama/api"
	ollamamodel "github.com/ollama/ollama/types/model"
)

func newOllama(t *testing.T, server string) *api.Client {
	t.Helper()
	base, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	return api.NewClient(base, http.DefaultClient)
}

// likeliest are options for the model's likeliest answer.
func likeliest(more ...any) map[string]any {
	options := map[string]any{"temperature": 0}
	for i := 0; i < len(more); i += 2 {
		options[more[i].(string)] = more[i+1]
	}
	return options
}

// generate returns all answers, and their text together.
func generate(t *testing.T, client *api.Client, req *api.GenerateRequest) (answers []api.GenerateResponse, text string) {
	t.Helper()
	req.Model = model
	err := client.Generate(testContext(t), req, func(r api.GenerateResponse) error {
		answers = append(answers, r)
		text += r.Response
		return nil
	})
	if err != nil || len(answers) == 0 {
		t.Fatalf("%d answers, %v", len(answers), err)
	}
	for i, r := range answers {
		checkHead(t, r.Model, r.CreatedAt)
		equal(t, "done", r.Done, i == len(answers)-1)
	}
	return answers, text
}

// converse does the same for a chat.
func converse(t *testing.T, client *api.Client, req *api.ChatRequest) (answers []api.ChatResponse, text string) {
	t.Helper()
	req.Model = model
	err := client.Chat(testContext(t), req, func(r api.ChatResponse) error {
		answers = append(answers, r)
		text += r.Message.Content
		return nil
	})
	if err != nil || len(answers) == 0 {
		t.Fatalf("%d answers, %v", len(answers), err)
	}
	for i, r := range answers {
		checkHead(t, r.Model, r.CreatedAt)
		equal(t, "role", r.Message.Role, "assistant")
		equal(t, "done", r.Done, i == len(answers)-1)
	}
	return answers, text
}

func checkHead(t *testing.T, name string, created time.Time) {
	t.Helper()
	equal(t, "model", name, model)
	if age := time.Since(created); age < -time.Minute || age > time.Minute {
		t.Errorf("created_at %v", created)
	}
}

func checkMetrics(t *testing.T, got api.Metrics, prompt, answer int) {
	t.Helper()
	equal(t, "prompt_eval_count", got.PromptEvalCount, prompt)
	equal(t, "eval_count", got.EvalCount, answer)
	if got.TotalDuration <= 0 || got.TotalDuration > time.Minute {
		t.Errorf("total_duration %v", got.TotalDuration)
	}
	if got.PromptEvalDuration < 0 || got.EvalDuration < 0 || got.PromptEvalDuration+got.EvalDuration > got.TotalDuration {
		t.Errorf("prompt_eval_duration %v and eval_duration %v of %v", got.PromptEvalDuration, got.EvalDuration, got.TotalDuration)
	}
}

// checkOllamaError takes an error of the API apart.
func checkOllamaError(t *testing.T, err error, status int, message string) {
	t.Helper()
	var api api.StatusError
	if !errors.As(err, &api) {
		t.Fatalf("got %T %v, want an api.StatusError with status %d", err, err, status)
	}
	equal(t, "status", api.StatusCode, status)
	if message != "" {
		equal(t, "message", api.ErrorMessage, message)
	}
	if api.ErrorMessage == "" || strings.Contains(api.ErrorMessage, "{") {
		t.Errorf("message %q", api.ErrorMessage)
	}
}

func say(text string) []api.Message { return []api.Message{{Role: "user", Content: text}} }

var whole = new(bool) // of a request that is not streamed

func TestOllama_Chat(t *testing.T) {
	answers, text := converse(t, newOllama(t, serverURL), &api.ChatRequest{Messages: say("Hi"), Stream: whole, Options: likeliest()})
	equal(t, "answers", len(answers), 1)
	equal(t, "text", text, chatText)
	equal(t, "done_reason", answers[0].DoneReason, "stop")
	checkMetrics(t, answers[0].Metrics, chatPromptTokens, chatAnswerTokens)
}

func TestOllama_ChatStreamed(t *testing.T) {
	answers, text := converse(t, newOllama(t, serverURL), &api.ChatRequest{Messages: say("Hi"), Options: likeliest()})
	if len(answers) < 2 {
		t.Errorf("%d answers, want several", len(answers))
	}
	equal(t, "text", text, chatText)
	last := answers[len(answers)-1]
	equal(t, "done_reason", last.DoneReason, "stop")
	equal(t, "last piece", last.Message.Content, "")
	checkMetrics(t, last.Metrics, chatPromptTokens, chatAnswerTokens)
}

func TestOllama_ChatStreamedPieceByPiece(t *testing.T) {
	needSlow(t)
	var pieces int
	var first, last time.Time
	req := &api.ChatRequest{Model: model, Messages: say(strings.Repeat("ab", 10)), Options: likeliest()}
	err := newOllama(t, slowURL).Chat(testContext(t), req, func(r api.ChatResponse) error {
		if r.Message.Content != "" {
			pieces++
			if first.IsZero() {
				first = time.Now()
			}
			last = time.Now()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if pieces < 3 || last.Sub(first) < 100*time.Millisecond {
		t.Errorf("%d pieces within %v", pieces, last.Sub(first))
	}
}

func TestOllama_ChatMessages(t *testing.T) {
	for _, tc := range []struct {
		name     string
		messages []api.Message
		want     string
	}{
		{"system", []api.Message{{Role: "system", Content: "Be brief."}, {Role: "user", Content: "Hi"}}, "user\nBe brief.\n\nHi"},
		{"turns", []api.Message{{Role: "user", Content: "Hi"}, {Role: "assistant", Content: "Yo"}, {Role: "user", Content: "Well?"}}, "user\nHi"},
		{"other scripts", say("héé 日本 🙂"), "user\nhéé 日本 🙂"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, text := converse(t, newOllama(t, serverURL), &api.ChatRequest{Messages: tc.messages, Options: likeliest()})
			equal(t, "text", text, tc.want)
		})
	}
}

func TestOllama_ChatOptions(t *testing.T) {
	for _, tc := range []struct {
		name       string
		options    map[string]any
		text, done string
	}{
		{"num_predict", likeliest("num_predict", 3), "us", "length"},
		{"stop", likeliest("stop", []string{"nowhere", "\nH"}), "user", "stop"},
		{"odd seed", map[string]any{"seed": 1}, "USER\nhI", "stop"}, // at the default temperature
		{"even seed", map[string]any{"seed": 2}, chatText, "stop"},
		{"others", likeliest("top_k", 40, "top_p", 0.9, "min_p", 0.1, "repeat_penalty", 1.0), chatText, "stop"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			client := newOllama(t, serverURL)
			answers, text := converse(t, client, &api.ChatRequest{Messages: say("Hi"), Stream: whole, Options: tc.options})
			equal(t, "text", text, tc.text)
			equal(t, "done_reason", answers[len(answers)-1].DoneReason, tc.done)
			answers, text = converse(t, client, &api.ChatRequest{Messages: say("Hi"), Options: tc.options})
			equal(t, "streamed text", text, tc.text)
			equal(t, "streamed done_reason", answers[len(answers)-1].DoneReason, tc.done)
		})
	}
}

func TestOllama_Generate(t *testing.T) {
	answers, text := generate(t, newOllama(t, serverURL), &api.GenerateRequest{Prompt: "Hi", Stream: whole, Options: likeliest()})
	equal(t, "answers", len(answers), 1)
	equal(t, "text", text, chatText)
	equal(t, "done_reason", answers[0].DoneReason, "stop")
	checkMetrics(t, answers[0].Metrics, chatPromptTokens, chatAnswerTokens)
}

func TestOllama_GenerateSystem(t *testing.T) {
	_, text := generate(t, newOllama(t, serverURL), &api.GenerateRequest{Prompt: "Hi", System: "Be brief.", Options: likeliest()})
	equal(t, "text", text, "user\nBe brief.\n\nHi")
}

func TestOllama_GenerateRaw(t *testing.T) {
	answers, text := generate(t, newOllama(t, serverURL), &api.GenerateRequest{Prompt: "hello", Raw: true, Stream: whole, Options: likeliest()})
	equal(t, "answers", len(answers), 1)
	equal(t, "text", text, "hello")
	equal(t, "done_reason", answers[0].DoneReason, "stop")
	checkMetrics(t, answers[0].Metrics, 6, 6)
}

func TestOllama_GenerateStreamed(t *testing.T) {
	client := newOllama(t, serverURL)
	for _, raw := range []bool{false, true} {
		want := map[bool]string{false: chatText, true: "Hi"}[raw]
		answers, text := generate(t, client, &api.GenerateRequest{Prompt: "Hi", Raw: raw, Options: likeliest()})
		if len(answers) < 2 {
			t.Errorf("raw %v: %d answers, want several", raw, len(answers))
		}
		equal(t, "text", text, want)
		last := answers[len(answers)-1]
		equal(t, "done_reason", last.DoneReason, "stop")
		equal(t, "last piece", last.Response, "")
	}
}

func TestOllama_GenerateLength(t *testing.T) {
	client := newOllama(t, serverURL)
	for _, stream := range []*bool{whole, nil} {
		answers, text := generate(t, client, &api.GenerateRequest{Prompt: "hello", Raw: true, Stream: stream, Options: likeliest("num_predict", 2)})
		equal(t, "text", text, "he")
		equal(t, "done_reason", answers[len(answers)-1].DoneReason, "length")
	}
}

func TestOllama_GenerateStop(t *testing.T) {
	client := newOllama(t, serverURL)
	for _, stream := range []*bool{whole, nil} {
		answers, text := generate(t, client, &api.GenerateRequest{Prompt: "hello", Raw: true, Stream: stream, Options: likeliest("stop", []string{"ll"})})
		equal(t, "text", text, "he")
		equal(t, "done_reason", answers[len(answers)-1].DoneReason, "stop")
	}
}

// An empty prompt asks only whether the model is there.
func TestOllama_GenerateLoad(t *testing.T) {
	answers, text := generate(t, newOllama(t, serverURL), &api.GenerateRequest{})
	equal(t, "answers", len(answers), 1)
	equal(t, "text", text, "")
	equal(t, "done_reason", answers[0].DoneReason, "load")
}

func TestOllama_KeepAliveTaken(t *testing.T) {
	for _, keep := range []time.Duration{5 * time.Minute, -1} {
		_, text := generate(t, newOllama(t, serverURL), &api.GenerateRequest{Prompt: "Hi", KeepAlive: &api.Duration{Duration: keep}, Options: likeliest()})
		equal(t, "text", text, chatText)
	}
}

// isModel takes the name with the tag that Ollama's own server would add, too.
func isModel(name string) bool { return strings.TrimSuffix(name, ":latest") == model }

func TestOllama_List(t *testing.T) {
	got, err := newOllama(t, serverURL).List(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Models) != 1 {
		t.Fatalf("got %+v, want one model", got.Models)
	}
	m := got.Models[0]
	if !isModel(m.Name) || m.Model != m.Name || m.ModifiedAt.IsZero() {
		t.Errorf("got %+v", m)
	}
}

func TestOllama_ListRunning(t *testing.T) {
	got, err := newOllama(t, serverURL).ListRunning(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Models) != 1 {
		t.Fatalf("got %+v, want one model", got.Models)
	}
	m := got.Models[0]
	if !isModel(m.Name) || m.Model != m.Name || !m.ExpiresAt.After(time.Now()) || m.ContextLength <= 0 {
		t.Errorf("got %+v", m)
	}
}

func TestOllama_Show(t *testing.T) {
	client := newOllama(t, serverURL)
	got, err := client.Show(testContext(t), &api.ShowRequest{Model: model})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(got.Capabilities, ollamamodel.CapabilityCompletion) {
		t.Errorf("capabilities %v", got.Capabilities)
	}
	if got.Details.Family == "" || len(got.ModelInfo) == 0 {
		t.Errorf("details %+v, model_info %v", got.Details, got.ModelInfo)
	}
	_, err = client.Show(testContext(t), &api.ShowRequest{Model: "x"})
	checkOllamaError(t, err, 404, "model 'x' not found")
}

func TestOllama_Version(t *testing.T) {
	got, err := newOllama(t, serverURL).Version(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^\d+\.\d+`).MatchString(got) {
		t.Errorf("version %q", got)
	}
}

func TestOllama_Heartbeat(t *testing.T) {
	if err := newOllama(t, serverURL).Heartbeat(testContext(t)); err != nil {
		t.Error(err)
	}
}
