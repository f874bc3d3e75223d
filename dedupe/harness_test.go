package dedupe_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
)

func TestMain(m *testing.M) {
	dedupe.Hurry()
	natstest.Main(m)
}

// within bounds every wait for a condition. A test that passes needs a small
// part of it.
const within = time.Minute

// shortly is a duplicate window that a test can wait for the end of.
const shortly = 200 * time.Millisecond

// bucketStream is the stream behind the bucket.
const bucketStream = "KV_webhooks-dedupe"

func defaults() bus.Config {
	return bus.Config{
		LockWait: 5 * time.Second,

		Stream:        "WEBHOOKS",
		SubjectPrefix: "webhooks",
		Replicas:      1,
		StreamMaxAge:  720 * time.Hour,

		Bucket:          "webhooks-dedupe",
		DedupeWindow:    168 * time.Hour,
		DuplicateWindow: 10 * time.Minute,

		QuarantineStream:   "WEBHOOKS_QUARANTINE",
		QuarantinePrefix:   "quarantine",
		QuarantineMaxAge:   720 * time.Hour,
		QuarantineMaxBytes: 64 << 20,

		MaxBody:        1 << 20,
		PublishTimeout: 3 * time.Second,
		Manage:         true,
	}
}

// external is the configuration for a server that runs already.
func external(s *server.Server) bus.Config {
	cfg := defaults()
	cfg.URL = s.ClientURL()
	return cfg
}

var windows = dedupe.Windows{State: 2 * time.Minute, Dedupe: 168 * time.Hour}

// bridge is what one replica runs, but for HTTP.
type bridge struct {
	t       *testing.T
	bus     *bus.Bus
	js      jetstream.JetStream
	dedupe  *dedupe.Deduper
	indexer *dedupe.Indexer
	reg     *prometheus.Registry
	log     *warnings
	begun   time.Time // when it was ready
	stopBus func()    // ends Run; the connection stays
	close   func()    // as at the end of the test
}

// start returns a bridge that is ready to store events; the indexer does not
// run yet.
func start(t *testing.T, cfg bus.Config) *bridge { return startWith(t, cfg, windows) }

func startWith(t *testing.T, cfg bus.Config, w dedupe.Windows) *bridge {
	t.Helper()
	b := &bridge{t: t, reg: prometheus.NewRegistry(), log: &warnings{Handler: slog.DiscardHandler}}
	log := slog.New(b.log)
	var err error
	if b.bus, err = bus.Open(t.Context(), cfg, log, b.reg); err != nil {
		t.Fatal(err)
	}
	b.js = b.bus.JetStream()
	b.runBus()
	b.close = sync.OnceFunc(func() {
		b.stopBus()
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		if err := b.bus.Close(ctx); err != nil {
			t.Errorf("close the bus: %v", err)
		}
	})
	t.Cleanup(b.close)
	if b.dedupe, err = dedupe.New(b.bus, w, b.reg); err != nil {
		t.Fatal(err)
	}
	if b.indexer, err = dedupe.NewIndexer(b.bus, b.dedupe, log, b.reg); err != nil {
		t.Fatal(err)
	}
	b.eventually("the bus is ready", func() bool { return b.bus.State().Ready() })
	b.begun = time.Now()
	return b
}

// startUnmanaged returns a bridge whose streams and bucket are somebody else's.
func startUnmanaged(t *testing.T) *bridge {
	t.Helper()
	cfg := external(natstest.Server(t))
	start(t, cfg).close() // makes them
	cfg.Manage = false
	return start(t, cfg)
}

// warnings counts what is logged as one, by message.
type warnings struct {
	slog.Handler // discards
	mu           sync.Mutex
	seen         map[string]int
}

func (w *warnings) Enabled(context.Context, slog.Level) bool { return true }
func (w *warnings) WithAttrs([]slog.Attr) slog.Handler       { return w }
func (w *warnings) WithGroup(string) slog.Handler            { return w }
func (w *warnings) Handle(_ context.Context, r slog.Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen == nil {
		w.seen = make(map[string]int)
	}
	if r.Level == slog.LevelWarn {
		w.seen[r.Message]++
	}
	return nil
}

func (w *warnings) count(message string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen[message]
}

// in returns the bridge for a subtest.
func (b *bridge) in(t *testing.T) *bridge {
	sub := *b
	sub.t = t
	return &sub
}

