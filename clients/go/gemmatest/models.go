package gemmatest

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

// WithModels is what /models tells; see [Server.SetModels].
func WithModels(models ...gemma.Model) Option {
	return func(s *Server) { s.models = complete(models) }
}

// SetModels changes what /models tells, and which names /prompt takes: those of
// the models, of their versions ("chat@2") and labels ("chat:stable"). The
// highest version of [gemma.VersionAvailable] answers, of the Default model
// where a request names none.
//
// What is not set is what most models have: they load at the start, the first is
// the default, and versions are available. Nothing is loaded on request. Without
// models there is one, version 1 of what the status names.
func (s *Server) SetModels(models ...gemma.Model) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.models = complete(models)
}

// complete is a copy with what is not set.
func complete(models []gemma.Model) []gemma.Model {
	models = slices.Clone(models)
	if !slices.ContainsFunc(models, isDefault) && len(models) > 0 {
		models[0].Default = true
	}
	for i := range models {
		m := &models[i]
		m.Loads = cmp.Or(m.Loads, gemma.LoadsAtStart)
		m.Versions = append([]gemma.ModelVersion{}, m.Versions...)
		for j := range m.Versions {
			v := &m.Versions[j]
			v.State = cmp.Or(v.State, gemma.VersionAvailable)
			v.Labels = append([]string{}, v.Labels...)
		}
	}
	return models
}

func isDefault(m gemma.Model) bool { return m.Default }

func (s *Server) currentModels() []gemma.Model {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.models) > 0 {
		return s.models
	}
	only := gemma.ModelVersion{Version: 1, Stage: s.status.Stage, Progress: s.status.Progress}
	if s.status.State == gemma.StateLoading {
		only.State = gemma.VersionLoading
	}
	return complete([]gemma.Model{{Name: s.status.Model, Versions: []gemma.ModelVersion{only}}})
}

// models is an answer of /models.
type models struct {
	Memory memory        `json:"memory"`
	Models []gemma.Model `json:"models"`
}

type memory struct {
	Booked int64  `json:"booked_bytes"`
	Limit  *int64 `json:"limit_bytes"`
}

func (x *exchange) models() {
	told := models{Models: x.server.currentModels()}
	for _, m := range told.Models {
		for _, v := range m.Versions {
			told.Memory.Booked += v.Bytes
		}
	}
	x.write(200, told)
}

// choose finds the version that a request is for.
func (x *exchange) choose() *gemma.APIError {
	models := x.server.currentModels()
	model, number := &models[slices.IndexFunc(models, isDefault)], 0
	if asked := x.request.model; asked != nil {
		if model, number = meant(models, *asked); model == nil {
			return notFound(*asked)
		}
	}
	for _, v := range model.Versions {
		wanted := number == v.Version || number == 0
		if wanted && v.State == gemma.VersionAvailable && v.Version > x.version {
			x.version = v.Version
		}
	}
	if x.version == 0 {
		return noneOf(model, number)
	}
	return nil
}

// meant is the model that a name says, and the number of its version; 0 for
// whichever answers.
func meant(models []gemma.Model, asked string) (*gemma.Model, int) {
	for i := range models {
		m := &models[i]
		which, named := strings.CutPrefix(asked, m.Name)
		if named && (which == "" || which == ":latest") {
			return m, 0
		}
		for _, v := range m.Versions {
			is := func(label string) bool { return which == ":"+label }
			if named && (which == "@"+strconv.Itoa(v.Version) || slices.ContainsFunc(v.Labels, is)) {
				return m, v.Version
			}
		}
	}
	return nil, 0
}

// noneOf says why no version of the model, or not this one, answers.
func noneOf(model *gemma.Model, number int) *gemma.APIError {
	newest := gemma.ModelVersion{State: gemma.VersionStart}
	for _, v := range model.Versions {
		if (number == v.Version || number == 0) && v.Version > newest.Version {
			newest = v
		}
	}
	switch newest.State {
	case gemma.VersionUnloading, gemma.VersionEnd:
		message := fmt.Sprintf("%s version %d has ended: %s", model.Name, newest.Version, newest.Error)
		return &gemma.APIError{Code: gemma.CodeUnavailable, Message: strings.TrimSuffix(message, ": ")}
	}
	return &gemma.APIError{Code: gemma.CodeLoading, Message: "the model is loading"}
}

func notFound(name string) *gemma.APIError {
	return &gemma.APIError{Code: gemma.CodeModelNotFound, Param: "model", Message: fmt.Sprintf("model %q not found", name)}
}
