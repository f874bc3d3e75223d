package bus

import (
	"cmp"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/internal/binding"
	"github.com/hookbus/bridge/normalize"
)

// Spooled is what the spool holds: an event or a rejected body. Headers are those of an
// event's request, in case the event is rejected later.
type Spooled struct {
	Event    *normalize.Event
	Rejected *Rejected
	Headers  map[string]string
	// Traceparent is the W3C trace context of the request, if it is traced.
	Traceparent string
}

// rejected is in the place of an entity for all bodies that are no events.
const rejected = ""

// entity names what the order is kept for. Reports about one thing have one entity.
func (s Spooled) entity() string {
	if s.Event == nil {
		return rejected
	}
	return s.Event.CloudEvent.Source() + " " + s.Event.CloudEvent.Subject()
}

// spoolMeta is what goes with a message, in spoolHeader.
type spoolMeta struct {
	Provider   string              `json:"provider"`
	Received   time.Time           `json:"received"`
	Kind       string              `json:"kind,omitempty"`
	Identity   *normalize.Identity `json:"identity,omitempty"`
	Token      string              `json:"token,omitempty"`
	Reason     string              `json:"reason,omitempty"`
	Repeatable bool                `json:"repeatable,omitempty"`
	Headers    map[string]string   `json:"headers,omitempty"`
	Trace      string              `json:"traceparent,omitempty"`
}

// encode makes the message of the spool for an item, and returns the time of receipt that
// it holds: the item's own, or newest, that of the item before, if that is later by less
// than longestWait.
func (s Spooled) encode(newest time.Time) (msg *nats.Msg, received time.Time, err error) {
	var meta spoolMeta
	if e := s.Event; e != nil {
		meta = spoolMeta{Provider: e.Provider, Received: e.Received, Kind: e.Kind, Identity: &e.Identity, Token: e.Token, Headers: s.Headers}
		if msg, err = encode(e, ""); err != nil {
			return nil, newest, err
		}
		// Copies are recognised when they leave: one may have names that the
		// first has not.
		delete(msg.Header, jetstream.MsgIDHeader)
	} else {
		r := s.Rejected
		meta = spoolMeta{Provider: r.Provider, Received: r.Received, Reason: r.Reason, Repeatable: r.Repeatable, Headers: r.Headers}
		msg = &nats.Msg{Header: nats.Header{}, Data: r.Body}
	}
	meta.Trace = s.Traceparent
	if meta.Received.Before(newest) && newest.Sub(meta.Received) < longestWait {
		meta.Received = newest
	}
	header, err := json.Marshal(meta)
	if err != nil {
		return nil, newest, fmt.Errorf("%w: %w", ErrNotPublishable, err)
	}
	msg.Subject = otherSubject
	if s.Event != nil {
		msg.Subject = eventSubject
	}
	msg.Header[spoolHeader] = []string{string(header)}
	return msg, meta.Received, nil
}

// decodeSpooled reads what encode has written. What cannot be read is for the
// quarantine.
func decodeSpooled(msg *jetstream.RawStreamMsg) Spooled {
	var meta spoolMeta
	err := json.Unmarshal([]byte(msg.Header.Get(spoolHeader)), &meta)
	if err == nil && meta.Reason == "" && meta.Identity != nil {
		ce, err := binding.Decode(msg.Header, msg.Data)
		if err == nil {
			ce.SetExtension("recordedtime", meta.Received) // the one by which it is judged
			return Spooled{Event: &normalize.Event{
				CloudEvent: ce, Provider: meta.Provider, Kind: meta.Kind,
				Identity: *meta.Identity, Token: meta.Token, Received: meta.Received,
			}, Headers: meta.Headers, Traceparent: meta.Trace}
		}
	}
	received := meta.Received
	if received.IsZero() {
		received = msg.Time
	}
	return Spooled{Rejected: &Rejected{
		Provider: cmp.Or(meta.Provider, "unknown"), Reason: cmp.Or(meta.Reason, "not_publishable"),
		Body: msg.Data, Received: received, Headers: meta.Headers, Repeatable: meta.Repeatable,
	}, Traceparent: meta.Trace}
}