func (b *bridge) runBus() { b.stopBus = b.background(b.bus.Run) }

// index runs the indexer until stop is called, which waits for it to end.
func (b *bridge) index() (stop func()) { return b.background(b.indexer.Run) }

func (b *bridge) background(run func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		run(ctx)
	}()
	stop = func() {
		cancel()
		<-ended
	}
	b.t.Cleanup(stop)
	return stop
}

func (b *bridge) eventually(what string, cond func() bool) {
	b.t.Helper()
	natstest.Eventually(b.t, within, what, cond)
}

// body is what a provider sends.
type body struct{ provider, text string }

func screening(id string) body {
	return body{"dataspike", fmt.Sprintf(`{"event_type":"AML_SCREENING","id":%q,"timestamp":"2026-07-01T10:00:00Z","payload":{"applicant_id":"a-1"}}`, id)}
}

func verification(abn string) body {
	return body{"osapher", fmt.Sprintf(`{"event":"verification.high_risk","timestamp":"2026-07-01T10:00:00Z","data":{"abn":%q}}`, abn)}
}

// transfer is an attempt to deliver an event of Dfns; retryOf may be empty.
func transfer(id, date, retryOf, transfer string) body {
	if retryOf != "" {
		retryOf = fmt.Sprintf(`"retryOf":%q,`, retryOf)
	}
	return body{"dfns", fmt.Sprintf(`{"id":%q,"kind":"wallet.transfer.confirmed","date":%q,%s"data":{"transferRequest":{"id":%q}}}`, id, date, retryOf, transfer)}
}

func flag(customer string, flagged bool) body {
	return body{"waldo", fmt.Sprintf(`{"event":"flag","customerId":%q,"flagged":%t}`, customer, flagged)}
}

func flagOfRequest(request, customer string, flagged bool) body {
	return body{"waldo", fmt.Sprintf(`{"event":"flag","requestId":%q,"customerId":%q,"flagged":%t}`, request, customer, flagged)}
}

func session(id, status string) body {
	return body{"trusthub", fmt.Sprintf(`{"projectId":"p-1","sessionId":%q,"status":%q}`, id, status)}
}

// event makes a new event of the body, as every request does.
func (b *bridge) event(body body) *normalize.Event { return b.eventAt(body, 0) }

// eventAt is received at that time after the bridge's begin.
func (b *bridge) eventAt(body body, at time.Duration) *normalize.Event {
	b.t.Helper()
	p, ok := normalize.ByName(body.provider)
	if !ok {
		b.t.Fatalf("no provider %q", body.provider)
	}
	e, err := p.Event([]byte(body.text), b.begun.Add(at))
	if err != nil {
		b.t.Fatalf("%s: %v", body.text, err)
	}
	return e
}

func (b *bridge) once(e *normalize.Event) dedupe.Result {
	b.t.Helper()
	r, err := b.dedupe.Once(b.t.Context(), e, b.bus.Publish)
	if err != nil {
		b.t.Fatalf("Once: %v", err)
	}
	return r
}

// stores delivers the body, which must be stored, and returns the event's id.
func (b *bridge) stores(body body) (id string) {
	b.t.Helper()
	r := b.once(b.event(body))
	if r.Duplicate {
		b.t.Fatalf("%s is a duplicate of %s, want it stored", body.text, r.ID)
	}
	return r.ID
}

// knows delivers the body, which must be a duplicate of the event with that id.
func (b *bridge) knows(body body, id string) {
	b.t.Helper()
	before := b.stored()
	if got, want := b.once(b.event(body)), (dedupe.Result{ID: id, Duplicate: true}); got != want {
		b.t.Fatalf("%s: got %+v, want %+v", body.text, got, want)
	}
	b.wantStored(before)
}

// stored counts the events in the stream.
func (b *bridge) stored() int {
	b.t.Helper()
	n := 0
	for subject, messages := range b.subjects() {
		if subject != probes {
			n += messages
		}
	}
	return n
}

// subjects counts what the stream holds. A server that has only just started may not
// answer the first question.
func (b *bridge) subjects() map[string]int {
	b.t.Helper()
	for deadline := time.Now().Add(within); ; {
		subjects, err := b.askSubjects()
		switch {
		case err == nil:
			return subjects
		case time.Now().After(deadline):
			b.t.Fatal(err)
		}
	}
}

