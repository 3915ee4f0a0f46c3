package sidecar

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/gemmatest"
)

// beside is a sidecar whose server is the fake.
func beside(t *testing.T, srv *gemmatest.Server, cfg Config) *Sidecar {
	t.Helper()
	dir, err := os.MkdirTemp("", "gemma-") // t.TempDir() may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	s := &Sidecar{cfg: cfg, dir: dir}
	s.connect()
	t.Cleanup(s.remove)
	listener, err := net.Listen("unix", s.socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	target, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	go http.Serve(listener, httputil.NewSingleHostReverseProxy(target))
	return s
}

func chat(versions ...gemma.ModelVersion) []gemma.Model {
	return []gemma.Model{{Name: "chat", Versions: versions}}
}

// Each change of a state or an error is told once, and nothing else.
func TestModelsAreToldWhenTheyChange(t *testing.T) {
	srv := gemmatest.NewServer(t)
	told := 0
	var last []gemma.Model
	s := beside(t, srv, Config{OnModels: func(models []gemma.Model) { told++; last = models }})
	ready := gemma.ModelVersion{Version: 3}
	for _, tc := range []struct {
		name   string
		models []gemma.Model
		told   bool
	}{
		{"at first", chat(ready), true},
		{"again", chat(ready), false},
		{"requests, progress, labels", chat(gemma.ModelVersion{Version: 3, Stage: "x", Progress: gemma.Ptr(0.5), Requests: 2, Labels: []string{"stable"}}), false},
		{"one comes", chat(ready, gemma.ModelVersion{Version: 4, State: gemma.VersionLoading}), true},
		{"and fails", chat(ready, gemma.ModelVersion{Version: 4, State: gemma.VersionEnd, Error: "why"}), true},
		{"otherwise", chat(ready, gemma.ModelVersion{Version: 4, State: gemma.VersionEnd, Error: "what"}), true},
		{"otherwise, again", chat(ready, gemma.ModelVersion{Version: 4, State: gemma.VersionEnd, Error: "what"}), false},
		{"and is forgotten", chat(ready), true},
		{"of another model", []gemma.Model{{Name: "embed", Versions: []gemma.ModelVersion{ready}}}, true},
	} {
		srv.SetModels(tc.models...)
		told = 0
		s.lookAtModels(context.Background(), &process{})
		if (told == 1) != tc.told || told > 1 {
			t.Errorf("%s: told %d times", tc.name, told)
		}
		if tc.told && (len(last) != 1 || last[0].Name != tc.models[0].Name || len(last[0].Versions) != len(tc.models[0].Versions)) {
			t.Errorf("%s: told %+v", tc.name, last)
		}
	}
}

// Progress and models come in turn, and a start is over when both have been told.
func TestModelsFollowTheStatus(t *testing.T) {
	loading := gemma.ModelVersion{Version: 1, State: gemma.VersionLoading}
	srv := gemmatest.NewServer(t, gemmatest.WithStatus(gemma.Status{State: gemma.StateLoading}), gemmatest.WithModels(chat(loading)...))
	var told []string // the race detector reads along
	s := beside(t, srv, Config{
		OnProgress: func(status gemma.Status) { told = append(told, string(status.State)) },
		OnModels: func(models []gemma.Model) {
			told = append(told, string(models[0].Versions[0].State))
			srv.SetModels(chat(gemma.ModelVersion{Version: 1})...)
			srv.SetStatus(gemma.Status{State: gemma.StateReady})
		},
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := s.follow(ctx, &process{}, time.Millisecond, (*gemma.Status).Ready)
	if want := []string{"loading", "LOADING", "ready", "AVAILABLE"}; err != nil || !slices.Equal(told, want) {
		t.Errorf("told %q, want %q (%v)", told, want, err)
	}
}

func TestModelsBehindAKey(t *testing.T) {
	srv := gemmatest.NewServer(t, gemmatest.WithAPIKey("sesame"))
	for want, options := range [][]gemma.Option{nil, {gemma.WithAPIKey("sesame")}} {
		told := 0
		s := beside(t, srv, Config{ClientOptions: options, OnModels: func([]gemma.Model) { told++ }})
		s.lookAtModels(context.Background(), &process{})
		if told != want {
			t.Errorf("told %d times, want %d", told, want)
		}
	}
}

// A server that has no models to tell is asked once, one that has none yet again
// and again, and without a callback none is.
func TestWhoIsAskedForModels(t *testing.T) {
	for _, tc := range []struct {
		status   int
		callback func([]gemma.Model)
		asked    int // of three times
		warned   int
	}{
		{404, func([]gemma.Model) {}, 1, 1},
		{401, func([]gemma.Model) {}, 1, 1},
		{429, func([]gemma.Model) {}, 3, 0},
		{503, func([]gemma.Model) {}, 3, 0},
		{404, nil, 0, 0},
	} {
		asked := 0
		var log strings.Builder
		probe := gemma.New(gemma.WithHTTPClient(&http.Client{Transport: transportFunc(func(r *http.Request) (*http.Response, error) {
			asked++
			return &http.Response{StatusCode: tc.status, Body: http.NoBody, Request: r}, nil
		})}))
		s := &Sidecar{cfg: Config{OnModels: tc.callback, Logger: slog.New(slog.NewTextHandler(&log, nil))}, probe: probe}
		p := &process{}
		for range 3 {
			s.lookAtModels(context.Background(), p)
		}
		if asked != tc.asked || strings.Count(log.String(), "WARN") != tc.warned {
			t.Errorf("%d: asked %d times, log %s", tc.status, asked, log.String())
		}
		if s.lookAtModels(context.Background(), &process{}); tc.callback != nil && asked != tc.asked+1 {
			t.Errorf("%d: a new server was not asked", tc.status)
		}
	}
}

type transportFunc func(*http.Request) (*http.Response, error)

func (f transportFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestSourcesOfModels(t *testing.T) {
	for _, tc := range []struct {
		cfg  Config
		want string // of the error
	}{
		{Config{Model: "m", ModelConfig: "c"}, "Config.Model and Config.ModelConfig exclude"},
		{Config{Model: "m", ModelBasePath: "b"}, "Config.Model and Config.ModelBasePath exclude"},
		{Config{ModelBasePath: "b", ModelConfig: "c"}, "Config.ModelBasePath and Config.ModelConfig exclude"},
	} {
		tc.cfg.Python = "/no/such/python" // is not even looked for
		if _, err := Start(context.Background(), tc.cfg); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("got %v, want %s", err, tc.want)
		}
	}
	variables := []string{"MODEL_CHECKPOINT=", "GEMMA_MODEL_BASE_PATH=", "GEMMA_MODEL_CONFIG_FILE="}
	for flag, cfg := range map[string]Config{
		"--model-checkpoint":  {Model: "x"},
		"--model-base-path":   {ModelBasePath: "x"},
		"--model-config-file": {ModelConfig: "x"},
		"":                    {},
	} {
		args, env := cfg.serveArgs("s"), cfg.environ()
		if at := slices.Index(args, flag); (at >= 0) != (flag != "") || at >= 0 && args[at+1] != "x" || strings.Count(strings.Join(args, " "), "--model") != min(1, len(flag)) {
			t.Errorf("%q: %q", flag, args)
		}
		for _, unset := range variables {
			if slices.Contains(env, unset) != (flag != "") {
				t.Errorf("%q: %s in the environment: %t", flag, unset, flag == "")
			}
		}
	}
}
