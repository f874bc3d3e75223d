package normalize

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

// What is read of a body is what encoding/json reads.
func FuzzObject(f *testing.F) {
	for _, p := range Providers() {
		for _, s := range p.Samples() {
			f.Add(s.Body)
		}
	}
	for _, body := range []string{
		`{}`, ` { } `, `null`, `[]`, `"x"`, ``, `{"a":1}x`, `{"a":1,"a":"2"}`, `{"\u0061":"\u00e9\ud83d\ude00\ud800","b\"":"\\","a":"\"}"}`,
		`{"a":{"b":[1,{"c":"]}"}],"d":-0.5e+10},"e":true ,"f" : null	,"g":""}`, "{\"a\":\"\xff\",\"\xff\":1}", `{"a":"1","b":"1x","c":1.0}`, `{"a":12}`, `{"a":{"a":{}}}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		o, err := parseObject(body)
		var want map[string]json.RawMessage
		if wantErr := json.Unmarshal(body, &want); (wantErr != nil || want == nil) != (err != nil) {
			t.Fatalf("%q: %v, want %v", body, err, wantErr)
		}
		var check func(o object, want map[string]json.RawMessage)
		check = func(o object, want map[string]json.RawMessage) {
			for name, value := range want {
				if strings.ContainsRune(name, utf8.RuneError) {
					continue // of bytes that are none; nobody asks for such a name
				}
				if got := o.get(name); string(got) != string(value) {
					t.Fatalf("%q: %q is %q, want %q", body, name, got, value)
				}
				var str string
				if json.Unmarshal(value, &str) != nil {
					str = ""
				}
				if got := o.str(name); got != str {
					t.Fatalf("%q: %q is %q, want %q", body, name, got, str)
				}
				var number json.Number
				text := str
				if json.Unmarshal(value, &number) == nil {
					text = number.String()
				}
				if got := o.text(name); got != text {
					t.Fatalf("%q: %q is %q, want %q", body, name, got, text)
				}
				var inner map[string]json.RawMessage
				if json.Unmarshal(value, &inner) != nil {
					inner = nil
				}
				check(o.object(name), inner)
			}
			if len(want) == 0 && len(o) > 0 {
				t.Fatalf("%q: %d members, want none", body, len(o))
			}
		}
		check(o, want)
	})
}
