package compat

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	model = "fake"

	// What the fake model answers to a chat of "Hi" alone: it repeats the
	// rendered prompt up to the end of the turn, whose markers have no text.
	chatText = "user\nHi"
	// <bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n
	chatPromptTokens = 1 + 1 + len("user\nHi") + 1 + len("\n") + 1 + len("model\n")
	// <start_of_turn>user\nHi<end_of_turn>
	chatAnswerTokens = 1 + len(chatText) + 1
)

var serverURL, slowURL string

func TestMain(m *testing.M) {
	serverURL = strings.TrimRight(os.Getenv("GEMMA_COMPAT_URL"), "/")
	slowURL = strings.TrimRight(os.Getenv("GEMMA_COMPAT_SLOW_URL"), "/")
	if serverURL == "" {
		fmt.Fprintln(os.Stderr, "GEMMA_COMPAT_URL is not set: these tests need a running server with the fake model, like http://127.0.0.1:20200")
		os.Exit(2)
	}
	os.Exit(m.Run())
}

// testContext ends a test that hangs.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// needSlow skips a test of load, which cannot be made on a fast server, and
// waits until the slow one has nothing left to do from the test before.
func needSlow(t *testing.T) {
	t.Helper()
	if slowURL == "" {
		t.Skip("GEMMA_COMPAT_SLOW_URL is not set")
	}
	waitLoad(t, 0, 0)
	t.Cleanup(func() { waitLoad(t, 0, 0) })
}

// load is how many slots of the slow server are busy, and how many requests wait.
func load(t *testing.T) (busy, waiting float64) {
	t.Helper()
	resp, err := http.Get(slowURL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	busy, waiting = -1, -1
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		name, _, _ = strings.Cut(name, "{") // its labels
		switch name {
		case "gemma_slots_busy":
			busy, err = strconv.ParseFloat(value, 64)
		case "gemma_queue_requests":
			waiting, err = strconv.ParseFloat(value, 64)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return busy, waiting
}

// waitLoad waits until the slow server is as busy as this.
func waitLoad(t *testing.T, busy, waiting float64) {
	t.Helper()
	const limit = 10 * time.Second
	start := time.Now()
	for {
		b, w := load(t)
		if b == busy && w == waiting {
			return
		}
		if time.Since(start) > limit {
			t.Fatalf("after %v: %v slots busy and %v requests waiting, want %v and %v", limit, b, w, busy, waiting)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// long is a text that the slow server repeats for longer than any test lasts.
var long = strings.Repeat("x", 1000)

// background runs a request until the test ends or stop is called, which
// returns the request's error.
func background(t *testing.T, request func(context.Context) error) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- request(ctx) }()
	stopped := false
	stop = func() error {
		cancel()
		if stopped {
			return nil
		}
		stopped = true
		return <-done
	}
	t.Cleanup(func() { stop() })
	return stop
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %#v, want %#v", what, got, want)
	}
}
