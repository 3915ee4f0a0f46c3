package gemma

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"time"
)

// nobody is an address where nothing listens.
func nobody(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return "http://" + l.Addr().String()
}

// passing has the client's waits take no time, though its clock goes on by
// them, and notes them in whole seconds.
func passing(c *Client) *[]int {
	now := time.Now()
	c.pool.now = func() time.Time { return now }
	seconds := new([]int)
	c.sleep = func(ctx context.Context, d time.Duration) error {
		now = now.Add(d)
		*seconds = append(*seconds, int(d/time.Second))
		return ctx.Err()
	}
	return seconds
}

// A retry that waits goes where the wait was asked for, and a server that could
// not be reached does not cost a second try.
func TestWhoIsTriedAgain(t *testing.T) {
	busy := func(seconds string) []string { return []string{"429", "Retry-After: " + seconds} }
	good := []string{"200"}
	for _, tc := range []struct {
		name     string
		servers  [][][]string // what each answers; none for one that is not there
		waits    []int        // in seconds
		requests []int
		status   int // of the error, 0 for none
		again    time.Duration
	}{
		{"the first is dead", [][][]string{nil, {busy("1"), good}}, []int{0, 1}, []int{0, 2}, 0, 0},
		{"the second is dead", [][][]string{{busy("1"), good}, nil}, []int{0, 1}, []int{2, 0}, 0, 0},
		{"the second is free before", [][][]string{{busy("10"), good}, {busy("1"), good}}, []int{0, 1}, []int{1, 2}, 0, 0},
		{"the first is free before", [][][]string{{busy("1"), good}, {busy("40"), good}}, []int{0, 1}, []int{2, 1}, 0, 0},
		{"both are busy for too long", [][][]string{{busy("31"), good}, {busy("40"), good}}, []int{0}, []int{1, 1}, 429, 31 * time.Second},
		{"dead, and busy for too long", [][][]string{{busy("40"), good}, nil}, []int{0}, []int{1, 0}, 429, 40 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			urls, counts := make([]string, 2), make([]func() int, 2)
			for i, list := range tc.servers {
				if list == nil {
					urls[i], counts[i] = nobody(t), func() int { return 0 }
					continue
				}
				urls[i], counts[i] = answers(t, list...)
			}
			client := New(WithEndpoints(urls...))
			waited := passing(client)
			_, err := client.Generate(context.Background(), Request{Prompt: "x"})
			var api *APIError
			if errors.As(err, &api) != (tc.status != 0) || api == nil && err != nil ||
				api != nil && (api.Status != tc.status || api.RetryAfter != tc.again) {
				t.Errorf("error %v", err)
			}
			if !slices.Equal(*waited, tc.waits) || counts[0]() != tc.requests[0] || counts[1]() != tc.requests[1] {
				t.Errorf("waited %v, requests %d and %d", *waited, counts[0](), counts[1]())
			}
		})
	}
}

// The time that a server asked for goes by while others are waited for.
func TestWaitsRunSideBySide(t *testing.T) {
	one, _ := answers(t, []string{"503", "Retry-After: 3"}, []string{"200"})
	two, _ := answers(t, []string{"503", "Retry-After: 2"}, []string{"503", "Retry-After: 20"})
	client := New(WithEndpoints(one, two), WithRetries(3))
	waited := passing(client)
	if _, err := client.Generate(context.Background(), Request{Prompt: "x"}); err != nil {
		t.Error(err)
	}
	if len(*waited) != 3 || (*waited)[1] != 2 || (*waited)[2] > 1 {
		t.Errorf("waited %v", *waited)
	}
}

// When nobody is there, each is tried in turn, with waits in between.
func TestNobodyIsThere(t *testing.T) {
	client := New(WithEndpoints(nobody(t), nobody(t)), WithRetries(3))
	waited := waits(client)
	if _, err := client.Generate(context.Background(), Request{Prompt: "x"}); err == nil {
		t.Error("an answer")
	}
	if len(*waited) != 3 || (*waited)[0] != 0 || (*waited)[1] == 0 || (*waited)[2] == 0 {
		t.Errorf("waited %v", *waited)
	}
	if a, b := client.pool.endpoints[0].breaker.failures, client.pool.endpoints[1].breaker.failures; a != 2 || b != 2 {
		t.Errorf("failures %d and %d", a, b)
	}
}
