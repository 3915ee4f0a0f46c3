package sidecar

import (
	"fmt"
	"slices"
	"strings"
)

// source is a place that models come from.
type source struct{ field, path, flag, variable string }

func (c Config) allSources() []source {
	return []source{
		{"Config.Model", c.Model, "--model-checkpoint", "MODEL_CHECKPOINT"},
		{"Config.ModelBasePath", c.ModelBasePath, "--model-base-path", "GEMMA_MODEL_BASE_PATH"},
		{"Config.ModelConfig", c.ModelConfig, "--model-config-file", "GEMMA_MODEL_CONFIG_FILE"},
	}
}

// sources are those that are given.
func (c Config) sources() []source {
	return slices.DeleteFunc(c.allSources(), func(s source) bool { return s.path == "" })
}

// checkSources refuses more than one.
func (c Config) checkSources() error {
	var given []string
	for _, s := range c.sources() {
		given = append(given, s.field)
	}
	if len(given) > 1 {
		return fmt.Errorf("sidecar: %s exclude each other", strings.Join(given, " and "))
	}
	return nil
}

// unsetSources keeps the environment from naming a source beside one that is
// given, which the server would refuse.
func (c Config) unsetSources() (env []string) {
	if len(c.sources()) == 0 {
		return nil
	}
	for _, s := range c.allSources() {
		env = append(env, s.variable+"=")
	}
	return env
}
