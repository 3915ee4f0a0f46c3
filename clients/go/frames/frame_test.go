package frames_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/gemma-server/gemma-server/clients/go/frames"
)

func TestReadOfHalfAFrame(t *testing.T) {
	wire := frames.Append(nil, frames.Raw, []byte("abc"))
	for n := range wire {
		_, _, err := read(wire[:n], frames.MaxBody)
		if n == 0 && err != io.EOF || n > 0 && (!errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	broken := errors.New("bad tape")
	r := bufio.NewReader(io.MultiReader(bytes.NewReader(wire[:6]), iotest.ErrReader(broken)))
	if _, _, err := frames.Read(r, frames.MaxBody); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// A deadline that passes in front of a frame does no harm to it.
func TestReadWithADeadline(t *testing.T) {
	server, client := net.Pipe()
	defer server.Close()
	defer client.Close()
	r := bufio.NewReader(client)
	client.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, _, err := frames.Read(r, frames.MaxBody)
	if !errors.Is(err, os.ErrDeadlineExceeded) || strings.Contains(err.Error(), "amid") {
		t.Errorf("in front of a frame: %v", err)
	}
	client.SetReadDeadline(time.Time{})
	go server.Write(frames.Append(nil, frames.Echo, []byte("late")))
	if _, body, err := frames.Read(r, frames.MaxBody); string(body) != "late" || err != nil {
		t.Errorf("got %q, %v", body, err)
	}

	go server.Write([]byte{0, 0})
	client.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, _, err := frames.Read(r, frames.MaxBody); !errors.Is(err, os.ErrDeadlineExceeded) || !strings.Contains(err.Error(), "amid") {
		t.Errorf("amid a frame: %v", err)
	}
}

func TestReadGoesAsFarAsItMay(t *testing.T) {
	wire := frames.Append(nil, frames.Raw, []byte("abc"))
	if _, body, err := read(wire, 3); string(body) != "abc" || err != nil {
		t.Errorf("got %q, %v", body, err)
	}
	if _, _, err := read(wire, 2); !errors.Is(err, frames.ErrTooLong) {
		t.Errorf("got %v", err)
	}
}

// Whatever comes, reading does not panic, takes no more memory than it may, and
// what it takes for a frame is one.
func FuzzRead(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x04\x00\x00\xff\x0a\x00\x00\x00\x01\x00"), uint16(3))
	f.Add([]byte("\x00\x00\x00\x00"), uint16(3))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint16(1<<15))
	f.Add([]byte("\x00\x00\x00\x09\xff{\"id\":1"), uint16(100))
	f.Fuzz(func(t *testing.T, input []byte, most uint16) {
		r := bufio.NewReaderSize(iotest.OneByteReader(bytes.NewReader(input)), 16)
		for at := 0; ; {
			typ, body, err := frames.Read(r, int(most))
			if err != nil {
				if (err == io.EOF) != (at == len(input)) || body != nil {
					t.Fatalf("%v at %d of %d, with %d bytes", err, at, len(input), len(body))
				}
				return
			}
			wire := frames.Append(nil, typ, body)
			if len(body) > int(most) || cap(body) > 2*int(most)+16 || !bytes.HasPrefix(input[at:], wire) {
				t.Fatalf("read %d, %x at %d", typ, body, at)
			}
			at += len(wire)
		}
	})
}
