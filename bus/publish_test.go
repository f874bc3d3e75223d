package bus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/binding"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
)

func TestPublish(t *testing.T) {
	b := openReady(t, external(natstest.Server(t)))
	for i := range 3 {
		if got, want := mustPublish(t, b, newEvent(t, i)), uint64(i+1); got != want {
			t.Errorf("event %d has sequence %d, want %d", i, got, want)
		}
	}
	ack, err := b.Publish(t.Context(), newEvent(t, 1))
	if want := (bus.Ack{Sequence: 2, Duplicate: true}); err != nil || ack != want {
		t.Errorf("event 1 again: got %+v, %v; want %+v", ack, err, want)
	}
	if got := streamInfo(t, b.JetStream(), b.Stream()).State.Msgs; got != 3 {
		t.Errorf("the stream holds %d messages, want 3", got)
	}
}

func TestPublishIsMeasured(t *testing.T) {
	reg := prometheus.NewRegistry()
	b, err := bus.Open(t.Context(), external(natstest.Server(t)), slog.New(slog.DiscardHandler), reg)
	if err != nil {
		t.Fatal(err)
	}
	waitReady(t, run(t, b))
	mustPublish(t, b, newEvent(t, 1))
	if n, _ := metric(t, reg, "bridge_publish_duration_seconds", ""); n != 1 {
		t.Errorf("%v publishes measured", n)
	}
}

func TestPublishCanceled(t *testing.T) {
	b := openReady(t, external(natstest.Server(t)))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Publish(ctx, newEvent(t, 1)); !errors.Is(err, bus.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("Publish: got %v, want %q and %q", err, bus.ErrUnavailable, context.Canceled)
	}
}

func TestStreamDeletedUnderRunningBus(t *testing.T) {
	b := openReady(t, external(natstest.Server(t)))
	e := newEvent(t, 1)
	mustPublish(t, b, e)
	for range 3 { // more than once: just after the start the streams are looked at again anyway
		before := b.State()
		deleteStream(t, b)
		// Publish waits for the new stream, which has never seen the event; on a busy
		// machine it may have to ask twice whether it is stored.
		if ack, err := b.Publish(t.Context(), e); err != nil || ack.Sequence != 1 {
			t.Errorf("in the new stream: %+v, %v; want sequence 1", ack, err)
		}
		waitState(t, b, "another stream", func(st *bus.State) bool { return !st.StreamCreated.Equal(before.StreamCreated) })
		select {
		case <-before.Changed():
		default:
			t.Error("the former state does not say that there is another")
		}
	}
}

func deleteStream(t *testing.T, b *bus.Bus) {
	t.Helper()
	if err := b.JetStream().DeleteStream(t.Context(), b.Stream()); err != nil {
		t.Fatal(err)
	}
}

func TestIncarnation(t *testing.T) {
	b := openReady(t, external(natstest.Server(t)))
	before := incarnation(t, b)
	if want := b.State().StreamCreated; !before.Equal(want) {
		t.Errorf("incarnation is %v, the state's %v", before, want)
	}
	deleteStream(t, b)
	mustPublish(t, b, newEvent(t, 1))
	natstest.Eventually(t, within, "another incarnation", func() bool { return !incarnation(t, b).Equal(before) })
	if got, want := incarnation(t, b), b.State().StreamCreated; !got.Equal(want) {
		t.Errorf("incarnation is %v, the state's %v", got, want)
	}
}

func incarnation(t *testing.T, b *bus.Bus) time.Time {
	t.Helper()
	created, err := b.Incarnation(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return created
}

func TestIncarnationOfMissingStream(t *testing.T) {
	cfg := external(natstest.Server(t))
	cfg.Manage = false
	b := open(t, cfg)
	waitProblem(t, b, "it does not exist")
	if _, err := b.Incarnation(t.Context()); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("Incarnation: got %v, want %q", err, jetstream.ErrStreamNotFound)
	}
}

// One caller's short deadline must not be everybody's error.
func TestIncarnationAfterACanceledCaller(t *testing.T) {
	b := openReady(t, external(natstest.Server(t)))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Incarnation(ctx); err != nil {
		t.Errorf("the caller's own Incarnation: %v", err)
	}
	if _, err := b.Incarnation(t.Context()); err != nil {
		t.Errorf("another caller's Incarnation: %v", err)
	}
}

