package gemma

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"
)

// Connections that nothing uses go, those to every server, and their goroutines.
func TestCloseIdleConnections(t *testing.T) {
	states := make(chan http.ConnState, 100)
	var urls []string
	for range 2 {
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, goodAnswer)
		}))
		srv.Config.ConnState = func(_ net.Conn, s http.ConnState) { states <- s }
		srv.Start()
		t.Cleanup(srv.Close)
		urls = append(urls, srv.URL)
	}
	before := runtime.NumGoroutine()
	client := New(WithEndpoints(urls...))
	for range 2 {
		for range urls {
			if _, err := client.Generate(context.Background(), Request{Prompt: "x"}); err != nil {
				t.Fatal(err)
			}
		}
		client.CloseIdleConnections()
		for closed := 0; closed < len(urls); {
			select {
			case state := <-states:
				if state == http.StateClosed {
					closed++
				}
			case <-time.After(10 * time.Second):
				t.Fatal("connections are left")
			}
		}
	}
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
	New(WithRetries(-1)).CloseIdleConnections()
}
