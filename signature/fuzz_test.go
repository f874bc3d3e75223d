package signature_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/hookbus/bridge/signature"
)

// A header is accepted only if it is the genuine one; for HeaderTime, if the genuine items are in it
// once each.
func FuzzHeader(f *testing.F) {
	genuine := map[string]string{}
	verifiers := map[string]*signature.Verifier{}
	for name, p := range providers {
		genuine[name] = p.sign(f, p.body)
		verifiers[name] = p.verifier(f)
		f.Add(genuine[name])
		f.Add(strings.ToUpper(genuine[name]))
		f.Add(genuine[name] + "," + genuine[name])
	}
	f.Add("")
	f.Add(",t=,v1=,t=,v1=")
	f.Fuzz(func(t *testing.T, value string) {
		for name, p := range providers {
			slot, err := verifiers[name].Verify(p.header(value), []byte(p.body), now)
			want := value == genuine[name]
			if p.Time == signature.HeaderTime {
				items := strings.Split(value, ",")
				want = !strings.ContainsAny(value, " \t")
				for _, item := range items {
					want = want && strings.Contains(item, "=")
				}
				for item := range strings.SplitSeq(genuine[name], ",") {
					key, _, _ := strings.Cut(item, "=")
					same := func(s string) bool { return strings.HasPrefix(s, key+"=") }
					i := slices.IndexFunc(items, same)
					want = want && i >= 0 && items[i] == item && !slices.ContainsFunc(items[i+1:], same)
				}
			}
			if (err == nil) != want || (slot == 0) != want {
				t.Errorf("%s: %q: got %d, %v, accepted should be %v", name, value, slot, err, want)
			}
			if err != nil && !slices.Contains([]error{
				signature.ErrMissing, signature.ErrMalformed, signature.ErrMismatch, signature.ErrTimestamp,
			}, err) {
				t.Errorf("%s: %q: unexpected error %v", name, value, err)
			}
		}
	})
}

// A signed body is accepted by every scheme but Dfns's, by that one if it was sent lately; followed by
// a line break that is not signed, only by schemes with Compact, and only if it is compact JSON.
func FuzzBody(f *testing.F) {
	verifiers := map[string]*signature.Verifier{}
	for name, p := range providers {
		verifiers[name] = p.verifier(f)
		f.Add([]byte(p.body))
	}
	f.Add([]byte(``))
	f.Add([]byte(`null`))
	f.Add([]byte(`{"timestampSent":1720018333.0}`))
	f.Add([]byte("\n{ \"timestampSent\":1, \"data\":{\"timestampSent\":[]},\t\"timestampSent\":1720018333 }"))
	f.Fuzz(func(t *testing.T, body []byte) {
		var compact bytes.Buffer
		isCompact := json.Compact(&compact, body) == nil && bytes.Equal(compact.Bytes(), body)
		for name, p := range providers {
			h := p.header(p.sign(t, string(body)))
			var want error
			if p.Time == signature.BodyTime && !sentLately(body) {
				want = signature.ErrTimestamp
			}
			if _, err := verifiers[name].Verify(h, body, now); err != want {
				t.Errorf("%s: %q: got %v, want %v", name, body, err, want)
			}
			if !p.Compact || !isCompact {
				want = signature.ErrMismatch
			}
			if _, err := verifiers[name].Verify(h, append(slices.Clip(body), '\n'), now); err != want {
				t.Errorf("%s: %q and a line break: got %v, want %v", name, body, err, want)
			}
		}
	})
}

// sentLately reads timestampSent in another way than the package does.
func sentLately(body []byte) (lately bool) {
	decoder := json.NewDecoder(bytes.NewReader(body))
	if start, err := decoder.Token(); err != nil || start != json.Delim('{') || !json.Valid(body) {
		return false
	}
	for decoder.More() {
		key, _ := decoder.Token()
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			panic(err) // the body is valid
		}
		if key == "timestampSent" {
			sec, err := strconv.ParseInt(string(value), 10, 64)
			lately = err == nil && now.Unix()-300 < sec && sec < now.Unix()+300
		}
	}
	return lately
}
