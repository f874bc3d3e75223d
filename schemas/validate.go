package schemas

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
)

// Limits of what is judged and reported.
const (
	// MaxPointer is the length in bytes at which a pointer is cut off.
	MaxPointer = 256
	// MaxValues is the number of values above which a body is not judged: what
	// the validator holds for each wrong one is many times its size.
	MaxValues = 25_000
)

// maxNumber is the length in bytes above which a number is taken for no integer.
const maxNumber = 32

// base is where the compiler finds the files. Nothing is loaded over a network.
const base = "embed:///"

// A Validator judges bodies. It may be used by several goroutines at once.
type Validator struct {
	schemas map[Type]*jsonschema.Schema
	shapes  map[Type]*shape // of those that have one
	places  chan struct{}   // of those who judge: each may hold some MiB
}

// Compile returns a validator of all types. An error means that a file is no
// JSON Schema or refers to something that is not there.
func Compile() (*Validator, error) {
	c := jsonschema.NewCompiler()
	c.UseLoader(loader{})
	v := &Validator{schemas: map[Type]*jsonschema.Schema{}, shapes: map[Type]*shape{}, places: make(chan struct{}, runtime.GOMAXPROCS(0))}
	for _, t := range Types() {
		name, _ := Path(t.Provider, t.Kind)
		schema, err := c.Compile(base + name)
		if err != nil {
			return nil, fmt.Errorf("schemas: %s: %w", name, err)
		}
		v.schemas[t] = schema
		if sh, ok := (shapes{}).of(schema); ok {
			v.shapes[t] = sh
		}
	}
	return v, nil
}

// loader reads the embedded files.
type loader struct{}

var _ jsonschema.URLLoader = loader{}

func (loader) Load(url string) (any, error) {
	data, err := files.ReadFile(strings.TrimPrefix(url, base))
	if err != nil {
		return nil, err
	}
	return jsonschema.UnmarshalJSON(bytes.NewReader(data))
}

// A Violation says where a body departs from its schema.
type Violation struct {
	// Pointer is the JSON pointer of the value that is wrong or missing, ""
	// for the whole body. Its names may come from the body: a character other
	// than printable ASCII, and a space, a double quote or a percent sign, is
	// written as _, and what is beyond [MaxPointer] bytes is cut off.
	Pointer string
	// Expected is the keyword that failed, with what the schema asks for where
	// that is short: "required", "type=string,null", "const=flag", "json".
	Expected string
}

// String returns pointer and expectation with a colon between them, in
// printable ASCII without spaces, quotes and percent signs.
func (v *Violation) String() string { return v.Pointer + ":" + v.Expected }

// Fits reports whether a body, which must be valid JSON, certainly has no
// violation. It is many times faster than [Validator.Validate], which is to
// be asked where it does not.
func (v *Validator) Fits(provider, kind string, body []byte) bool {
	sh := v.shapes[Type{provider, kind}]
	return sh != nil && sh.fits(body)
}

// Validate judges a body by the schema of its type. It returns nil if the body
// is valid or is not judged, and whether there is a schema for the type.
//
// Of several violations it returns the first by pointer, always the same one.
// A body that is not JSON, or is nested deeper than 10,000 levels, violates
// "json". One that, by its commas and opening brackets, may hold more than
// [MaxValues] values is not judged.
func (v *Validator) Validate(provider, kind string, body []byte) (violation *Violation, known bool) {
	schema, known := v.schemas[Type{provider, kind}]
	if !known || values(body) > MaxValues {
		return nil, known
	}
	v.places <- struct{}{}
	defer func() { <-v.places }()
	instance, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return &Violation{Expected: "json"}, true
	}
	var invalid *jsonschema.ValidationError
	if !errors.As(schema.Validate(tame(instance)), &invalid) {
		return nil, true
	}
	var first finding
	first.search(invalid)
	return &Violation{Pointer: pointer(first.location), Expected: first.expected}, true
}

// values returns an upper bound of the number of values in a JSON text.
func values(body []byte) int {
	n := 1
	for _, token := range []string{",", "[", "{"} {
		n += bytes.Count(body, []byte(token))
	}
	return n
}

// tame replaces the numbers of an instance that the validator, to see whether
// they are integers, would write out digit by digit: 1e999999 is 400 KiB. What
// is put in their place is a number and no integer.
func tame(instance any) any {
	switch v := instance.(type) {
	case map[string]any:
		for name, value := range v {
			v[name] = tame(value)
		}
	case []any:
		for i, value := range v {
			v[i] = tame(value)
		}
	case json.Number:
		_, exponent, _ := strings.Cut(strings.ToLower(v.String()), "e")
		if len(v) > maxNumber || len(strings.TrimLeft(exponent, "+-")) > 2 {
			return json.Number("0.5")
		}
	}
	return instance
}

// A finding is the least of the violations that were looked at.
type finding struct {
	location []string
	expected string
}

// search looks at all violations below an error of the validator, which
// reports those of one object in random order.
func (f *finding) search(e *jsonschema.ValidationError) {
	switch k := e.ErrorKind.(type) {
	case *kind.Required:
		for _, name := range k.Missing {
			f.take(append(slices.Clone(e.InstanceLocation), name), "required")
		}
	case *kind.Type:
		f.take(e.InstanceLocation, "type="+strings.Join(k.Want, ","))
	case *kind.Const:
		f.take(e.InstanceLocation, fmt.Sprintf("const=%v", k.Want))
	case *kind.AnyOf: // what its alternatives want, only one of them wants
		f.take(e.InstanceLocation, "anyOf")
	default:
		if len(e.Causes) == 0 {
			f.take(e.InstanceLocation, strings.Join(k.KeywordPath(), "/"))
		}
		for _, cause := range e.Causes { // of a reference, or of the schema itself
			f.search(cause)
		}
	}
}

func (f *finding) take(location []string, expected string) {
	if f.expected != "" {
		if order := slices.Compare(location, f.location); order > 0 || order == 0 && expected >= f.expected {
			return
		}
	}
	f.location, f.expected = location, expected
}

// pointer writes a location as [Violation.Pointer] describes.
func pointer(location []string) string {
	var b strings.Builder
	for _, name := range location {
		b.WriteByte('/')
		for _, r := range name {
			switch {
			case b.Len() >= MaxPointer:
				return b.String()[:MaxPointer]
			case r == '~':
				b.WriteString("~0")
			case r == '/':
				b.WriteString("~1")
			case r <= ' ' || r >= 0x7f || r == '"' || r == '%':
				b.WriteByte('_')
			default:
				b.WriteRune(r)
			}
		}
	}
	return b.String()[:min(b.Len(), MaxPointer)]
}
