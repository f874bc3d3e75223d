package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// traceConfig is what the bridge reads of OpenTelemetry's variables. The rest,
// and these once more, its SDK reads by itself from the process's environment.
type traceConfig struct {
	disabled, exporter, endpoint, protocol string
}

func traceVariables(vars map[string]string) traceConfig {
	get := func(name string) string { return strings.TrimSpace(vars["OTEL_"+name]) }
	return traceConfig{
		disabled: get("SDK_DISABLED"),
		exporter: cmp.Or(get("TRACES_EXPORTER"), "otlp"),
		endpoint: cmp.Or(get("EXPORTER_OTLP_TRACES_ENDPOINT"), get("EXPORTER_OTLP_ENDPOINT")),
		protocol: cmp.Or(get("EXPORTER_OTLP_TRACES_PROTOCOL"), get("EXPORTER_OTLP_PROTOCOL"), protocol),
	}
}

// protocol is the one by which spans are sent.
const protocol = "http/protobuf"

// on reports whether there is somewhere to send traces to.
func (c traceConfig) on() bool {
	return c.endpoint != "" && !strings.EqualFold(c.disabled, "true") && c.exporter != "none"
}

// problems returns what is wrong with the variables. An endpoint may hold a
// secret and is not shown.
func (c traceConfig) problems() (problems configError) {
	if !c.on() {
		return nil
	}
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if c.exporter != "otlp" {
		wrong("OTEL_TRACES_EXPORTER: %q is neither otlp nor none", c.exporter)
	}
	if c.protocol != protocol {
		wrong("OTEL_EXPORTER_OTLP_PROTOCOL: %q is not supported, only %s, for which collectors listen on port 4318", c.protocol, protocol)
	}
	u, err := url.Parse(c.endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery+u.Fragment != "" {
		wrong("OTEL_EXPORTER_OTLP_ENDPOINT: it is not a URL like http://collector:4318")
	} else if u.User != nil {
		wrong("OTEL_EXPORTER_OTLP_ENDPOINT: a user in it is not sent; set OTEL_EXPORTER_OTLP_HEADERS")
	}
	return problems
}

// tracing exports spans in the background. What the collector does not take
// waits in a bounded queue and is then dropped; nothing waits for it.
type tracing struct {
	tracer   trace.Tracer
	provider *sdktrace.TracerProvider
	exporter *otlptrace.Exporter
}

// startTracing sets up OpenTelemetry's SDK as its variables say. What the SDK
// complains of is logged as a warning.
func startTracing(ctx context.Context, log *slog.Logger) (*tracing, error) {
	otel.SetLogger(logr.New(sdkLog{log}))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("OpenTelemetry", "error", err) }))
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_*: %w", err)
	}
	described, err := resource.New(ctx,
		resource.WithAttributes(semconv.ServiceName("bridge"), semconv.ServiceVersion(version)),
		resource.WithHost(), resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil { // it is there in part
		log.Warn("OpenTelemetry", "error", err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithResource(described), sdktrace.WithBatcher(&warner{SpanExporter: exporter, log: log}))
	return &tracing{
		tracer:   provider.Tracer("github.com/hookbus/bridge", trace.WithInstrumentationVersion(version)),
		provider: provider, exporter: exporter,
	}, nil
}

// tracesTimeout is what the collector gets to take the last spans.
const tracesTimeout = 2 * time.Second

// stop sends what is left and ends the SDK's goroutines. What the collector has
// not taken when ctx ends, or after tracesTimeout, is lost.
func (t *tracing) stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, tracesTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { t.exporter.Shutdown(context.Background()) })()
	t.provider.Shutdown(context.Background())
}

// warner logs that the collector does not take spans, once a minute at most.
type warner struct {
	sdktrace.SpanExporter
	log    *slog.Logger
	lost   int
	warned time.Time
}

// ExportSpans is called by one goroutine at a time.
func (w *warner) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := w.SpanExporter.ExportSpans(ctx, spans)
	if err == nil {
		return nil
	}
	w.lost += len(spans)
	if time.Since(w.warned) >= time.Minute {
		w.log.Warn("the collector does not take spans", "error", cause(err), "lost", w.lost)
		w.lost, w.warned = 0, time.Now()
	}
	return nil
}

// answered matches an answer's status in the exporter's error.
var answered = regexp.MustCompile(`: (\d{3} [A-Za-z ]+) \(body: `)

// cause says why an export failed, without the URL and what the collector
// writes: both may hold a secret.
func cause(err error) string {
	var request *url.Error
	status := answered.FindStringSubmatch(err.Error())
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return "no answer in time"
	case errors.As(err, &request):
		return request.Err.Error()
	case status != nil:
		return status[1]
	}
	return "it refuses them"
}

// sdkLog logs what the SDK finds wrong, without the values: headers and URLs are
// among them.
type sdkLog struct{ log *slog.Logger }

var _ logr.LogSink = sdkLog{}

func (l sdkLog) Error(_ error, msg string, _ ...any) {
	l.log.Warn("OpenTelemetry", "error", "cannot "+msg)
}
func (sdkLog) Init(logr.RuntimeInfo)            {}
func (sdkLog) Enabled(int) bool                 { return false }
func (sdkLog) Info(int, string, ...any)         {}
func (l sdkLog) WithValues(...any) logr.LogSink { return l }
func (l sdkLog) WithName(string) logr.LogSink   { return l }

// traceHandler adds to a line of the log the trace that its context is in.
type traceHandler struct{ slog.Handler }

func (h traceHandler) Handle(ctx context.Context, r slog.Record) error {
	if at := trace.SpanContextFromContext(ctx); at.IsValid() {
		r.AddAttrs(slog.String("trace_id", at.TraceID().String()), slog.String("span_id", at.SpanID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

func (h traceHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return traceHandler{h.Handler.WithAttrs(attrs)}
}

func (h traceHandler) WithGroup(name string) slog.Handler {
	return traceHandler{h.Handler.WithGroup(name)}
}
