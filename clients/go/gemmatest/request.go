package gemmatest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

const (
	defaultSteps = 128
	bodyMax      = 1 << 20
)

// Request is a request that came to a [Server].
type Request struct {
	Method string
	Path   string
	Query  url.Values
	Header http.Header
	Body   []byte
	// Prompt is what the body asks for, and Stream whether it is to come as a
	// stream; both only of a request to /prompt that is in order.
	Prompt gemma.Request
	Stream bool

	model *string // that it is for, if it says so
}

// readRequest reads the body; problem is what is wrong with it.
func readRequest(r *http.Request) (req Request, problem *gemma.APIError) {
	body, err := io.ReadAll(io.LimitReader(r.Body, bodyMax+1))
	req = Request{Method: r.Method, Path: r.URL.Path, Query: r.URL.Query(), Header: r.Header.Clone(), Body: body}
	switch {
	case r.Method != http.MethodPost:
		return req, nil
	case err != nil:
		return req, &gemma.APIError{Status: 400, Code: "bad_request", Message: err.Error()}
	case len(body) > bodyMax:
		return req, &gemma.APIError{Status: 413, Code: gemma.CodeTooLarge, Message: fmt.Sprintf("the body has more than %d bytes", bodyMax)}
	case r.Header.Get("Content-Type") != "application/json":
		return req, &gemma.APIError{Status: 415, Code: "unsupported_media_type", Message: "send the body as Content-Type: application/json"}
	}
	if req.Path == "/prompt" {
		problem = req.readPrompt()
	}
	return req, problem
}

func (r *Request) readPrompt() *gemma.APIError {
	var got gemma.Request
	var stream bool
	var prompt string
	var stop stops
	problem := readFields(r.Body, map[string]any{
		"prompt":          &prompt,
		"model":           &r.model,
		"sampling_steps":  &got.SamplingSteps,
		"temperature":     &got.Temperature,
		"top_k":           &got.TopK,
		"top_p":           &got.TopP,
		"min_p":           &got.MinP,
		"seed":            &got.Seed,
		"stop":            &stop,
		"ignore_eos":      &got.IgnoreEOS,
		"cache_prompt":    &got.CachePrompt,
		"cache_salt":      &got.CacheSalt,
		"response_schema": &got.Schema,
		"regex":           &got.Regex,
		"choice":          &got.Choice,
		"grammar":         &got.Grammar,
		"stream":          &stream,
	})
	if problem != nil {
		return problem
	}
	got.Prompt, got.Stop = prompt, stop
	if r.model != nil {
		got.Model = *r.model
	}
	if problem := checkRanges(r.Body, got); problem != nil {
		return problem
	}
	r.Prompt, r.Stream = got, stream
	return nil
}

// checkRanges refuses what is beyond the limits of docs/api.md.
func checkRanges(body []byte, req gemma.Request) *gemma.APIError {
	var given map[string]json.RawMessage
	json.Unmarshal(body, &given)
	for _, field := range []struct {
		name  string
		valid bool
		limit string
	}{
		{"prompt", req.Prompt != "", "should have at least 1 character"},
		{"sampling_steps", req.SamplingSteps >= 1, "should be greater than or equal to 1"},
		{"temperature", req.Temperature >= 0 && req.Temperature <= 100, "should be from 0 to 100"},
		{"top_k", req.TopK >= 0, "should be greater than or equal to 0"},
		{"top_p", req.TopP > 0 && req.TopP <= 1, "should be greater than 0 and at most 1"},
		{"min_p", req.MinP >= 0 && req.MinP <= 1, "should be from 0 to 1"},
		{"stop", !slices.Contains(req.Stop, ""), "should have at least 1 character each"},
	} {
		if _, ok := given[field.name]; ok && !field.valid {
			return invalid(field.name, field.name+": Input "+field.limit)
		}
	}
	return nil
}

// readFields puts the fields of a JSON object where they belong. It takes no
// others, and wants the prompt.
func readFields(body []byte, into map[string]any) *gemma.APIError {
	var fields map[string]json.RawMessage
	err := json.Unmarshal(body, &fields)
	if err == nil && fields == nil {
		err = fmt.Errorf("it must be an object")
	}
	if err != nil {
		return &gemma.APIError{Status: 400, Code: gemma.CodeInvalidJSON, Message: "the body is not valid JSON: " + err.Error()}
	}
	if _, given := fields["prompt"]; !given {
		return invalid("prompt", "the field prompt is missing")
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		target, known := into[name]
		if !known {
			return &gemma.APIError{Status: 400, Code: gemma.CodeUnknownField, Param: name, Message: "unknown field " + name}
		}
		if err := json.Unmarshal(fields[name], target); err != nil {
			return invalid(name, fmt.Sprintf("%s: %v", name, err))
		}
	}
	return nil
}

func invalid(param, message string) *gemma.APIError {
	return &gemma.APIError{Status: 400, Code: gemma.CodeInvalidValue, Param: param, Message: message}
}

// stops is one text or several.
type stops []string

func (s *stops) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(data, []byte(`"`)) {
		*s = make(stops, 1)
		return json.Unmarshal(data, &(*s)[0])
	}
	return json.Unmarshal(data, (*[]string)(s))
}
