package ingress_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/normalize"
)

// A new event through all stages, from the request to the acknowledgement of a
// NATS server in the same process.
func BenchmarkHandler(b *testing.B) { benchmarkHandler(b, nil) }

func benchmarkHandler(b *testing.B, tracer trace.Tracer) {
	for _, p := range normalize.Providers() {
		b.Run(p.Name, func(b *testing.B) {
			r := newTracedRig(b, natsURL(b), bus.SpoolConfig{}, tracer).ready()
			requests := make([]*http.Request, b.N)
			for i := range requests {
				requests[i] = r.signed(p, r.fresh(p))
			}
			b.ReportAllocs()
			b.ResetTimer()
			for _, request := range requests {
				w := httptest.NewRecorder()
				r.handler.ServeHTTP(w, request)
				if w.Code != http.StatusOK {
					b.Fatal(w.Code, w.Body)
				}
			}
		})
	}
}

// What the spans of a request cost, without their export.
func BenchmarkHandlerTraced(b *testing.B) {
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(tracetest.NewNoopExporter()))
	b.Cleanup(func() { provider.Shutdown(context.Background()) })
	benchmarkHandler(b, provider.Tracer(""))
}

// Many senders at once, as providers are.
func BenchmarkHandlerParallel(b *testing.B) {
	p := provider(b, "dfns")
	r := newRig(b, natsURL(b)).ready()
	b.SetParallelism(32)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			w := httptest.NewRecorder()
			r.handler.ServeHTTP(w, r.signed(p, r.fresh(p)))
			if w.Code != http.StatusOK {
				panic(fmt.Sprint(w.Code, w.Body))
			}
		}
	})
}
