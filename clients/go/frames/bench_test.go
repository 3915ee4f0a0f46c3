package frames_test

import (
	"bufio"
	"net"
	"testing"

	"github.com/gemma-server/gemma-server/clients/go/frames"
	"github.com/gemma-server/gemma-server/clients/go/internal/frametest"
)

// What a Conn adds to Append and Read on a connection alone.
func BenchmarkEcho(b *testing.B) {
	path := frametest.Start(b, frametest.Repeat).Path
	body := make([]byte, 3072)
	b.Run("conn", func(b *testing.B) {
		conn := dialPath(b, path)
		for range b.N {
			if _, err := conn.Echo(ctx, body); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("alone", func(b *testing.B) {
		conn, err := net.Dial("unix", path)
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		var out []byte
		for range b.N {
			out = frames.Append(out[:0], frames.Echo, body)
			if _, err := conn.Write(out); err != nil {
				b.Fatal(err)
			}
			if _, _, err := frames.Read(r, frames.MaxBody); err != nil {
				b.Fatal(err)
			}
		}
	})
}
