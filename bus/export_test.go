package bus

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"

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

// Probe has the disk be probed for that long.
func (s *Spool) Probe(d time.Duration) {
	s.slow.Store(true)
	time.AfterFunc(d, func() { s.slow.Store(false) })
}
