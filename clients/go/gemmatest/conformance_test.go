package gemmatest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/internal/answers"
)

// onEachServer runs a test against the fake, and against gemma-server where
// GEMMA_TEST_URL has the address of one that was started with --fake: the fake
// is worth something only while it says what the server says.
func onEachServer(t *testing.T, test func(t *testing.T, url string)) {
	t.Run("gemmatest", func(t *testing.T) { test(t, NewServer(t).URL) })
	t.Run("gemma-server", func(t *testing.T) {
		url := os.Getenv("GEMMA_TEST_URL")
		if url == "" {
			t.Skip("GEMMA_TEST_URL is not set")
		}
		test(t, url)
	})
}

func TestClientSeesTheSame(t *testing.T) {
	onEachServer(t, func(t *testing.T, url string) {
		ctx := context.Background()
		client := gemma.New(gemma.WithBaseURL(url), gemma.WithRetries(0))
		if st, err := client.Ready(ctx); err != nil || !st.Ready() || st.Stage != "ready" || *st.Progress != 1 || st.Model != "fake" {
			t.Errorf("Ready: %+v, %v", st, err)
		}
		models, err := client.Models(ctx)
		if err != nil || len(models) != 1 || models[0].Name != "fake" || !models[0].Default || models[0].Loads != gemma.LoadsAtStart || len(models[0].Versions) != 1 {
			t.Fatalf("Models: %+v, %v", models, err)
		}
		if v := models[0].Versions[0]; v.Version != 1 || v.State != gemma.VersionAvailable || v.Stage != "ready" || *v.Progress != 1 || v.Labels == nil || v.Error != "" {
			t.Errorf("Models: version %+v", v)
		}
		if got, err := client.Echo(ctx, []any{1, "two", nil}); err != nil || strings.ReplaceAll(string(got), " ", "") != `[1,"two",null]` {
			t.Errorf("Echo: %s, %v", got, err)
		}
		for _, depth := range []gemma.Depth{gemma.DepthQueue, gemma.DepthDevice} {
			if got, err := client.EchoThrough(ctx, depth, 1); err != nil || string(got) != "1" {
				t.Errorf("EchoThrough %q: %s, %v", depth, got, err)
			}
		}
		_, err = client.EchoThrough(ctx, "nowhere", 1)
		var api *gemma.APIError
		if !errors.As(err, &api) || api.Code != gemma.CodeInvalidValue || api.Param != "through" || !strings.Contains(api.Message, "'nowhere' is not queue or device") {
			t.Errorf("EchoThrough nowhere: %v", err)
		}
		answers.Check(ctx, t, withRequestID{client, t})
		for code, req := range map[string]gemma.Request{
			"prompt":         {},
			"sampling_steps": {Prompt: "x", SamplingSteps: -1},
			"temperature":    {Prompt: "x", Temperature: -1},
			"top_p":          {Prompt: "x", TopP: 2},
		} {
			_, err := client.Generate(ctx, req)
			var api *gemma.APIError
			if !errors.As(err, &api) || api.Status != 400 || api.Code != gemma.CodeInvalidValue || api.Param != code || api.Type != "invalid_request_error" {
				t.Errorf("%+v: %v", req, err)
			}
		}
	})
}

// withRequestID has an id on every whole answer.
type withRequestID struct {
	*gemma.Client
	t *testing.T
}

func (c withRequestID) Generate(ctx context.Context, req gemma.Request) (*gemma.Response, error) {
	resp, err := c.Client.Generate(ctx, req)
	if err == nil && resp.RequestID == "" {
		c.t.Errorf("Generate of %+v: no request id", req)
	}
	return resp, err
}

