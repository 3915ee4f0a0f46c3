package sidecar

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// However much a server writes, an error that quotes it stays one that can be
// read.
func TestTailIsShort(t *testing.T) {
	var last tail
	output := strings.Repeat("first\n", 100) + strings.Repeat("é", lineMax) + "\n" + strings.Repeat(strings.Repeat("x", lineMax-1)+"\n", tailSize-3) + "last\n"
	Config{}.forward(strings.NewReader(output), "stderr", 1, &last)
	lines := last.lines()
	if len(lines) != tailSize || lines[tailSize-1] != "last" {
		t.Errorf("%d lines, the last one %.20q", len(lines), lines[len(lines)-1])
	}
	for _, line := range lines {
		if len(line) > quoteMax+len("…") || !utf8.ValidString(line) {
			t.Errorf("a line of %d bytes, %.20q", len(line), line)
		}
	}
	if !slices.Contains(lines, strings.Repeat("x", quoteMax)+"…") {
		t.Error("nothing says that a line was longer")
	}
}
