package gemma

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

type inner struct {
	At   time.Time `json:"at"`
	Size int8      `json:"size,omitempty"`
}

type Embedded struct {
	Kind string `json:"kind"`
}

type tree struct {
	Value uint16 `json:"value"`
	Left  *tree  `json:"left"`
}

type everything struct {
	Zeta  bool `json:"zeta"`
	Alpha float64
	Embedded
	Many   []inner           `json:"many"`
	Pair   [2]int            `json:"pair"`
	ByName map[string]string `json:"by name"`
	Raw    []byte            `json:"raw"`
	Any    any               `json:"any"`
	Tree   tree              `json:"tree"`
	Own    json.RawMessage   `json:"own"`
	Bare   struct {
		X int64 `json:"x,string"`
	} `json:"bare"`
	Skipped chan int `json:"-"`
	hidden  chan int
}

func TestSchemaOfAStruct(t *testing.T) {
	got, err := SchemaFor[everything]()
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"$ref":"#/$defs/everything0","$defs":{` +
		`"inner1":{"type":"object","properties":{"at":{"type":"string","format":"date-time"},"size":{"type":"integer","minimum":-128,"maximum":127}},"required":["at"],"additionalProperties":false},` +
		`"tree2":{"type":"object","properties":{"value":{"type":"integer","minimum":0,"maximum":65535},"left":{"anyOf":[{"$ref":"#/$defs/tree2"},{"type":"null"}]}},"required":["value","left"],"additionalProperties":false},` +
		`"everything0":{"type":"object","properties":{"zeta":{"type":"boolean"},"Alpha":{"type":"number"},"kind":{"type":"string"},` +
		`"many":{"type":"array","items":{"$ref":"#/$defs/inner1"}},` +
		`"pair":{"type":"array","items":{"type":"integer","minimum":-9007199254740992,"maximum":9007199254740992},"minItems":2,"maxItems":2},` +
		`"by name":{"type":"object","additionalProperties":{"type":"string"}},` +
		`"raw":{"type":"string","pattern":"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"},` +
		`"any":{},"tree":{"$ref":"#/$defs/tree2"},"own":{},` +
		`"bare":{"type":"object","properties":{"x":{"type":"string"}},"required":["x"],"additionalProperties":false}},` +
		`"required":["zeta","Alpha","kind","many","pair","by name","raw","any","tree","own","bare"],"additionalProperties":false}}}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !json.Valid(got) {
		t.Error("no JSON")
	}
}

func TestSchemaOfWhatIsNoStruct(t *testing.T) {
	for want, schema := range map[string]func() (json.RawMessage, error){
		`{"type":"string"}`:                                           SchemaFor[string],
		`{"type":"array","items":{"type":"boolean"}}`:                 SchemaFor[[]bool],
		`{"anyOf":[{"type":"number"},{"type":"null"}]}`:               SchemaFor[*float32],
		`{"type":"string","format":"date-time"}`:                      SchemaFor[time.Time],
		`{"type":"integer","minimum":0,"maximum":9007199254740992}`:   SchemaFor[uint],
		`{"type":"object","additionalProperties":{"type":"boolean"}}`: SchemaFor[map[string]bool],
	} {
		if got, err := schema(); err != nil || string(got) != want {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
	}
}

func TestNoSchemaOfWhatJSONHasNot(t *testing.T) {
	for want, schema := range map[string]func() (json.RawMessage, error){
		"it: JSON has no chan":             SchemaFor[chan int],
		"A.B: JSON has no func":            SchemaFor[struct{ A struct{ B func() } }],
		"A[]: a map needs string keys":     SchemaFor[struct{ A []map[int]int }],
		"A{}: JSON has no complex128":      SchemaFor[struct{ A map[string]complex128 }],
		"no schema for map[float64]string": SchemaFor[map[float64]string],
	} {
		if got, err := schema(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
	}
}
