package gemma

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestOptions(t *testing.T) {
	for name, opts := range map[string][]Option{
		"no scheme":    {WithBaseURL("127.0.0.1:20200")},
		"name only":    {WithBaseURL("localhost:20200")},
		"other scheme": {WithBaseURL("ftp://localhost")},
		"no host":      {WithBaseURL("http:///x")},
		"conflict":     {WithUnixSocket("s"), WithHTTPClient(&http.Client{})},
		"endpoints":    {WithEndpoints("http://a"), WithBaseURL("http://b")},
		"no address":   {WithEndpoints("http://a", "")},
		"no socket":    {WithEndpoints("http://a", "unix:")},
		"no own dial":  {WithEndpoints("unix:s"), WithHTTPClient(&http.Client{})},
		"retries":      {WithRetries(-1)},
		"key":          {WithAPIKey("secret\n")},
		"model":        {WithModel("")},
		"password 1":   {WithBaseURL("ftp://user:secret@localhost")},
		"password 2":   {WithBaseURL("user:secret@localhost:20200")},
		"password 3":   {WithEndpoints("http://a", "http://user:secret/secret@local host")},
		"password 4":   {WithBaseURL("http://user:secret@local host:1")},
		"password 5":   {WithBaseURL("http://user:secret%zz@localhost")},
	} {
		for call, err := range everyCall(New(opts...)) {
			if err == nil || !strings.HasPrefix(err.Error(), "gemma: ") || strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: %s: error %v", name, call, err)
			}
		}
	}
	if got := New(WithBaseURL(""), WithUnixSocket(""), WithEndpoints(), WithHTTPClient(nil), WithAPIKey(""), WithLogger(nil)); got.err != nil || got.pool.endpoints[0].base.String() != DefaultBaseURL || got.pool.endpoints[0].http == nil {
		t.Errorf("empty options: %+v", got)
	}
}

func TestBaseURLPath(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/gemma/prompt" {
			t.Errorf("path %s", r.URL.Path)
		}
		io.WriteString(w, goodAnswer)
	}))
	defer srv.Close()
	for _, suffix := range []string{"/gemma", "/gemma/"} {
		if _, err := New(WithBaseURL(srv.URL+suffix)).Generate(context.Background(), Request{}); err != nil {
			t.Error(err)
		}
	}
}

func TestDefaultTransport(t *testing.T) {
	tr := New().pool.endpoints[0].http.Transport.(*http.Transport)
	if tr == http.DefaultTransport || tr.Proxy != nil || tr.MaxIdleConnsPerHost < 64 || tr.IdleConnTimeout != 60*time.Second {
		t.Errorf("got %+v", tr)
	}
	if tr.DialContext == nil {
		t.Error("not a clone of the default transport")
	}

	std := http.DefaultTransport
	defer func() { http.DefaultTransport = std }()
	http.DefaultTransport = transportFunc(nil)
	if _, ok := New().pool.endpoints[0].http.Transport.(*http.Transport); !ok {
		t.Error("a replaced default transport was taken over")
	}
}
