package normalize

import (
	"bytes"
	"crypto/rand"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"time"
)

//go:embed testdata/samples
var samples embed.FS

// A Sample is a body that a provider documents.
type Sample struct {
	Name string // file name without its ending
	Kind string // as in [Event]
	Body []byte
}

// Samples returns the provider's documented bodies, in the order of their names.
func (p Provider) Samples() []Sample {
	dir := path.Join("testdata/samples", p.Name)
	entries, err := samples.ReadDir(dir)
	if err != nil {
		panic(err) // embedded: cannot fail
	}
	var out []Sample
	for _, entry := range entries {
		body, err := samples.ReadFile(path.Join(dir, entry.Name()))
		if err != nil {
			panic(err)
		}
		e, err := p.Event(body, time.Time{})
		if err != nil {
			panic(fmt.Sprintf("%s/%s: %v", dir, entry.Name(), err))
		}
		out = append(out, Sample{Name: strings.TrimSuffix(entry.Name(), ".json"), Kind: e.Kind, Body: body})
	}
	return out
}

// Fresh returns the body with new ids and times, so that it is an event of its
// own that happens at now. All else stays as it is.
func (p Provider) Fresh(body []byte, now time.Time) []byte { return p.fresh(body, now) }

// Stamp returns the body with the time of signing at now, if the provider
// signs a time in the body. All else stays as it is.
func (p Provider) Stamp(body []byte, now time.Time) []byte {
	if p.Scheme.TimeField == "" {
		return body
	}
	return setField(body, now.Unix(), p.Scheme.TimeField)
}

// setField sets the member at path of the JSON object body, which it appends
// if it is missing. It leaves all other bytes alone, and returns body as it is
// if that is no object.
func setField(body []byte, value any, path ...string) []byte {
	_, start, end, found := findField(body, path[0])
	switch {
	case found && len(path) > 1:
		return splice(body, start, end, setField(body[start:end], value, path[1:]...))
	case found:
		return splice(body, start, end, encode(value))
	case start == 0 || len(path) > 1:
		return body
	}
	member := append(append(encode(path[0]), ':'), encode(value)...)
	if o, _ := parseObject(body); len(o) > 0 {
		member = append([]byte{','}, member...)
	}
	return splice(body, start, start, member)
}

// dropField removes a top-level member, however often it is there.
func dropField(body []byte, name string) []byte {
	for {
		before, _, end, found := findField(body, name)
		if !found {
			return body
		}
		// The comma in front of the member goes with it, or, if it is the first,
		// the one behind it.
		if rest := bytes.TrimLeft(body[end:], " \t\r\n"); body[before] != ',' && rest[0] == ',' {
			end = len(body) - len(rest) + 1
		}
		body = splice(body, before, end, nil)
	}
}

// findField returns where the top-level member of that name stands, the last
// one of several: before is the end of the member in front of it, or of the
// brace. If there is none, start is where the object ends, or 0 if body is no
// object.
func findField(body []byte, name string) (before, start, end int, found bool) {
	if _, err := parseObject(body); err != nil {
		return 0, 0, 0, false
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.Token() // the brace
	for d.More() {
		at := int(d.InputOffset())
		key, _ := d.Token()
		var value json.RawMessage
		if d.Decode(&value) != nil {
			return 0, 0, 0, false
		}
		if key == name {
			before, end, found = at, int(d.InputOffset()), true
			start = end - len(value)
		}
	}
	if !found {
		start = bytes.LastIndexByte(body, '}')
	}
	return before, start, end, found
}

func splice(body []byte, start, end int, value []byte) []byte {
	return bytes.Join([][]byte{body[:start], value, body[end:]}, nil)
}

func encode(value any) []byte {
	b, err := json.Marshal(value)
	if err != nil {
		panic(err) // strings and integers only
	}
	return b
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return b
}

func randomHex(n int) string { return hex.EncodeToString(randomBytes(n)) }

func randomDigits(n int) string {
	b := randomBytes(n)
	for i := range b {
		b[i] = '1' + b[i]%9
	}
	return string(b)
}
