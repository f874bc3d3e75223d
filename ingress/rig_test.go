package ingress_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/ingress"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
	"github.com/hookbus/bridge/signature"
)

func TestMain(m *testing.M) { natstest.Main(m) }

const tolerance = 5 * time.Minute

// start is when the rig's clock stands at first.
var start = time.Date(2026, 4, 26, 10, 23, 1, 500_000_000, time.UTC)

// rig is a whole bridge behind a real HTTP server, on a real NATS server.
type rig struct {
	t        testing.TB
	url      string
	handler  http.Handler
	admin    *ingress.Admin
	spool    *bus.Spool // nil: none
	registry *prometheus.Registry
	bus      *bus.Bus
	js       jetstream.JetStream
	log      *natstest.Output
	level    slog.LevelVar
	conns    atomic.Int64 // that the server has accepted

	now atomic.Pointer[time.Time]
}

type rigOption func(*bus.Config, *ingress.Limits)

// keeper returns the spool as the interface that is nil without one.
func (r *rig) keeper() ingress.Spool {
	if r.spool == nil {
		return nil
	}
	return r.spool
}

// newRig starts a bridge against the NATS servers at url.
func newRig(t testing.TB, url string, options ...rigOption) *rig {
	t.Helper()
	return newSpoolRig(t, url, bus.SpoolConfig{}, options...)
}

// newSpoolRig starts one with a spool, unless that has no directory.
func newSpoolRig(t testing.TB, url string, spool bus.SpoolConfig, options ...rigOption) *rig {
	t.Helper()
	return newTracedRig(t, url, spool, nil, options...)
}

// newTracedRig starts one that makes spans.
func newTracedRig(t testing.TB, url string, spool bus.SpoolConfig, tracer trace.Tracer, options ...rigOption) *rig {
	t.Helper()
	cfg := bus.Config{
		URL: url, Stream: "WEBHOOKS", SubjectPrefix: "webhooks", Replicas: 1, StreamMaxAge: 720 * time.Hour,
		Bucket: "webhooks-dedupe", DedupeWindow: 168 * time.Hour, DuplicateWindow: 10 * time.Minute,
		QuarantineStream: "WEBHOOKS_QUARANTINE", QuarantinePrefix: "quarantine", QuarantineMaxAge: 720 * time.Hour, QuarantineMaxBytes: 1 << 30,
		MaxBody: 64 << 10, PublishTimeout: 3 * time.Second, Manage: true,
	}
	limits := ingress.Limits{MaxBody: cfg.MaxBody, MaxInFlight: 512, MaxInFlightBytes: 64 << 20, PublishTimeout: cfg.PublishTimeout}
	for _, o := range options {
		o(&cfg, &limits)
	}
	r := &rig{t: t, registry: prometheus.NewRegistry(), log: &natstest.Output{}}
	r.setNow(start)
	r.level.Set(slog.LevelDebug)
	log := slog.New(slog.NewJSONHandler(r.log, &slog.HandlerOptions{Level: &r.level}))
	var err error
	if r.bus, err = bus.Open(t.Context(), cfg, log, r.registry); err != nil {
		t.Fatal(err)
	}
	r.js = r.bus.JetStream()
	d, err := dedupe.New(r.bus, dedupe.Windows{State: 2 * time.Minute, Dedupe: cfg.DedupeWindow}, r.registry)
	if err != nil {
		t.Fatal(err)
	}
	x, err := dedupe.NewIndexer(r.bus, d, log, r.registry)
	if err != nil {
		t.Fatal(err)
	}
	var endpoints []ingress.Endpoint
	for _, p := range normalize.Providers() {
		v, err := p.Scheme.NewVerifier(secrets(p), tolerance)
		if err != nil {
			t.Fatal(err)
		}
		endpoints = append(endpoints, ingress.Endpoint{Provider: p, Verifier: v})
	}
	if spool.Dir != "" {
		spool.MaxBody = cfg.MaxBody
		if r.spool, err = bus.OpenSpool(t.Context(), spool, log, r.registry); err != nil {
			t.Fatal(err)
		}
	}
	schemas, err := ingress.NewSchemas(ingress.SchemaMark, "https://bridge.example.com", r.registry)
	if err != nil {
		t.Fatal(err)
	}
	h, err := ingress.New(endpoints, d, r.bus, r.keeper(), schemas, limits, func() time.Time { return *r.now.Load() }, log, r.registry, tracer)
	if err != nil {
		t.Fatal(err)
	}
	r.handler = h
	r.admin = ingress.NewAdmin(r.bus.State, x.Lag, r.keeper(), []byte(`{"asyncapi":"3.0.0"}`), r.registry, &r.level, log)
	server := httptest.NewUnstartedServer(h)
	server.Config = ingress.NewServer(h, log)
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			r.conns.Add(1)
		}
	}
	server.Start()
	r.url = server.URL

	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { r.bus.Run(ctx) })
	wg.Go(func() { x.Run(ctx) })
	if r.spool != nil {
		wg.Go(func() { r.spool.Run(ctx, h.HandOver) })
	}
	t.Cleanup(func() {
		server.Close()
		cancel()
		wg.Wait()
		if r.spool != nil {
			r.spool.Close()
		}
		r.bus.Close(context.Background())
		http.DefaultClient.CloseIdleConnections()
	})
	return r
}

