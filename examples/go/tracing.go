package main

import (
	"context"
	"os"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/hookbus/bridge/events"
)

// tracing returns a tracer that exports to where OTEL_EXPORTER_OTLP_ENDPOINT
// says, and what flushes it; without one, nothing is traced.
func tracing(ctx context.Context, name string) (trace.Tracer, func(context.Context) error, error) {
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" {
		return nil, func(context.Context) error { return nil }, nil
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, nil, err
	}
	service, err := resource.New(ctx, resource.WithAttributes(semconv.ServiceName(name)), resource.WithFromEnv())
	if err != nil {
		return nil, nil, err
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(service))
	return provider.Tracer(""), provider.Shutdown, nil
}

// traced handles an event in a span that continues the bridge's trace: its parent
// is the span in which the bridge has published the event.
func (s *service) traced(ctx context.Context, e events.Event, handle func(events.Event) error) error {
	if s.tracer == nil {
		return handle(e)
	}
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": e.Traceparent()})
	_, span := s.tracer.Start(ctx, "process "+e.Type(), trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(
		semconv.MessagingSystemKey.String("nats"), semconv.MessagingOperationTypeProcess, semconv.MessagingOperationName("process"), semconv.MessagingMessageID(e.ID())))
	defer span.End()
	err := handle(e)
	if err != nil {
		span.SetStatus(codes.Error, "")
	}
	return err
}
