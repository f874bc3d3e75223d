package normalize_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/hookbus/bridge/normalize"
)

// fields are the top-level names that a provider reads; the first one holds the type.
var fields = map[string][]string{
	"dataspike": {"event_type", "id", "webhook_id", "timestamp", "payload"},
	"dfns":      {"kind", "id", "date", "data", "retryOf", "deliveryAttempt", "timestampSent"},
	"osapher":   {"event", "timestamp", "data"},
	"trusthub":  {"status", "sessionId", "projectId", "externalId"},
	"waldo":     {"event", "requestId", "customerId", "evaluation", "validation", "externalId"},
}

var (
	kinds  = []string{`"a"`, `"flag"`, `"wallet.transfer.requested"`, `"vault\u002eevent.created"`, `"DOCVER"`}
	names  = []string{`"id"`, `"wallet"`, `"transferRequest"`, `"abn"`, `"type"`, `"status"`, `"retryOf"`, `"timestampSent"`, `"x\"y"`, `"é"`, `""`}
	values = []string{`"wa-1"`, `""`, `"a } , ] \" \\"`, `"retryOf"`, `", \"retryOf\" : 1"`, `"é\u2028\ud800"`, `"2026-01-02T03:04:05Z"`,
		`0`, `-0.10`, `1e400`, `12345678901234567890`, `true`, `null`}
)

// drawValue draws a JSON value as its tokens. Objects may hold a name twice.
func drawValue(t *rapid.T, depth int) []string {
	kind := "scalar"
	if depth > 0 {
		kind = rapid.SampledFrom([]string{"scalar", "object", "object", "array"}).Draw(t, "kind")
	}
	if kind == "scalar" {
		return []string{rapid.SampledFrom(values).Draw(t, "value")}
	}
	var members [][]string
	for range rapid.IntRange(0, 3).Draw(t, "members") {
		var member []string
		if kind == "object" {
			member = append(member, rapid.SampledFrom(names).Draw(t, "name"), ":")
		}
		members = append(members, append(member, drawValue(t, depth-1)...))
	}
	if kind == "array" {
		return enclose("[", members, "]")
	}
	return enclose("{", members, "}")
}

func enclose(left string, members [][]string, right string) []string {
	tokens := []string{left}
	for i, member := range members {
		if i > 0 {
			tokens = append(tokens, ",")
		}
		tokens = append(tokens, member...)
	}
	return append(tokens, right)
}

// drawBody draws a body as its tokens: some of the provider's fields with any values, its type, and the
// extra members, in any order.
func drawBody(t *rapid.T, provider string, extra ...[]string) []string {
	members := slices.Clone(extra)
	for i, name := range append(fields[provider], "other") {
		value := []string{rapid.SampledFrom(kinds).Draw(t, "type")}
		if i > 0 {
			if rapid.IntRange(0, 3).Draw(t, "left out") == 0 {
				continue
			}
			value = drawValue(t, 3)
		}
		members = append(members, append([]string{strconv.Quote(name), ":"}, value...))
	}
	return enclose("{", rapid.Permutation(members).Draw(t, "order"), "}")
}

// spread joins tokens with white space around them.
func spread(t *rapid.T, tokens []string) string {
	var b strings.Builder
	space := rapid.SampledFrom([]string{"", "", " ", "\n", "\t\r\n  "})
	for _, token := range tokens {
		b.WriteString(space.Draw(t, "space"))
		b.WriteString(token)
	}
	b.WriteString(space.Draw(t, "space"))
	return b.String()
}

// members returns the top-level members of an object as they are written.
func members(t rapid.TB, body []byte) map[string]string {
	t.Helper()
	var o map[string]json.RawMessage
	if err := json.Unmarshal(body, &o); err != nil {
		t.Fatalf("%v\n%s", err, body)
	}
	m := map[string]string{}
	for name, value := range o {
		m[name] = string(value)
	}
	return m
}

// each checks a property for every provider.
func each(t *testing.T, property func(*rapid.T, normalize.Provider)) {
	for _, p := range normalize.Providers() {
		t.Run(p.Name, rapid.MakeCheck(func(t *rapid.T) { property(t, p) }))
	}
}

