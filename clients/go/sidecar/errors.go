package sidecar

import (
	"errors"
	"os"
	"strings"
)

// The server's exit codes with a reason in one line.
const (
	exitUsage = 2 // a setting cannot work
	exitLoad  = 3 // the model cannot be loaded
)

// reasons begin the line that has the reason. Another thread of the server may
// tell what stage it is in behind that.
var reasons = map[int]string{
	exitUsage: "gemma-server: ",
	exitLoad:  "gemma-server: cannot load the model: ",
}

// errWorkerDied: the server lives, but the process in it that holds the model
// has been replaced.
var errWorkerDied = errors.New("the server's worker died and loads the model again")

// ExitError tells of a process that ended although nobody had asked it to:
// find it with [errors.As].
type ExitError struct {
	// State has the exit code: 2 if a setting cannot work, 3 if the model
	// cannot be loaded, -1 if the process was killed. It is nil where something
	// else in this program took the news of the process's end, or has it ignored
	// (SIGCHLD).
	State *os.ProcessState
	// Err is why State is nil.
	Err error
	// Stderr is the last lines that it wrote to its standard error.
	Stderr []string
}

// Error gives the reason if the server told one, else its last lines.
func (e *ExitError) Error() string {
	how := e.State.String()
	if e.Err != nil {
		how = "it ended, nobody knows how: " + e.Err.Error()
	}
	message := how + lastWords(e.reason())
	if strings.Contains(message, "No module named gemma_server") {
		message += " (install gemma-server for this Python, or set Config.Venv and Config.Install)"
	}
	return message
}

// Unwrap returns Err.
func (e *ExitError) Unwrap() error { return e.Err }

func (e *ExitError) reason() []string {
	if prefix, known := reasons[e.State.ExitCode()]; known {
		for i := len(e.Stderr) - 1; i >= 0; i-- {
			if strings.HasPrefix(e.Stderr[i], prefix) {
				return e.Stderr[i : i+1]
			}
		}
	}
	return e.Stderr
}

// lastWords are what to put behind an error.
func lastWords(lines []string) string {
	switch len(lines) {
	case 0:
		return ""
	case 1:
		return ": " + lines[0]
	}
	return ":\n\t" + strings.Join(lines, "\n\t")
}