// A publish that tries again and again gives up when the connection is lost.
func TestServerLostDuringPublish(t *testing.T) {
	s := natstest.Server(t)
	create(t, jetStream(t, s.ClientURL()), somebodyElses())
	cfg := external(s)
	cfg.Manage = false
	cfg.PublishTimeout = 30 * time.Second
	b := openReady(t, cfg)
	deleteStream(t, b)
	failed := make(chan error, 1)
	go func() {
		_, err := b.Publish(t.Context(), newEvent(t, 1))
		failed <- err
	}()
	waitProblem(t, b, "stream WEBHOOKS: it does not exist") // the publish has woken the bus

	start := time.Now()
	s.Shutdown()
	s.WaitForShutdown()
	if err := <-failed; !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("Publish: got %v, want %q", err, bus.ErrUnavailable)
	}
	if took := time.Since(start); took > cfg.PublishTimeout/2 {
		t.Errorf("it went on for %v after the server was lost; the publish timeout is %v", took, cfg.PublishTimeout)
	}
}

func TestFullStream(t *testing.T) {
	cfg := external(natstest.Server(t))
	cfg.StreamMaxBytes = 16 << 10
	cfg.PublishTimeout = 600 * time.Millisecond
	b := openReady(t, cfg)
	stored := fill(t, func(i int) error {
		_, err := b.Publish(t.Context(), newEvent(t, i))
		return err
	})
	st := streamInfo(t, b.JetStream(), b.Stream()).State
	if st.Msgs != stored || st.FirstSeq != 1 {
		t.Errorf("the stream holds %d messages from sequence %d on, want the %d acknowledged", st.Msgs, st.FirstSeq, stored)
	}
	stream, err := b.JetStream().Stream(t.Context(), b.Stream())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustPublish(t, b, newEvent(t, "after"))
}

// fill publishes until there is no room, and returns how many fitted.
func fill(t *testing.T, publish func(i int) error) uint64 {
	t.Helper()
	for i := range 1000 {
		err := publish(i)
		if err == nil {
			continue
		}
		if !errors.Is(err, bus.ErrUnavailable) || !strings.Contains(err.Error(), "maximum bytes exceeded") {
			t.Errorf("full: got the error %v, want %q", err, bus.ErrUnavailable)
		}
		if i == 0 {
			t.Fatal("nothing fitted")
		}
		return uint64(i)
	}
	t.Fatal("it does not get full")
	return 0
}

func bigEvent(t *testing.T, size int) *normalize.Event {
	t.Helper()
	frame := `{"event_type":"DOCVER","id":"big","timestamp":"2026-07-01T10:00:00Z","payload":{"text":"%s"}}`
	body := fmt.Sprintf(frame, strings.Repeat("x", size-len(frame)+len("%s")))
	if len(body) != size {
		t.Fatalf("body of %d bytes, want %d", len(body), size)
	}
	return eventOf(t, "dataspike", body)
}

// An event must not end up in a stream that happens to take its subject.
func TestAnotherStreamTakesTheSubject(t *testing.T) {
	b := openReady(t, external(natstest.Server(t)))
	deleteStream(t, b)
	other := events(func(c *jetstream.StreamConfig) { c.Name = "OTHER" })
	create(t, b.JetStream(), map[string]jetstream.StreamConfig{"": other})
	wantError(t, b, newEvent(t, 1), bus.ErrUnavailable)
	waitProblem(t, b, "stream WEBHOOKS: ")
	if got := streamInfo(t, b.JetStream(), "OTHER").State.Msgs; got != 0 {
		t.Errorf("the other stream holds %d messages, want none", got)
	}

	if err := b.JetStream().DeleteStream(t.Context(), "OTHER"); err != nil {
		t.Fatal(err)
	}
	b.Wake()
	waitReady(t, b)
	mustPublish(t, b, newEvent(t, 1))
}

func TestConcurrentPublish(t *testing.T) {
	b := openReady(t, external(natstest.Server(t)))
	const copies = 64
	acks := publishCopies(t, b, newEvent(t, 1), copies)
	wantOneStored(t, b, acks, copies)
}

// publishCopies publishes an event that many times at once and returns the
// acknowledgements.
func publishCopies(t *testing.T, b *bus.Bus, e *normalize.Event, copies int) []bus.Ack {
	t.Helper()
	acks := make([]bus.Ack, copies)
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range acks {
		wg.Go(func() {
			<-start
			var err error
			if acks[i], err = b.Publish(t.Context(), e); err != nil {
				t.Errorf("copy %d: %v", i, err)
			}
		})
	}
	close(start)
	wg.Wait()
	return acks
}

func wantOneStored(t *testing.T, b *bus.Bus, acks []bus.Ack, copies int) {
	t.Helper()
	first := 0
	for i, ack := range acks {
		if !ack.Duplicate {
			first++
		}
		if ack.Sequence != acks[0].Sequence {
			t.Errorf("copy %d is at sequence %d, copy 0 at %d", i, ack.Sequence, acks[0].Sequence)
		}
	}
	if first != 1 {
		t.Errorf("%d of %d copies were no duplicate, want 1", first, copies)
	}
	if got := streamInfo(t, b.JetStream(), b.Stream()).State.Msgs; got != 1 {
		t.Errorf("the stream holds %d messages, want 1", got)
	}
}

