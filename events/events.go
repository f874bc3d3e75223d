// Package events reads what the bridge has published: the CloudEvents attributes
// and, by the type, the provider's payload as a Go value.
//
// [Decode] is the entry point. The payloads are in a package for each provider;
// they are generated from the JSON Schemas in schemas/. Amounts are strings or
// json.Number, never floats.
package events

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/internal/binding"
)

//go:generate go run ./generate

var (
	// ErrNotEvent: the message is no CloudEvent in binary mode (NATS protocol
	// binding 1.0).
	ErrNotEvent = errors.New("events: not a CloudEvent")
	// ErrBody: the body, which is in the object store, cannot be read there.
	ErrBody = errors.New("events: body cannot be read")
	// ErrPayload: the body is not what the vendor documents for its type.
	ErrPayload = errors.New("events: payload does not fit its type")
)

// An Event is what a provider reports.
type Event struct {
	// Event holds the attributes; Data returns the body byte for byte, also of
	// one that was too large for a message.
	event.Event
	// Payload is a pointer to the type that [PayloadOf] has for the event's, as
	// *dfns.TransferRequestEvent; nil if it has none.
	Payload any
}

// Outcome returns what came of it, without regard to the provider: approved,
// rejected, review, pending, completed or failed; empty if that cannot be said.
func (e Event) Outcome() string { return e.extension("outcome") }

// Provider returns the provider's name.
func (e Event) Provider() string { return e.extension("provider") }

// SchemaError returns the JSON pointer to what the event's schema does not allow;
// empty if nothing was found.
func (e Event) SchemaError() string { return e.extension("schemaerror") }

// Traceparent returns the W3C trace context of the span in which the bridge has
// published the event; empty if it does not trace.
func (e Event) Traceparent() string { return e.extension("traceparent") }

func (e Event) extension(name string) string {
	value, _ := e.Extensions()[name].(string)
	return value
}

// Msg is a message, as jetstream.Msg.
type Msg interface {
	Headers() nats.Header
	Data() []byte
}

var _ Msg = jetstream.Msg(nil)

// Objects finds object stores, as jetstream.JetStream does.
type Objects interface {
	ObjectStore(ctx context.Context, bucket string) (jetstream.ObjectStore, error)
}

// Decode reads a message of the bridge's stream, or of a replay. A body that was
// too large for a message is read from objects. The errors are [ErrNotEvent],
// [ErrBody], which may pass, and [ErrPayload], with which the event is returned
// without its payload.
func Decode(ctx context.Context, objects Objects, msg Msg) (Event, error) {
	body := msg.Data()
	if ref := msg.Headers().Get("ce-dataref"); ref != "" {
		var err error
		if body, err = binding.ReadObject(ctx, objects, ref); err != nil {
			return Event{}, fmt.Errorf("%w: %s: %w", ErrBody, ref, err)
		}
	}
	ce, err := binding.Decode(msg.Headers(), body)
	if err != nil {
		return Event{}, fmt.Errorf("%w: %w", ErrNotEvent, err)
	}
	e := Event{Event: ce}
	payload := PayloadOf(ce.Type())
	if payload == nil {
		return e, nil
	}
	if err := json.Unmarshal(body, payload); err != nil {
		return e, fmt.Errorf("%w: %s: %w", ErrPayload, ce.Type(), shape(err))
	}
	// To the bridge names are what they are, and the last of a repeated one counts.
	// This decoder does not tell them apart by case, and merges objects.
	if ambiguous(body) {
		return e, fmt.Errorf("%w: %s: a name is there twice, or in another case", ErrPayload, ce.Type())
	}
	e.Payload = payload
	return e, nil
}

// shape returns an error of decoding without what stood in the body.
func shape(err error) error {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return fmt.Errorf("%s is no %v", wrong.Field, wrong.Type)
	}
	return errors.New("not JSON")
}

// ambiguous reports whether an object in a JSON text has two names that are the
// same, but for their case.
func ambiguous(text []byte) bool {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var names []map[string]bool // folded, of the objects that are open; nil: an array
	isName := false
	for {
		token, err := d.Token()
		if err != nil {
			return false // the end
		}
		switch t := token.(type) {
		case json.Delim:
			switch t {
			case '{':
				names = append(names, make(map[string]bool))
			case '[':
				names = append(names, nil)
			default:
				names = names[:len(names)-1]
			}
			isName = len(names) > 0 && names[len(names)-1] != nil
			continue
		case string:
			if isName {
				open := names[len(names)-1]
				folded := strings.Map(fold, t)
				if open[folded] {
					return true
				}
				open[folded] = true
				isName = false
				continue
			}
		}
		isName = len(names) > 0 && names[len(names)-1] != nil
	}
}

// PayloadOf returns a pointer to a new payload of a CloudEvents type, or nil if
// the type is not known.
func PayloadOf(ceType string) any {
	if make := payloads[ceType]; make != nil {
		return make()
	}
	return nil
}

// fold returns the least of the letters that encoding/json takes for the same.
func fold(r rune) rune {
	least := r
	for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
		least = min(least, next)
	}
	return least
}
