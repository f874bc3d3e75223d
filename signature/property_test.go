package signature_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hookbus/bridge/signature"
)

// bodies draws compact JSON objects that hold the tests' time where Dfns does.
var bodies = rapid.Custom(func(t *rapid.T) string {
	body := map[string]any{}
	for key, text := range rapid.MapOf(rapid.String(), rapid.String()).Draw(t, "strings") {
		body[key] = text
	}
	body["list"] = rapid.SliceOf(rapid.Float64()).Draw(t, "list")
	body["data"] = map[string]any{rapid.String().Draw(t, "key"): rapid.SliceOf(rapid.Bool()).Draw(t, "data")}
	body["timestampSent"] = now.Unix()
	var text strings.Builder
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(rapid.Bool().Draw(t, "escape"))
	if err := encoder.Encode(body); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(text.String(), "\n")
})

// spread puts white space around the tokens of compact JSON.
func spread(t *rapid.T, compact string) string {
	space := rapid.StringOfN(rapid.RuneFrom([]rune(" \t\r\n")), 0, 3, -1)
	var out strings.Builder
	inString, escaped := false, false
	for _, c := range []byte(compact) {
		structural := !inString && strings.IndexByte("{}[],:", c) >= 0
		if structural {
			out.WriteString(space.Draw(t, "before"))
		}
		out.WriteByte(c)
		if structural {
			out.WriteString(space.Draw(t, "after"))
		}
		switch {
		case escaped:
			escaped = false
		case inString && c == '\\':
			escaped = true
		case c == '"':
			inString = !inString
		}
	}
	return out.String()
}

func TestSignedVerifies(t *testing.T) {
	for name, p := range providers {
		t.Run(name, rapid.MakeCheck(func(t *rapid.T) {
			p := p
			p.secret = rapid.StringMatching(`(whsec_)?([0-9a-f]{2}){1,70}`).Draw(t, "secret")
			decoy := rapid.StringMatching(`([0-9a-f]{2}){71}`).Draw(t, "other secret")
			body := bodies.Draw(t, "body")
			if p.Time != signature.BodyTime && rapid.Bool().Draw(t, "any bytes") {
				body = string(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes"))
			}
			clock := now.Add(time.Duration(rapid.Int64Range(-int64(tolerance)+1, int64(tolerance)-1).Draw(t, "away")))

			secrets := []string{decoy, p.secret}
			v, err := p.NewVerifier(secrets, tolerance)
			if err != nil {
				t.Fatal(err)
			}
			header, value, err := p.Sign(p.secret, []byte(body), now)
			if err != nil {
				t.Fatal(err)
			}
			if header != p.Headers[0] {
				t.Fatalf("header %q", header)
			}
			if slot, err := v.Verify(p.header(value), []byte(body), clock); slot != 1 || err != nil {
				t.Fatalf("got slot %d, %v", slot, err)
			}
		}))
	}
}

func TestWhiteSpaceAdded(t *testing.T) {
	for name, p := range providers {
		t.Run(name, rapid.MakeCheck(func(t *rapid.T) {
			signed := bodies.Draw(t, "body")
			sent := spread(t, signed)
			_, value, err := p.Sign(p.secret, []byte(signed), now)
			if err != nil {
				t.Fatal(err)
			}
			v, err := p.NewVerifier([]string{p.secret}, tolerance)
			if err != nil {
				t.Fatal(err)
			}
			var want error
			if !p.Compact && sent != signed {
				want = signature.ErrMismatch
			}
			if _, err := v.Verify(p.header(value), []byte(sent), now); err != want {
				t.Fatalf("got %v, want %v", err, want)
			}
		}))
	}
}

// Every bit of the body and of the header, which holds the time and the digest.
func TestFlippedBit(t *testing.T) {
	for name, p := range providers {
		t.Run(name, func(t *testing.T) {
			v, value := p.verifier(t), p.sign(t, p.body)
			for i := range len(p.body) * 8 {
				body := []byte(p.body)
				body[i/8] ^= 1 << (i % 8)
				if _, err := v.Verify(p.header(value), body, now); err != signature.ErrMismatch {
					t.Errorf("body %q: got %v", body, err)
				}
			}
			for i := range len(value) * 8 {
				flipped := []byte(value)
				flipped[i/8] ^= 1 << (i % 8)
				if _, err := v.Verify(p.header(string(flipped)), []byte(p.body), now); err == nil {
					t.Errorf("header %q accepted", flipped)
				}
			}
		})
	}
}