func TestWhiteSpaceIsNoIdentity(t *testing.T) {
	each(t, func(t *rapid.T, p normalize.Provider) {
		tokens := drawBody(t, p.Name)
		compact, spread := strings.Join(tokens, ""), spread(t, tokens)
		a, errA := p.Event([]byte(compact), received)
		b, errB := p.Event([]byte(spread), received)
		if errA != errB {
			t.Fatalf("%v and %v", errA, errB)
		}
		if errA != nil {
			return
		}
		if diff := cmp.Diff(a.Identity, b.Identity); diff != "" {
			t.Errorf("identities (-compact +spread):\n%s", diff)
		}
		if diff := cmp.Diff(attributes(t, a.CloudEvent), attributes(t, b.CloudEvent)); diff != "" {
			t.Errorf("attributes (-compact +spread):\n%s", diff)
		}
		mapped(t, p.Name, spread)
	})
}

// Every fresh copy of a sample, however formatted, is an event of its own of the same kind, about
// something else where the id of that is part of the identity, and differs from the sample in its ids
// and times only.
func TestFreshSamples(t *testing.T) {
	changes := map[string][]string{
		"dataspike": {"id", "timestamp"},
		"dfns":      {"id", "date", "data", "retryOf", "deliveryAttempt", "timestampSent"},
		"osapher":   {"timestamp", "data"},
		"trusthub":  {"sessionId"},
		"waldo":     {"requestId", "customerId"},
	}
	each(t, func(t *rapid.T, p normalize.Provider) {
		sample := rapid.SampledFrom(p.Samples()).Draw(t, "sample")
		var indented bytes.Buffer
		if err := json.Indent(&indented, sample.Body, "\r\n", rapid.SampledFrom([]string{"", " ", "\t"}).Draw(t, "indent")); err != nil {
			t.Fatal(err)
		}
		body := indented.Bytes()
		now := time.UnixMilli(rapid.Int64Range(0, 4e12).Draw(t, "now"))

		seen := []*normalize.Event{mapped(t, p.Name, string(body))}
		for range 3 {
			fresh := p.Fresh(body, now)
			e := mapped(t, p.Name, string(fresh))
			if e.Kind != sample.Kind {
				t.Errorf("kind %s, want %s", e.Kind, sample.Kind)
			}
			for _, other := range seen {
				if got := relate(e.Identity, other.Identity); got != unrelated {
					t.Errorf("%s\n%s\n%s", got, e.CloudEvent.Data(), other.CloudEvent.Data())
				}
				if named := p.Name == "dataspike" || p.Name == "waldo"; !named && e.CloudEvent.Subject() == other.CloudEvent.Subject() {
					t.Errorf("both about %s", e.CloudEvent.Subject())
				}
			}
			seen = append(seen, e)

			before, after := members(t, body), members(t, fresh)
			if _, ok := after["retryOf"]; ok {
				t.Errorf("a fresh event is no retry\n%s", fresh)
			}
			for _, name := range changes[p.Name] {
				delete(before, name)
				delete(after, name)
			}
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("other members (-before +after):\n%s", diff)
			}
		}
	})
}

// Fresh makes the time of the event now, where the provider sends one.
func TestFreshTime(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 678e6, time.FixedZone("", -7200))
	for _, p := range normalize.Providers() {
		for _, sample := range p.Samples() {
			want := now
			if !slices.Contains([]string{"dataspike", "dfns", "osapher"}, p.Name) {
				want = received
			}
			if got := mapped(t, p.Name, string(p.Fresh(sample.Body, now))).CloudEvent.Time(); !got.Equal(want) {
				t.Errorf("%s/%s: got %v, want %v", p.Name, sample.Name, got, want)
			}
		}
	}
}

// Fresh ids have the form of the documented ones.
func TestFreshIDs(t *testing.T) {
	const uuid4 = `^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`
	for name, test := range map[string]struct{ body, attribute, pattern string }{
		"dataspike":         {dataspikeBody, "providereventid", uuid4},
		"dfns":              {dfnsBody, "providereventid", `^whe-[a-z0-9]{5}-[a-z0-9]{5}-[a-z0-9]{14,16}$`},
		"osapher":           {osapherBody, "subject", `^[0-9]{11}$`},
		"trusthub":          {trusthubBody, "subject", uuid4},
		"waldo, a request":  {waldoBody, "requestid", `^[0-9A-Za-z]{10}$`},
		"waldo, a customer": {waldoFlag, "subject", `^[0-9a-f]{24}$`},
	} {
		t.Run(name, func(t *testing.T) {
			name, _, _ := strings.Cut(name, ",")
			fresh := string(provider(t, name).Fresh([]byte(test.body), received))
			got := attributes(t, mapped(t, name, fresh).CloudEvent)[test.attribute]
			if !regexp.MustCompile(test.pattern).MatchString(got) {
				t.Errorf("%s %q is not %s", test.attribute, got, test.pattern)
			}
		})
	}
}

