package sidecar

import (
	"testing"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

func TestBackoff(t *testing.T) {
	cfg := Config{BackoffMin: time.Second, BackoffMax: 5 * time.Second}
	for i, want := range []time.Duration{1, 2, 4, 5, 5} {
		if got := cfg.backoff(i + 1); got != want*time.Second {
			t.Errorf("after %d crashes: %s", i+1, got)
		}
	}
	if got := (Config{BackoffMin: time.Second, BackoffMax: time.Hour}).backoff(1000); got != time.Hour {
		t.Errorf("after many crashes: %s", got)
	}
}

// Crashes that are far apart are no crash loop.
func TestCrashesOutsideTheWindowDoNotCount(t *testing.T) {
	var c crashes
	began := time.Now()
	for i, want := range []int{1, 2, 2, 2} {
		if got := c.add(began.Add(time.Duration(i)*time.Minute), 90*time.Second); got != want {
			t.Errorf("crash %d: %d count", i, got)
		}
	}
}

// A worker that is replaced behind our back shows in what its server says.
func TestStagesOfANewWorker(t *testing.T) {
	loading := func(stage string) gemma.Status { return gemma.Status{State: gemma.StateLoading, Stage: stage} }
	ready := gemma.Status{State: gemma.StateReady, Stage: "ready"}
	var seen stages
	for i, tc := range []struct {
		status gemma.Status
		want   bool
	}{
		{loading("a"), false}, {loading("a"), false}, {loading("b"), false},
		{loading("a"), true}, {loading("b"), false}, {ready, false}, {ready, false},
		{loading("c"), true}, {ready, false}, {gemma.Status{State: gemma.StateDraining, Stage: "draining"}, false},
	} {
		if got := seen.wentBack(tc.status); got != tc.want {
			t.Errorf("status %d: %t", i, got)
		}
	}
}
