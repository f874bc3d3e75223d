// Package normalize turns the verified body of a provider's webhook into a
// CloudEvent and says which occurrence it reports.
//
// The entry point is [Provider.Event]; [Providers] is the one list of
// providers, and all that is particular to one of them stands in its own file.
// The body itself is kept byte for byte, and no number in it passes through a
// float.
package normalize

import (
	"errors"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cloudevents/sdk-go/v2/event"
)

// Reasons why a verified body is not an event. Such a body goes to the
// quarantine; it is never thrown away.
var (
	// ErrNotJSON: the body is not one JSON object.
	ErrNotJSON = errors.New("normalize: body is not a JSON object")
	// ErrNoType: the body does not name its event type, or names it by
	// something that no CloudEvents type may hold (a control character).
	ErrNoType = errors.New("normalize: no event type")
	// ErrNoIdentity: the body lacks the fields that tell its occurrence from others.
	ErrNoIdentity = errors.New("normalize: nothing identifies the event")
	// ErrTypeTooLong: the event type is longer than MaxValue.
	ErrTypeTooLong = errors.New("normalize: event type too long for a header")
)

// MaxValue is the length in bytes above which a value taken from a body is not
// copied into an attribute. The NATS server limits all headers to 64 KiB.
const MaxValue = 1024

// An Event is a verified webhook, ready to be published.
type Event struct {
	// CloudEvent holds the attributes, the extensions and, as its data, the
	// body as it was received. Its id is the event's Nats-Msg-Id.
	CloudEvent event.Event
	Provider   string
	// Kind is the CloudEvents type without the provider's prefix; it becomes
	// the rest of the NATS subject.
	Kind     string
	Identity Identity
	// Token tells two state reports of the same state apart; a named event has
	// none.
	Token    string
	Received time.Time
}

// SetToken fixes the token of a state report and with it the CloudEvents id,
// under which the report is published from then on. A named event keeps its id.
func (e *Event) SetToken(token string) {
	if !e.Identity.Judged() {
		return
	}
	e.Token = token
	e.CloudEvent.SetID(Digest("msg", e.Provider, e.Identity.StateKey, e.Identity.State, token))
}

// Subject returns the NATS subject of the event below prefix.
func (e *Event) Subject(prefix string) string {
	return Subject(prefix, e.Provider, e.Kind)
}

// mapping is what a provider's file reads from a body. What is empty is left out.
type mapping struct {
	kind     string
	source   string // absolute URI; the provider's Source if empty
	subject  string
	time     string // as sent
	basis    string // dedupbasis: "id", "content" or "state"
	identity Identity

	eventID    string // the provider's own
	externalID string
	requestID  string
	attempt    int32
	outcome    string
	risk       string
}

// Event maps a verified body, received at the given time, to an event.
// The errors are [ErrNotJSON], [ErrNoType], [ErrNoIdentity] and [ErrTypeTooLong].
//
// The event of a named occurrence has its id already; a state report gets it
// with its token ([Event.SetToken]). The event keeps body, which must not be
// changed afterwards.
func (p Provider) Event(body []byte, received time.Time) (*Event, error) {
	o, err := parseObject(body)
	if err != nil {
		return nil, err
	}
	m, err := p.mapBody(body, o)
	if err != nil {
		return nil, err
	}
	typ := p.TypePrefix + m.kind
	if len(typ) > MaxValue {
		return nil, ErrTypeTooLong
	}
	if m.kind == "" || !attributeText(typ) || strings.TrimSpace(typ) != typ { // the SDK trims it
		return nil, ErrNoType
	}

	ce := event.New()
	ce.SetType(typ)
	ce.SetSource(p.Source)
	if m.source != "" {
		ce.SetSource(m.source)
	}
	if attributeText(m.subject) {
		ce.SetSubject(m.subject)
	}
	received = received.UTC()
	ce.SetTime(received)
	if at, err := time.Parse(time.RFC3339, m.time); err == nil {
		if at = at.UTC(); 0 <= at.Year() && at.Year() <= 9999 { // else no RFC 3339
			ce.SetTime(at)
		}
	}
	ce.SetExtension("provider", p.Name)
	ce.SetExtension("dedupbasis", m.basis)
	ce.SetExtension("recordedtime", received)
	if m.attempt > 0 {
		ce.SetExtension("attempt", m.attempt)
	}
	for _, extension := range [...]struct{ name, value string }{
		{"providereventid", m.eventID}, {"externalid", m.externalID}, {"requestid", m.requestID}, {"outcome", m.outcome}, {"risk", m.risk},
	} {
		if extension.value != "" && attributeText(extension.value) {
			ce.SetExtension(extension.name, extension.value)
		}
	}
	if err := ce.SetData(event.ApplicationJSON, body); err != nil {
		return nil, err
	}
	e := &Event{CloudEvent: ce, Provider: p.Name, Kind: m.kind, Identity: m.identity, Received: received}
	if !m.identity.Judged() {
		e.CloudEvent.SetID(Digest("msg", p.Name, m.identity.Key))
	}
	return e, nil
}

// attributeText reports whether a CloudEvents attribute may hold s: at most
// MaxValue bytes, no control characters, no noncharacters (CloudEvents 1.0,
// "String" in section 3.1).
func attributeText(s string) bool {
	if len(s) > MaxValue || !utf8.ValidString(s) {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool {
		return r < 0x20 || 0x7f <= r && r <= 0x9f || 0xfdd0 <= r && r <= 0xfdef || r&0xfffe == 0xfffe
	}) < 0
}

// urn appends text from a body to a URN as one percent-encoded segment.
func urn(prefix, segment string) string {
	if segment == "" || !attributeText(segment) {
		return prefix
	}
	return prefix + ":project:" + url.PathEscape(segment)
}

// oneOf returns word in lower case if it is one of the listed lower-case words.
func oneOf(word string, words ...string) string {
	word = strings.ToLower(word)
	for _, w := range words {
		if w == word {
			return w
		}
	}
	return ""
}
