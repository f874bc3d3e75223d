// Package binding reads CloudEvents from NATS messages in binary mode (CloudEvents
// NATS protocol binding 1.0): attributes are ce-* headers, percent-encoded.
package binding

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Decode reads a CloudEvent from the headers and the body of a message that
// the bridge has published. A message without ce-specversion, or an attribute
// that is not of its type, is an error.
func Decode(h nats.Header, body []byte) (event.Event, error) {
	ce := event.New()
	if h.Get("ce-specversion") == "" {
		return ce, errors.New("not a CloudEvent in binary mode")
	}
	for name, values := range h {
		name, ok := strings.CutPrefix(name, "ce-")
		if !ok || len(values) == 0 {
			continue
		}
		value, err := url.PathUnescape(values[0])
		if err != nil {
			return ce, fmt.Errorf("attribute %s: %w", name, err)
		}
		switch name {
		case "specversion":
			ce.SetSpecVersion(value)
		case "id":
			ce.SetID(value)
		case "source":
			ce.SetSource(value)
		case "type":
			ce.SetType(value)
		case "subject":
			ce.SetSubject(value)
		case "time":
			t, err := types.ParseTime(value)
			if err != nil {
				return ce, fmt.Errorf("attribute time: %w", err)
			}
			ce.SetTime(t)
		case "datacontenttype":
			ce.SetDataContentType(value)
		case "dataschema":
			ce.SetDataSchema(value)
		default:
			ce.SetExtension(name, value)
		}
	}
	if len(body) > 0 {
		ce.DataEncoded = body
	}
	return ce, ce.Validate()
}

// Encode percent-encodes in a value what the binding says: space, double quote,
// percent and everything outside printable ASCII (CloudEvents HTTP binding
// 3.1.3.2, to which the NATS binding refers).
func Encode(s string) string {
	plain := func(c byte) bool { return c > ' ' && c < 0x7f && c != '"' && c != '%' }
	i := 0
	for i < len(s) && plain(s[i]) {
		i++
	}
	if i == len(s) {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; plain(c) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// DatarefScheme begins the dataref of a body that is in an object store.
const DatarefScheme = "nats-object:"

// Dataref returns bucket and name of the object that a dataref names.
func Dataref(ref string) (bucket, name string, ok bool) {
	path, ok := strings.CutPrefix(ref, DatarefScheme)
	if !ok {
		return "", "", false
	}
	return strings.Cut(path, "/")
}

// ReadObject returns the body that a dataref names. It finds object stores as
// jetstream.JetStream does.
func ReadObject(ctx context.Context, objects interface {
	ObjectStore(ctx context.Context, bucket string) (jetstream.ObjectStore, error)
}, ref string) ([]byte, error) {
	bucket, name, ok := Dataref(ref)
	switch {
	case !ok:
		return nil, fmt.Errorf("%q is no reference to an object", ref)
	case objects == nil:
		return nil, errors.New("no object stores were given")
	}
	store, err := objects.ObjectStore(ctx, bucket)
	if err != nil {
		return nil, err
	}
	return store.GetBytes(ctx, name)
}
