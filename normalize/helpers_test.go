package normalize_test

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"
	"pgregory.net/rapid"

	"github.com/hookbus/bridge/normalize"
)

// received is when every body of these tests came in.
var received = time.Date(2026, 5, 6, 7, 8, 9, 123456789, time.UTC)

// sentinels are all errors that Provider.Event may return.
var sentinels = []error{normalize.ErrNotJSON, normalize.ErrNoType, normalize.ErrNoIdentity, normalize.ErrTypeTooLong}

func provider(t rapid.TB, name string) normalize.Provider {
	t.Helper()
	p, ok := normalize.ByName(name)
	if !ok {
		t.Fatalf("no provider %q", name)
	}
	return p
}

// mapped returns the event of a body that must have one, with an id, and checks it.
func mapped(t rapid.TB, name, body string) *normalize.Event {
	t.Helper()
	e, err := provider(t, name).Event([]byte(body), received)
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, body)
	}
	if e.Identity.StateKey != "" {
		e.SetToken("token")
	}
	check(t, e, body)
	return e
}

var digestPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// check checks what holds for the event of any body, once it has an id.
func check(t rapid.TB, e *normalize.Event, body string) {
	t.Helper()
	p := provider(t, e.Provider)
	ce, id := e.CloudEvent, e.Identity
	if err := ce.Validate(); err != nil {
		t.Errorf("not a valid CloudEvent: %v", err)
	}
	if string(ce.Data()) != body {
		t.Errorf("the body was changed\n got %q\nwant %q", ce.Data(), body)
	}
	if ce.Type() != p.TypePrefix+e.Kind {
		t.Errorf("type %q, kind %q", ce.Type(), e.Kind)
	}
	if _, err := types.ParseTime(types.FormatTime(ce.Time())); err != nil {
		t.Errorf("consumers cannot read the time: %v", err)
	}
	checkSubject(t, "webhooks", e.Provider, e.Subject("webhooks"))

	digests := append(slices.Clone(id.Aliases), cmp.Or(id.Key, id.StateKey), ce.ID())
	if id.StateKey != "" || id.State != "" {
		digests = append(digests, id.StateKey, id.State)
	}
	for _, digest := range digests {
		if !digestPattern.MatchString(digest) {
			t.Errorf("digest %q in %+v, id %q", digest, id, ce.ID())
		}
	}
	msgID := normalize.Digest("msg", e.Provider, id.Key)
	if id.Judged() {
		msgID = normalize.Digest("msg", e.Provider, id.StateKey, id.State, e.Token)
		if len(id.Aliases) > 0 || id.Names() != nil {
			t.Errorf("a state report has names: %+v", id)
		}
	}
	if ce.ID() != msgID {
		t.Errorf("id %s, want %s", ce.ID(), msgID)
	}
	if basis := ce.Extensions()["dedupbasis"]; (basis == "state") != id.Judged() {
		t.Errorf("dedupbasis %v, identity %+v", basis, id)
	}
}

// checkSubject checks a NATS subject against section 5 of the design.
func checkSubject(t rapid.TB, prefix, provider, subject string) {
	t.Helper()
	rest, ok := strings.CutPrefix(subject, prefix+"."+provider)
	if !ok || rest != "" && rest[0] != '.' {
		t.Errorf("subject %q leaves %s.%s", subject, prefix, provider)
	}
	if len(subject) > 256 || strings.Count(subject, ".")-strings.Count(prefix, ".") > 14 {
		t.Errorf("subject %q is too long", subject)
	}
	if !tokensPattern.MatchString(rest) {
		t.Errorf("subject %q has a character or an empty token that it may not have", subject)
	}
}

var tokensPattern = regexp.MustCompile(`^(\.[a-z0-9_-]+)*$`)

// attributes returns all attributes and extensions as they are written into headers.
func attributes(t rapid.TB, ce event.Event) map[string]string {
	t.Helper()
	a := map[string]string{
		"specversion":     ce.SpecVersion(),
		"id":              ce.ID(),
		"source":          ce.Source(),
		"type":            ce.Type(),
		"subject":         ce.Subject(),
		"time":            types.FormatTime(ce.Time()),
		"datacontenttype": ce.DataContentType(),
		"dataschema":      ce.DataSchema(),
	}
	for name, value := range ce.Extensions() {
		text, err := types.Format(value)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		a[name] = text
	}
	maps.DeleteFunc(a, func(_, value string) bool { return value == "" })
	return a
}

// swap replaces each old text in the body, which must be there, by the new one that follows it.
func swap(body string, oldnew ...string) string {
	for pair := range slices.Chunk(oldnew, 2) {
		if !strings.Contains(body, pair[0]) {
			panic("test: no " + pair[0] + " in " + body)
		}
		body = strings.ReplaceAll(body, pair[0], pair[1])
	}
	return body
}

// A relation says what two events are to each other.
type relation string

const (
	sameKey    relation = "one event, same Key"
	sharedName relation = "one event, shared alias"
	sameState  relation = "same state of one thing"
	otherState relation = "other state of one thing"
	unrelated  relation = "unrelated"
)

// relate compares two identities; a named event and a state report meet in the StateKey only.
func relate(a, b normalize.Identity) relation {
	known := func(name string) bool { return slices.Contains(b.Names(), name) }
	switch named := !a.Judged() && !b.Judged(); {
	case named && a.Key == b.Key:
		return sameKey
	case named && slices.ContainsFunc(a.Names(), known):
		return sharedName
	case named, a.StateKey == "", a.StateKey != b.StateKey:
		return unrelated
	case a.State == b.State:
		return sameState
	}
	return otherState
}
