package bus_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/natstest"
)

// list returns what is in the quarantine.
func list(t *testing.T, q *bus.QuarantineStream) []bus.Quarantined {
	t.Helper()
	var items []bus.Quarantined
	for item, err := range q.All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, item)
	}
	return items
}

func TestQuarantineStream(t *testing.T) {
	s := natstest.Server(t, func(o *server.Options) { o.MaxPayload = 64 << 10 })
	b := openReady(t, external(s))
	q, err := bus.OpenQuarantine(t.Context(), b.JetStream(), "WEBHOOKS_QUARANTINE", "quarantine")
	if err != nil {
		t.Fatal(err)
	}
	if items := list(t, q); len(items) != 0 {
		t.Fatalf("%d in an empty quarantine", len(items))
	}
	put := []bus.Rejected{
		{Provider: "waldo", Reason: "body_not_json", Body: []byte("\x00no\xff"), Received: received, Headers: map[string]string{"Content-Type": "text/plain"}},
		{Provider: "dfns", Reason: "type_missing", Body: []byte("{}"), Received: received},
		{Provider: "dfns", Reason: "type_missing", Body: []byte(strings.Repeat("x", 200<<10)), Received: received},
	}
	for _, r := range put {
		if err := b.Quarantine(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	items := list(t, q)
	if len(items) != len(put) {
		t.Fatalf("%d in the quarantine, want %d", len(items), len(put))
	}
	for i, item := range items {
		if item.Body != nil {
			t.Errorf("%d: a list holds bodies", i)
		}
		got, err := q.Get(t.Context(), item.Sequence)
		if err != nil {
			t.Fatal(err)
		}
		want := put[i]
		if got.ID != want.ID() || got.Provider != want.Provider || got.Reason != want.Reason || !got.Received.Equal(received) ||
			got.Size != len(want.Body) || !bytes.Equal(got.Body, want.Body) || got.Headers["Content-Type"] != want.Headers["Content-Type"] {
			t.Errorf("%d: got %+.200v", i, got)
		}
	}

	// What is removed is gone, its body too; once more is no error.
	large := items[2]
	for range 2 {
		if err := q.Remove(t.Context(), large); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := q.Get(t.Context(), large.Sequence); !errors.Is(err, jetstream.ErrMsgNotFound) {
		t.Errorf("after its removal: %v", err)
	}
	objects, err := b.JetStream().ObjectStore(t.Context(), bus.ObjectBucket("WEBHOOKS"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := objects.GetBytes(t.Context(), put[2].ID()); !errors.Is(err, jetstream.ErrObjectNotFound) {
		t.Errorf("its body after its removal: %v", err)
	}
	if items := list(t, q); len(items) != 2 {
		t.Errorf("%d left, want 2", len(items))
	}
}

func TestQuarantineIsListedThroughANewConsumer(t *testing.T) {
	s := natstest.Server(t)
	b := openReady(t, external(s))
	if err := b.Quarantine(t.Context(), bus.Rejected{Provider: "waldo", Reason: "body_not_json", Body: []byte("no"), Received: received}); err != nil {
		t.Fatal(err)
	}
	q, err := bus.OpenQuarantine(t.Context(), b.JetStream(), "WEBHOOKS_QUARANTINE", "quarantine")
	if err != nil {
		t.Fatal(err)
	}
	natstest.UnknownOnce(t, s, "WEBHOOKS_QUARANTINE")
	if items := list(t, q); len(items) != 1 {
		t.Errorf("%d in the list", len(items))
	}
}

// A list that breaks off says so.
func TestQuarantineListBreaksOff(t *testing.T) {
	s := natstest.Server(t)
	b := openReady(t, external(s))
	for _, body := range []string{"a", "b"} {
		if err := b.Quarantine(t.Context(), bus.Rejected{Provider: "waldo", Reason: "body_not_json", Body: []byte(body), Received: received}); err != nil {
			t.Fatal(err)
		}
	}
	q, err := bus.OpenQuarantine(t.Context(), b.JetStream(), "WEBHOOKS_QUARANTINE", "quarantine")
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"$JS.API.CONSUMER.MSG.NEXT.*.*", "$JS.API.CONSUMER.INFO.*.*"} {
		if err := s.GlobalAccount().AddMapping(subject, "nobody"); err != nil {
			t.Fatal(err)
		}
	}
	listed := 0
	for _, err = range q.All(t.Context()) {
		listed++
	}
	if err == nil {
		t.Errorf("%d listed, and no error", listed)
	}
}

// A copy is not stored because nobody says whether the first is there still.
func TestQuarantineWithoutAnAnswer(t *testing.T) {
	s := natstest.Server(t)
	b := openReady(t, external(s))
	r := bus.Rejected{Provider: "waldo", Reason: "body_not_json", Body: []byte("no"), Received: received}
	if err := b.Quarantine(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if err := s.GlobalAccount().AddMapping("$JS.API.STREAM.INFO.WEBHOOKS_QUARANTINE", "nobody"); err != nil {
		t.Fatal(err)
	}
	r.Received = received.Add(time.Second)
	if err := b.Quarantine(t.Context(), r); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if !s.GlobalAccount().RemoveMapping("$JS.API.STREAM.INFO.WEBHOOKS_QUARANTINE") {
		t.Fatal("the mapping is still there")
	}
	if err := b.Quarantine(t.Context(), r); err != nil {
		t.Error(err)
	}
	if n := streamInfo(t, b.JetStream(), "WEBHOOKS_QUARANTINE").State.Msgs; n != 1 {
		t.Errorf("%d messages", n)
	}
}

// What was removed, or has become an event, is not there any more: a body like it
// is kept, though the stream still knows the id of the first.
func TestQuarantineTakesWhatWasRemoved(t *testing.T) {
	s := natstest.Server(t, func(o *server.Options) { o.MaxPayload = 64 << 10 })
	b := openReady(t, external(s))
	q, err := bus.OpenQuarantine(t.Context(), b.JetStream(), "WEBHOOKS_QUARANTINE", "quarantine")
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string][]byte{"small": []byte("no"), "large": bytes.Repeat([]byte("x"), 200<<10)} {
		t.Run(name, func(t *testing.T) {
			r := bus.Rejected{Provider: "waldo", Reason: "body_not_json", Body: body, Received: received}
			// The last time as after an acknowledgement that was lost.
			for i, after := range []time.Duration{0, time.Minute, 2 * time.Minute, 2 * time.Minute} {
				r.Received = received.Add(after)
				for range 2 { // what is there is not stored again
					if err := b.Quarantine(t.Context(), r); err != nil {
						t.Fatal(err)
					}
				}
				items := list(t, q)
				if len(items) != 1 || items[0].ID != r.ID() || !items[0].Received.Equal(r.Received) {
					t.Fatalf("%d: in the quarantine: %+v", i, items)
				}
				if got, err := q.Get(t.Context(), items[0].Sequence); err != nil || !bytes.Equal(got.Body, body) {
					t.Fatalf("%d: %v, %d bytes", i, err, len(got.Body))
				}
				if i == 2 {
					continue
				}
				if err := q.Remove(t.Context(), items[0]); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// What is repeatable is kept each time it was received, and once however often it was
// published.
func TestQuarantineOfRepeatableBodies(t *testing.T) {
	b := openReady(t, external(natstest.Server(t)))
	q, err := bus.OpenQuarantine(t.Context(), b.JetStream(), "WEBHOOKS_QUARANTINE", "quarantine")
	if err != nil {
		t.Fatal(err)
	}
	r := bus.Rejected{Provider: "waldo", Reason: "identity_missing", Body: []byte(`{"event":"flag"}`), Repeatable: true}
	for i := range 3 {
		r.Received = received.Add(time.Duration(i) * time.Second)
		for range 3 {
			if err := b.Quarantine(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		items := list(t, q)
		if len(items) != i+1 || items[i].ID != r.ID() || !items[i].Received.Equal(r.Received) {
			t.Fatalf("%d: in the quarantine: %+v", i, items)
		}
	}
}

func TestNoQuarantine(t *testing.T) {
	js, err := jetstream.New(natstest.Connect(t, natstest.Server(t).ClientURL()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bus.OpenQuarantine(t.Context(), js, "NONE", "quarantine"); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("got %v", err)
	}
}

// Two entries of one large body share an object: removing one leaves the other
// its body.
func TestQuarantineSharedBody(t *testing.T) {
	s := natstest.Server(t, func(o *server.Options) { o.MaxPayload = 64 << 10 })
	cfg := external(s)
	cfg.DuplicateWindow = 100 * time.Millisecond
	b := openReady(t, cfg)
	q, err := bus.OpenQuarantine(t.Context(), b.JetStream(), "WEBHOOKS_QUARANTINE", "quarantine")
	if err != nil {
		t.Fatal(err)
	}
	r := bus.Rejected{Provider: "dfns", Reason: "type_missing", Body: []byte(strings.Repeat("x", 200<<10)), Received: received}
	var items []bus.Quarantined
	natstest.Eventually(t, within, "it is there twice", func() bool {
		if err := b.Quarantine(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		items = list(t, q)
		return len(items) == 2
	})
	if err := q.Remove(t.Context(), items[0]); err != nil {
		t.Fatal(err)
	}
	if item, err := q.Get(t.Context(), items[1].Sequence); err != nil || !bytes.Equal(item.Body, r.Body) {
		t.Errorf("%d bytes, %v", len(item.Body), err)
	}
}

// What is no quarantine is left alone.
func TestNotAQuarantine(t *testing.T) {
	b := openReady(t, external(natstest.Server(t)))
	if _, err := bus.OpenQuarantine(t.Context(), b.JetStream(), "WEBHOOKS", "quarantine"); !errors.Is(err, bus.ErrNoQuarantine) {
		t.Errorf("opening the stream of events: %v", err)
	}
	if _, err := b.JetStream().Publish(t.Context(), "quarantine.x.y", []byte("somebody's")); err != nil {
		t.Fatal(err)
	}
	q, err := bus.OpenQuarantine(t.Context(), b.JetStream(), "WEBHOOKS_QUARANTINE", "quarantine")
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Remove(t.Context(), list(t, q)[0]); !errors.Is(err, bus.ErrNoQuarantine) || len(list(t, q)) != 1 {
		t.Errorf("removing another's message: %v", err)
	}
}
