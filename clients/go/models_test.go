package gemma

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"reflect"
	"slices"
	"testing"
	"time"
)

func TestModels(t *testing.T) {
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "GET" || r.URL.Path != "/models" {
			t.Errorf("got %s %s", r.Method, r.URL.Path)
		}
		io.WriteString(w, `{"memory": {"booked_bytes": 123, "limit_bytes": null}, "models": [
			{"name": "chat", "default": true, "pinned": true, "loads": "start", "waiting": 0,
			 "used_at": "2026-12-01T05:55:00.5Z", "expires_at": null, "versions": [
				{"version": 3, "state": "AVAILABLE", "stage": "ready", "progress": 1.0, "labels": ["stable"], "bytes": 123,
				 "requests": 2, "error": ""},
				{"version": 4, "state": "END", "stage": "weights", "progress": null, "labels": [], "bytes": 0,
				 "requests": 0, "error": "no such tensor"}]},
			{"name": "embed", "default": false, "pinned": false, "loads": "request", "waiting": 5,
			 "used_at": null, "expires_at": "2026-12-01T08:00:00+02:00", "versions": []}]}`)
	})
	got, err := client.Models(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	used := time.Date(2026, 12, 1, 5, 55, 0, 5e8, time.UTC)
	expires := got[1].ExpiresAt
	if want := time.Date(2026, 12, 1, 6, 0, 0, 0, time.UTC); expires == nil || !expires.Equal(want) {
		t.Errorf("expires at %v, want %v", expires, want)
	}
	want := []Model{
		{Name: "chat", Default: true, Pinned: true, Loads: LoadsAtStart, UsedAt: &used, Versions: []ModelVersion{
			{Version: 3, State: VersionAvailable, Stage: "ready", Progress: Ptr(1.0), Labels: []string{"stable"}, Bytes: 123, Requests: 2},
			{Version: 4, State: VersionEnd, Stage: "weights", Labels: []string{}, Error: "no such tensor"}}},
		{Name: "embed", Loads: LoadsOnRequest, Waiting: 5, ExpiresAt: expires, Versions: []ModelVersion{}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// A freed version has not failed, nor has one that is tried again.
func TestFailed(t *testing.T) {
	for v, want := range map[*ModelVersion]bool{
		{State: VersionEnd, Error: "no memory"}:     true,
		{State: VersionEnd}:                         false,
		{State: VersionLoading, Error: "no memory"}: false,
		{State: VersionAvailable}:                   false,
	} {
		if got := v.Failed(); got != want {
			t.Errorf("%+v: %t", v, got)
		}
	}
}

func TestNoModels(t *testing.T) {
	for body, empty := range map[string]bool{`{"models": []}`: true, `{"models": null}`: false, `{"models": {}}`: false} {
		client := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, body) })
		if got, err := client.Models(context.Background()); len(got) != 0 || (err == nil) != empty {
			t.Errorf("%s: %+v, %v", body, got, err)
		}
	}
}

func TestModelsOfSeveral(t *testing.T) {
	f := newFleet(t, 3)
	f.down[0].Store(true)
	f.down[2].Store(true)
	got, err := f.client.Models(context.Background())
	if err != nil || len(got) != 1 || got[0].Name != "m1" {
		t.Errorf("got %+v, %v", got, err)
	}

	f = newFleet(t, 3)
	for i := range f.down {
		f.down[i].Store(true)
	}
	if _, err := f.client.Models(context.Background()); !errors.Is(err, ErrLoading) {
		t.Errorf("error %v", err)
	}
	if got := f.counts(); !slices.Equal(got, []int{1, 1, 1}) {
		t.Errorf("requests %v, want one each", got)
	}
}

// The request's own model goes before the client's, and echoes have none.
func TestWithModel(t *testing.T) {
	var body []byte
	base := serve(t, func(w http.ResponseWriter, r *http.Request) { body, _ = io.ReadAll(r.Body) })
	url := base.pool.endpoints[0].base.String()
	for _, tc := range []struct {
		opts      []Option
		own, want string
	}{
		{nil, "", ""},
		{nil, "embed", "embed"},
		{[]Option{WithModel("chat:stable")}, "", "chat:stable"},
		{[]Option{WithModel("chat")}, "chat@2", "chat@2"},
		{[]Option{WithModel("chat"), WithModel("chat@2")}, "", "chat@2"},
	} {
		client := New(append(tc.opts, WithBaseURL(url))...)
		ctx, req := context.Background(), Request{Prompt: "x", Model: tc.own}
		for name, call := range map[string]func(){
			"Generate": func() { client.Generate(ctx, req) },
			"Stream": func() {
				for range client.Stream(ctx, req) {
				}
			},
			"Into": func() { Into[int](ctx, client, req) },
			"Echo": func() { client.EchoThrough(ctx, DepthQueue, "x") },
		} {
			call()
			var sent struct{ Model string }
			err := json.Unmarshal(body, &sent)
			if want := tc.want; err != nil || name != "Echo" && sent.Model != want || name == "Echo" && string(body) != `{"prompt":"x"}` {
				t.Errorf("%s, own %q: sent %s, want %q (%v)", name, tc.own, body, want, err)
			}
		}
	}
	if _, err := New(WithBaseURL(url), WithModel("\xff")).Generate(context.Background(), Request{Prompt: "x"}); err == nil {
		t.Error("a name that is no text was sent")
	}
}
