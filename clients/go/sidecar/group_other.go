//go:build !unix

package sidecar

import "os/exec"

// Without process groups the children of a server that was killed end by
// themselves.

func setGroup(*exec.Cmd) {}

func killGroup(int) {}
