package dedupe_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
)

// For up to a second a replica does not know that the stream is another. What
// it has stored in the new one the indexer may have recorded already; it must
// not put the old stream's name over that, nor take it for unknown.
func TestLateReplicaDoesNotOverwriteTheNewStream(t *testing.T) {
	t.Parallel()
	cfg := external(natstest.Server(t))
	cfg.DuplicateWindow = shortly
	b, late := start(t, cfg), start(t, cfg)
	b.index()
	old := b.bus.State().StreamCreated
	b.recreateStream()
	late.dedupe.HearsLate(old)

	r, err := late.dedupe.Once(t.Context(), late.event(session("s-1", "AUTO_APPROVED")), func(ctx context.Context, e *normalize.Event) (bus.Ack, error) {
		ack, err := late.bus.Publish(ctx, e)
		b.indexed()
		return ack, err
	})
	if err != nil || r.Duplicate {
		t.Fatalf("got %+v, %v", r, err)
	}
	id := b.stores(screening("1"))
	b.indexed()
	b.forget()
	b.eventually("the bus has asked which stream it is", func() bool { return b.incarnation().Equal(b.bus.State().StreamCreated) })
	b.knows(session("s-1", "AUTO_APPROVED"), r.ID)
	late.knows(session("s-1", "AUTO_APPROVED"), r.ID)
	late.knows(screening("1"), id)
}

// A backup's stream is older than the one in whose place it is put, and holds
// nothing of that.
func TestRestoredStreamKnowsNothingOfTheOneItReplaces(t *testing.T) {
	t.Parallel()
	b := start(t, external(natstest.Server(t)))
	named, report := screening("1"), session("s-1", "AUTO_APPROVED")
	later := b.bus.State().StreamCreated.Add(time.Hour).UnixNano()
	for _, name := range []string{b.event(named).Identity.Key, b.event(report).Identity.StateKey} {
		value := fmt.Sprintf(`{"stream":%d,"seq":1,"id":"lost","state":%q,"received":%d}`, later, b.event(report).Identity.State, b.begun.UnixNano())
		if _, err := b.bus.State().Bucket().PutString(t.Context(), name, value); err != nil {
			t.Fatal(err)
		}
	}
	b.stores(named)
	b.stores(report)
}
