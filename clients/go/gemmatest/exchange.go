package gemmatest

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"regexp"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

var requestID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// exchange is a request and its answer.
type exchange struct {
	server  *Server
	w       http.ResponseWriter
	ctx     context.Context // ends with the client's time limit too
	request Request
	problem *gemma.APIError // with the body
	id      string
	began   time.Time
	version int // that answers
	// streaming is whether the first event is out.
	streaming bool
}

func (s *Server) handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := &exchange{server: s, w: w, ctx: r.Context(), id: r.Header.Get("X-Request-Id"), began: time.Now()}
		if !requestID.MatchString(x.id) {
			x.id = fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64())
		}
		w.Header().Set("X-Request-Id", x.id)
		w.Header().Set("Server-Timing", "parse;dur=0.0")
		x.request, x.problem = readRequest(r)
		s.note(x.request)
		x.route()
	})
}

func (x *exchange) route() {
	path := x.request.Path
	open := path == "/healthz" || path == "/readyz"
	if key := x.server.apiKey; key != "" && !open && x.request.Header.Get("Authorization") != "Bearer "+key {
		x.fail(&gemma.APIError{Status: 401, Code: gemma.CodeUnauthorized, Message: "an API key is needed: Authorization: Bearer KEY"})
		return
	}
	routes := map[string]struct {
		method string
		answer func()
	}{
		"/prompt":  {http.MethodPost, x.prompt},
		"/echo":    {http.MethodPost, x.echo},
		"/models":  {http.MethodGet, x.models},
		"/healthz": {http.MethodGet, func() { x.write(200, map[string]string{"status": "ok"}) }},
		"/readyz":  {http.MethodGet, x.readyz},
	}
	switch route, known := routes[path]; {
	case !known:
		x.fail(&gemma.APIError{Status: 404, Code: "not_found", Message: "there is no such route"})
	case route.method != x.request.Method:
		x.w.Header().Set("Allow", route.method)
		x.fail(&gemma.APIError{Status: 405, Code: "method_not_allowed", Message: "The method is not allowed for the requested URL."})
	default:
		route.answer()
	}
}

func (x *exchange) echo() {
	var prompt json.RawMessage
	problem := x.problem
	if problem == nil {
		problem = readFields(x.request.Body, map[string]any{"prompt": &prompt})
	}
	if problem == nil {
		problem = x.reach()
	}
	if problem != nil {
		x.fail(problem)
		return
	}
	x.write(200, map[string]json.RawMessage{"echo_prompt": prompt})
}

// reach is what keeps an echo from going as far as it should.
func (x *exchange) reach() *gemma.APIError {
	const name = "through"
	if !x.request.Query.Has(name) {
		return nil
	}
	switch through := x.request.Query.Get(name); gemma.Depth(through) {
	case gemma.DepthQueue, gemma.DepthDevice:
		return x.notReady()
	default:
		return invalid(name, fmt.Sprintf("%s: '%.40s' is not %s or %s", name, through, gemma.DepthQueue, gemma.DepthDevice))
	}
}

func (x *exchange) readyz() {
	st := x.server.currentStatus()
	status := http.StatusOK
	if !st.Ready() {
		status = http.StatusServiceUnavailable
		x.retryAfter(2 * time.Second)
	}
	x.write(status, st)
}
