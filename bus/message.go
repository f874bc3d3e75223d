package bus

import (
	"context"
	"fmt"
	"strings"

	"github.com/cloudevents/sdk-go/v2/types"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/hookbus/bridge/internal/binding"
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

	HeaderPrefix   = "Bridge-Header-"     // followed by the name of a header of the request
	TraceHeader    = "Bridge-Traceparent" // of a message in the quarantine; W3C Trace Context
	IDHeader       = "Bridge-Id"          // the id with which the request was answered
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
	const most = 28 // headers; beyond it there are more allocations, no error
	h, values := make(nats.Header, most), make([]string, 0, most)
	set := func(name, value string) {
		if value != "" {
			values = append(values, value)
			h[name] = values[len(values)-1 : len(values) : len(values)]
		}
	}
	attribute := func(name, value string) { set(name, binding.Encode(value)) }
	attribute("ce-specversion", ce.SpecVersion())
	attribute("ce-id", ce.ID())
	attribute("ce-source", ce.Source())
	attribute("ce-type", ce.Type())
	attribute("ce-subject", ce.Subject())
	attribute("ce-time", types.FormatTime(ce.Time()))
	attribute("ce-datacontenttype", ce.DataContentType())
	attribute("ce-dataschema", ce.DataSchema())
	for name, value := range ce.Extensions() {
		text, ok := value.(string)
		if !ok {
			var err error
			if text, err = types.Format(value); err != nil {
				return nil, fmt.Errorf("%w: %w", ErrNotPublishable, err)
			}
		}
		attribute("ce-"+name, text)
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

// traced names the span that ctx is in, if any, in a header of the message, and
// describes the message in the span.
func traced(ctx context.Context, msg *nats.Msg, header string) {
	span := trace.SpanFromContext(ctx)
	if !span.SpanContext().IsValid() {
		return
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	msg.Header[header] = []string{carrier["traceparent"]}
	span.SetAttributes(
		semconv.MessagingSystemKey.String("nats"),
		semconv.MessagingOperationTypeSend,
		semconv.MessagingOperationName("publish"),
		semconv.MessagingDestinationName(msg.Subject),
		semconv.MessagingMessageID(msg.Header.Get(jetstream.MsgIDHeader)),
	)
}
