package schemas

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/hookbus/bridge/internal/rawjson"
)

// shape is a compiled schema in a form that a text is compared with as it stands:
// to decode a body, and to judge that by the library, costs more than all else
// that the bridge does with it. It says of a text that it fits, or nothing: then
// the library judges.
type shape struct {
	types    jsonschema.Types // 0: any
	members  map[string]member
	required uint64 // by member.bit
	others   *shape // what other members must be; nil: anything
	items    *shape // nil: anything
	constant string // between its quotes; a string that needs no escape
	isConst  bool
	runes    int // at most; -1: any number
	all, any []*shape
}

type member struct {
	shape *shape // nil: anything
	bit   uint64 // 0: not required
}

// unread are the fields of [jsonschema.Schema] that a shape does not have, and that
// say something of a text: if one is set, there is no shape.
var unread = func() (fields []int) {
	known := []string{
		"Types", "Properties", "Required", "AdditionalProperties", "Items2020", "Const", "MaxLength", "Ref", "AllOf", "AnyOf",
		"DraftVersion", "Location", "ID", "Anchor", "Title", "Description", "Default", "Comment", "ReadOnly", "WriteOnly", "Examples", "Deprecated",
	}
	schema := reflect.TypeFor[jsonschema.Schema]()
	for i := range schema.NumField() {
		if f := schema.Field(i); f.IsExported() && !slices.Contains(known, f.Name) {
			fields = append(fields, i)
		}
	}
	return fields
}()

// shapes makes shapes, each once: schemas may refer to themselves.
type shapes map[*jsonschema.Schema]*shape

// of returns the shape of a schema; ok is false if it, or one that it refers to,
// has a keyword that shapes have not.
func (made shapes) of(s *jsonschema.Schema) (sh *shape, ok bool) {
	if s == nil {
		return nil, true
	}
	if sh, ok := made[s]; ok {
		return sh, true
	}
	v := reflect.ValueOf(*s)
	if slices.ContainsFunc(unread, func(field int) bool { return !v.Field(field).IsZero() }) {
		return nil, false
	}
	sh = &shape{members: make(map[string]member), runes: -1}
	made[s] = sh
	if s.Types != nil {
		sh.types = *s.Types
	}
	if s.MaxLength != nil {
		sh.runes = *s.MaxLength
	}
	if s.Const != nil {
		sh.isConst = true
		if sh.constant, ok = (*s.Const).(string); !ok || strings.ContainsFunc(sh.constant, func(r rune) bool { return r < ' ' || r == '"' || r == '\\' || r == utf8.RuneError }) {
			return nil, false
		}
	}
	all := true
	child := func(s *jsonschema.Schema) *shape {
		sh, ok := made.of(s)
		all = all && ok
		return sh
	}
	for name, s := range s.Properties {
		sh.members[name] = member{shape: child(s)}
	}
	for i, name := range s.Required {
		m := sh.members[name]
		m.bit = 1 << i
		sh.members[name] = m
		sh.required |= m.bit
	}
	switch others := s.AdditionalProperties.(type) {
	case nil:
	case *jsonschema.Schema:
		sh.others = child(others)
		all = all && len(s.Required) == 0 // what is required is none of the others here
	default:
		return nil, false
	}
	sh.items = child(s.Items2020)
	if s.Ref != nil {
		sh.all = append(sh.all, child(s.Ref))
	}
	for _, s := range s.AllOf {
		sh.all = append(sh.all, child(s))
	}
	for _, s := range s.AnyOf {
		sh.any = append(sh.any, child(s))
	}
	return sh, all && len(s.Required) <= 64
}

// fits reports whether valid JSON is certain to fit.
func (s *shape) fits(raw []byte) bool {
	if s == nil {
		return true
	}
	raw = bytes.TrimLeft(raw, " \t\r\n")
	if s.types != 0 && s.types&typeOf(raw) == 0 {
		return false
	}
	for _, part := range s.all {
		if !part.fits(raw) {
			return false
		}
	}
	if s.any != nil && !slices.ContainsFunc(s.any, func(s *shape) bool { return s.fits(raw) }) {
		return false
	}
	if s.isConst && (raw[0] != '"' || string(raw[1:len(raw)-1]) != s.constant) {
		return false
	}
	switch raw[0] {
	case '{':
		return s.fitsObject(raw)
	case '[':
		if s.items != nil {
			for element := range rawjson.Elements(raw) {
				if !s.items.fits(element) {
					return false
				}
			}
		}
	case '"':
		return s.runes < 0 || bytes.IndexByte(raw, '\\') < 0 && utf8.RuneCount(raw)-2 <= s.runes
	}
	return true
}

// fitsObject looks at each member, also at those that another of the same name
// comes after.
func (s *shape) fitsObject(raw []byte) bool {
	if len(s.members) == 0 && s.others == nil {
		return true
	}
	missing := s.required
	for name, value := range rawjson.Pairs(raw) {
		if bytes.IndexByte(name, '\\') >= 0 {
			return false
		}
		m, known := s.members[string(name)]
		if !known {
			m.shape = s.others
		}
		if !m.shape.fits(value) {
			return false
		}
		missing &^= m.bit
	}
	return missing == 0
}

func typeNamed(name string) (t jsonschema.Types) {
	t.Add(name)
	return t
}

var (
	nullType, booleanType  = typeNamed("null"), typeNamed("boolean")
	stringType, arrayType  = typeNamed("string"), typeNamed("array")
	objectType, numberType = typeNamed("object"), typeNamed("number")
	integerType            = typeNamed("integer")
)

// typeOf returns the types of a value, of an integer only if it is written as one.
func typeOf(raw []byte) jsonschema.Types {
	switch raw[0] {
	case '{':
		return objectType
	case '[':
		return arrayType
	case '"':
		return stringType
	case 't', 'f':
		return booleanType
	case 'n':
		return nullType
	}
	if len(raw) > maxNumber || bytes.IndexFunc(raw, func(r rune) bool { return r != '-' && (r < '0' || r > '9') }) >= 0 {
		return numberType
	}
	return numberType | integerType
}
