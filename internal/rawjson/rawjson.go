// Package rawjson reads JSON that is known to be valid without decoding it: what
// it returns are slices of the text. All functions need text for which
// [encoding/json.Valid] is true, or a value out of such text, and may panic on
// any other.
package rawjson

import (
	"bytes"
	"encoding/json"
	"iter"
	"strings"
	"unicode/utf8"
)

// Object holds the members of a JSON object in their order. Names match exactly
// and the last of a repeated name counts, as in encoding/json.
type Object []Member

// Member is a name, as sent, without the quotes, and its value.
type Member struct{ Name, Value []byte }

// Members returns the members of an object; ok is false if raw is none.
func Members(raw []byte) (o Object, ok bool) {
	i := space(raw, 0)
	if i == len(raw) || raw[i] != '{' {
		return nil, false
	}
	o = make(Object, 0, 8)
	for name, value := range Pairs(raw) {
		o = append(o, Member{name, value})
	}
	return o, true
}

// Pairs yields names and values of an object.
func Pairs(raw []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(name, value []byte) bool) {
		for i := space(raw, space(raw, 0)+1); raw[i] != '}'; i = space(raw, i) {
			if raw[i] == ',' {
				i = space(raw, i+1)
			}
			end := skip(raw, i)
			name := raw[i+1 : end-1]
			i = space(raw, space(raw, end)+1) // behind the colon
			end = skip(raw, i)
			if !yield(name, raw[i:end:end]) {
				return
			}
			i = end
		}
	}
}

// Elements yields the values of an array.
func Elements(raw []byte) iter.Seq[[]byte] {
	return func(yield func(value []byte) bool) {
		for i := space(raw, space(raw, 0)+1); raw[i] != ']'; i = space(raw, i) {
			if raw[i] == ',' {
				i = space(raw, i+1)
			}
			end := skip(raw, i)
			if !yield(raw[i:end:end]) {
				return
			}
			i = end
		}
	}
}

// space returns where the next token begins.
func space(raw []byte, i int) int {
	for i < len(raw) && (raw[i] == ' ' || raw[i] == '\n' || raw[i] == '\t' || raw[i] == '\r') {
		i++
	}
	return i
}

// skip returns where the value that begins at i ends.
func skip(raw []byte, i int) int {
	depth := 0
	for ; i < len(raw); i++ {
		switch raw[i] {
		case '"':
			i = closing(raw, i+1)
			if depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i // of a number or a word before it
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ' ', '\n', '\t', '\r':
			if depth == 0 {
				return i
			}
		}
	}
	return i
}

// closing returns where the quote is that ends the string of which i is a part.
func closing(raw []byte, i int) int {
	for {
		i += bytes.IndexByte(raw[i:], '"')
		escapes := 0
		for raw[i-1-escapes] == '\\' {
			escapes++
		}
		if escapes%2 == 0 {
			return i
		}
		i++
	}
}

// Get returns the value under name, nil if there is none.
func (o Object) Get(name string) []byte {
	for i := len(o) - 1; i >= 0; i-- {
		if o[i].is(name) {
			return o[i].Value
		}
	}
	return nil
}

func (m Member) is(name string) bool {
	if bytes.IndexByte(m.Name, '\\') < 0 {
		return string(m.Name) == name
	}
	return Unquote(m.Name) == name
}

// Str returns the string under name, and "" if there is none.
func (o Object) Str(name string) string {
	value := o.Get(name)
	if len(value) == 0 || value[0] != '"' {
		return ""
	}
	return Unquote(value[1 : len(value)-1])
}

// Text returns the string or, digit by digit, the number under name.
func (o Object) Text(name string) string {
	if value := o.Get(name); len(value) > 0 && (value[0] == '-' || '0' <= value[0] && value[0] <= '9') {
		return string(value)
	}
	return o.Str(name)
}

// Object returns the object under name, empty if there is none.
func (o Object) Object(name string) Object {
	inner, _ := Members(o.Get(name))
	return inner
}

// Compact returns the value under name without white space, "" if there is none.
func (o Object) Compact(name string) string { return Compact(o.Get(name)) }

// Unquote decodes what is between the quotes of a string.
func Unquote(raw []byte) string {
	if bytes.IndexByte(raw, '\\') < 0 && utf8.Valid(raw) {
		return string(raw)
	}
	quoted := append(append([]byte{'"'}, raw...), '"')
	var s string
	if json.Unmarshal(quoted, &s) != nil {
		return ""
	}
	return s
}

// Compact removes the white space between tokens; literals and the order of names
// stay as sent.
func Compact(raw []byte) string {
	var b strings.Builder
	b.Grow(len(raw))
	done := 0
	for i := 0; i < len(raw); {
		switch raw[i] {
		case '"':
			i = closing(raw, i+1) + 1
		case ' ', '\n', '\t', '\r':
			b.Write(raw[done:i])
			i = space(raw, i)
			done = i
		default:
			i++
		}
	}
	b.Write(raw[done:])
	return b.String()
}