func TestQuarantine(t *testing.T) {
	b := openReady(t, external(natstest.Server(t)))
	body := []byte("\x00not JSON at all\xff")
	for _, test := range []struct {
		name, provider, reason, subject string
		stored                          uint64
	}{
		{"first", "waldo", "body_not_json", "quarantine.waldo.body_not_json", 1},
		{"same again", "waldo", "body_not_json", "quarantine.waldo.body_not_json", 1},
		{"another reason", "waldo", "type_missing", "quarantine.waldo.type_missing", 2},
		{"another provider", "dfns", "type_missing", "quarantine.dfns.type_missing", 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := bus.Rejected{
				Provider: test.provider, Reason: test.reason, Body: body, Received: received,
				Headers: map[string]string{"Content-Type": "text/plain"},
			}
			if err := b.Quarantine(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			id := normalize.Digest("msg", test.provider, test.reason, string(body))
			if got := streamInfo(t, b.JetStream(), "WEBHOOKS_QUARANTINE").State.LastSeq; got != test.stored {
				t.Fatalf("%d messages stored, want %d", got, test.stored)
			}
			m := message(t, b.JetStream(), "WEBHOOKS_QUARANTINE", test.stored)
			if m.Subject != test.subject {
				t.Errorf("subject: got %q, want %q", m.Subject, test.subject)
			}
			if !bytes.Equal(m.Data, body) {
				t.Errorf("body: got %q, want %q", m.Data, body)
			}
			for header, want := range map[string]string{
				"Nats-Msg-Id":        id,
				"Bridge-Provider":    test.provider,
				"Bridge-Reason":      test.reason,
				"Bridge-Received":    "2026-07-01T10:00:01.25Z",
				"Bridge-Body-Sha256": "54f8997abeb847c8bfaff9b35ba73d09ad5da8f3700e4305e50c931f8edc4286",
				"Bridge-Body-Size":   "17",

				"Bridge-Header-Content-Type": "text/plain",
			} {
				if got := m.Header.Get(header); got != want {
					t.Errorf("header %s: got %q, want %q", header, got, want)
				}
			}
		})
	}
	if got := streamInfo(t, b.JetStream(), b.Stream()).State.Msgs; got != 0 {
		t.Errorf("the stream of events holds %d messages, want none", got)
	}
}

// A body too large for a message is an object, and the message names it.
func TestLargeBody(t *testing.T) {
	for _, test := range []struct {
		name  string
		limit func(*server.Options, *jetstream.StreamConfig)
	}{
		{"for the server", func(o *server.Options, _ *jetstream.StreamConfig) { o.MaxPayload = 64 << 10 }},
		{"for the stream", func(_ *server.Options, c *jetstream.StreamConfig) { c.MaxMsgSize = 64 << 10 }},
	} {
		for _, kind := range []string{"event", "quarantine"} {
			t.Run(kind+" "+test.name, func(t *testing.T) {
				c := events(func(*jetstream.StreamConfig) {})
				if kind == "quarantine" {
					c.Name, c.Subjects = "WEBHOOKS_QUARANTINE", []string{"quarantine.>"}
				}
				s := natstest.Server(t, func(o *server.Options) { test.limit(o, &c) })
				create(t, jetStream(t, s.ClientURL()), map[string]jetstream.StreamConfig{"": c})
				b := openReady(t, external(s))
				e := bigEvent(t, 300_000)
				body := e.CloudEvent.Data()
				objects := uint64(0)
				for range 2 { // the second is a duplicate
					if kind == "event" {
						if _, err := b.Publish(t.Context(), e); err != nil {
							t.Fatal(err)
						}
					} else if err := b.Quarantine(t.Context(), bus.Rejected{Provider: "waldo", Reason: "not_publishable", Body: body, Received: received}); err != nil {
						t.Fatal(err)
					}
					if got := streamInfo(t, b.JetStream(), c.Name).State.Msgs; got != 1 {
						t.Errorf("the stream holds %d messages, want 1", got)
					}
					m := message(t, b.JetStream(), c.Name, 1)
					if len(m.Data) != 0 {
						t.Errorf("a body of %d bytes is in the message, want none", len(m.Data))
					}
					if got := read(t, b, m); !bytes.Equal(got, body) {
						t.Fatalf("the object has %d bytes, want the body's %d", len(got), len(body))
					}
					now := streamInfo(t, b.JetStream(), "OBJ_WEBHOOKS_BODIES").State.LastSeq
					if objects != 0 && objects != now {
						t.Error("a copy has written the object again")
					}
					objects = now
				}
			})
		}
	}
}

