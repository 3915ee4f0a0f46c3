package gemma

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// eventMax bounds the memory one event can take. It is no limit on answers:
// the largest legitimate event is far smaller.
const eventMax = 64 << 20

var errEventTooLarge = errors.New("event too large")

// decoder reads the data of server-sent events, as the HTML standard defines
// them: lines end in LF, CRLF or CR, several data lines make one event, and an
// event without its closing blank line does not count. Other fields are skipped.
type decoder struct {
	r       *bufio.Reader
	max     int
	line    []byte
	data    []byte
	started bool // past the first line, which alone may have a byte order mark
	skipLF  bool // the last line ended in CR, so an LF now belongs to it
}

func newDecoder(r io.Reader) *decoder {
	return &decoder{r: bufio.NewReader(r), max: eventMax}
}

// next returns the data of the next event, valid until the call after. At the
// end of the input the error is the reader's, io.EOF for an orderly end.
func (d *decoder) next() ([]byte, error) {
	d.data = d.data[:0]
	hasData := false
	for {
		if err := d.readLine(); err != nil {
			return nil, err
		}
		if len(d.line) == 0 {
			if hasData {
				return d.data, nil
			}
			continue
		}
		// A line without a colon is a field with an empty value; a comment is
		// a field without a name.
		field, value, _ := bytes.Cut(d.line, []byte(":"))
		if string(field) != "data" {
			continue
		}
		if hasData {
			d.data = append(d.data, '\n')
		}
		hasData = true
		d.data = append(d.data, bytes.TrimPrefix(value, []byte(" "))...)
	}
}

// readLine fills d.line, without its ending. It never waits for a byte behind
// the ending: after a CR, the LF may come late or not at all.
func (d *decoder) readLine() error {
	d.line = d.line[:0]
	for {
		if _, err := d.r.Peek(1); err != nil {
			return err
		}
		buf, _ := d.r.Peek(d.r.Buffered())
		if d.skipLF {
			d.skipLF = false
			if buf[0] == '\n' {
				d.r.Discard(1)
				continue
			}
		}
		end := bytes.IndexAny(buf, "\r\n")
		if end < 0 {
			end = len(buf)
		}
		if len(d.data)+len(d.line)+end > d.max {
			return errEventTooLarge
		}
		d.line = append(d.line, buf[:end]...)
		if end == len(buf) {
			d.r.Discard(end)
			continue
		}
		d.skipLF = buf[end] == '\r'
		d.r.Discard(end + 1)
		if !d.started {
			d.started = true
			d.line = bytes.TrimPrefix(d.line, []byte("\uFEFF"))
		}
		return nil
	}
}
