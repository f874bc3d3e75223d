package dedupe_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
)

// load delivers events of every kind by some goroutines, each until it has its
// answer.
type load struct {
	b       *bridge
	end     context.CancelFunc
	workers sync.WaitGroup

	mu        sync.Mutex
	delivered []delivered
}

type delivered struct {
	body  body
	id    string
	begun time.Time
}

func (b *bridge) load() *load {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	l := &load{b: b, end: cancel}
	b.t.Cleanup(l.stop)
	for w := range 4 {
		l.workers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				n := fmt.Sprintf("%d-%d", w, i)
				l.deliver([]body{screening(n), transfer("we-"+n, "2026-07-01T10:00:00.000Z", "", "t-"+n), flagOfRequest("r-"+n, "c-"+n, true), session("s-"+n, "AUTO_APPROVED")}[i%4])
			}
		})
	}
	return l
}

func (l *load) deliver(body body) {
	begun := time.Now()
	for time.Since(begun) < within {
		r, err := l.b.dedupe.Once(context.Background(), l.b.event(body), l.b.bus.Publish)
		if errors.Is(err, bus.ErrUnavailable) {
			begun = time.Now()
			<-time.After(5 * time.Millisecond)
			continue
		}
		if err != nil || r.Duplicate {
			l.b.t.Errorf("%s: got %+v, %v", body.text, r, err)
			return
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.delivered = append(l.delivered, delivered{body, r.ID, begun})
		return
	}
}

// more returns when that many more events were delivered.
func (l *load) more(n int) {
	l.b.t.Helper()
	count := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.delivered)
	}
	start := count()
	l.b.eventually(fmt.Sprintf("%d more events", n), func() bool { return count() >= start+n })
}

func (l *load) stop() {
	l.end()
	l.workers.Wait()
}

// ids counts what is in the stream by id.
func (b *bridge) ids() map[string]int {
	b.t.Helper()
	s, err := b.js.Stream(b.t.Context(), b.bus.Stream())
	if err != nil {
		b.t.Fatal(err)
	}
	ids := make(map[string]int)
	for sequence := uint64(1); sequence <= s.CachedInfo().State.LastSeq; sequence++ {
		m, err := s.GetMsg(b.t.Context(), sequence)
		if err != nil {
			b.t.Fatal(err)
		}
		ids[m.Header.Get(jetstream.MsgIDHeader)]++
	}
	return ids
}

// knowsAll wants each event to be stored once, and known to the index when the
// duplicate window has passed.
func (b *bridge) knowsAll(events []delivered) {
	b.t.Helper()
	ids := b.ids()
	for _, d := range events {
		if ids[d.id] != 1 {
			b.t.Errorf("%s is stored %d times", d.body.text, ids[d.id])
		}
	}
	b.eventually("all is indexed into this bucket", func() bool {
		c := b.consumer()
		return c != nil && c.Config.Metadata["bridge-bucket-created"] == b.bus.State().BucketCreated.UTC().Format(time.RFC3339Nano) && c.NumPending == 0 && c.NumAckPending == 0
	})
	b.forget()
	b.eventually("the bus has asked which stream it is", func() bool { return b.incarnation().Equal(b.bus.State().StreamCreated) })
	before := b.stored()
	for _, d := range events {
		if r := b.once(b.event(d.body)); !r.Duplicate || r.ID != d.id {
			b.t.Errorf("%s, stored as %s: got %+v", d.body.text, d.id, r)
		}
	}
	b.wantStored(before)
}

// An operator deletes the stream, and the bus makes another, while events come:
// what is delivered from then on is in the new stream, and known.
func TestStreamRecreatedUnderLoad(t *testing.T) {
	t.Parallel()
	cfg := external(natstest.Server(t))
	cfg.DuplicateWindow = 2 * time.Second
	b := start(t, cfg)
	b.index()
	load := b.load()
	var deleted time.Time
	for range 3 {
		load.more(50)
		had := b.bus.State().StreamCreated
		b.deleteStream(b.bus.Stream())
		deleted = time.Now()
		b.eventually("another stream", func() bool { return b.bus.State().StreamCreated.After(had) })
	}
	load.more(100)
	load.stop()
	var after []delivered
	for _, d := range load.delivered {
		if d.begun.After(deleted) {
			after = append(after, d)
		}
	}
	t.Logf("%d of %d events after the stream was deleted", len(after), len(load.delivered))
	b.knowsAll(after)
}