func (b *bridge) askSubjects() (map[string]int, error) {
	stream, err := b.js.Stream(b.t.Context(), b.bus.Stream())
	if err != nil {
		return nil, err
	}
	info, err := stream.Info(b.t.Context(), jetstream.WithSubjectFilter(">"))
	if err != nil {
		return nil, err
	}
	subjects := make(map[string]int)
	for subject, n := range info.State.Subjects {
		subjects[subject] = int(n)
	}
	return subjects, nil
}

func (b *bridge) wantStored(want int) {
	b.t.Helper()
	if got := b.stored(); got != want {
		b.t.Fatalf("the stream holds %d events, want %d: %v", got, want, b.subjects())
	}
}

// probes is the subject of messages that are no events.
const probes = "webhooks.probe"

// forget returns when the stream's duplicate window has passed for all that is
// stored: the server takes the id of a later message again.
func (b *bridge) forget() {
	b.t.Helper()
	publish := func() *jetstream.PubAck {
		ack, err := b.js.PublishMsg(b.t.Context(), &nats.Msg{Subject: probes, Header: nats.Header{}}, jetstream.WithMsgID(b.t.Name()))
		if err != nil {
			b.t.Fatal(err)
		}
		return ack
	}
	publish()
	b.eventually("the server has forgotten the message ids", func() bool { return !publish().Duplicate })
}

// value is what a test reads of a bucket entry.
type value struct {
	Sequence uint64 `json:"seq"`
	ID       string `json:"id"`
	Mark     any    `json:"mark"`
}

// entry reads what the bucket has under a name; zero if it has nothing.
func (b *bridge) entry(name string) (v value) {
	b.t.Helper()
	kv, err := b.js.KeyValue(b.t.Context(), "webhooks-dedupe")
	if err != nil {
		b.t.Fatal(err)
	}
	e, err := kv.Get(b.t.Context(), name)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return value{}
	}
	if err != nil {
		b.t.Fatal(err)
	}
	if err := json.Unmarshal(e.Value(), &v); err != nil {
		b.t.Fatalf("entry %s: %v", e.Value(), err)
	}
	return v
}

// wantNames checks that the bucket has all names of the body, under that id.
func (b *bridge) wantNames(body body, id string) {
	b.t.Helper()
	for i, name := range b.event(body).Identity.Names() {
		if got := b.entry(name); got.ID != id || got.Sequence == 0 {
			b.t.Errorf("name %d of %s: got %+v, want id %s", i, body.text, got, id)
		}
	}
}

// indexed returns when the indexer has acknowledged all that is stored.
func (b *bridge) indexed() {
	b.t.Helper()
	b.indexedWithin(within)
}

func (b *bridge) indexedWithin(d time.Duration) {
	b.t.Helper()
	natstest.Eventually(b.t, d, "all is indexed", func() bool {
		return natstest.CaughtUp(b.t.Context(), b.js, b.bus.Stream(), dedupe.IndexerName)
	})
}

// consumer describes the indexer's consumer; nil if there is none. A cluster on a
// busy machine may need more than one question.
func (b *bridge) consumer() *jetstream.ConsumerInfo {
	b.t.Helper()
	for deadline := time.Now().Add(within); ; {
		c, err := b.js.Consumer(b.t.Context(), b.bus.Stream(), dedupe.IndexerName)
		switch {
		case err == nil:
			return c.CachedInfo()
		case errors.Is(err, jetstream.ErrConsumerNotFound), errors.Is(err, jetstream.ErrStreamNotFound):
			return nil
		case time.Now().After(deadline):
			b.t.Fatal(err)
		}
	}
}

func (b *bridge) deleteStream(name string) {
	b.t.Helper()
	if err := b.js.DeleteStream(b.t.Context(), name); err != nil {
		b.t.Fatalf("delete stream %s: %v", name, err)
	}
}

// metric returns the value of a counter or gauge.
func (b *bridge) metric(name string) float64 {
	b.t.Helper()
	families, err := b.reg.Gather()
	if err != nil {
		b.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	b.t.Fatalf("no metric %s", name)
	return 0
}

// slug makes a name for the things of a subtest.
func slug(t *testing.T) string { return strings.NewReplacer("/", "-", " ", "-").Replace(t.Name()) }
