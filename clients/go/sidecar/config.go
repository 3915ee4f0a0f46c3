package sidecar

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

// Config says which server to run and how. The zero Config runs the packaged
// demo model with the first python3 or python on the PATH that has
// gemma-server.
type Config struct {
	// Python is the interpreter that runs the server: a path, or a name on the
	// PATH. With Venv it is the one that makes that environment.
	Python string
	// Venv is the directory of a Python environment; its interpreter runs the
	// server.
	Venv string
	// Install is what pip shall install into Venv if gemma-server is not there
	// yet, such as "gemma-server[demo]" or a path to a checkout. Venv itself is
	// made if it is missing. Two programs must not do that at the same time; nor
	// does it end when the program is killed.
	Install string

	// Model is the checkpoint to serve. In its place may be ModelBasePath or
	// ModelConfig, and two of them are an error of Start. Without any of them it
	// is what the environment says, such as MODEL_CHECKPOINT, else the demo
	// model.
	Model string
	// ModelBasePath is a directory of numbered versions of a model. The highest
	// is served, and changed for a higher one as it comes.
	ModelBasePath string
	// ModelConfig is a TOML file of several models; see [gemma.WithModel] for how
	// a request names one, and OnModels for how they fare.
	ModelConfig string
	// Tokenizer is the checkpoint's tokenizer, if the checkpoint brings none.
	Tokenizer string
	// Args are further flags of gemma-server serve.
	Args []string
	// Env is added to this program's environment, as "NAME=value". The server
	// takes its settings from there, too, such as "GEMMA_SLOTS=4"; but where it
	// listens and which API keys it wants it does not take from this program's,
	// and GEMMA_FRAMES and GEMMA_API_KEY_FILE alone may be had here.
	Env []string

	// ClientOptions are for the client that [Sidecar.Client] returns, such as
	// an API key. How it connects is not theirs to say: with [gemma.WithBaseURL],
	// [gemma.WithEndpoints] or [gemma.WithUnixSocket], Start fails, and
	// [gemma.WithHTTPClient] changes nothing.
	ClientOptions []gemma.Option
	// Logger gets the lines that the server writes, and what becomes of the
	// server. By default nothing is logged.
	Logger *slog.Logger
	// OnProgress is told how far the server is whenever that changes: during
	// [Start], and later when the server had to be started again. It is never
	// called twice at the same time, and it must return soon.
	OnProgress func(gemma.Status)

	// OnModels is told of all models whenever the state or the error of a version
	// has changed, or a version has come or gone: [gemma.ModelVersion.Failed] is
	// what to log. What else changes meanwhile is not told. It is called as
	// OnProgress is, and never at the same time, at most once a second when the
	// server is ready; the newest state comes last.
	//
	// Without it the server is not asked for its models. A server that refuses,
	// since it has no such route or ClientOptions do not have its key, is asked
	// once, and Logger told.
	OnModels func([]gemma.Model)

	// StartTimeout is how long the server may take until it is ready, each time
	// that it starts; by default 10 minutes. Installing does not count.
	StartTimeout time.Duration
	// BackoffMin is the wait before a server that died is started again; it
	// doubles with every crash within CrashWindow up to BackoffMax. By default
	// these are half a second and 30 seconds.
	BackoffMin, BackoffMax time.Duration
	// CrashLimit is how many crashes within CrashWindow end the sidecar for
	// good; by default 5 within 10 minutes.
	CrashLimit  int
	CrashWindow time.Duration
}

func (c Config) withDefaults() Config {
	setDefault(&c.StartTimeout, 10*time.Minute)
	setDefault(&c.BackoffMin, 500*time.Millisecond)
	setDefault(&c.BackoffMax, 30*time.Second)
	setDefault(&c.CrashLimit, 5)
	setDefault(&c.CrashWindow, 10*time.Minute)
	return c
}

func setDefault[T ~int | ~int64](value *T, standard T) {
	if *value <= 0 {
		*value = standard
	}
}

// serveArgs are the arguments of Python. The last of equal flags wins.
func (c Config) serveArgs(socket string) []string {
	args := append([]string{"-m", "gemma_server", "serve"}, c.Args...)
	for _, s := range c.sources() {
		args = append(args, s.flag, s.path)
	}
	if c.Tokenizer != "" {
		args = append(args, "--model-tokenizer", c.Tokenizer)
	}
	return append(args, "--uds", socket, "--stop-with-stdin")
}

// environ leaves out where the environment has the server listen besides, for
// the socket is private, and whose keys it wants. Frames and keys may be had
// with Env. Where the configuration says what to serve, the environment does not.
func (c Config) environ() []string {
	return slices.Concat(os.Environ(), c.unsetSources(),
		[]string{"GEMMA_FRAMES=", "GEMMA_API_KEY_FILE="},
		[]string{"PYTHONSAFEPATH=1"}, // modules in this program's directory are not the server's
		c.Env, []string{"GEMMA_HOST=", "GEMMA_PORT="})
}

func (c Config) log(level slog.Level, message string, args ...any) {
	if c.Logger != nil {
		c.Logger.Log(context.Background(), level, message, args...)
	}
}
