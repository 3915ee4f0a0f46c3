package frames_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"log"
	"net"

	"github.com/gemma-server/gemma-server/clients/go/frames"
	"github.com/gemma-server/gemma-server/clients/go/internal/frametest"
)

func ExampleAppend() {
	wire := frames.Append(nil, frames.Echo, []byte("hi"))
	fmt.Printf("% x\n", wire)
	// Output: 00 00 00 03 00 68 69
}

// The shortest way of all: one frame after the other on a connection alone.
func ExampleRead() {
	srv := frametest.Start(nil, frametest.Repeat) // a stand-in; yours is serve --frames
	defer srv.Close()

	conn, err := net.Dial("unix", srv.Path)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	var out []byte // used again and again
	for _, prompt := range []string{"One", "Two"} {
		out = frames.Append(out[:0], frames.Raw, []byte(prompt))
		if _, err := conn.Write(out); err != nil {
			log.Fatal(err)
		}
		t, body, err := frames.Read(r, frames.MaxAnswer)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(t == frames.Raw, string(body))
	}
	// Output:
	// true One
	// true Two
}

// The end of the input is no error in front of a frame alone.
func ExampleRead_errors() {
	for _, wire := range []string{"\x00\x00\x00\x00", "\x00\x20\x00\x00\x01"} {
		_, _, err := frames.Read(bufio.NewReader(bytes.NewReader([]byte(wire))), frames.MaxBody)
		fmt.Println(errors.Is(err, frames.ErrEmpty), errors.Is(err, frames.ErrTooLong))
	}
	// Output:
	// true false
	// false true
}

func ExampleType() {
	names := map[frames.Type]string{
		frames.Echo: "echo", frames.Raw: "raw", frames.Request: "request",
		frames.Piece: "piece", frames.Finished: "finished", frames.Failed: "failed",
	}
	for _, t := range []frames.Type{0, 1, 2, 3, 4, 255} {
		fmt.Println(t, names[t])
	}
	// Output:
	// 0 echo
	// 1 raw
	// 2 request
	// 3 piece
	// 4 finished
	// 255 failed
}
