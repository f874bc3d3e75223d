package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/internal/oteltest"
	"github.com/hookbus/bridge/normalize"
)

// tracedEnvironment adds variables for OpenTelemetry, whose SDK reads the
// process's own environment.
func tracedEnvironment(t *testing.T, environ []string, otel ...string) []string {
	t.Helper()
	otel = append(otel, "OTEL_BSP_SCHEDULE_DELAY=20")
	for _, variable := range otel {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
	return append(environ, otel...)
}

const (
	theirTrace       = "0af7651916cd43dd8448eb211c80319c"
	theirTraceparent = "00-" + theirTrace + "-b7ad6b7169203331-01"
)

// post sends a webhook of Waldo's with a traceparent, and returns the answer.
func post(t *testing.T, environ []string, secret, body string) (answer struct{ Result, ID, Reason string }) {
	t.Helper()
	waldo, _ := normalize.ByName("waldo")
	header, signature, err := waldo.Scheme.Sign(secret, []byte(body), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequest(http.MethodPost, "http://"+value(environ, "BRIDGE_LISTEN_ADDR")+"/webhooks/waldo", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set(header, signature)
	request.Header.Set("Traceparent", theirTraceparent)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	return answer
}

func flag(n int) string {
	return fmt.Sprintf(`{"requestId":"r-%d","event":"flag","customerId":"MUGABE"}`, n)
}

// lastMessage returns the last message of a stream.
func lastMessage(t *testing.T, url, stream string) *jetstream.RawStreamMsg {
	t.Helper()
	js, err := jetstream.New(natstest.Connect(t, url))
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	msg, err := s.GetMsg(t.Context(), s.CachedInfo().State.LastSeq)
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

func traceparent(s oteltest.Span) string {
	return fmt.Sprintf("00-%x-%x-01", s.TraceId, s.SpanId)
}

// traceOf waits for the request with that result, and returns it and what is below
// it by name, each of which there must be once.
func traceOf(t *testing.T, c *oteltest.Collector, result string) (root oteltest.Span, below map[string]oteltest.Span) {
	t.Helper()
	natstest.Eventually(t, 10*time.Second, "a request that was "+result, func() bool {
		for _, s := range c.Spans() {
			if s.Attr("bridge.result") == result {
				root = s
				return true
			}
		}
		return false
	})
	below = make(map[string]oteltest.Span)
	for _, s := range c.Spans() {
		if !bytes.Equal(s.TraceId, root.TraceId) || bytes.Equal(s.SpanId, root.SpanId) {
			continue
		}
		if _, twice := below[s.Name]; twice {
			t.Errorf("%s twice", s.Name)
		}
		below[s.Name] = s
	}
	return root, below
}

// One request is one trace, from the request to the publish, and nothing that is
// personal or secret is in it.
func TestTrace(t *testing.T) {
	c := oteltest.New(t)
	environ := tracedEnvironment(t, environment(t, "BRIDGE_WALDO_SECRETS=sekrit"), "OTEL_EXPORTER_OTLP_ENDPOINT="+c.URL)
	r := serve(t, environ)
	url := "nats://" + value(environ, "BRIDGE_EMBEDDED_LISTEN")
	wantKind := func(s oteltest.Span, kind tracepb.Span_SpanKind) {
		t.Helper()
		if s.Kind != kind {
			t.Errorf("%s is of kind %v", s.Name, s.Kind)
		}
	}
	wantParent := func(s, parent oteltest.Span) {
		t.Helper()
		if !bytes.Equal(s.ParentSpanId, parent.SpanId) {
			t.Errorf("%s is not below %s", s.Name, parent.Name)
		}
	}
	wantAttrs := func(s oteltest.Span, want map[string]string) {
		t.Helper()
		for key, value := range want {
			if got := s.Attr(key); got != value {
				t.Errorf("%s of %s: got %q, want %q", key, s.Name, got, value)
			}
		}
	}

	answer := post(t, environ, "sekrit", flag(1))
	root, below := traceOf(t, c, "accepted")
	wantKind(root, tracepb.Span_SPAN_KIND_SERVER)
	if root.Name != "POST /webhooks/{provider}" || root.Service != "bridge" || len(root.ParentSpanId) != 0 {
		t.Errorf("the root is %v of %s", root.Span, root.Service)
	}
	wantAttrs(root, map[string]string{
		"http.request.method": "POST", "http.route": "/webhooks/{provider}", "http.response.status_code": "int_value:200",
		"bridge.provider": "waldo", "bridge.reason": "", "cloudevents.event_type": "ai.waldo.flag", "cloudevents.event_id": answer.ID,
	})
	if len(root.Links) != 1 || fmt.Sprintf("%x", root.Links[0].TraceId) != theirTrace {
		t.Errorf("links %v", root.Links)
	}
	if fmt.Sprintf("%x", root.TraceId) == theirTrace {
		t.Error("a trace of the outside is continued")
	}
	publish := below["publish"]
	wantKind(publish, tracepb.Span_SPAN_KIND_PRODUCER)
	wantParent(below["dedupe"], root)
	wantParent(publish, below["dedupe"])
	wantAttrs(publish, map[string]string{
		"messaging.system": "nats", "messaging.operation.type": "send", "messaging.operation.name": "publish",
		"messaging.destination.name": "webhooks.waldo.flag", "messaging.message.id": answer.ID,
	})
	if msg := lastMessage(t, url, "WEBHOOKS"); msg.Header.Get("ce-traceparent") != traceparent(publish) || msg.Header.Get("Nats-Msg-Id") != answer.ID {
		t.Errorf("the event is %v, published by %s", msg.Header, traceparent(publish))
	}

	again := post(t, environ, "sekrit", flag(1))
	root, below = traceOf(t, c, "duplicate")
	if _, published := below["publish"]; published || again.ID != answer.ID {
		t.Errorf("a duplicate with %v: %v", again, below)
	}
	wantAttrs(root, map[string]string{"cloudevents.event_id": answer.ID})

	post(t, environ, "sekrit", `{"event":"flag"}`)
	root, below = traceOf(t, c, "quarantined")
	wantAttrs(root, map[string]string{"bridge.reason": "identity_missing", "cloudevents.event_id": "", "http.response.status_code": "int_value:200"})
	wantParent(below["publish"], root)
	msg := lastMessage(t, url, "WEBHOOKS_QUARANTINE")
	if got := msg.Header.Get("Bridge-Traceparent"); got != traceparent(below["publish"]) || msg.Header.Get("Bridge-Header-Traceparent") != theirTraceparent {
		t.Errorf("in the quarantine it is %v", msg.Header)
	}
	for _, args := range [][]string{{"ls", "--json"}, {"show", "1"}, {"show", "1", "--json"}} {
		if _, out, _ := command(t, environ, append([]string{"quarantine"}, args...)...); !strings.Contains(out, traceparent(below["publish"])) {
			t.Errorf("%v does not show the trace: %s", args, out)
		}
	}

	// What is not verified is not linked.
	post(t, environ, "wrong", flag(2))
	root, below = traceOf(t, c, "rejected")
	wantAttrs(root, map[string]string{"bridge.reason": "signature_mismatch", "http.response.status_code": "int_value:401"})
	if len(below) != 0 || len(root.Links) != 0 || root.Status.GetCode() != tracepb.Status_STATUS_CODE_UNSET {
		t.Errorf("a rejection is %v with %v", root.Span, below)
	}

	// What a stranger writes is in no span.
	for _, method := range []string{http.MethodGet, "SEKRIT"} {
		request, err := http.NewRequest(method, "http://"+value(environ, "BRIDGE_LISTEN_ADDR")+"/sekrit", nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
	}
	if code := r.stop(t); code != exitDone { // which sends the rest
		t.Errorf("exit %d: %s", code, r.stderr.String())
	}

	// The line of the log leads to the trace.
	var line struct {
		TraceID string `json:"trace_id"`
		SpanID  string `json:"span_id"`
	}
	for _, l := range strings.Split(r.stderr.String(), "\n") {
		if strings.Contains(l, "signature_mismatch") {
			if err := json.Unmarshal([]byte(l), &line); err != nil {
				t.Error(err)
			}
		}
	}
	if line.TraceID != fmt.Sprintf("%x", root.TraceId) || line.SpanID != fmt.Sprintf("%x", root.SpanId) {
		t.Errorf("in the log it is %+v:\n%s", line, r.stderr.String())
	}

	names := make(map[string]int)
	for _, s := range c.Spans() {
		names[s.Name]++
		for _, private := range []string{"MUGABE", "sekrit", "SEKRIT", "signature\""} {
			if strings.Contains(s.String(), private) {
				t.Errorf("%s is in %v", private, s.Span)
			}
		}
	}
	if names["GET"] != 1 || names["HTTP"] != 1 {
		t.Errorf("spans %v", names)
	}
}

// A request that could not be stored is an error in its trace.
func TestTraceOfFailure(t *testing.T) {
	c := oteltest.New(t)
	nats := natstest.Server(t)
	environ := tracedEnvironment(t, environment(t, "BRIDGE_NATS_URL="+nats.ClientURL(), "BRIDGE_WALDO_SECRETS=s"), "OTEL_EXPORTER_OTLP_ENDPOINT="+c.URL)
	serve(t, environ)
	nats.Shutdown()
	nats.WaitForShutdown()
	if answer := post(t, environ, "s", flag(1)); answer.Reason != "bus_unavailable" {
		t.Fatal(answer)
	}
	root, _ := traceOf(t, c, "failed")
	if root.Status.GetCode() != tracepb.Status_STATUS_CODE_ERROR || root.Attr("error.type") != "bus_unavailable" || root.Attr("http.response.status_code") != "int_value:503" {
		t.Errorf("got %v", root.Span)
	}
}

// What waits in the spool is published in the trace of its request; attempts that
// fail meanwhile are not in it.
func TestTraceThroughSpool(t *testing.T) {
	c := oteltest.New(t)
	addr := freeAddr(t)
	environ := tracedEnvironment(t, environment(t, "BRIDGE_NATS_URL=nats://"+addr, "BRIDGE_WALDO_SECRETS=s", "BRIDGE_SPOOL_DIR="+t.TempDir(), "BRIDGE_LOG_LEVEL=debug"),
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="+c.URL+"/v1/traces", "OTEL_SERVICE_NAME=hooks")
	r := serve(t, environ)
	if answer := post(t, environ, "s", flag(1)); answer.Result != "spooled" {
		t.Fatal(answer)
	}
	natstest.Eventually(t, 10*time.Second, "attempts to publish it fail", func() bool {
		return strings.Count(r.stderr.String(), `"msg":"from the spool"`) >= 2
	})
	s := natstest.Server(t, func(o *server.Options) {
		_, port, _ := net.SplitHostPort(addr)
		o.Port, _ = strconv.Atoi(port)
	})
	natstest.Eventually(t, 20*time.Second, "it is stored", func() bool { return stream(s) == 1 })
	msg := lastMessage(t, s.ClientURL(), "WEBHOOKS")
	if code := r.stop(t); code != exitDone {
		t.Errorf("exit %d: %s", code, r.stderr.String())
	}
	var root, spool, failed, publish oteltest.Span
	for _, s := range c.Spans() {
		switch {
		case s.Attr("bridge.result") == "spooled":
			root = s
		case s.Name == "spool":
			spool = s
		case s.Name == "publish" && s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR && failed.Span == nil:
			failed = s
		case s.Name == "publish" && publish.Span == nil:
			publish = s
		case s.Name != "dedupe":
			t.Errorf("more than one %v", s.Span)
		}
	}
	if root.Service != "hooks" || !bytes.Equal(spool.ParentSpanId, root.SpanId) || !bytes.Equal(publish.ParentSpanId, spool.SpanId) ||
		!bytes.Equal(publish.TraceId, root.TraceId) || !bytes.Equal(failed.TraceId, root.TraceId) {
		t.Errorf("root %v\nspool %v\nfailed %v\npublish %v", root.Span, spool.Span, failed.Span, publish.Span)
	}
	if got := msg.Header.Get("ce-traceparent"); got != traceparent(publish) {
		t.Errorf("traceparent %s of %s", got, traceparent(publish))
	}
	if !strings.Contains(r.stderr.String(), fmt.Sprintf(`"msg":"from the spool","result":"accepted","id":%q,"trace_id":"%x"`, msg.Header.Get("ce-id"), root.TraceId)) {
		t.Errorf("no trace in the log:\n%s", r.stderr.String())
	}
}

// Without an endpoint, or where it is switched off, nothing is exported and a
// trace of the outside is not handed on. What is not sampled says so.
func TestTraceOff(t *testing.T) {
	c := oteltest.New(t)
	endpoint := "OTEL_EXPORTER_OTLP_ENDPOINT=" + c.URL
	for name, test := range map[string]struct {
		otel   []string
		suffix string // of the traceparent
	}{
		"no endpoint": {},
		"disabled":    {[]string{endpoint, "OTEL_SDK_DISABLED=TRUE"}, ""},
		"no exporter": {[]string{endpoint, "OTEL_TRACES_EXPORTER=none", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"}, ""},
		"not sampled": {[]string{endpoint, "OTEL_TRACES_SAMPLER=always_off"}, "-00"},
	} {
		t.Run(name, func(t *testing.T) {
			environ := tracedEnvironment(t, environment(t, "BRIDGE_WALDO_SECRETS=s"), test.otel...)
			r := serve(t, environ)
			post(t, environ, "s", flag(1))
			got := lastMessage(t, "nats://"+value(environ, "BRIDGE_EMBEDDED_LISTEN"), "WEBHOOKS").Header.Get("ce-traceparent")
			if !strings.HasSuffix(got, test.suffix) || (got == "") != (test.suffix == "") || strings.Contains(got, theirTrace) {
				t.Errorf("traceparent %q", got)
			}
			r.stop(t)
		})
	}
	if spans := c.Spans(); len(spans) > 0 {
		t.Errorf("exported: %v", spans)
	}
}

// A collector that takes nothing slows neither requests nor the shutdown, and is
// warned of once and without secrets.
func TestTraceCollectorInTrouble(t *testing.T) {
	for name, test := range map[string]struct {
		handle http.HandlerFunc
		want   string
	}{
		"hangs":   {nil, "no answer in time"},
		"refuses": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "sekrit", http.StatusUnauthorized) }, "401 Unauthorized"},
		"gone":    {func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			release := make(chan struct{})
			collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				if asked.Add(1); test.handle == nil {
					<-release
				} else {
					test.handle(w, r)
				}
			}))
			defer collector.Close()
			defer close(release)
			environ := tracedEnvironment(t, environment(t, "BRIDGE_WALDO_SECRETS=s"),
				"OTEL_EXPORTER_OTLP_ENDPOINT="+collector.URL+"/sekrit", "OTEL_EXPORTER_OTLP_HEADERS=authorization=sekrit,sekrit", "OTEL_BSP_MAX_QUEUE_SIZE=4", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=2")
			r := serve(t, environ)
			natstest.Eventually(t, 20*time.Second, "spans are sent", func() bool {
				post(t, environ, "s", flag(0))
				return asked.Load() > 0 && (test.handle == nil || asked.Load() > 3)
			})
			for i := range 50 {
				start := time.Now()
				if answer := post(t, environ, "s", flag(i+1)); answer.Result != "accepted" || time.Since(start) > 5*time.Second {
					t.Errorf("%v after %v", answer, time.Since(start))
				}
			}
			if code := r.stop(t); code != exitDone { // in less than BRIDGE_SHUTDOWN_TIMEOUT
				t.Errorf("exit %d: %s", code, r.stderr.String())
			}
			log := r.stderr.String()
			if strings.Count(log, "does not take spans") != 1 || !strings.Contains(log, test.want) || !strings.Contains(log, "cannot parse headers") || strings.Contains(log, "sekrit") {
				t.Errorf("logged:\n%s", log)
			}
		})
	}
}

func TestWrongTraceVariables(t *testing.T) {
	for name, test := range map[string]struct {
		environ []string
		want    []string
	}{
		"gRPC": {
			[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "BRIDGE_STREAM=a.b"},
			[]string{"OTEL_EXPORTER_OTLP_PROTOCOL: \"grpc\" is not supported, only http/protobuf", "BRIDGE_STREAM: ", "BRIDGE_WALDO_SECRETS: "},
		},
		"another exporter": {
			[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER=zipkin"},
			[]string{"OTEL_TRACES_EXPORTER: ", "BRIDGE_WALDO_SECRETS: "},
		},
		"no URL": {[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=sekrit:4318"}, []string{"OTEL_EXPORTER_OTLP_ENDPOINT: "}},
		"a user": {[]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://user:sekrit@127.0.0.1:4318"}, []string{"OTEL_EXPORTER_OTLP_ENDPOINT: "}},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, stderr := command(t, append(environment(t, "BRIDGE_WALDO_SECRETS=a,,b"), test.environ...), "serve")
			if code != exitFailed || strings.Contains(stderr, "sekrit") {
				t.Errorf("exit %d: %s", code, stderr)
			}
			for _, want := range test.want {
				if !strings.Contains(stderr, "\n  "+want) {
					t.Errorf("no %q in:\n%s", want, stderr)
				}
			}
		})
	}
}