// The shape of an answer is its status, the kind of its body and the names and
// types of all fields in it, as docs/api.md has them.
func TestAnswersHaveTheSameShape(t *testing.T) {
	const (
		usage   = " usage.cached_tokens:number usage.completion_tokens:number usage.prompt_tokens:number"
		timings = " timings.accepted_tokens:number timings.compile_ms:number timings.decode_ms:number timings.draft_tokens:number timings.parse_ms:number timings.prefill_ms:number timings.queue_ms:number timings.tokenize_ms:number"
		whole   = "finish_reason:string model_version:string response:string" + timings + usage
		problem = "error.code:string error.message:string error.param:%s error.request_id:string error.type:string"
	)
	onField := fmt.Sprintf(problem, "string")
	onAll := fmt.Sprintf(problem, "null")
	onEachServer(t, func(t *testing.T, url string) {
		for _, tc := range []struct {
			method, path, body string
			want               []string // the status and kind, then the shape of the body, or of each event
		}{
			{"POST", "/prompt", `{"prompt": "ab"}`, []string{"200 application/json", whole}},
			{"POST", "/prompt", `{"prompt": "ab", "stop": "b", "seed": 1, "model": "fake"}`, []string{"200 application/json", whole}},
			{"POST", "/prompt", `{"prompt": "ab", "stream": true}`, []string{"200 text/event-stream; charset=utf-8", "response:string", "response:string", whole, "[DONE]"}},
			{"POST", "/echo", `{"prompt": {"a": 1}}`, []string{"200 application/json", "echo_prompt.a:number"}},
			{"POST", "/echo?through=queue", `{"prompt": 1}`, []string{"200 application/json", "echo_prompt:number"}},
			{"POST", "/echo?through=device", `{"prompt": 1}`, []string{"200 application/json", "echo_prompt:number"}},
			{"POST", "/echo?through=http", `{"prompt": 1}`, []string{"400 application/json invalid_value", onField}},
			{"POST", "/echo?through=", `{"prompt": 1}`, []string{"400 application/json invalid_value", onField}},
			{"POST", "/echo?through=http", `{"a": 1}`, []string{"400 application/json invalid_value", onField}},
			{"POST", "/echo?other=1", `{"prompt": 1}`, []string{"200 application/json", "echo_prompt:number"}},
			{"GET", "/readyz", "", []string{"200 application/json", "model:string progress:number stage:string status:string"}},
			{"GET", "/healthz", "", []string{"200 application/json", "status:string"}},
			{"POST", "/prompt", `{"prompt": "ab"`, []string{"400 application/json invalid_json", onAll}},
			{"POST", "/prompt", `null`, []string{"400 application/json invalid_json", onAll}},
			{"POST", "/prompt", `{}`, []string{"400 application/json invalid_value", onField}},
			{"POST", "/prompt", `{"prompt": 1}`, []string{"400 application/json invalid_value", onField}},
			{"POST", "/prompt", `{"prompt": "a", "nope": 1}`, []string{"400 application/json unknown_field", onField}},
			{"POST", "/prompt", `{"prompt": "a", "model": "b"}`, []string{"404 application/json model_not_found", onField}},
			{"POST", "/prompt", `{"prompt": "` + strings.Repeat("a", 1<<20) + `"}`, []string{"413 application/json request_entity_too_large", onAll}},
			{"POST", "/echo", `{"a": 1}`, []string{"400 application/json invalid_value", onField}},
			{"POST", "/echo", `{"prompt": 1, "a": 1}`, []string{"400 application/json unknown_field", onField}},
			{"GET", "/prompt", "", []string{"405 application/json method_not_allowed", onAll}},
			{"GET", "/nope", "", []string{"404 application/json not_found", onAll}},
		} {
			got := shapeOf(t, tc.method, url+tc.path, tc.body)
			if !slices.Equal(got, tc.want) {
				t.Errorf("%s %s %.60s:\ngot  %q\nwant %q", tc.method, tc.path, tc.body, got, tc.want)
			}
		}
	})
}

func shapeOf(t *testing.T, method, url, body string) []string {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Request-Id", "mine-1")
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.Header.Get("X-Request-Id") != "mine-1" || !strings.HasPrefix(resp.Header.Get("Server-Timing"), "parse;dur=") {
		t.Errorf("%s %s: headers %v", method, url, resp.Header)
	}
	shape := []string{fmt.Sprintf("%d %s", resp.StatusCode, resp.Header.Get("Content-Type"))}
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		var failed struct{ Error struct{ Code string } }
		json.Unmarshal(text, &failed)
		shape[0] = strings.TrimSpace(shape[0] + " " + failed.Error.Code)
		return append(shape, fieldsOf(t, text))
	}
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		data, isData := strings.CutPrefix(lines.Text(), "data: ")
		switch {
		case data == "[DONE]":
			shape = append(shape, data)
		case isData:
			shape = append(shape, fieldsOf(t, []byte(data)))
		}
	}
	return shape
}

// fieldsOf is the names and types of all fields, sorted.
func fieldsOf(t *testing.T, text []byte) string {
	t.Helper()
	var body any
	if err := json.Unmarshal(text, &body); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	var fields []string
	var walk func(name string, value any)
	walk = func(name string, value any) {
		if object, ok := value.(map[string]any); ok {
			for key, value := range object {
				walk(strings.TrimPrefix(name+"."+key, "."), value)
			}
			return
		}
		kind := map[string]string{"<nil>": "null", "float64": "number"}[fmt.Sprintf("%T", value)]
		if kind == "" {
			kind = fmt.Sprintf("%T", value)
		}
		fields = append(fields, name+":"+kind)
	}
	walk("", body)
	slices.Sort(fields)
	return strings.Join(fields, " ")
}