// Whatever the body, what Fresh makes of it is JSON, and an event of the same kind if it was one.
func TestFreshAnyBody(t *testing.T) {
	each(t, func(t *rapid.T, p normalize.Provider) {
		body := []byte(spread(t, drawBody(t, p.Name)))
		fresh := p.Fresh(body, received)
		if !json.Valid(fresh) {
			t.Fatalf("not JSON\n%s\n%s", body, fresh)
		}
		if e, err := p.Event(body, received); err == nil {
			if got := mapped(t, p.Name, string(fresh)).Kind; got != e.Kind {
				t.Errorf("kind %q became %q\n%s\n%s", e.Kind, got, body, fresh)
			}
		}
	})
}

// What is no object stays as it is.
func TestFreshOfNoObject(t *testing.T) {
	for _, p := range normalize.Providers() {
		for _, body := range []string{"", "null", "[]", `"}"`, "{", `{"id":"a"`, "{} {}"} {
			if got := string(p.Fresh([]byte(body), received)); got != body {
				t.Errorf("%s: %s became %s", p.Name, body, got)
			}
			if got := string(p.Stamp([]byte(body), received)); got != body {
				t.Errorf("%s: %s was stamped to %s", p.Name, body, got)
			}
		}
	}
}

// Stamp writes the time of sending, and no other byte, where the provider signs one in the body.
func TestStamp(t *testing.T) {
	each(t, func(t *rapid.T, p normalize.Provider) {
		now := rapid.Int64Range(0, 4e9).Draw(t, "now")
		stamp := func(body string) string { return string(p.Stamp([]byte(body), time.Unix(now, 999999999))) }
		// These bodies have no such field of their own, but for nested ones.
		without := spread(t, drawBody(t, "osapher"))
		with := spread(t, drawBody(t, "osapher", []string{`"timestampSent"`, ":", "987654321"}))
		want := []string{without, with}
		if p.Name == "dfns" {
			end := strings.LastIndexByte(without, '}')
			want[0] = fmt.Sprintf(`%s,"timestampSent":%d%s`, without[:end], now, without[end:])
			want[1] = strings.Replace(with, "987654321", fmt.Sprint(now), 1)
		}
		if diff := cmp.Diff(want, []string{stamp(without), stamp(with)}); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestDigestOfUnequalListsDiffers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(rapid.StringMatching(`[ab\x00\x01]{0,9}`), 2, 5)
		a, b := list.Draw(t, "a"), list.Draw(t, "b")
		if rapid.Bool().Draw(t, "same text") {
			// Cut at other places.
			text := strings.Join(a[2:], "")
			at := rapid.IntRange(0, len(text)).Draw(t, "at")
			b = []string{a[0], a[1], text[:at], text[at:]}
		}
		digestA, digestB := normalize.Digest(a[0], a[1], a[2:]...), normalize.Digest(b[0], b[1], b[2:]...)
		if (digestA == digestB) != slices.Equal(a, b) {
			t.Errorf("%q and %q: %s and %s", a, b, digestA, digestB)
		}
		if !digestPattern.MatchString(digestA) {
			t.Error(digestA)
		}
	})
}

func TestSubjectOfAnyKind(t *testing.T) {
	kind := rapid.OneOf(
		rapid.String(),
		rapid.StringMatching(`([a-zA-Z*>._ -]{0,9}\.){0,30}`),
		rapid.StringMatching(`[a.]{200,300}`),
	)
	each(t, func(t *rapid.T, p normalize.Provider) {
		prefix := rapid.SampledFrom([]string{"webhooks", "a", "eu.prod.webhooks"}).Draw(t, "prefix")
		kind := kind.Draw(t, "kind")
		checkSubject(t, prefix, p.Name, normalize.Subject(prefix, p.Name, kind))
	})
}
