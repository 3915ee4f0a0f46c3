package frames_test

import (
	"context"
	"strings"
	"testing"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/frames"
	"github.com/gemma-server/gemma-server/clients/go/internal/frametest"
)

// The request's own model goes before the connection's.
func TestWithModel(t *testing.T) {
	came := make(chan frametest.Request, 1)
	path := frametest.Start(t, func(p *frametest.Peer, typ frames.Type, body []byte) {
		came <- frametest.Parse(body)
		frametest.Repeat(p, typ, body)
	}).Path
	for _, tc := range []struct {
		opts      []frames.Option
		own, want string
	}{
		{nil, "", ""},
		{nil, "embed", "embed"},
		{[]frames.Option{frames.WithModel("chat:stable")}, "", "chat:stable"},
		{[]frames.Option{frames.WithModel("chat")}, "chat@2", "chat@2"},
	} {
		conn, err := frames.Dial(ctx, path, tc.opts...)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		req := gemma.Request{Prompt: "x", Model: tc.own}
		calls := map[string]func(){
			"Generate": func() { conn.Generate(ctx, req) },
			"Stream": func() {
				for range conn.Stream(ctx, req) {
				}
			},
		}
		if tc.own == "" {
			calls["Score"] = func() { conn.Score(ctx, "x", 0) }
			calls["Tokenize"] = func() { conn.Tokenize(ctx, "x") }
		}
		for name, call := range calls {
			call()
			if got := <-came; got.Model != tc.want {
				t.Errorf("%s, own %q: %q came, want %q", name, tc.own, got.Model, tc.want)
			}
		}
		conn.Ready(ctx)
		if got := <-came; got.Model != "" {
			t.Errorf("Ready named %q", got.Model)
		}
	}
}

func TestModelThatIsNoName(t *testing.T) {
	for _, name := range []string{"", "\xff"} {
		_, err := frames.Dial(context.Background(), "/nowhere", frames.WithModel(name))
		if err == nil || !strings.Contains(err.Error(), "WithModel") {
			t.Errorf("%q: %v", name, err)
		}
	}
}
