package gemma

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func decodeAll(r io.Reader) (events []string, err error) {
	d := newDecoder(r)
	for {
		data, err := d.next()
		if err != nil {
			return events, err
		}
		events = append(events, string(data))
	}
}

func TestDecoder(t *testing.T) {
	huge := strings.Repeat("x", 1<<20)
	for _, tc := range []struct {
		name, in string
		want     []string
	}{
		{"empty", "", nil},
		{"one", "data: a\n\n", []string{"a"}},
		{"two", "data: a\n\ndata: b\n\n", []string{"a", "b"}},
		{"no space", "data:a\n\n", []string{"a"}},
		{"only one space goes", "data:  a \n\n", []string{" a "}},
		{"crlf", "data: a\r\n\r\ndata: b\r\n\r\n", []string{"a", "b"}},
		{"cr", "data: a\r\rdata: b\r\r", []string{"a", "b"}},
		{"mixed ends", "data: a\r\n\ndata: b\n\r", []string{"a", "b"}},
		{"several lines", "data: a\ndata: b\ndata:\n\n", []string{"a\nb\n"}},
		{"empty data", "data:\n\n", []string{""}},
		{"data without colon", "data\n\n", []string{""}},
		{"comment", ": keep-alive\n\ndata: a\n: b\n\n:\n\n", []string{"a"}},
		{"other fields", "event: x\nid: 7\nretry: 9\ndata: a\n\nevent: y\n\n", []string{"a"}},
		{"like data", "database: x\n data: y\nDATA: z\n\n", nil},
		{"colons in the value", "data: {\"a\":1}\n\n", []string{`{"a":1}`}},
		{"byte order mark", "\uFEFFdata: a\n\n", []string{"a"}},
		{"byte order mark later", "data: a\n\n\uFEFFdata: b\n\n", []string{"a"}},
		{"blank lines", "\n\n\ndata: a\n\n\n\n", []string{"a"}},
		{"no blank line at the end", "data: a\n\ndata: b\n", []string{"a"}},
		{"no line end at the end", "data: a\n\ndata: b", []string{"a"}},
		{"nul and broken utf-8", "data: \x00\xff\n\n", []string{"\x00\xff"}},
		{"huge line", "data: " + huge + "\n\ndata: b\n\n", []string{huge, "b"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for name, r := range map[string]io.Reader{
				"whole":    strings.NewReader(tc.in),
				"bytewise": iotest.OneByteReader(strings.NewReader(tc.in)),
				"data+EOF": iotest.DataErrReader(strings.NewReader(tc.in)),
			} {
				got, err := decodeAll(r)
				if !slices.Equal(got, tc.want) {
					t.Errorf("%s: got %.200q, want %.200q", name, got, tc.want)
				}
				if err != io.EOF {
					t.Errorf("%s: error %v, want io.EOF", name, err)
				}
			}
		})
	}
}

func TestDecoderPassesReadError(t *testing.T) {
	broken := errors.New("broken")
	got, err := decodeAll(io.MultiReader(strings.NewReader("data: a\n\ndata: b\n"), iotest.ErrReader(broken)))
	if !slices.Equal(got, []string{"a"}) || err != broken {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestDecoderLimit(t *testing.T) {
	for name, in := range map[string]string{
		"one line":      "data: " + strings.Repeat("x", 100) + "\n\n",
		"several lines": strings.Repeat("data: x\n", 100) + "\n",
		"comment":       ":" + strings.Repeat("x", 100) + "\n\n",
	} {
		d := newDecoder(strings.NewReader("data: ok\n\n" + in))
		d.max = 50
		if data, err := d.next(); string(data) != "ok" || err != nil {
			t.Errorf("%s: first event: %q, %v", name, data, err)
		}
		if _, err := d.next(); err != errEventTooLarge {
			t.Errorf("%s: error %v, want %v", name, err, errEventTooLarge)
		}
	}
}

// An event that ends in CR must not wait for what might be an LF.
func TestDecoderDoesNotWaitAfterCR(t *testing.T) {
	r, w := io.Pipe()
	defer w.Close()
	go io.WriteString(w, "data: a\r\r")
	got := make(chan string, 1)
	go func() {
		data, _ := newDecoder(r).next()
		got <- string(data)
	}()
	select {
	case data := <-got:
		if data != "a" {
			t.Errorf("got %q", data)
		}
	case <-time.After(10 * time.Second):
		t.Error("still waiting")
	}
}

// reference decodes a whole input at once, with nothing in common with decoder.
func reference(in string) (events []string) {
	in = strings.ReplaceAll(in, "\r\n", "\n")
	in = strings.ReplaceAll(in, "\r", "\n")
	lines := strings.Split(strings.TrimPrefix(in, "\uFEFF"), "\n")
	var data []string
	for _, line := range lines[:len(lines)-1] {
		switch {
		case line == "":
			if data != nil {
				events = append(events, strings.Join(data, "\n"))
			}
			data = nil
		case line == "data":
			data = append(data, "")
		case strings.HasPrefix(line, "data: "):
			data = append(data, line[len("data: "):])
		case strings.HasPrefix(line, "data:"):
			data = append(data, line[len("data:"):])
		}
	}
	return events
}

func FuzzDecoder(f *testing.F) {
	for _, seed := range []string{
		"",
		"data: {\"response\": \"a\"}\n\ndata: [DONE]\n\n",
		": ping\r\n\r\ndata:a\r\ndata: b\r\n\r\n",
		"data\r\rdata: x\r\n\n\rdata",
		"\uFEFFdata: a\n\n\uFEFFdata: b\n\n",
		"event: e\nid\nretry: 1\ndata:  \n\n",
		"data: " + strings.Repeat("long ", 2000) + "\n\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		want := reference(string(in))
		for name, r := range map[string]io.Reader{
			"whole":    bytes.NewReader(in),
			"bytewise": iotest.OneByteReader(bytes.NewReader(in)),
			"halves":   iotest.HalfReader(bytes.NewReader(in)),
		} {
			got, err := decodeAll(r)
			if err != io.EOF {
				t.Errorf("%s: error %v, want io.EOF", name, err)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: got %q, want %q", name, got, want)
			}
		}
	})
}