// The same with the bucket: no event waits for it, and it is filled again.
func TestBucketRecreatedUnderLoad(t *testing.T) {
	t.Parallel()
	cfg := external(natstest.Server(t))
	cfg.DuplicateWindow = 2 * time.Second
	b := start(t, cfg)
	b.index()
	load := b.load()
	for range 3 {
		load.more(50)
		had := b.bus.State().BucketCreated
		b.deleteStream(bucketStream)
		b.eventually("another bucket", func() bool { return b.bus.State().BucketCreated.After(had) })
	}
	load.more(50)
	load.stop()
	t.Logf("%d events", len(load.delivered))
	b.wantStored(len(load.delivered))
	b.knowsAll(load.delivered)
}

// No indexer runs for longer than the duplicate window: a redelivery is stored
// again, with the id of the first, and not lost. When one runs, all is known.
func TestIndexerStoppedForLongerThanTheDuplicateWindow(t *testing.T) {
	t.Parallel()
	cfg := external(natstest.Server(t))
	cfg.DuplicateWindow = shortly
	b := start(t, cfg)
	stop := b.index()
	b.stores(screening("0"))
	b.indexed()
	stop()

	named, report := transfer("we-2", "2026-07-01T10:00:00.000Z", "we-1", "t-1"), session("s-1", "AUTO_APPROVED")
	id := b.stores(named)
	b.stores(report)
	b.knows(screening("0"), b.event(screening("0")).CloudEvent.ID()) // indexed before
	b.forget()
	if again := b.stores(named); again != id {
		t.Errorf("stored again as %s, at first as %s: consumers cannot tell that it is the same", again, id)
	}
	// A report waits for the index, and goes in when that does not come.
	begun := time.Now()
	last := b.stores(report)
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the report took %v", took)
	}
	b.wantStored(5)

	b.index()
	b.indexed()
	b.forget()
	b.knows(named, id)
	b.wantNames(named, id)
	b.knows(report, last)
	b.stores(session("s-1", "MANUALLY_REJECTED"))
}

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

// Of two bridges with different buckets each took the stream's only indexer from the
// other, for ever. The first has it until it stops.
func TestTwoBucketsOfOneStream(t *testing.T) {
	t.Parallel()
	cfg := external(natstest.Server(t))
	cfg.DuplicateWindow = shortly
	a := start(t, cfg)
	stop := a.index()
	id := a.stores(screening("1"))
	a.indexed()
	created := a.consumer().Created

	cfg.Bucket = "other"
	b := start(t, cfg)
	b.index()
	b.eventually("longer than it takes to replace an indexer that has stopped", func() bool { return time.Since(b.begun) > 7*time.Second })
	if c := a.consumer(); !c.Created.Equal(created) {
		t.Errorf("the indexer was replaced: %v", c.Config.Metadata)
	}
	if n := b.log.count("indexing interrupted"); n != 1 {
		t.Errorf("logged %d times, want once", n)
	}
	if lag := b.indexer.Lag(); lag.Messages == 0 || lag.Oldest == 0 {
		t.Errorf("nothing is in the bucket, and the lag is %+v", lag)
	}
	a.forget()
	a.knows(screening("1"), id)

	stop()
	b.indexedInto("other")
	b.forget()
	b.knows(screening("1"), id)
}

// indexedInto returns when all that is stored is indexed into that bucket.
func (b *bridge) indexedInto(bucket string) {
	b.t.Helper()
	b.eventually("the indexer is that of bucket "+bucket, func() bool {
		c := b.consumer()
		return c != nil && c.Config.Metadata["bridge-bucket"] == bucket
	})
	b.indexed()
}

// An operator gives a bridge another bucket.
func TestBucketOfAnotherName(t *testing.T) {
	t.Parallel()
	cfg := external(natstest.Server(t))
	cfg.DuplicateWindow = shortly
	a := start(t, cfg)
	stop := a.index()
	id := a.stores(screening("1"))
	a.indexed()
	stop()
	a.close()

	cfg.Bucket = "other"
	b := start(t, cfg)
	b.index()
	b.indexedInto("other")
	b.forget()
	b.knows(screening("1"), id)
}

// That all is in another bucket says nothing of this one, which lacks a report that has
// come between two equal ones.
func TestReportIsNotJudgedByTheIndexOfAnotherBucket(t *testing.T) {
	t.Parallel()
	cfg := external(natstest.Server(t))
	a := start(t, cfg)
	cfg.Bucket = "other"
	b := start(t, cfg)
	b.index()
	a.stores(flag("c", true))
	b.stores(flag("c", false))
	b.indexed()
	a.stores(flag("c", true))
}
