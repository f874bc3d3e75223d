package ingress

import (
	"context"
	"net/http"
	"slices"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/normalize"
)

// Attributes of the bridge's spans beside those that OpenTelemetry names. Their
// values are those of the metrics' labels.
const (
	providerKey = attribute.Key("bridge.provider")
	resultKey   = attribute.Key("bridge.result")
	reasonKey   = attribute.Key("bridge.reason")
)

var methods = []string{
	http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
	http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace,
}

var noSpan trace.Span = noop.Span{}

// begin starts the span of a request, which is the root of its trace. Nothing
// that a stranger writes is in it.
func (h *Handler) begin(r *http.Request, provider string) (*http.Request, trace.Span) {
	if h.tracer == nil {
		return r, noSpan
	}
	name, method := r.Method, r.Method
	if !slices.Contains(methods, method) {
		name, method = "HTTP", "_OTHER"
	}
	attributes := []attribute.KeyValue{semconv.HTTPRequestMethodKey.String(method), providerKey.String(provider)}
	if provider != unknown {
		const route = "/webhooks/{provider}"
		name += " " + route
		attributes = append(attributes, semconv.HTTPRoute(route))
	}
	ctx, span := h.tracer.Start(r.Context(), name, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attributes...))
	return r.WithContext(ctx), span
}

// link names the trace that a verified request says it belongs to. It is not
// the parent: that header is not signed.
func link(ctx context.Context, traceparent string) {
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		theirs := under(context.Background(), traceparent)
		span.AddLink(trace.Link{SpanContext: trace.SpanContextFromContext(theirs)}) // none, if it is invalid
	}
}

// under returns a context in the span that a traceparent names, if it is valid.
func under(ctx context.Context, traceparent string) context.Context {
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": traceparent})
}

// finish ends the span of a request.
func finish(span trace.Span, a answer, status int) {
	if span.IsRecording() {
		span.SetAttributes(semconv.HTTPResponseStatusCode(status), resultKey.String(a.result))
		if a.reason != "" {
			span.SetAttributes(reasonKey.String(string(a.reason)))
		}
		if a.typ != "" {
			span.SetAttributes(semconv.CloudEventsEventID(a.id), semconv.CloudEventsEventType(a.typ))
		}
		if status >= 500 {
			span.SetAttributes(semconv.ErrorTypeKey.String(string(a.reason)))
			span.SetStatus(codes.Error, "")
		}
	}
	span.End()
}

// traced adds spans to the stages that wait for NATS or the disk.
type traced struct {
	Deduper
	Bus
	Spool
	tracer trace.Tracer
}

var (
	_ Deduper = traced{}
	_ Bus     = traced{}
	_ Spool   = traced{}
)

func (t traced) Once(ctx context.Context, e *normalize.Event, publish dedupe.Publish) (dedupe.Result, error) {
	return t.once(ctx, e, publish, t.Deduper.Once)
}

func (t traced) OnceCertain(ctx context.Context, e *normalize.Event, publish dedupe.Publish) (dedupe.Result, error) {
	return t.once(ctx, e, publish, t.Deduper.OnceCertain)
}

func (t traced) once(ctx context.Context, e *normalize.Event, publish dedupe.Publish, once once) (result dedupe.Result, err error) {
	if late(ctx) {
		return once(ctx, e, publish)
	}
	ctx, span := t.tracer.Start(ctx, "dedupe")
	defer func() { end(span, err) }()
	return once(ctx, e, publish)
}

func (t traced) Publish(ctx context.Context, e *normalize.Event) (ack bus.Ack, err error) {
	err = t.publish(ctx, func(ctx context.Context) error {
		ack, err = t.Bus.Publish(ctx, e)
		return err
	})
	return ack, err
}

func (t traced) Quarantine(ctx context.Context, r bus.Rejected) error {
	return t.publish(ctx, func(ctx context.Context) error { return t.Bus.Quarantine(ctx, r) })
}

// publish runs in the producer's span, whose context the message carries. For what
// comes out of the spool only the attempt that succeeds is exported, since an outage
// has many: the span of a failed attempt is not ended, and so not exported.
func (t traced) publish(ctx context.Context, publish func(context.Context) error) error {
	late := late(ctx)
	ctx, span := t.tracer.Start(ctx, "publish", trace.WithSpanKind(trace.SpanKindProducer))
	err := publish(ctx)
	if err == nil || !late {
		end(span, err)
	}
	return err
}

func (t traced) Put(ctx context.Context, item bus.Spooled) (err error) {
	ctx, span := t.tracer.Start(ctx, "spool")
	defer func() { end(span, err) }()
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	item.Traceparent = carrier["traceparent"]
	return t.Spool.Put(ctx, item)
}

// late reports whether the request has been answered already: then what is published
// comes out of the spool.
func late(ctx context.Context) bool {
	at := trace.SpanContextFromContext(ctx)
	return at.IsRemote() || !at.IsValid()
}

func end(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, string(reasonFor(err)))
	}
	span.End()
}
