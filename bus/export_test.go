package bus

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/normalize"
)

// SetReuseWithin changes for a test up to which age an object is used again.
func SetReuseWithin(t *testing.T, d time.Duration) {
	old := reuseWithin
	reuseWithin = d
	t.Cleanup(func() { reuseWithin = old })
}

// SyncAlways reports whether the embedded server syncs every write to disk. No
// client can ask it that.
func (b *Bus) SyncAlways() bool { return b.server.JetStreamConfig().SyncAlways }

// Encode encodes an event as for the stream.
func Encode(e *normalize.Event) (*nats.Msg, error) { return encode(e, "webhooks") }

// DropAll empties the store without the spool's knowledge.
func (s *Spool) DropAll(t *testing.T) {
	t.Helper()
	if err := s.store.stream.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Stored returns how many messages the store holds.
func (s *Spool) Stored(t *testing.T) int {
	t.Helper()
	info, err := s.store.stream.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return int(info.State.Msgs)
}

// Miscounted counts as Run does when it found nothing to hand over. Run must not be running.
func (s *Spool) Miscounted(ctx context.Context) bool { return s.miscounted(ctx) }

// Probe has the disk be probed for that long.
func (s *Spool) Probe(d time.Duration) {
	s.slow.Store(true)
	time.AfterFunc(d, func() { s.slow.Store(false) })
}

// HoldGroup has all wait that is published from now on, until it is released: then
// batches are stored of whatever waits.
func (b *Bus) HoldGroup() (waiting func() int, release func()) {
	g := b.group
	g.mu.Lock()
	defer g.mu.Unlock()
	g.storing = true
	g.pays = func(messages int) bool { return messages > 1 }
	waiting = func() int {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.waiting)
	}
	return waiting, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.storing = false
		g.next()
	}
}

// HoldBucket does the same for what is put into the bucket.
func (b *Bus) HoldBucket() (waiting func() int, release func()) {
	return (&Bus{group: b.bucketGroup}).HoldGroup()
}

// GroupAlways has a batch stored of whatever waits.
func (b *Bus) GroupAlways() {
	_, release := b.HoldGroup()
	release()
}

// GroupPanics has the next message published by itself panic.
func (b *Bus) GroupPanics(value any) {
	alone := b.group.alone
	b.group.alone = func(context.Context, *nats.Msg) (*jetstream.PubAck, error) {
		b.group.alone = alone
		panic(value)
	}
}
