package gemma

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
)

var (
	timeType    = reflect.TypeFor[time.Time]()
	numberType  = reflect.TypeFor[json.Number]()
	ownReader   = reflect.TypeFor[json.Unmarshaler]()
	textReader  = reflect.TypeFor[encoding.TextUnmarshaler]()
	integerBits = map[reflect.Kind]int{
		reflect.Int8: 8, reflect.Int16: 16, reflect.Int32: 32, reflect.Uint8: 8, reflect.Uint16: 16, reflect.Uint32: 32,
	}
)

// Beyond this, programs in other languages lose digits.
const largestInteger = 1 << 53

// Base64 as encoding/json writes bytes.
const base64Pattern = `^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$`

// SchemaFor returns the JSON schema of what encoding/json reads into a T, for
// the Schema of a [Request]. Fields come in the order of the struct, and the
// model writes them in that order. A field with omitempty or omitzero may be
// left out, a pointer may be null, and a time is a string of RFC 3339.
//
// An interface or a type with an UnmarshalJSON of its own may be anything. It is an
// error if T has what JSON has not, such as a channel, or what no schema says: a
// map without string keys, and the option "string" on a string.
func SchemaFor[T any]() (json.RawMessage, error) {
	w := schemaWriter{defs: map[reflect.Type]string{}}
	root, err := w.schema(reflect.TypeFor[T](), "")
	if err != nil {
		return nil, fmt.Errorf("gemma: no schema for %v: %w", reflect.TypeFor[T](), err)
	}
	if len(w.written) == 0 {
		return json.RawMessage(root), nil
	}
	var out bytes.Buffer
	out.WriteString(strings.TrimSuffix(root, "}"))
	out.WriteString(`,"$defs":{`)
	out.WriteString(strings.Join(w.written, ","))
	out.WriteString("}}")
	return out.Bytes(), nil
}

// schemaWriter writes each named struct once, so that types may hold themselves.
type schemaWriter struct {
	defs    map[reflect.Type]string // the name of each
	written []string                // "name": schema
}

func (w *schemaWriter) schema(t reflect.Type, path string) (string, error) {
	switch {
	case t == timeType:
		return `{"type":"string","format":"date-time"}`, nil
	case t == numberType:
		return `{"type":"number"}`, nil
	case t.Kind() == reflect.Pointer:
		inner, err := w.schema(t.Elem(), path)
		return `{"anyOf":[` + inner + `,{"type":"null"}]}`, err
	case reflect.PointerTo(t).Implements(ownReader):
		return `{}`, nil
	case reflect.PointerTo(t).Implements(textReader):
		return `{"type":"string"}`, nil
	}
	switch kind := t.Kind(); kind {
	case reflect.Bool:
		return `{"type":"boolean"}`, nil
	case reflect.String:
		return `{"type":"string"}`, nil
	case reflect.Float32, reflect.Float64:
		return `{"type":"number"}`, nil
	case reflect.Interface:
		return `{}`, nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return integerSchema(t), nil
	case reflect.Slice, reflect.Array:
		return w.named(t, path, w.list)
	case reflect.Map:
		return w.named(t, path, w.byName)
	case reflect.Struct:
		return w.named(t, path, w.object)
	default:
		return "", fmt.Errorf("%s: JSON has no %v", where(path), kind)
	}
}

func integerSchema(t reflect.Type) string {
	low, high := int64(-largestInteger), int64(largestInteger)
	if bits := integerBits[t.Kind()]; bits > 0 {
		low, high = -1<<(bits-1), 1<<(bits-1)-1
		if t.Kind() >= reflect.Uint {
			high = 1<<bits - 1
		}
	}
	if t.Kind() >= reflect.Uint {
		low = 0
	}
	return fmt.Sprintf(`{"type":"integer","minimum":%d,"maximum":%d}`, low, high)
}

func (w *schemaWriter) list(t reflect.Type, path string) (string, error) {
	if t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8 {
		return `{"type":"string","pattern":` + strconv.Quote(base64Pattern) + `}`, nil
	}
	inner, err := w.schema(t.Elem(), path+"[]")
	size := ""
	if t.Kind() == reflect.Array {
		size = fmt.Sprintf(`,"minItems":%d,"maxItems":%d`, t.Len(), t.Len())
	}
	return `{"type":"array","items":` + inner + size + `}`, err
}

func (w *schemaWriter) byName(t reflect.Type, path string) (string, error) {
	if t.Key().Kind() != reflect.String {
		return "", fmt.Errorf("%s: a map needs string keys, not %v", where(path), t.Key())
	}
	inner, err := w.schema(t.Elem(), path+"{}")
	return `{"type":"object","additionalProperties":` + inner + `}`, err
}

