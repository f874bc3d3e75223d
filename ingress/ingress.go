// Package ingress is the bridge's HTTP side. Its [Handler] takes a webhook
// through the stages, whose order only this package knows: read, verify,
// normalize, dedupe, publish, reply. [Admin] answers probes and metrics.
package ingress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/internal/failpoint"
	"github.com/hookbus/bridge/normalize"
)

// Limits of the handler. Sizes are in bytes.
type Limits struct {
	MaxBody          int64
	MaxInFlight      int64 // requests
	MaxInFlightBytes int64
	// PublishTimeout is how long a publish may take; the body has to arrive early
	// enough to leave that much time.
	PublishTimeout time.Duration
}

// answerWithin is when every request has its answer. Osapher, the least
// patient provider, gives up after 10 s.
const answerWithin = 7500 * time.Millisecond

// A Verifier checks signatures, as [signature.Verifier] does.
type Verifier interface {
	Verify(h http.Header, body []byte, now time.Time) (slot int, err error)
}

// An Endpoint is a provider that has a secret.
type Endpoint struct {
	Provider normalize.Provider
	Verifier Verifier
}

// Deduper stores an event once, as [dedupe.Deduper] does.
type Deduper interface {
	Once(context.Context, *normalize.Event, dedupe.Publish) (dedupe.Result, error)
	OnceCertain(context.Context, *normalize.Event, dedupe.Publish) (dedupe.Result, error)
}

// Bus stores events and rejected bodies, as [bus.Bus] does.
type Bus interface {
	Publish(context.Context, *normalize.Event) (bus.Ack, error)
	Quarantine(context.Context, bus.Rejected) error
}

var (
	_ Deduper      = (*dedupe.Deduper)(nil)
	_ Bus          = (*bus.Bus)(nil)
	_ http.Handler = (*Handler)(nil)
)

// Handler receives webhooks at POST /webhooks/{provider}. It answers 200 only
// for what is stored.
type Handler struct {
	endpoints map[string]Endpoint
	dedupe    Deduper
	bus       Bus
	spool     Spool // nil: none
	schemas   *Schemas
	limits    Limits
	requests  budget
	bytes     budget
	draining  atomic.Bool
	now       func() time.Time
	log       *slog.Logger
	metrics   *metrics
	tracer    trace.Tracer // nil: off

	doubts doubts
}

// New returns a handler for the endpoints. Spool and schemas may be nil, and so
// may the tracer: then there are no spans, at no cost. The clock is time.Now in
// all but tests.
func New(endpoints []Endpoint, d Deduper, b Bus, spool Spool, schemas *Schemas, limits Limits, now func() time.Time, log *slog.Logger, reg prometheus.Registerer, tracer trace.Tracer) (*Handler, error) {
	h := &Handler{
		endpoints: make(map[string]Endpoint),
		dedupe:    d,
		bus:       b,
		spool:     spool,
		schemas:   schemas,
		limits:    limits,
		requests:  budget{limit: limits.MaxInFlight},
		bytes:     budget{limit: limits.MaxInFlightBytes},
		now:       now,
		log:       log,
		tracer:    tracer,
	}
	if tracer != nil {
		stages := traced{d, b, spool, tracer}
		h.dedupe, h.bus = stages, stages
		if spool != nil {
			h.spool = stages
		}
	}
	var names []string
	for _, e := range endpoints {
		h.endpoints[e.Provider.Name] = e
		names = append(names, e.Provider.Name)
	}
	var err error
	h.metrics, err = newMetrics(names, reg)
	return h, err
}

// NewServer returns an HTTP server for the handler, with the timeouts and the
// header limit of a listener that faces strangers.
func NewServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       answerWithin, // the handler's own deadline for the body is shorter
		WriteTimeout:      15 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		// Else net/http answers OPTIONS * by itself, with 200.
		DisableGeneralOptionsHandler: true,
	}
}

var errPanic = errors.New("ingress: a stage panicked")

// answer is what came of a request.
type answer struct {
	result string
	id     string // of what is stored
	typ    string // CloudEvents type of the stored event
	reason Reason // why it was not accepted
	err    error  // for the log; never for the client
}

func refuse(reason Reason, err error) answer {
	if refusals[reason].status >= 500 {
		return answer{result: failed, reason: reason, err: err}
	}
	return answer{result: rejected, reason: reason, err: err}
}

// Drain has every answer from now on close its connection, so that a client which
// keeps its connections open goes elsewhere before the listener is closed.
func (h *Handler) Drain() { h.draining.Store(true) }

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	if h.draining.Load() {
		w.Header().Set("Connection", "close")
	}
	name, below := strings.CutPrefix(r.URL.EscapedPath(), "/webhooks/")
	endpoint, known := h.endpoints[name]
	if known = known && below; !known {
		name = unknown
	}
	r, span := h.begin(r, name)
	var a answer
	switch {
	case !known:
		a = refuse(UnknownProvider, nil)
	case r.Method != http.MethodPost:
		a = refuse(MethodNotAllowed, nil)
	case encoded(r.Header):
		a = refuse(EncodingUnsupported, nil)
	default:
		a = h.receive(w, r, endpoint, start)
	}
	failpoint.Hit("replying")
	status := reply(w, a)
	finish(span, a, status)

	took := time.Since(start)
	h.metrics.count(name, a, took)
	level := slog.LevelDebug
	if a.reason != "" {
		level = slog.LevelWarn
	}
	if !h.log.Enabled(r.Context(), level) {
		return
	}
	fields := []any{"provider", name, "result", a.result, "took", took}
	if a.reason != "" {
		fields = append(fields, "reason", string(a.reason))
	}
	if a.id != "" {
		fields = append(fields, "id", a.id)
	}
	if a.err != nil {
		fields = append(fields, "error", a.err.Error())
	}
	h.log.Log(r.Context(), level, "webhook", fields...)
}

