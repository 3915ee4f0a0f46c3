package sidecar

import (
	"context"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// outputGrace is how long somebody may hold the output of a process that has
// ended.
const outputGrace = time.Second

// process is a program that runs in a process group of its own.
type process struct {
	cmd    *exec.Cmd
	stdin  io.Closer // held open: the server ends when it closes, however this program ends
	stderr tail
	stages stages           // of its worker
	done   chan struct{}    // closed when it and its group have ended and their output has been read
	state  *os.ProcessState // how it ended, once done is closed
	err    error            // or why nobody knows: somebody else waited for our child

	refusesModels bool // it was asked for them in vain
}

// start runs a command, its output in the log.
func (s *Sidecar) start(cmd *exec.Cmd) (*process, error) {
	cmd.Dir, cmd.Env = s.workDir, s.cfg.environ()
	setGroup(cmd)
	p := &process{cmd: cmd, done: make(chan struct{})}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	p.stdin = stdin
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var readers sync.WaitGroup
	readers.Add(2)
	go func() { defer readers.Done(); s.cfg.forward(stdout, "stdout", cmd.Process.Pid, nil) }()
	go func() { defer readers.Done(); s.cfg.forward(stderr, "stderr", cmd.Process.Pid, &p.stderr) }()
	go p.wait(&readers, stdout, stderr)
	return p, nil
}

// wait does what cmd.Wait does, but ends the rest of the group in between: the
// worker of a server that was killed holds memory, the socket and our pipes.
func (p *process) wait(readers *sync.WaitGroup, outputs ...io.Closer) {
	defer close(p.done)
	closeOutputs := func() {
		for _, output := range outputs {
			output.Close()
		}
	}
	p.state, p.err = p.cmd.Process.Wait()
	killGroup(p.cmd.Process.Pid)
	defer time.AfterFunc(outputGrace, closeOutputs).Stop()
	readers.Wait()
	closeOutputs()
	p.stdin.Close()
}

// kill ends the process at once, and wait its group.
func (p *process) kill() { p.cmd.Process.Kill() }

// drain lets the process finish its work and waits for its end, but kills it
// when ctx ends.
func (p *process) drain(ctx context.Context) {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-ctx.Done():
		p.kill()
		<-p.done
	}
}

func (p *process) exitError() *ExitError {
	return &ExitError{State: p.state, Err: p.err, Stderr: p.stderr.lines()}
}
