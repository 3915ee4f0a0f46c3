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
	_       chan int
}

func TestSchemaOfAStruct(t *testing.T) {
	got, err := SchemaFor[everything]()
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"$ref":"#/$defs/everything_0","$defs":{` +
		`"inner_1":{"type":"object","properties":{"at":{"type":"string","format":"date-time"},"size":{"type":"integer","minimum":-128,"maximum":127}},"required":["at"],"additionalProperties":false},` +
		`"tree_2":{"type":"object","properties":{"value":{"type":"integer","minimum":0,"maximum":65535},"left":{"anyOf":[{"$ref":"#/$defs/tree_2"},{"type":"null"}]}},"required":["value","left"],"additionalProperties":false},` +
		`"everything_0":{"type":"object","properties":{"zeta":{"type":"boolean"},"Alpha":{"type":"number"},"kind":{"type":"string"},` +
		`"many":{"type":"array","items":{"$ref":"#/$defs/inner_1"}},` +
		`"pair":{"type":"array","items":{"type":"integer","minimum":-9007199254740992,"maximum":9007199254740992},"minItems":2,"maxItems":2},` +
		`"by name":{"type":"object","additionalProperties":{"type":"string"}},` +
		`"raw":{"type":"string","pattern":"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"},` +
		`"any":{},"tree":{"$ref":"#/$defs/tree_2"},"own":{},` +
		`"bare":{"type":"object","properties":{"x":{"type":"string","pattern":"^-?(0|[1-9][0-9]{0,14})$"}},"required":["x"],"additionalProperties":false}},` +
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

type loop map[string]loop

type deep []deep

type ZE struct {
	A string `json:"x"`
}

type own struct{ _ int }

func (*own) UnmarshalJSON([]byte) error { return nil }

func TestTypesThatHoldThemselvesOrHideFields(t *testing.T) {
	for want, schema := range map[string]func() (json.RawMessage, error){
		`{"$ref":"#/$defs/loop_0","$defs":{"loop_0":{"type":"object","additionalProperties":{"$ref":"#/$defs/loop_0"}}}}`: SchemaFor[loop],
		`{"$ref":"#/$defs/deep_0","$defs":{"deep_0":{"type":"array","items":{"$ref":"#/$defs/deep_0"}}}}`:                 SchemaFor[deep],
		// the outer x wins; a Go name hides nothing in JSON
		`{"type":"object","properties":{"x":{"type":"boolean"}},"required":["x"],"additionalProperties":false}`: SchemaFor[struct {
			B bool `json:"x"`
			ZE
		}],
		`{"type":"object","properties":{"x":{"type":"string"},"y":{"type":"boolean"}},"required":["x","y"],"additionalProperties":false}`: SchemaFor[struct {
			*ZE
			A bool `json:"y"`
		}],
		`{"type":"object","properties":{"o":{},"l":{"type":"array","items":{"type":"string"}}},"required":["o"],"additionalProperties":false}`: SchemaFor[struct {
			O own `json:"o"`
			//lint:ignore SA5008 what encoding/json ignores, a schema does too
			L []string `json:"l,omitzero,string"`
		}],
	} {
		if got, err := schema(); err != nil || string(got) != want {
			t.Errorf("got  %s, %v\nwant %s", got, err, want)
		}
	}
	if _, err := SchemaFor[struct {
		A string `json:",string"`
	}](); err == nil {
		t.Error("a string within a string")
	}
}
