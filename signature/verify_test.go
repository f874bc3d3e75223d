package signature_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hookbus/bridge/signature"
)

// No provider publishes a test vector. These were computed apart from this package, from what the
// providers document; the invalid ones are the likely mistakes.
func TestVectors(t *testing.T) {
	file, err := os.ReadFile("testdata/signatures.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct {
		Provider, Name, Secret, Expect string
		Body                           []byte            `json:"body_b64"`
		Headers                        map[string]string `json:"headers"`
	}
	if err := json.Unmarshal(file, &vectors); err != nil {
		t.Fatal(err)
	}
	for _, vector := range vectors {
		t.Run(vector.Provider+"/"+vector.Name, func(t *testing.T) {
			p := providers[vector.Provider]
			clock := now
			if p.Time == signature.BodyTime {
				var body struct{ TimestampSent int64 }
				if err := json.Unmarshal(vector.Body, &body); err != nil {
					t.Fatal(err)
				}
				clock = time.Unix(body.TimestampSent, 0)
			}
			v, err := p.NewVerifier([]string{vector.Secret}, tolerance)
			if err != nil {
				t.Fatal(err)
			}
			h := http.Header{}
			for name, value := range vector.Headers {
				h.Set(name, value)
			}
			name, value, err := p.Sign(vector.Secret, vector.Body, clock)
			if err != nil {
				t.Fatal(err)
			}

			_, err = v.Verify(h, vector.Body, clock)
			if vector.Expect == "invalid" {
				if err == nil {
					t.Error("Verify accepts it")
				}
				return
			}
			if err != nil {
				t.Errorf("Verify: %v", err)
			}
			if diff := cmp.Diff(vector.Headers, map[string]string{name: value}); diff != "" {
				t.Errorf("Sign (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHeaders(t *testing.T) {
	osapher := providers["osapher"]
	good := osapher.sign(t, osapher.body)
	other := osapher.sign(t, "other body")
	const first, second = "X-Osapher-Signature", "X-Verinty-Signature"
	for name, test := range map[string]struct {
		header http.Header
		want   error
	}{
		"none":                        {nil, signature.ErrMissing},
		"another one":                 {http.Header{"X-Signature": {good}}, signature.ErrMissing},
		"no value":                    {http.Header{first: {}}, signature.ErrMissing},
		"empty":                       {http.Header{first: {""}}, signature.ErrMissing},
		"both empty":                  {http.Header{first: {""}, second: {""}}, signature.ErrMissing},
		"first name":                  {http.Header{first: {good}}, nil},
		"second name":                 {http.Header{second: {good}}, nil},
		"second name, first empty":    {http.Header{first: {""}, second: {good}}, nil},
		"first name, second empty":    {http.Header{first: {good}, second: {""}}, nil},
		"both, equal":                 {http.Header{first: {good}, second: {good}}, nil},
		"both, first wrong":           {http.Header{first: {other}, second: {good}}, signature.ErrMalformed},
		"both, second wrong":          {http.Header{first: {good}, second: {other}}, signature.ErrMalformed},
		"repeated, equal":             {http.Header{first: {good, good}}, signature.ErrMalformed},
		"repeated, different":         {http.Header{first: {good, other}}, signature.ErrMalformed},
		"repeated, first empty":       {http.Header{first: {"", good}}, signature.ErrMalformed},
		"repeated under second name":  {http.Header{first: {good}, second: {good, good}}, signature.ErrMalformed},
		"joined by a proxy":           {http.Header{first: {good + ", " + good}}, signature.ErrMalformed},
		"of another body":             {http.Header{first: {other}}, signature.ErrMismatch},
		"of another body, both equal": {http.Header{first: {other}, second: {other}}, signature.ErrMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := osapher.verifier(t).Verify(test.header, []byte(osapher.body), now)
			if err != test.want {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestHeaderSyntax(t *testing.T) {
	// digest returns the part of the provider's header value that is the digest.
	digest := func(name string) string {
		p := providers[name]
		value := p.sign(t, p.body)
		return strings.TrimPrefix(value[strings.LastIndex(value, ",")+1:], "v1=")
	}
	var (
		dataspike = digest("dataspike")
		waldo     = digest("waldo")
		osapher   = strings.TrimPrefix(digest("osapher"), "sha256=")
		trusthub  = digest("trusthub")
		dfns      = strings.TrimPrefix(digest("dfns"), "sha256=")
		ok        error
	)
	for _, test := range []struct {
		provider, name, value string
		want                  error
	}{
		{"waldo", "good", waldo, ok},
		{"waldo", "another digest", strings.Repeat("0", 64), signature.ErrMismatch},
		{"waldo", "a prefix where there is none", "sha256=" + waldo, signature.ErrMalformed},
		{"waldo", "upper case", strings.ToUpper(waldo), signature.ErrMalformed},
		{"waldo", "one letter in upper case", strings.Repeat("0", 63) + "A", signature.ErrMalformed},
		{"waldo", "one digit short", waldo[:63], signature.ErrMalformed},
		{"waldo", "one byte short", waldo[:62], signature.ErrMalformed},
		{"waldo", "one byte long", waldo + "00", signature.ErrMalformed},
		{"waldo", "no hex", waldo[:63] + "g", signature.ErrMalformed},
		{"waldo", "0x", "0x" + waldo[2:], signature.ErrMalformed},
		{"waldo", "space before", " " + waldo, signature.ErrMalformed},
		{"waldo", "space after", waldo + " ", signature.ErrMalformed},
		{"waldo", "space only", " ", signature.ErrMalformed},
		{"waldo", "line break within", waldo[:32] + "\r\n" + waldo[32:], signature.ErrMalformed},
		{"waldo", "NUL after", waldo + "\x00", signature.ErrMalformed},
		{"waldo", "not ASCII", waldo[:62] + "é", signature.ErrMalformed},
		{"waldo", "base64", trusthub, signature.ErrMalformed},

		{"osapher", "good", "sha256=" + osapher, ok},
		{"osapher", "no prefix", osapher, signature.ErrMalformed},
		{"osapher", "prefix only", "sha256=", signature.ErrMalformed},
		{"osapher", "prefix twice", "sha256=sha256=" + osapher, signature.ErrMalformed},
		{"osapher", "prefix in upper case", "SHA256=" + osapher, signature.ErrMalformed},
		{"osapher", "another algorithm", "sha512=" + osapher, signature.ErrMalformed},
		{"osapher", "space after the prefix", "sha256= " + osapher, signature.ErrMalformed},
		{"dfns", "good", "sha256=" + dfns, ok},
		{"dfns", "no prefix", dfns, signature.ErrMalformed},

		{"trusthub", "good", trusthub, ok},
		{"trusthub", "digest of nothing", providers["trusthub"].sign(t, ""), signature.ErrMismatch},
		{"trusthub", "no padding", strings.TrimRight(trusthub, "="), signature.ErrMalformed},
		{"trusthub", "more padding", trusthub + "=", signature.ErrMalformed},
		{"trusthub", "line break within", trusthub[:22] + "\r\n" + trusthub[22:], signature.ErrMalformed},
		{"trusthub", "line break instead of two characters", trusthub[:20] + "\r\n" + trusthub[22:], signature.ErrMalformed},
		{"trusthub", "line break after", trusthub + "\n", signature.ErrMalformed},
		{"trusthub", "stray bits in the last character", strings.Repeat("A", 42) + "B=", signature.ErrMalformed},
		{"trusthub", "URL alphabet", strings.Repeat("-", 42) + "A=", signature.ErrMalformed},
		{"trusthub", "44 characters, 33 bytes", strings.Repeat("A", 44), signature.ErrMalformed},
		{"trusthub", "44 characters, 31 bytes", strings.Repeat("A", 42) + "==", signature.ErrMalformed},
		{"trusthub", "hex", waldo, signature.ErrMalformed},
		{"trusthub", "two in one", trusthub + "," + trusthub, signature.ErrMalformed},

		{"dataspike", "good", "t=1720018333,v1=" + dataspike, ok},
		{"dataspike", "v1 first", "v1=" + dataspike + ",t=1720018333", ok},
		{"dataspike", "unknown keys", "v0=x,t=1720018333,v1=" + dataspike + ",v2=,=,v2==,T=0,V1=0", ok},
		{"dataspike", "t is signed as sent", "t=01720018333,v1=" + dataspike, signature.ErrMismatch},
		{"dataspike", "no v1", "t=1720018333", signature.ErrMalformed},
		{"dataspike", "v0 only", "t=1720018333,v0=" + dataspike, signature.ErrMalformed},
		{"dataspike", "v1 empty", "t=1720018333,v1=", signature.ErrMalformed},
		{"dataspike", "v1 in upper case", "t=1720018333,v1=" + strings.ToUpper(dataspike), signature.ErrMalformed},
		{"dataspike", "v1 with a prefix", "t=1720018333,v1=sha256=" + dataspike, signature.ErrMalformed},
		{"dataspike", "v1 twice", "t=1720018333,v1=" + dataspike + ",v1=" + dataspike, signature.ErrMalformed},
		{"dataspike", "v1 twice, first empty", "t=1720018333,v1=,v1=" + dataspike, signature.ErrMalformed},
		{"dataspike", "t twice", "t=1720018333,t=1720018333,v1=" + dataspike, signature.ErrMalformed},
		{"dataspike", "t twice, first empty", "t=,t=1720018333,v1=" + dataspike, signature.ErrMalformed},
		{"dataspike", "digest alone", dataspike, signature.ErrMalformed},
		{"dataspike", "item without =", "t=1720018333,v1=" + dataspike + ",x", signature.ErrMalformed},
		{"dataspike", "comma at the end", "t=1720018333,v1=" + dataspike + ",", signature.ErrMalformed},
		{"dataspike", "comma at the start", ",t=1720018333,v1=" + dataspike, signature.ErrMalformed},
		{"dataspike", "semicolon", "t=1720018333;v1=" + dataspike, signature.ErrMalformed},
		{"dataspike", "space after the comma", "t=1720018333, v1=" + dataspike, signature.ErrMalformed},
		{"dataspike", "space after =", "t= 1720018333,v1=" + dataspike, signature.ErrMalformed},
		{"dataspike", "space in an unknown item", "t=1720018333,v1=" + dataspike + ", v2=x", signature.ErrMalformed},
		{"dataspike", "tab before", "\tt=1720018333,v1=" + dataspike, signature.ErrMalformed},
		{"dataspike", "no t", "v1=" + dataspike, signature.ErrTimestamp},
		{"dataspike", "t empty", "t=,v1=" + dataspike, signature.ErrTimestamp},
		{"dataspike", "t negative", "t=-1720018333,v1=" + dataspike, signature.ErrTimestamp},
		{"dataspike", "t with plus", "t=+1720018333,v1=" + dataspike, signature.ErrTimestamp},
		{"dataspike", "t with a fraction", "t=1720018333.0,v1=" + dataspike, signature.ErrTimestamp},
		{"dataspike", "t with an exponent", "t=1e9,v1=" + dataspike, signature.ErrTimestamp},
		{"dataspike", "t in hex", "t=0x66858cdd,v1=" + dataspike, signature.ErrTimestamp},
		{"dataspike", "t with an underscore", "t=1_720_018_333,v1=" + dataspike, signature.ErrTimestamp},
		{"dataspike", "t in Arabic digits", "t=١٧٢٠٠١٨٣٣٣,v1=" + dataspike, signature.ErrTimestamp},
		{"dataspike", "t of 19 digits", "t=0000000001720018333,v1=" + dataspike, signature.ErrTimestamp},
		{"dataspike", "syntax before t", "t=x,v1=" + dataspike[1:], signature.ErrMalformed},
		{"dataspike", "t before the digest", "t=x,v1=" + strings.Repeat("0", 64), signature.ErrTimestamp},
		{"dataspike", "forged and stale", "t=1,v1=" + dataspike, signature.ErrMismatch},
	} {
		t.Run(test.provider+"/"+test.name, func(t *testing.T) {
			p := providers[test.provider]
			_, err := p.verifier(t).Verify(p.header(test.value), []byte(p.body), now)
			if err != test.want {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestHeaderTime(t *testing.T) {
	p := providers["dataspike"]
	for name, test := range map[string]struct {
		sec  int64
		want error
	}{
		"now":             {now.Unix(), nil},
		"milliseconds":    {now.UnixMilli(), signature.ErrTimestamp},
		"microseconds":    {now.UnixMicro(), signature.ErrTimestamp},
		"nanoseconds":     {now.UnixNano(), signature.ErrTimestamp}, // 19 digits
		"largest":         {999_999_999_999_999_999, signature.ErrTimestamp},
		"zero":            {0, signature.ErrTimestamp},
		"before 1970":     {-1, signature.ErrTimestamp},
		"now, plus 2^32":  {now.Unix() + 1<<32, signature.ErrTimestamp},
		"now, plus 584 y": {now.Unix() + 18_446_744_074, signature.ErrTimestamp}, // 2^64 ns
	} {
		t.Run(name, func(t *testing.T) {
			_, value, err := p.Sign(p.secret, []byte(p.body), time.Unix(test.sec, 0))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.verifier(t).Verify(p.header(value), []byte(p.body), now); err != test.want {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestWindow(t *testing.T) {
	for _, test := range []struct {
		away              time.Duration
		dataspike, strict bool // accepted
	}{
		{0, true, true},
		{tolerance - 1, true, true},
		{tolerance, true, false},
		{tolerance + 1, false, false},
		{tolerance + time.Second, false, false},
		{24 * time.Hour, false, false},
		{250 * 365 * 24 * time.Hour, false, false},
	} {
		for name, accepted := range map[string]bool{"dataspike": test.dataspike, "dfns": test.strict} {
			for _, away := range []time.Duration{test.away, -test.away} {
				t.Run(name+"/"+away.String(), func(t *testing.T) {
					p := providers[name]
					_, err := p.verifier(t).Verify(p.header(p.sign(t, p.body)), []byte(p.body), now.Add(away))
					if accepted && err != nil || !accepted && err != signature.ErrTimestamp {
						t.Errorf("got %v, accepted should be %v", err, accepted)
					}
				})
			}
		}
	}
}

// The clock of the process has a monotonic reading, which must not take part.
func TestWindowByTheWallClock(t *testing.T) {
	p := providers["dataspike"]
	clock := time.Now()
	header, value, err := p.Sign(p.secret, []byte(p.body), clock)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.verifier(t).Verify(http.Header{header: {value}}, []byte(p.body), clock); err != nil {
		t.Error(err)
	}
}

func TestNoTimeNoWindow(t *testing.T) {
	for _, name := range []string{"waldo", "osapher", "trusthub"} {
		p := providers[name]
		_, err := p.verifier(t).Verify(p.header(p.sign(t, p.body)), []byte(p.body), now.AddDate(10, 0, 0))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBodyTime(t *testing.T) {
	for name, test := range map[string]struct {
		body string
		want error
	}{
		"integer":                    {`{"timestampSent":1720018333}`, nil},
		"white space":                {" {\n\"timestampSent\" :\t1720018333\r} ", nil},
		"name with an escape":        {`{"timestamp\u0053ent":1720018333}`, nil},
		"last duplicate is good":     {`{"timestampSent":1,"timestampSent":1720018333}`, nil},
		"last duplicate is stale":    {`{"timestampSent":1720018333,"timestampSent":1}`, signature.ErrTimestamp},
		"last duplicate is null":     {`{"timestampSent":1720018333,"timestampSent":null}`, signature.ErrTimestamp},
		"other case is another name": {`{"timestampSent":1720018333,"TimestampSent":1,"timestampsent":"x"}`, nil},
		"other case only":            {`{"TimestampSent":1720018333}`, signature.ErrTimestamp},
		"not at the top":             {`{"data":{"timestampSent":1720018333}}`, signature.ErrTimestamp},
		"missing":                    {`{}`, signature.ErrTimestamp},
		"null":                       {`{"timestampSent":null}`, signature.ErrTimestamp},
		"string":                     {`{"timestampSent":"1720018333"}`, signature.ErrTimestamp},
		"fraction":                   {`{"timestampSent":1720018333.0}`, signature.ErrTimestamp},
		"exponent":                   {`{"timestampSent":1720018333e0}`, signature.ErrTimestamp},
		"array":                      {`{"timestampSent":[1720018333]}`, signature.ErrTimestamp},
		"object":                     {`{"timestampSent":{"timestampSent":1720018333}}`, signature.ErrTimestamp},
		"boolean":                    {`{"timestampSent":true}`, signature.ErrTimestamp},
		"negative":                   {`{"timestampSent":-1720018333}`, signature.ErrTimestamp},
		"milliseconds":               {`{"timestampSent":1720018333000}`, signature.ErrTimestamp},
		"nanoseconds":                {`{"timestampSent":1720018333000000000}`, signature.ErrTimestamp},
		"largest int64":              {`{"timestampSent":9223372036854775807}`, signature.ErrTimestamp},
		"seconds plus 2^64":          {`{"timestampSent":18446744075429569949}`, signature.ErrTimestamp},
		"100 digits":                 {`{"timestampSent":` + strings.Repeat("9", 100) + `}`, signature.ErrTimestamp},
		"body null":                  {`null`, signature.ErrTimestamp},
		"body a number":              {`1720018333`, signature.ErrTimestamp},
		"body a string":              {`"timestampSent"`, signature.ErrTimestamp},
		"body an array":              {`[{"timestampSent":1720018333}]`, signature.ErrTimestamp},
		"body empty":                 {``, signature.ErrTimestamp},
		"body cut off":               {`{"timestampSent":1720018333`, signature.ErrTimestamp},
		"two bodies":                 {`{"timestampSent":1720018333}{}`, signature.ErrTimestamp},
		"byte order mark":            {"\ufeff" + `{"timestampSent":1720018333}`, signature.ErrTimestamp},
	} {
		t.Run(name, func(t *testing.T) {
			p := providers["dfns"]
			if _, err := p.verifier(t).Verify(p.header(p.sign(t, test.body)), []byte(test.body), now); err != test.want {
				t.Errorf("got %v, want %v", err, test.want)
			}
			forged := p.header(p.sign(t, test.body+"x"))
			if _, err := p.verifier(t).Verify(forged, []byte(test.body), now); err != signature.ErrMismatch {
				t.Errorf("forged: got %v, want %v", err, signature.ErrMismatch)
			}
		})
	}
}

func TestCompact(t *testing.T) {
	for name, test := range map[string]struct {
		signed, sent string
		want         error
	}{
		"as signed":                    {`{"a":1}`, `{"a":1}`, nil},
		"white space added":            {`{"a":[1,"x y"]}`, " {\t\"a\" : [1,\r\n\"x y\"] }\n", nil},
		"white space signed":           {`{"a": 1}`, `{"a": 1}`, nil},
		"white space signed, then cut": {`{"a": 1}`, `{"a":1}`, signature.ErrMismatch},
		"other white space signed":     {`{"a": 1}`, "{\"a\":\t1}", signature.ErrMismatch},
		"white space in a string":      {`{"a":"x y"}`, `{"a":"x  y"}`, signature.ErrMismatch},
		"other spelling of a number":   {`{"a":1}`, `{"a":1.0}`, signature.ErrMismatch},
		"other spelling of a string":   {`{"a":"é"}`, `{"a":"\u00e9"}`, signature.ErrMismatch},
		"HTML and U+2028 stay":         {"{\"a\":\"<&>\u2028\"}", "{\"a\": \"<&>\u2028\"}", nil},
		"other order":                  {`{"a":1,"b":2}`, `{"b":2,"a":1}`, signature.ErrMismatch},
		"no JSON, as signed":           {`hello world`, `hello world`, nil},
		"no JSON, white space added":   {`helloworld`, `hello world`, signature.ErrMismatch},
		"empty, as signed":             {``, ``, nil},
		"empty, white space added":     {``, ` `, signature.ErrMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			p := providers["waldo"]
			h := p.header(p.sign(t, test.signed))
			if _, err := p.verifier(t).Verify(h, []byte(test.sent), now); err != test.want {
				t.Errorf("got %v, want %v", err, test.want)
			}
			p.Compact = false
			want := signature.ErrMismatch
			if test.signed == test.sent {
				want = nil
			}
			if _, err := p.verifier(t).Verify(h, []byte(test.sent), now); err != want {
				t.Errorf("not Compact: got %v, want %v", err, want)
			}
		})
	}
}

func TestCompactBodyTime(t *testing.T) {
	p := providers["dfns"]
	for sent, want := range map[string]error{
		`{ "timestampSent": 1720018333 }`: nil,
		`{ "timestampSent": 1720018033 }`: signature.ErrTimestamp,
	} {
		h := p.header(p.sign(t, strings.ReplaceAll(sent, " ", "")))
		if _, err := p.verifier(t).Verify(h, []byte(sent), now); err != want {
			t.Errorf("%s: got %v, want %v", sent, err, want)
		}
	}
}

func TestSlots(t *testing.T) {
	for name, p := range providers {
		t.Run(name, func(t *testing.T) {
			secrets := []string{"a1", " \tb2\r\n", "c3", "c3"}
			v, err := p.NewVerifier(secrets, tolerance)
			if err != nil {
				t.Fatal(err)
			}
			for secret, want := range map[string]int{"a1": 0, "b2": 1, "\nc3 ": 2, "d4": -1} {
				header, value, err := p.Sign(secret, []byte(p.body), now)
				if err != nil {
					t.Fatal(err)
				}
				h := http.Header{}
				h.Set(header, value)
				if slot, err := v.Verify(h, []byte(p.body), now); slot != want || (err == nil) != (want >= 0) {
					t.Errorf("signed with %q: got %d, %v, want %d", secret, slot, err, want)
				}
			}
		})
	}
}

// The first try goes through all secrets before the second one begins.
func TestSlotOfCompact(t *testing.T) {
	p := providers["waldo"]
	v, err := p.NewVerifier([]string{"old", "new"}, tolerance)
	if err != nil {
		t.Fatal(err)
	}
	_, value, err := p.Sign("new", []byte(`{"a":1}`), now)
	if err != nil {
		t.Fatal(err)
	}
	if slot, err := v.Verify(p.header(value), []byte(`{ "a": 1 }`), now); slot != 1 || err != nil {
		t.Errorf("got %d, %v", slot, err)
	}
}

// The texts are pinned whole: nothing of a secret can be in them.
func TestSecrets(t *testing.T) {
	const empty, notHex = "unusable signing secret: empty", "unusable signing secret: not hexadecimal"
	for name, test := range map[string]struct {
		key     signature.KeyForm
		secrets []string
		want    string
	}{
		"none":               {signature.Text, nil, "unusable signing secret: none given"},
		"empty":              {signature.Text, []string{""}, "slot 0: " + empty},
		"white space":        {signature.Text, []string{"s", " \t\r\n"}, "slot 1: " + empty},
		"one character":      {signature.Text, []string{"s"}, ""},
		"text in any form":   {signature.Text, []string{"whsec_", "a, b", "é"}, ""},
		"hex":                {signature.HexAfterWhsec, []string{"whsec_a1", "b2", " whsec_C3\n"}, ""},
		"prefix only":        {signature.HexAfterWhsec, []string{"whsec_"}, "slot 0: " + empty},
		"prefix twice":       {signature.HexAfterWhsec, []string{"whsec_whsec_a1"}, "slot 0: " + notHex},
		"other prefix":       {signature.HexAfterWhsec, []string{"a1", "a1", "whs-a1"}, "slot 2: " + notHex},
		"odd":                {signature.HexAfterWhsec, []string{"whsec_a1b"}, "slot 0: " + notHex},
		"no hex":             {signature.HexAfterWhsec, []string{"whsec_zz"}, "slot 0: " + notHex},
		"space after prefix": {signature.HexAfterWhsec, []string{"whsec_ a1"}, "slot 0: " + notHex},
		"first of two":       {signature.HexAfterWhsec, []string{"zz", ""}, "slot 0: " + notHex},
	} {
		t.Run(name, func(t *testing.T) {
			s := signature.Scheme{Headers: []string{"X-Signature"}, Key: test.key}
			v, err := s.NewVerifier(test.secrets, tolerance)
			if test.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if v != nil || !errors.Is(err, signature.ErrSecret) || err.Error() != test.want {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}

func TestSignSecret(t *testing.T) {
	for secret, want := range map[string]string{
		"whsec_ ":      "unusable signing secret: empty",
		"whsec_secret": "unusable signing secret: not hexadecimal",
	} {
		header, value, err := providers["dataspike"].Sign(secret, nil, now)
		if header != "" || value != "" || !errors.Is(err, signature.ErrSecret) || err.Error() != want {
			t.Errorf("%q: got %q, %q, %v", secret, header, value, err)
		}
	}
}

func TestKeyForms(t *testing.T) {
	sign := func(key signature.KeyForm, secret string) string {
		_, value, err := signature.Scheme{Headers: []string{"X"}, Key: key}.Sign(secret, []byte("body"), now)
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
	if sign(signature.HexAfterWhsec, "whsec_6162") != sign(signature.Text, "ab") {
		t.Error("HexAfterWhsec should decode")
	}
	if sign(signature.HexAfterWhsec, "6162") != sign(signature.Text, "ab") {
		t.Error("HexAfterWhsec should do without the prefix")
	}
	if sign(signature.Text, "whsec_6162") == sign(signature.Text, "6162") {
		t.Error("Text should keep the prefix")
	}
}

func TestVerifyLeavesTheBody(t *testing.T) {
	p := providers["dfns"]
	body := []byte(" " + p.body)
	before := bytes.Clone(body)
	h := p.header(p.sign(t, p.body))
	if _, err := p.verifier(t).Verify(h, body, now); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, body); diff != "" {
		t.Errorf("Verify changed the body:\n%s", diff)
	}
}

func TestConcurrentUse(t *testing.T) {
	for name, p := range providers {
		v, h := p.verifier(t), p.header(p.sign(t, p.body))
		var group sync.WaitGroup
		for i := range 4 {
			group.Go(func() {
				for j := range 50 {
					body := p.body
					want := error(nil)
					if (i+j)%2 == 1 {
						body, want = body+strconv.Itoa(j), signature.ErrMismatch
					}
					if _, err := v.Verify(h, []byte(body), now); err != want {
						t.Errorf("%s: got %v, want %v", name, err, want)
					}
				}
			})
		}
		group.Wait()
	}
}
