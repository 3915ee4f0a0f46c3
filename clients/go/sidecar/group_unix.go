//go:build unix

package sidecar

import (
	"os/exec"
	"syscall"
)

// setGroup gives the command a process group of its own, so that its children
// can be ended with it, and Ctrl-C in a terminal does not reach it.
func setGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// killGroup ends what is left of the group.
func killGroup(id int) { syscall.Kill(-id, syscall.SIGKILL) }
