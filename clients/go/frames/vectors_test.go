package frames_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"testing"

	"github.com/gemma-server/gemma-server/clients/go/frames"
)

// vectors is docs/frames.json.
type vectors struct {
	MaxClientLength int `json:"max_client_length"`
	Frames          []struct {
		Name string
		Type frames.Type
		Body string `json:"body_hex"`
		Wire string `json:"wire_hex"`
	}
	Broken []struct {
		Name string
		Wire string `json:"wire_hex"`
		Code string
	}
	Exchanges []struct {
		Name          string
		Sent, Answers []content
	}
}

// content is a frame of an exchange.
type content struct {
	Type frames.Type
	Text *string
	Hex  *string
	JSON json.RawMessage
}

func (c content) body(t *testing.T) []byte {
	switch {
	case c.Text != nil:
		return []byte(*c.Text)
	case c.Hex != nil:
		return unhex(t, *c.Hex)
	}
	return c.JSON
}

func readVectors(t *testing.T) (v vectors) {
	t.Helper()
	text, err := os.ReadFile("../../../docs/frames.json")
	if err == nil {
		err = json.Unmarshal(text, &v)
	}
	if err != nil || len(v.Frames) == 0 || len(v.Broken) == 0 || len(v.Exchanges) == 0 {
		t.Fatalf("the vectors: %v", err)
	}
	return v
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFramesOfTheVectors(t *testing.T) {
	v := readVectors(t)
	if v.MaxClientLength != 1+frames.MaxBody {
		t.Errorf("MaxBody is %d, and the longest length %d", frames.MaxBody, v.MaxClientLength)
	}
	for _, f := range v.Frames {
		wire, body := unhex(t, f.Wire), unhex(t, f.Body)
		if got := frames.Append(nil, f.Type, body); !bytes.Equal(got, wire) {
			t.Errorf("%s: written as %x", f.Name, got)
		}
		if typ, got, err := read(wire, frames.MaxBody); typ != f.Type || !bytes.Equal(got, body) || err != nil {
			t.Errorf("%s: read as %d, %x, %v", f.Name, typ, got, err)
		}
	}
}

func TestBrokenFramesOfTheVectors(t *testing.T) {
	want := map[string]error{"empty_frame": frames.ErrEmpty, "frame_too_large": frames.ErrTooLong}
	for _, b := range readVectors(t).Broken {
		if _, _, err := read(unhex(t, b.Wire), frames.MaxBody); want[b.Code] == nil || !errors.Is(err, want[b.Code]) {
			t.Errorf("%s: %v", b.Name, err)
		}
	}
}

func read(wire []byte, most int) (frames.Type, []byte, error) {
	return frames.Read(bufio.NewReader(bytes.NewReader(wire)), most)
}
