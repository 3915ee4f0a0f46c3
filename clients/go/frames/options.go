package frames

import (
	"errors"
	"fmt"

	"github.com/gemma-server/gemma-server/clients/go/internal/wire"
)

type config struct {
	model *string
}

// Option changes how [Dial] sets up a [Conn].
type Option func(*config)

// WithModel names the model of every request that names none itself, which
// [Conn.Score] and [Conn.Tokenize] cannot: "chat", its version "chat@2" or the
// version of a label "chat:stable", as [gemma.WithModel] does. The name must not
// be empty.
//
// [Conn.Raw] is answered by the server's default model, whatever is said here.
func WithModel(name string) Option {
	return func(c *config) { c.model = &name }
}

// modelOf is the model that the options name, empty if none.
func modelOf(opts []Option) (string, error) {
	var cfg config
	for _, opt := range opts {
		opt(&cfg)
	}
	if cfg.model == nil {
		return "", nil
	}
	if *cfg.model == "" {
		return "", errors.New("frames: WithModel: the name is empty; leave the option out for the server's default model")
	}
	if err := wire.CheckText("name", *cfg.model); err != nil {
		return "", fmt.Errorf("frames: WithModel: %w", err)
	}
	return *cfg.model, nil
}
