package rawjson_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/hookbus/bridge/internal/rawjson"
	"github.com/hookbus/bridge/normalize"
)

// What is read of a text is what encoding/json reads.
func FuzzRead(f *testing.F) {
	for _, p := range normalize.Providers() {
		for _, s := range p.Samples() {
			f.Add(s.Body)
		}
	}
	for _, body := range []string{
		`[1, "\\\"]" ,{"a":[ ]},[[]] ,null]`, `"\\\\"`, ` [ ] `,
		`{}`, ` { } `, `null`, `[]`, `"x"`, ``, `{"a":1}x`, `{"a":1,"a":"2"}`, `{"\u0061":"\u00e9\ud83d\ude00\ud800","b\"":"\\","a":"\"}"}`,
		`{"a":{"b":[1,{"c":"]}"}],"d":-0.5e+10},"e":true ,"f" : null	,"g":""}`, "{\"a\":\"\xff\",\"\xff\":1}", `{"a":"1","b":"1x","c":1.0}`, `{"a":12}`, `{"a":{"a":{}}}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if !json.Valid(body) {
			return
		}
		var compact bytes.Buffer
		if json.Compact(&compact, body); rawjson.Compact(body) != compact.String() {
			t.Fatalf("%q: compact %q", body, rawjson.Compact(body))
		}
		var elements []json.RawMessage
		if json.Unmarshal(body, &elements) == nil && elements != nil {
			for element := range rawjson.Elements(body) {
				if len(elements) == 0 || string(element) != string(elements[0]) {
					t.Fatalf("%q: %q is not %q", body, element, elements)
				}
				elements = elements[1:]
			}
			if len(elements) > 0 {
				t.Fatalf("%q: %q are missing", body, elements)
			}
		}
		o, ok := rawjson.Members(body)
		var want map[string]json.RawMessage
		if err := json.Unmarshal(body, &want); (err == nil && want != nil) != ok {
			t.Fatalf("%q: %v, want %v", body, ok, err)
		}
		var check func(o rawjson.Object, want map[string]json.RawMessage)
		check = func(o rawjson.Object, want map[string]json.RawMessage) {
			for name, value := range want {
				if strings.ContainsRune(name, utf8.RuneError) {
					continue // of bytes that are none; nobody asks for such a name
				}
				if got := o.Get(name); string(got) != string(value) {
					t.Fatalf("%q: %q is %q, want %q", body, name, got, value)
				}
				var str string
				if json.Unmarshal(value, &str) != nil {
					str = ""
				}
				if got := o.Str(name); got != str {
					t.Fatalf("%q: %q is %q, want %q", body, name, got, str)
				}
				var number json.Number
				text := str
				if json.Unmarshal(value, &number) == nil {
					text = number.String()
				}
				if got := o.Text(name); got != text {
					t.Fatalf("%q: %q is %q, want %q", body, name, got, text)
				}
				var inner map[string]json.RawMessage
				if json.Unmarshal(value, &inner) != nil {
					inner = nil
				}
				check(o.Object(name), inner)
			}
			if len(want) == 0 && len(o) > 0 {
				t.Fatalf("%q: %d members, want none", body, len(o))
			}
		}
		check(o, want)
	})
}