// named writes a reference to a type that has a name, and the type itself where
// it has none.
func (w *schemaWriter) named(t reflect.Type, path string, write func(reflect.Type, string) (string, error)) (string, error) {
	if t.Name() == "" {
		return write(t, path)
	}
	if name, known := w.defs[t]; known {
		return refTo(name), nil
	}
	name := fmt.Sprintf("%s_%d", t.Name(), len(w.defs))
	if !isPlain(name) {
		name = fmt.Sprintf("T_%d", len(w.defs))
	}
	w.defs[t] = name
	schema, err := write(t, path)
	w.written = append(w.written, quoted(name)+":"+schema)
	return refTo(name), err
}

func refTo(name string) string { return `{"$ref":` + quoted("#/$defs/"+name) + `}` }

// isPlain says whether a JSON pointer takes the name as it is; that of a
// generic type has brackets.
func isPlain(name string) bool {
	return !strings.ContainsFunc(name, func(r rune) bool { return r > '~' || strings.ContainsRune("[]*/~%, .", r) })
}

func (w *schemaWriter) object(t reflect.Type, path string) (string, error) {
	var properties, required []string
	for _, field := range visible(t) {
		inner, err := w.schema(field.Type, path+"."+field.Name)
		if err == nil && field.has("string") {
			inner, err = inString(field.Type, path+"."+field.Name, inner)
		}
		if err != nil {
			return "", err
		}
		properties = append(properties, quoted(field.name)+":"+inner)
		if !field.has("omitempty") && !field.has("omitzero") {
			required = append(required, quoted(field.name))
		}
	}
	return `{"type":"object","properties":{` + strings.Join(properties, ",") + `},"required":[` +
		strings.Join(required, ",") + `],"additionalProperties":false}`, nil
}

// inString is the schema of a value that the option "string" puts into one.
func inString(t reflect.Type, path, plain string) (string, error) {
	switch kind := t.Kind(); {
	case kind == reflect.Bool:
		return `{"enum":["true","false"]}`, nil
	case kind >= reflect.Int && kind <= reflect.Int64:
		return `{"type":"string","pattern":"^-?(0|[1-9][0-9]{0,14})$"}`, nil
	case kind >= reflect.Uint && kind <= reflect.Uint64:
		return `{"type":"string","pattern":"^(0|[1-9][0-9]{0,14})$"}`, nil
	case kind == reflect.Float32 || kind == reflect.Float64:
		return `{"type":"string","pattern":"^-?(0|[1-9][0-9]{0,14})(\\.[0-9]{1,15})?$"}`, nil
	case kind == reflect.String || kind == reflect.Pointer:
		return "", fmt.Errorf("%s: a %v within a string has no schema", where(path), t)
	}
	return plain, nil // encoding/json ignores the option
}

// A jsonField is a field of a struct as encoding/json sees it.
type jsonField struct {
	reflect.StructField
	name    string
	options string
	tagged  bool
	depth   int // of embedded structs around it
}

func (f *jsonField) has(option string) bool {
	return strings.Contains(","+f.options+",", ","+option+",")
}

// visible returns the fields that encoding/json reads, in their order. Of several
// with one name it takes the outermost, then the one whose tag says the name,
// and none if there are still several.
func visible(t reflect.Type) []jsonField {
	all := fieldsOf(t, 0, map[reflect.Type]bool{})
	var kept []jsonField
	for _, field := range all {
		rivals := 0
		for _, other := range all {
			if other.name == field.name && !field.beats(other) {
				rivals++
			}
		}
		if rivals == 1 { // itself
			kept = append(kept, field)
		}
	}
	return kept
}

func (f *jsonField) beats(other jsonField) bool {
	if f.depth != other.depth {
		return f.depth < other.depth
	}
	return f.tagged && !other.tagged
}

func fieldsOf(t reflect.Type, depth int, within map[reflect.Type]bool) []jsonField {
	if within[t] {
		return nil
	}
	within[t] = true
	defer delete(within, t)
	var fields []jsonField
	for i := range t.NumField() {
		field := t.Field(i)
		tag := field.Tag.Get("json")
		name, options, _ := strings.Cut(tag, ",")
		inner := field.Type
		if inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		switch {
		case tag == "-":
		case field.Anonymous && name == "" && inner.Kind() == reflect.Struct:
			fields = append(fields, fieldsOf(inner, depth+1, within)...)
		case field.IsExported() && name != "":
			fields = append(fields, jsonField{field, name, options, true, depth})
		case field.IsExported():
			fields = append(fields, jsonField{field, field.Name, options, false, depth})
		}
	}
	return fields
}

func where(path string) string {
	if path == "" {
		return "it"
	}
	return strings.TrimPrefix(path, ".")
}

func quoted(text string) string {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.Encode(text) // a string always can be
	return strings.TrimSuffix(out.String(), "\n")
}