// encoded reports whether the body is not sent as it is.
func encoded(h http.Header) bool {
	for _, v := range h.Values("Content-Encoding") {
		if v != "" && !strings.EqualFold(v, "identity") {
			return true
		}
	}
	return false
}

// receive takes one request through the stages. A bug in one of them costs that
// request only, which is to be sent again.
func (h *Handler) receive(w http.ResponseWriter, r *http.Request, e Endpoint, start time.Time) (a answer) {
	defer func() {
		if p := recover(); p != nil {
			// The value of the panic may hold parts of a body; the stack does not.
			h.log.ErrorContext(r.Context(), "panic", "provider", e.Provider.Name, "type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
			a = refuse(BusUnavailable, errPanic)
		}
	}()
	deadline := start.Add(answerWithin)
	body, held, err := readBody(w, r, h.limits.MaxBody, deadline.Add(-h.limits.PublishTimeout-500*time.Millisecond-h.reserve()), &h.bytes)
	defer h.bytes.give(held)
	if err != nil {
		return refuse(reasonFor(err), err)
	}
	// Only now, so that a slow sender holds no place.
	if !h.requests.take(1) {
		return refuse(Overloaded, nil)
	}
	defer h.requests.give(1)
	if e.Provider.Scheme.Compact { // verifying may take the room of a second body
		if !h.bytes.take(int64(len(body))) {
			return refuse(Overloaded, nil)
		}
		defer h.bytes.give(int64(len(body)))
	}
	received := h.now()
	slot, err := e.Verifier.Verify(r.Header, body, received)
	if err != nil {
		return refuse(reasonFor(err), nil)
	}
	h.metrics.matched(e.Provider.Name, slot)
	failpoint.Hit("verified")

	// The sender's hanging up does not stop what is verified.
	ctx, cancel := context.WithDeadline(context.WithoutCancel(r.Context()), deadline)
	defer cancel()
	headers := original(r.Header)
	link(ctx, headers["Traceparent"])
	event, err := newEvent(e.Provider, body, received, h.schemas)
	if err != nil {
		return h.keep(ctx, bus.Spooled{Rejected: &bus.Rejected{
			Provider: e.Provider.Name, Reason: string(reasonFor(err)), Body: body, Received: received, Headers: headers,
			Repeatable: repeatable(event, err),
		}}, deadline)
	}
	failpoint.Hit("normalized")
	return h.keep(ctx, bus.Spooled{Event: event, Headers: headers}, deadline)
}

// repeatable reports whether a body that is no event may come again for another
// occurrence, so that each is kept. One that is no object is kept once within the
// quarantine's duplicate window: a second would say nothing that the first does not, and
// a provider that has not seen the answer sends it again.
func repeatable(e *normalize.Event, err error) bool {
	if e != nil {
		return e.Identity.Judged()
	}
	return !errors.Is(err, normalize.ErrNotJSON)
}

// newEvent makes a verified body an event. The errors are those of
// [normalize.Provider.Event] and [ErrSchema], with which the event is returned.
func newEvent(p normalize.Provider, body []byte, received time.Time, schemas *Schemas) (*normalize.Event, error) {
	e, err := p.Event(body, received)
	if err != nil {
		return nil, err
	}
	return e, schemas.check(e)
}

// original returns the headers of a request that go into the quarantine with a
// body. Nothing that tells a secret is among them.
func original(h http.Header) map[string]string {
	headers := make(map[string]string)
	for _, name := range []string{"Content-Type", "User-Agent", "Traceparent", "X-Request-Id"} {
		if v := h.Get(name); v != "" && len(v) <= normalize.MaxValue {
			headers[name] = v
		}
	}
	return headers
}

// retryAfter is what a 503 asks for, in seconds.
const retryAfter = "5"

// reply answers, and returns the status.
func reply(w http.ResponseWriter, a answer) int {
	refusal, refused := refusals[a.reason]
	if a.result == quarantined || !refused {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(struct {
			Result string `json:"result"`
			ID     string `json:"id"`
		}{a.result, a.id})
		return http.StatusOK
	}
	switch refusal.status {
	case http.StatusMethodNotAllowed:
		w.Header().Set("Allow", http.MethodPost)
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", retryAfter)
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(refusal.status)
	json.NewEncoder(w).Encode(struct {
		Title  string `json:"title"`
		Status int    `json:"status"`
		Reason Reason `json:"reason"`
	}{refusal.title, refusal.status, a.reason})
	return refusal.status
}
