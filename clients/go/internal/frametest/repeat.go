package frametest

import (
	"encoding/json"
	"fmt"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/frames"
	"github.com/gemma-server/gemma-server/clients/go/gemmatest"
)

// Object is JSON.
type Object = map[string]any

// Request is the body of a request frame.
type Request struct {
	gemma.Request
	ID      uint64 `json:"id"`
	Op      string `json:"op"`
	Stream  bool   `json:"stream"`
	Timeout int64  `json:"timeout_ms"`
}

// Parse takes what the client sends, and nothing else.
func Parse(body []byte) Request {
	var req Request
	if err := json.Unmarshal(body, &req); err != nil || req.ID == 0 {
		panic(fmt.Sprintf("request %q: %v", body, err))
	}
	return req
}

// Repeat is an [Answer] with the prompt, as a server has it that was started
// with --fake: a byte a token.
func Repeat(p *Peer, t frames.Type, body []byte) {
	if t != frames.Request {
		p.Send(t, body)
		return
	}
	req := Parse(body)
	done := Object{"id": req.ID}
	switch req.Op {
	case "generate":
		if !generate(p, req, done) {
			return
		}
	case "tokenize":
		done["tokens"], done["count"], done["max_model_len"] = tokens(req.Prompt), 1+len(req.Prompt), 2048
	case "score":
		done["logprobs"] = logprobs(req)
		done["usage"] = gemma.Usage{PromptTokens: 1 + len(req.Prompt)}
	case "ready":
		done["status"], done["stage"], done["progress"], done["model"] = "ready", "ready", 1, "fake"
	default:
		return
	}
	p.Send(frames.Finished, done)
}

func generate(p *Peer, req Request, done Object) bool {
	if req.SamplingSteps < 0 {
		p.Send(frames.Failed, Failure(req.ID, 400, gemma.CodeInvalidValue, "sampling_steps"))
		return false
	}
	reply := gemmatest.Repeat(req.Request)
	text := ""
	for _, piece := range reply.Pieces {
		text += piece
		if req.Stream {
			p.Send(frames.Piece, Object{"id": req.ID, "response": piece})
			text = ""
		}
	}
	done["response"], done["finish_reason"], done["usage"] = text, reply.FinishReason, reply.Usage
	done["timings"] = gemma.Timings{QueueMS: 0.1}
	return true
}

func tokens(prompt string) []int {
	ids := []int{2}
	for i := range len(prompt) {
		ids = append(ids, 6+int(prompt[i]))
	}
	return ids
}

func logprobs(req Request) frames.Logprobs {
	half := -0.6931471805599453
	l := frames.Logprobs{Tokens: []string{"<bos>"}, Values: []*float64{nil}, Top: []map[string]float64{nil}, Offsets: []int{0}}
	for i, char := range req.Prompt {
		l.Tokens = append(l.Tokens, string(char))
		l.Values = append(l.Values, &half)
		l.Top = append(l.Top, map[string]float64{string(char): half})
		l.Offsets = append(l.Offsets, i)
	}
	return l
}

// Failure is the body of an error frame; an id of 0 is none.
func Failure(id uint64, status int, code, param string) Object {
	failure := Object{"status": status, "error": Object{
		"type": "invalid_request_error", "message": "no", "param": param, "code": code, "request_id": "r1"}}
	if id != 0 {
		failure["id"] = id
	}
	return failure
}