// read returns the body that a message names.
func read(t *testing.T, b *bus.Bus, m *jetstream.RawStreamMsg) []byte {
	t.Helper()
	ref := m.Header.Get("ce-dataref")
	body, err := binding.ReadObject(t.Context(), b.JetStream(), ref)
	if err != nil || !strings.HasPrefix(ref, "nats-object:WEBHOOKS_BODIES/") {
		t.Fatalf("%q: %v", ref, err)
	}
	return body
}

// The object outlives the message: one that an attempt hours ago has left is not used.
// It is not written over either, since that attempt's message may name it.
func TestLargeBodyOfAnOldAttempt(t *testing.T) {
	s := natstest.Server(t, func(o *server.Options) { o.MaxPayload = 64 << 10 })
	b := openReady(t, external(s))
	e := bigEvent(t, 300_000)
	linked := func() string {
		store, err := b.JetStream().ObjectStore(t.Context(), bus.ObjectBucket("WEBHOOKS"))
		if err != nil {
			t.Fatal(err)
		}
		info, err := store.GetInfo(t.Context(), e.CloudEvent.ID())
		if err != nil {
			t.Fatal(err)
		}
		return info.Opts.Link.Name
	}
	mustPublish(t, b, e)
	before := linked()
	bus.SetReuseWithin(t, 0)
	if _, err := b.Publish(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if before == linked() {
		t.Error("the object is the old one")
	}
	if got := read(t, b, message(t, b.JetStream(), "WEBHOOKS", 1)); !bytes.Equal(got, e.CloudEvent.Data()) {
		t.Errorf("the old object has %d bytes", len(got))
	}
}

// An upload that broke off, or that sent one part in the place of another, leaves
// an object that cannot be read. The client's read of one without parts does not end.
func TestBrokenObjectIsWrittenAgain(t *testing.T) {
	for _, test := range []struct {
		name    string
		parts   []jetstream.StreamPurgeOpt
		earlier bool // version: the object has the id as its name
	}{
		{"without one part", []jetstream.StreamPurgeOpt{jetstream.WithPurgeSequence(2)}, false},
		{"without any parts", nil, false},
		{"of an earlier version", nil, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := natstest.Server(t, func(o *server.Options) { o.MaxPayload = 64 << 10 })
			b := openReady(t, external(s))
			e := bigEvent(t, 300_000)
			store, err := b.JetStream().ObjectStore(t.Context(), bus.ObjectBucket("WEBHOOKS"))
			if err != nil {
				t.Fatal(err)
			}
			name := e.CloudEvent.ID()
			if !test.earlier {
				name += ".1"
			}
			info, err := store.Put(t.Context(), jetstream.ObjectMeta{Name: name, Opts: &jetstream.ObjectMetaOptions{ChunkSize: 32 << 10}}, bytes.NewReader(e.CloudEvent.Data()))
			if err == nil && !test.earlier {
				_, err = store.AddLink(t.Context(), e.CloudEvent.ID(), info)
			}
			if err != nil {
				t.Fatal(err)
			}
			objects, err := b.JetStream().Stream(t.Context(), "OBJ_WEBHOOKS_BODIES")
			if err != nil {
				t.Fatal(err)
			}
			if err := objects.Purge(t.Context(), append(test.parts, jetstream.WithPurgeSubject("$O.WEBHOOKS_BODIES.C."+info.NUID))...); err != nil {
				t.Fatal(err)
			}
			mustPublish(t, b, e)
			if got := read(t, b, message(t, b.JetStream(), "WEBHOOKS", 1)); !bytes.Equal(got, e.CloudEvent.Data()) {
				t.Errorf("the object has %d bytes", len(got))
			}
		})
	}
}

func TestBodiesAreKeptLongerThanWhatNamesThem(t *testing.T) {
	b := openReady(t, external(natstest.Server(t)))
	if got, want := streamInfo(t, b.JetStream(), "OBJ_WEBHOOKS_BODIES").Config.MaxAge, 721*time.Hour; got != want {
		t.Errorf("max age of the bodies: got %v, want %v", got, want)
	}
}

func TestFullQuarantine(t *testing.T) {
	cfg := external(natstest.Server(t))
	cfg.QuarantineMaxBytes = 16 << 10
	cfg.PublishTimeout = 600 * time.Millisecond
	b := openReady(t, cfg)
	stored := fill(t, func(i int) error {
		return b.Quarantine(t.Context(), bus.Rejected{Provider: "waldo", Reason: "type_missing", Body: fmt.Append(nil, i), Received: received})
	})
	st := streamInfo(t, b.JetStream(), "WEBHOOKS_QUARANTINE").State
	if st.Msgs != stored || st.FirstSeq != 1 {
		t.Errorf("the quarantine holds %d messages from sequence %d on, want the %d acknowledged", st.Msgs, st.FirstSeq, stored)
	}
	mustPublish(t, b, newEvent(t, 1)) // events have room still
}
