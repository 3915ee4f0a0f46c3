package sidecar

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

// outcomes are how the versions of all models fare.
type outcomes map[versionName]outcome

type versionName struct {
	model  string
	number int
}

type outcome struct {
	state gemma.VersionState
	err   string
}

func outcomesOf(models []gemma.Model) outcomes {
	all := outcomes{}
	for _, m := range models {
		for _, v := range m.Versions {
			all[versionName{m.Name, v.Version}] = outcome{v.State, v.Error}
		}
	}
	return all
}

// lookAtModels asks for the models and tells the callback what is new, from the
// same goroutines as report. A server that refuses is not asked again.
func (s *Sidecar) lookAtModels(ctx context.Context, p *process) {
	if s.cfg.OnModels == nil || p.refusesModels {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	models, err := s.probe.Models(ctx)
	if isRefusal(err) {
		p.refusesModels = true
		s.cfg.log(slog.LevelWarn, "gemma-server does not tell its models", "error", err)
	}
	if err != nil {
		return
	}
	if found := outcomesOf(models); !maps.Equal(found, s.outcomes) {
		s.outcomes = found
		s.cfg.OnModels(models)
	}
}

// isRefusal reports whether the server would answer the same again: it has no
// such route, or wants another key.
func isRefusal(err error) bool {
	var answer *gemma.APIError
	return errors.As(err, &answer) && answer.Status/100 == 4 && answer.Status != http.StatusTooManyRequests
}
