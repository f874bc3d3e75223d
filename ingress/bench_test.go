package ingress_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/natstest"
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

// How fast a spool is emptied, to be compared with BenchmarkHandlerParallel: new events,
// and reports of a state, each about another customer.
func BenchmarkDrain(b *testing.B) {
	for _, kind := range []struct {
		name, provider string
		body           func(*rig, normalize.Provider, int) []byte
	}{
		{"events", "dfns", func(r *rig, p normalize.Provider, _ int) []byte { return r.fresh(p) }},
		{"reports", "waldo", func(_ *rig, _ normalize.Provider, n int) []byte {
			return fmt.Appendf(nil, `{"event":"flag","customerId":"c-%d","flag":true}`, n)
		}},
	} {
		b.Run(kind.name, func(b *testing.B) {
			r, begin := outage(b, bus.SpoolConfig{MaxBytes: 8 << 30})
			r.level.Set(slog.LevelError)
			p := provider(b, kind.provider)
			var wg sync.WaitGroup
			for w := range 64 {
				wg.Go(func() {
					for n := w; n < b.N; n += 64 {
						w := httptest.NewRecorder()
						r.handler.ServeHTTP(w, r.signed(p, kind.body(r, p, n)))
						if w.Code != http.StatusOK {
							b.Error(w.Code, w.Body)
						}
					}
				})
			}
			wg.Wait()
			begin()
			natstest.Eventually(b, time.Minute, "the first has left", func() bool { return r.spool.Len() < b.N })
			b.ResetTimer()
			natstest.Eventually(b, time.Hour, "the spool is empty", func() bool { return r.spool.Len() == 0 })
		})
	}
}
