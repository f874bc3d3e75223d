package dedupe_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/hookbus/bridge/internal/natstest"
)

// A stream that was restored from a backup, or has lost its tail, is behind the
// bucket: what the bucket knows and the stream has not is stored when it comes
// again, whatever is at its sequence by then.
func TestStreamBehindTheBucket(t *testing.T) {
	t.Parallel()
	cfg := external(natstest.Server(t))
	cfg.DuplicateWindow = shortly
	b := start(t, cfg)
	stop := b.index()
	kept := screening("1")
	keptID := b.stores(kept)
	b.stores(session("s-1", "AUTO_APPROVED"))
	b.indexed()
	backup := b.snapshot()
	lost := []body{screening("2"), transfer("we-2", "2026-07-01T10:00:00.000Z", "we-1", "t-1"), session("s-1", "MANUALLY_REJECTED")}
	for _, body := range lost {
		b.stores(body)
	}
	deleted := b.stores(screening("3"))
	b.indexed()
	stop()

	b.stopBus()
	b.deleteStream(b.bus.Stream())
	b.restore(backup)
	b.runBus()
	b.eventually("the bus has seen the stream", func() bool {
		created, err := b.bus.NewIncarnation(t.Context())
		return err == nil && created.Equal(b.bus.State().StreamCreated)
	})
	b.index()
	b.eventually("the stream is indexed anew", func() bool {
		c := b.consumer()
		if c == nil {
			return false
		}
		created, err := time.Parse(time.RFC3339Nano, c.Config.Metadata["bridge-stream-created"])
		return err == nil && created.Equal(b.bus.State().StreamCreated)
	})
	b.indexed()

	b.knows(kept, keptID)
	var ids []string
	for _, body := range lost {
		ids = append(ids, b.stores(body))
	}
	if id := b.stores(screening("3")); id != deleted {
		t.Errorf("id %s, was %s", id, deleted)
	}
	b.indexed()
	b.forget()
	for i, body := range lost {
		b.knows(body, ids[i])
	}

	// What an operator deletes stays known.
	stream, err := b.js.Stream(t.Context(), b.bus.Stream())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.DeleteMsg(t.Context(), b.entry(b.event(kept).Identity.Names()[0]).Sequence); err != nil {
		t.Fatal(err)
	}
	b.knows(kept, keptID)
}

// The same where the stream still says that it was created when it was: restored
// by a server before 2.15, or back without what was not synced.
func TestEntryWithoutItsMessage(t *testing.T) {
	t.Parallel()
	cfg := external(natstest.Server(t))
	cfg.DuplicateWindow = shortly
	b := start(t, cfg)
	b.index()
	id := b.stores(screening("1"))
	b.indexed()
	forge := func(name string, sequence uint64, state string) {
		value, err := json.Marshal(map[string]any{
			"stream": b.bus.State().StreamCreated.UnixNano(), "seq": sequence, "id": "lost", "state": state, "received": time.Now().UnixNano(),
		})
		if err == nil {
			_, err = b.bus.State().Bucket().Put(t.Context(), name, value)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	beyond, another, report := screening("2"), screening("3"), session("s-1", "AUTO_APPROVED")
	forge(b.event(beyond).Identity.Names()[0], 1000, "")
	forge(b.event(another).Identity.Names()[0], 1, "")
	forge(b.event(report).Identity.StateKey, 1000, b.event(report).Identity.State)
	lost := []body{beyond, another, report}
	var ids []string
	for _, body := range lost {
		ids = append(ids, b.stores(body))
	}
	b.indexed()
	b.forget()
	b.knows(screening("1"), id)
	for i, body := range lost {
		b.knows(body, ids[i])
	}
}

// A state report stored after the stream has lost its tail is known when it comes
// again, also where the entry still names a report beyond the end of the stream.
func TestReportBehindALostTail(t *testing.T) {
	t.Parallel()
	cfg := external(natstest.Server(t))
	cfg.DuplicateWindow = shortly
	b := start(t, cfg)
	b.index()
	b.stores(screening("1"))
	b.indexed()
	was, is := session("s-1", "AUTO_APPROVED"), session("s-1", "MANUALLY_REJECTED")
	value, err := json.Marshal(map[string]any{
		"stream": b.bus.State().StreamCreated.UnixNano(), "seq": 1000, "id": "lost", "state": b.event(was).Identity.State, "received": time.Now().Add(-time.Minute).UnixNano(),
	})
	if err == nil {
		_, err = b.bus.State().Bucket().Put(t.Context(), b.event(was).Identity.StateKey, value)
	}
	if err != nil {
		t.Fatal(err)
	}
	id := b.stores(is)
	b.indexed()
	b.forget()
	b.knows(is, id)
}

// snapshot is a backup of a stream, as the nats command takes it.
type snapshot struct {
	Config json.RawMessage `json:"config"`
	State  json.RawMessage `json:"state"`
	chunks [][]byte
}

func (b *bridge) snapshot() (s snapshot) {
	b.t.Helper()
	nc := b.js.Conn()
	inbox := nats.NewInbox()
	chunks, err := nc.SubscribeSync(inbox)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := json.Unmarshal(b.api("STREAM.SNAPSHOT."+b.bus.Stream(), []byte(`{"deliver_subject":"`+inbox+`"}`)), &s); err != nil {
		b.t.Fatal(err)
	}
	for {
		msg, err := chunks.NextMsg(within)
		if err != nil {
			b.t.Fatal(err)
		}
		if len(msg.Data) == 0 {
			return s
		}
		s.chunks = append(s.chunks, msg.Data)
		if msg.Reply != "" { // the server waits for it
			if err := msg.Respond(nil); err != nil {
				b.t.Fatal(err)
			}
		}
	}
}

func (b *bridge) restore(s snapshot) {
	b.t.Helper()
	var at struct {
		Subject string `json:"deliver_subject"`
	}
	request, err := json.Marshal(s)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := json.Unmarshal(b.api("STREAM.RESTORE."+b.bus.Stream(), request), &at); err != nil {
		b.t.Fatal(err)
	}
	for _, chunk := range append(s.chunks, nil) { // the empty one ends it
		if _, err := b.js.Conn().Request(at.Subject, chunk, within); err != nil {
			b.t.Fatal(err)
		}
	}
}

// api calls the JetStream API where the library has no function.
func (b *bridge) api(subject string, request []byte) []byte {
	b.t.Helper()
	msg, err := b.js.Conn().Request("$JS.API."+subject, request, within)
	if err != nil {
		b.t.Fatal(err)
	}
	var answer struct{ Error *struct{ Description string } }
	if err := json.Unmarshal(msg.Data, &answer); err != nil || answer.Error != nil {
		b.t.Fatalf("%s: %v %s", subject, err, msg.Data)
	}
	return msg.Data
}
