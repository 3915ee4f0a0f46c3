package gemma

import (
	"context"
	"errors"
	"net/http"
	"time"
)

const modelsPath = "/models"

// Loads says when a model is loaded.
type Loads string

// The values of [Loads].
const (
	LoadsAtStart   Loads = "start"   // and as its versions come
	LoadsOnRequest Loads = "request" // when somebody asks for it
)

// Model is one of the server's models and all versions of it that the server
// knows.
type Model struct {
	Name    string `json:"name"`
	Default bool   `json:"default"` // it answers requests that name no model
	Pinned  bool   `json:"pinned"`  // it stays loaded, whether it is asked or not
	Loads   Loads  `json:"loads"`
	// Waiting counts the requests that wait for it to be loaded.
	Waiting int `json:"waiting"`
	// UsedAt is when a request for it last came or ended; nil if it is not in
	// memory.
	UsedAt *time.Time `json:"used_at"`
	// ExpiresAt is when it is unloaded unless it is asked before; nil if that
	// is at no certain time.
	ExpiresAt *time.Time     `json:"expires_at"`
	Versions  []ModelVersion `json:"versions"`
}

// VersionState is the phase of a version's life.
type VersionState string

// The values of [VersionState].
const (
	VersionStart     VersionState = "START" // wanted
	VersionLoading   VersionState = "LOADING"
	VersionAvailable VersionState = "AVAILABLE" // it takes requests
	VersionUnloading VersionState = "UNLOADING" // its last requests come to their ends
	VersionEnd       VersionState = "END"       // freed, or failed
)

// ModelVersion is a version of a model.
type ModelVersion struct {
	Version int          `json:"version"`
	State   VersionState `json:"state"`
	Stage   string       `json:"stage"` // what it is doing within the state
	// Progress goes from 0 to 1; nil where the server cannot tell.
	Progress *float64 `json:"progress"`
	// Labels name this version at the moment, as "stable" does in
	// "chat:stable".
	Labels   []string `json:"labels"`
	Bytes    int64    `json:"bytes"`    // of memory, booked for it
	Requests int      `json:"requests"` // that it answers at the moment
	Error    string   `json:"error"`    // why it failed; empty if it did not
}

// Failed reports whether the version has ended with an error. The server may try
// it again.
func (v *ModelVersion) Failed() bool { return v.State == VersionEnd && v.Error != "" }

// Models returns the server's models and how each version of them fares. As
// with [Client.Ready] this is also there while models load, and it is never
// tried again.
//
// Of several servers all are asked at once. The first answer is taken; without
// one it is the error of the first in the order of [WithEndpoints]. Which server
// answered is not said: where they may differ, use a client for each.
func (c *Client) Models(ctx context.Context) ([]Model, error) {
	models, err := askEach(ctx, c, modelsPath, (*answer).models, func(*[]Model) bool { return true })
	if err != nil {
		return nil, err
	}
	return *models, nil
}

func (a *answer) models() (*[]Model, error) {
	if a.status != http.StatusOK {
		return nil, a.apiError()
	}
	var told struct {
		Models *[]Model `json:"models"`
	}
	if err := a.decode(&told); err != nil {
		return nil, err
	}
	if told.Models == nil {
		return nil, a.unexpected(errors.New("no models"))
	}
	return told.Models, nil
}
