// Package wire has what the server's HTTP and its frames have in common.
package wire

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// timeoutMax is the longest time limit that the server takes, in milliseconds.
const timeoutMax = 1_000_000_000

// Error is the server's error; null decodes to "".
type Error struct {
	Type      string `json:"type"`
	Message   string `json:"message"`
	Param     string `json:"param"`
	Code      string `json:"code"`
	RequestID string `json:"request_id"`
}

// CheckText refuses what encoding/json would change: it puts U+FFFD in place of
// broken bytes, and the model would then answer another prompt than the caller's.
func CheckText(what string, texts ...string) error {
	for _, s := range texts {
		if !utf8.ValidString(s) {
			return fmt.Errorf("the %s is not valid UTF-8", what)
		}
	}
	return nil
}

// Timeout is the time that ctx has left, in milliseconds as the server takes
// them; 0 if it has no deadline.
func Timeout(ctx context.Context) int64 {
	deadline, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	return min(max(1, time.Until(deadline).Milliseconds()), timeoutMax)
}

// Excerpt makes one short line of a text of unknown kind.
func Excerpt(text []byte) string {
	const most = 200
	line := strings.Join(strings.Fields(strings.ToValidUTF8(string(text), "\uFFFD")), " ")
	if runes := []rune(line); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return line
}
