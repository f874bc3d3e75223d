// Package oteltest has a collector of spans for tests.
package oteltest

import (
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Collector takes spans by OTLP over HTTP, at /v1/traces below URL.
type Collector struct {
	URL string

	mu    sync.Mutex
	spans []Span
}

// A Span, and the name of the service that it is of.
type Span struct {
	*tracepb.Span
	Service string
}

// Attr returns an attribute of the span as text; empty if it has none.
func (s Span) Attr(key string) string { return attr(s.Attributes, key) }

func attr(attributes []*commonpb.KeyValue, key string) string {
	for _, a := range attributes {
		if a.Key == key {
			if text, ok := a.Value.Value.(*commonpb.AnyValue_StringValue); ok {
				return text.StringValue
			}
			return a.Value.String()
		}
	}
	return ""
}

// New starts a collector that ends with the test.
func New(tb testing.TB) *Collector {
	tb.Helper()
	c := &Collector{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var request coltracepb.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(body, &request)
		}
		if err != nil || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
			tb.Errorf("exported to %s as %s: %v", r.URL.Path, r.Header.Get("Content-Type"), err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, resource := range request.ResourceSpans {
			service := attr(resource.Resource.Attributes, "service.name")
			for _, scope := range resource.ScopeSpans {
				for _, span := range scope.Spans {
					c.spans = append(c.spans, Span{span, service})
				}
			}
		}
	}))
	tb.Cleanup(server.Close)
	c.URL = server.URL
	return c
}

// Spans returns those that have come so far.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Span(nil), c.spans...)
}
