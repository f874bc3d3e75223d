package bus

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/normalize"
)

// Headers that the bridge writes beside the CloudEvents attributes (ce-*) and
// Nats-Msg-Id. The first five carry an event's names to the indexer.
const (
	KeyHeader      = "Bridge-Key"
	AliasesHeader  = "Bridge-Aliases" // comma-separated
	StateKeyHeader = "Bridge-State-Key"
	StateHeader    = "Bridge-State"
	TokenHeader    = "Bridge-Token"

	HeaderPrefix   = "Bridge-Header-" // and a header of the request
	ProviderHeader = "Bridge-Provider"
	ReasonHeader   = "Bridge-Reason"
	ReceivedHeader = "Bridge-Received"    // RFC 3339
	DigestHeader   = "Bridge-Body-Sha256" // hex
	SizeHeader     = "Bridge-Body-Size"   // bytes
)

// encode writes an event as a NATS message by the CloudEvents NATS protocol
// binding 1.0, binary mode.
func encode(e *normalize.Event, prefix string) (*nats.Msg, error) {
	ce := e.CloudEvent
	if err := ce.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotPublishable, err)
	}
	h := nats.Header{}
	set := func(name, value string) {
		if value != "" {
			h[name] = []string{value}
		}
	}
	attribute := func(name, value string) { set("ce-"+name, encodeValue(value)) }
	attribute("specversion", ce.SpecVersion())
	attribute("id", ce.ID())
	attribute("source", ce.Source())
	attribute("type", ce.Type())
	attribute("subject", ce.Subject())
	attribute("time", types.FormatTime(ce.Time()))
	attribute("datacontenttype", ce.DataContentType())
	attribute("dataschema", ce.DataSchema())
	for name, value := range ce.Extensions() {
		text, err := types.Format(value)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNotPublishable, err)
		}
		attribute(name, text)
	}
	// The official Go SDK takes the content type from here.
	set("content-type", ce.DataContentType())

	set(jetstream.MsgIDHeader, ce.ID())
	set(KeyHeader, e.Identity.Key)
	set(AliasesHeader, strings.Join(e.Identity.Aliases, ","))
	set(StateKeyHeader, e.Identity.StateKey)
	set(StateHeader, e.Identity.State)
	set(TokenHeader, e.Token)
	return &nats.Msg{Subject: e.Subject(prefix), Header: h, Data: ce.Data()}, nil
}

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
	ce.DataEncoded = body
	return ce, ce.Validate()
}

// encodeValue percent-encodes what the binding says: space, double quote,
// percent and everything outside printable ASCII (CloudEvents HTTP binding
// 3.1.3.2, to which the NATS binding refers).
func encodeValue(s string) string {
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
