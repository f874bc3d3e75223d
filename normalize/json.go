package normalize

import (
	"bytes"
	"encoding/json"
)

// object is a JSON object whose values are not decoded. Names match exactly
// and the last of a repeated name counts.
type object map[string]json.RawMessage

// parseObject returns ErrNotJSON for anything but one JSON object.
func parseObject(body []byte) (object, error) {
	var o object
	if err := json.Unmarshal(body, &o); err != nil || o == nil {
		return nil, ErrNotJSON
	}
	return o, nil
}

// str returns the string under name, and "" if there is none.
func (o object) str(name string) string {
	var s string
	if json.Unmarshal(o[name], &s) != nil {
		return ""
	}
	return s
}

// text returns the string or, digit by digit, the number under name.
func (o object) text(name string) string {
	var n json.Number
	if json.Unmarshal(o[name], &n) == nil {
		return n.String()
	}
	return o.str(name)
}

// object returns the object under name, empty if there is none.
func (o object) object(name string) object {
	inner, _ := parseObject(o[name])
	return inner
}

// compact returns the value under name without white space, "" if there is none.
func (o object) compact(name string) string { return compact(o[name]) }

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
