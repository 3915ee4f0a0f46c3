// Package frames is a client of gemma-server's fast lane, a Unix socket that
// the server opens with --frames PATH, for calls so short that HTTP's share of
// their time hurts. See docs/frames.md for what goes over it.
//
// Make one [Conn] with [Dial] and share it: many goroutines may call it at
// once, and their requests run side by side over the one connection. Nothing is
// tried again, and a connection that broke stays broken: its errors are
// [ErrBroken], and one dials anew.
//
// Errors that the server answers are [*gemma.APIError], as over HTTP.
//
// A program that sends one frame after the other, and wants the shortest way
// of all, needs no Conn: [Append] and [Read] on a connection of its own leave
// out the goroutine that tells answers apart. The Example of [Read] does that.
package frames

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Type says what is in a frame.
type Type byte

// The types of frames.
const (
	Echo     Type = 0   // any bytes, which come back as they are
	Raw      Type = 1   // what the served model takes, and what it gives
	Request  Type = 2   // from the client: a request, as JSON
	Piece    Type = 3   // from the server: a piece of a streamed answer, as JSON
	Finished Type = 4   // from the server: an answer, or the last part of a streamed one, as JSON
	Failed   Type = 255 // from the server: an error, as JSON
)

// The longest bodies of frames.
const (
	MaxBody   = 1 << 20  // of a client's: the server takes no longer ones
	MaxAnswer = 64 << 20 // of the server's, as far as a [Conn] goes; legitimate ones are far shorter
)

// Errors of frames that cannot be.
var (
	// ErrEmpty: a frame has a length of 0, so there is not even a type.
	ErrEmpty = errors.New("frames: a frame without a type")
	// ErrTooLong: the body of a frame is longer than may be.
	ErrTooLong = errors.New("frames: a frame is too long")
)

// lengthSize is how many bytes say a frame's length.
const lengthSize = 4

// Append adds a frame to dst and returns the longer slice. Written at once, a
// frame costs one system call.
func Append(dst []byte, t Type, body []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(1+len(body)))
	return append(append(dst, byte(t)), body...)
}

// Read reads a frame, whose body may have so many bytes at most. The error is
// [io.EOF] only where the input ends in front of a frame; amid one it wraps
// [io.ErrUnexpectedEOF]. Any other error in front of a frame, such as a deadline's,
// has read nothing: what comes later is a frame.
func Read(r *bufio.Reader, most int) (Type, []byte, error) {
	head, err := r.Peek(lengthSize)
	switch {
	case err == io.EOF && len(head) == 0:
		return 0, nil, io.EOF
	case err != nil && len(head) == 0:
		return 0, nil, fmt.Errorf("frames: %w", err)
	case err != nil:
		return 0, nil, amid(err)
	}
	length := int64(binary.BigEndian.Uint32(head))
	switch {
	case length == 0:
		return 0, nil, ErrEmpty
	case length-1 > int64(most):
		return 0, nil, fmt.Errorf("%w: its body has %d bytes, and may have %d", ErrTooLong, length-1, most)
	}
	r.Discard(lengthSize)
	t, err := r.ReadByte()
	if err != nil {
		return 0, nil, amid(err)
	}
	body := make([]byte, length-1)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, amid(err)
	}
	return Type(t), body, nil
}

func amid(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("frames: amid a frame: %w", err)
}