// ready waits until events can be stored.
func (r *rig) ready() *rig {
	r.t.Helper()
	natstest.Eventually(r.t, 20*time.Second, "the bridge is ready", func() bool { return r.bus.State().Ready() })
	return r
}

func oneServer(t testing.TB, options ...rigOption) *rig {
	t.Helper()
	return newRig(t, natsURL(t), options...).ready()
}

func (r *rig) setNow(now time.Time) { r.now.Store(&now) }

// secrets returns the two secrets that a rig takes from a provider.
func secrets(p normalize.Provider) []string {
	if p.Scheme.Key == signature.HexAfterWhsec {
		return []string{"whsec_a1b2c3d4e5f6a7b8c9d0e1f2a3b4c5d6e7f8a9b0c1d2e3f4a5b6c7d8e9f0a1", "whsec_0102030405060708090a0b0c0d0e0f10"}
	}
	return []string{"first-secret-of-" + p.Name, "second-secret-of-" + p.Name}
}

// answer is what came back, of either form.
type answer struct {
	Status int
	Result string `json:"result"`
	ID     string `json:"id"`
	Reason string `json:"reason"`
	Header http.Header
	text   string
}

// signed returns a request as the provider would send it at the rig's time.
func (r *rig) signed(p normalize.Provider, body []byte) *http.Request {
	r.t.Helper()
	return r.signedWith(p, secrets(p)[0], body)
}

func (r *rig) signedWith(p normalize.Provider, secret string, body []byte) *http.Request {
	r.t.Helper()
	header, value, err := p.Scheme.Sign(secret, body, *r.now.Load())
	if err != nil {
		r.t.Fatal(err)
	}
	request := r.request(p, body)
	request.Header.Set(header, value)
	return request
}

func (r *rig) request(p normalize.Provider, body []byte) *http.Request {
	r.t.Helper()
	request, err := http.NewRequest(http.MethodPost, r.url+"/webhooks/"+p.Name, bytes.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	return request
}

// send sends a request over HTTP.
func (r *rig) send(request *http.Request) answer {
	r.t.Helper()
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		r.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return parse(r.t, response.StatusCode, response.Header, text)
}

// serve hands a request to the handler without a connection in between.
func (r *rig) serve(request *http.Request) answer {
	r.t.Helper()
	w := httptest.NewRecorder()
	r.handler.ServeHTTP(w, request)
	return parse(r.t, w.Code, w.Header(), w.Body.Bytes())
}

func parse(t testing.TB, status int, header http.Header, text []byte) answer {
	t.Helper()
	a := answer{Status: status, Header: header, text: string(text)}
	if err := json.Unmarshal(text, &a); err != nil {
		t.Fatalf("%d %q: %v", status, text, err)
	}
	want := "application/problem+json"
	if status == http.StatusOK {
		want = "application/json"
	}
	if got := header.Get("Content-Type"); got != want {
		t.Errorf("%d has Content-Type %q", status, got)
	}
	return a
}

// sample returns the provider's first sample, signed or to be signed now.
func (r *rig) sample(p normalize.Provider) []byte {
	return p.Stamp(p.Samples()[0].Body, *r.now.Load())
}

// fresh returns an event of its own.
func (r *rig) fresh(p normalize.Provider) []byte {
	return p.Fresh(p.Samples()[0].Body, *r.now.Load())
}

// stored returns how many messages a stream has.
func (r *rig) stored(stream string) uint64 {
	r.t.Helper()
	s, err := r.js.Stream(r.t.Context(), stream)
	if err != nil {
		r.t.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}

// message returns a message by its id, which must be there once.
func (r *rig) message(stream, id string) *nats.Msg {
	r.t.Helper()
	s, err := r.js.Stream(r.t.Context(), stream)
	if err != nil {
		r.t.Fatal(err)
	}
	var found *nats.Msg
	for seq := s.CachedInfo().State.FirstSeq; seq <= s.CachedInfo().State.LastSeq; seq++ {
		m, err := s.GetMsg(r.t.Context(), seq)
		if err != nil {
			r.t.Fatal(err)
		}
		if m.Header.Get(jetstream.MsgIDHeader) == id {
			if found != nil {
				r.t.Fatalf("%s has id %s twice", stream, id)
			}
			for _, name := range []string{"Nats-Stream", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Subject", "Nats-Num-Pending", "Nats-Last-Sequence"} {
				m.Header.Del(name) // of the answer, not of the message
			}
			found = &nats.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data}
		}
	}
	if found == nil {
		r.t.Fatalf("%s has no message with id %s", stream, id)
	}
	return found
}

// expect checks the status and, of what is given, result and reason.
func (a answer) expect(t *testing.T, status int, resultOrReason string) {
	t.Helper()
	if a.Status != status || a.Result+a.Reason != resultOrReason {
		t.Fatalf("got %d %s, want %d %s", a.Status, strings.TrimSpace(a.text), status, resultOrReason)
	}
}

func natsURL(t testing.TB) string { return natstest.Server(t).ClientURL() }
