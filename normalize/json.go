package normalize

import (
	"bytes"
	"encoding/json"
	"unicode/utf8"
)

// object is a JSON object whose values are not decoded: slices of the body, in
// their order. Names match exactly and the last of a repeated name counts.
type object []member

type member struct {
	name  []byte // as sent, without the quotes
	value json.RawMessage
}

// parseObject returns ErrNotJSON for anything but one JSON object.
func parseObject(body []byte) (object, error) {
	if !json.Valid(body) {
		return nil, ErrNotJSON
	}
	o, ok := members(body)
	if !ok {
		return nil, ErrNotJSON
	}
	return o, nil
}

// members splits an object, which is part of valid JSON. Nothing is checked again.
func members(raw []byte) (o object, ok bool) {
	i := space(raw, 0)
	if i == len(raw) || raw[i] != '{' {
		return nil, false
	}
	o = make(object, 0, 8)
	for i = space(raw, i+1); raw[i] != '}'; i = space(raw, i) {
		if raw[i] == ',' {
			i = space(raw, i+1)
		}
		end := skip(raw, i)
		m := member{name: raw[i+1 : end-1]}
		i = space(raw, space(raw, end)+1) // behind the colon
		end = skip(raw, i)
		m.value, i = raw[i:end], end
		o = append(o, m)
	}
	return o, true
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
			for i++; raw[i] != '"'; i++ {
				if raw[i] == '\\' {
					i++
				}
			}
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

// get returns the value under name, nil if there is none.
func (o object) get(name string) json.RawMessage {
	for i := len(o) - 1; i >= 0; i-- {
		if o[i].is(name) {
			return o[i].value
		}
	}
	return nil
}

func (m member) is(name string) bool {
	if bytes.IndexByte(m.name, '\\') < 0 {
		return string(m.name) == name
	}
	return unquote(m.name) == name
}

// unquote decodes what is between the quotes of a string.
func unquote(raw []byte) string {
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

// str returns the string under name, and "" if there is none.
func (o object) str(name string) string {
	value := o.get(name)
	if len(value) == 0 || value[0] != '"' {
		return ""
	}
	return unquote(value[1 : len(value)-1])
}

// text returns the string or, digit by digit, the number under name.
func (o object) text(name string) string {
	if value := o.get(name); len(value) > 0 && (value[0] == '-' || '0' <= value[0] && value[0] <= '9') {
		return string(value)
	}
	return o.str(name)
}

// object returns the object under name, empty if there is none.
func (o object) object(name string) object {
	inner, _ := members(o.get(name))
	return inner
}

// compact returns the value under name without white space, "" if there is none.
func (o object) compact(name string) string { return compact(o.get(name)) }

// compact removes the white space between the tokens of valid JSON; literals
// and the order of names stay as sent.
func compact(raw []byte) string {
	var b bytes.Buffer
	b.Grow(len(raw))
	if json.Compact(&b, raw) != nil {
		return ""
	}
	return b.String()
}
