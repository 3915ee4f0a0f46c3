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
	marshaler   = reflect.TypeFor[json.Marshaler]()
	textual     = reflect.TypeFor[encoding.TextMarshaler]()
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
// An interface or a type with a MarshalJSON of its own may be anything. It is an
// error if T has what JSON has not, such as a channel or a map without string
// keys.
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
	case t.Implements(marshaler) || reflect.PointerTo(t).Implements(marshaler):
		return `{}`, nil
	case t.Implements(textual) || reflect.PointerTo(t).Implements(textual):
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
		return w.list(t, path)
	case reflect.Map:
		if t.Key().Kind() != reflect.String {
			return "", fmt.Errorf("%s: a map needs string keys, not %v", where(path), t.Key())
		}
		inner, err := w.schema(t.Elem(), path+"{}")
		return `{"type":"object","additionalProperties":` + inner + `}`, err
	case reflect.Struct:
		return w.named(t, path)
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

// named writes a reference to a struct that has a name, and the struct itself
// where it has none.
func (w *schemaWriter) named(t reflect.Type, path string) (string, error) {
	if t.Name() == "" {
		return w.object(t, path)
	}
	if name, known := w.defs[t]; known {
		return refTo(name), nil
	}
	name := fmt.Sprintf("%s%d", t.Name(), len(w.defs))
	if !isPlain(name) {
		name = fmt.Sprintf("T%d", len(w.defs))
	}
	w.defs[t] = name
	object, err := w.object(t, path)
	w.written = append(w.written, quoted(name)+":"+object)
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
	for _, field := range reflect.VisibleFields(t) {
		name, options, skipped := jsonName(field)
		if skipped || len(field.Index) > 1 && shadowed(t, field) {
			continue
		}
		inner, err := w.schema(field.Type, path+"."+field.Name)
		if err != nil {
			return "", err
		}
		if strings.Contains(","+options+",", ",string,") {
			inner = `{"type":"string"}`
		}
		properties = append(properties, quoted(name)+":"+inner)
		if !strings.Contains(options, "omit") {
			required = append(required, quoted(name))
		}
	}
	return `{"type":"object","properties":{` + strings.Join(properties, ",") + `},"required":[` +
		strings.Join(required, ",") + `],"additionalProperties":false}`, nil
}

// jsonName is the field's name in JSON, as encoding/json finds it.
func jsonName(field reflect.StructField) (name, options string, skipped bool) {
	tag := field.Tag.Get("json")
	name, options, _ = strings.Cut(tag, ",")
	kind := field.Type
	if kind.Kind() == reflect.Pointer {
		kind = kind.Elem()
	}
	isInlined := field.Anonymous && name == "" && kind.Kind() == reflect.Struct
	if tag == "-" || !field.IsExported() || isInlined {
		return "", "", true
	}
	if name == "" {
		name = field.Name
	}
	return name, options, false
}

// shadowed says whether an outer struct, which holds the one that has the
// field, is no embedded one: then the field is not inlined.
func shadowed(t reflect.Type, field reflect.StructField) bool {
	for depth := 1; depth < len(field.Index); depth++ {
		outer := t.FieldByIndex(field.Index[:depth])
		if name, _, _ := strings.Cut(outer.Tag.Get("json"), ","); name != "" {
			return true
		}
	}
	return false
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
