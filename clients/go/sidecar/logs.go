package sidecar

import (
	"bufio"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
)

const (
	lineMax  = 64 << 10 // a longer line is logged in pieces
	tailSize = 20       // lines that an error may quote
	quoteMax = 1 << 10  // bytes of each that it quotes
)

// forward logs each line of a process's output until that ends, and keeps the
// last ones in last, if that is not nil.
func (c Config) forward(output io.Reader, stream string, pid int, last *tail) {
	lines := bufio.NewReaderSize(output, lineMax)
	for {
		data, err := lines.ReadSlice('\n')
		if line := strings.TrimRight(string(data), "\r\n"); line != "" {
			c.log(slog.LevelInfo, line, "stream", stream, "pid", pid)
			if last != nil {
				last.add(line)
			}
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// tail keeps the last lines it was given.
type tail struct {
	mu   sync.Mutex
	kept []string
}

func (t *tail) add(line string) {
	if len(line) > quoteMax {
		line = strings.ToValidUTF8(line[:quoteMax], "") + "…"
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.kept) == tailSize {
		t.kept = slices.Delete(t.kept, 0, 1)
	}
	t.kept = append(t.kept, line)
}

func (t *tail) lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.kept)
}
