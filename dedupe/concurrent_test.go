package dedupe_test

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
)

const copies = 64

// Not in parallel with others: it is measured.
func TestCopiesAtOnceAreOne(t *testing.T) {
	t.Run("on one server", func(t *testing.T) {
		testCopies(t, external(natstest.Server(t)))
	})
	t.Run("on a server that syncs every write", func(t *testing.T) {
		testCopies(t, external(natstest.Server(t, func(o *server.Options) { o.SyncAlways = true })))
	})
	t.Run("on three servers", func(t *testing.T) {
		cfg := defaults()
		cfg.URL = natstest.Cluster(t, 3).URL()
		cfg.Replicas = 3
		cfg.PublishTimeout = 6 * time.Second // elections on a busy machine
		testCopies(t, cfg)
	})
}

// testCopies has half of the copies come to one bridge, half to another.
func testCopies(t *testing.T, cfg bus.Config) {
	bridges := []*bridge{start(t, cfg), start(t, cfg)}
	for _, b := range bridges {
		b.index()
	}
	for _, test := range []struct {
		name           string
		before, copied body
	}{
		{"named", screening("0"), screening("1")},
		{"named, with aliases", screening("2"), transfer("we-2", "2026-07-01T10:00:00.000Z", "we-1", "t-1")},
		{"named, with a state", flag("c-0", true), flagOfRequest("r-1", "c-0", false)},
		{"first state report", flag("c-1", true), flag("c-2", true)},
		{"state report after another", flag("c-3", true), flag("c-3", false)},
		{"transition", session("s-1", "AUTO_APPROVED"), session("s-1", "MANUALLY_REJECTED")},
	} {
		t.Run(test.name, func(t *testing.T) {
			b, other := bridges[0].in(t), bridges[1].in(t)
			b.stores(test.before)
			stored := b.stored()
			results := make([]dedupe.Result, copies)
			took := make([]time.Duration, copies)
			begin := make(chan struct{})
			var wg sync.WaitGroup
			for i := range copies {
				b := []*bridge{b, other}[i%2]
				e := b.event(test.copied)
				wg.Go(func() {
					<-begin
					start := time.Now()
					var err error
					if results[i], err = b.dedupe.Once(t.Context(), e, b.bus.Publish); err != nil {
						t.Errorf("copy %d: %v", i, err)
					}
					took[i] = time.Since(start)
				})
			}
			close(begin)
			wg.Wait()
			slices.Sort(took)
			t.Logf("%d copies: half within %v, all within %v", copies, took[copies/2].Round(time.Millisecond), took[copies-1].Round(time.Millisecond))

			b.wantStored(stored + 1)
			accepted := 0
			for i, r := range results {
				if r.ID != results[0].ID {
					t.Errorf("copy %d has the id %s, copy 0 has %s", i, r.ID, results[0].ID)
				}
				if !r.Duplicate {
					accepted++
				}
			}
			if accepted != 1 {
				t.Errorf("%d copies are answered as accepted, want 1", accepted)
			}
			if n := b.metric("bridge_dedupe_errors_total") + other.metric("bridge_dedupe_errors_total"); n != 0 {
				t.Errorf("%v reads or writes of the bucket failed", n)
			}
			b.indexed()
			b.knows(test.copied, results[0].ID)
			other.knows(test.copied, results[0].ID)
		})
	}
}

func TestTwoBridgesAreOne(t *testing.T) {
	t.Parallel()
	cfg := external(natstest.Server(t))
	cfg.DuplicateWindow = shortly
	a, b := start(t, cfg), start(t, cfg)
	a.index()
	b.index()
	bodies := []body{screening("1"), transfer("we-2", "2026-07-01T10:00:00.000Z", "we-1", "t-1"), flagOfRequest("r-1", "c-1", true), flag("c-2", true), session("s-1", "AUTO_APPROVED")}
	var ids []string
	for i, body := range bodies {
		ids = append(ids, []*bridge{a, b}[i%2].stores(body))
	}
	a.indexed()
	a.forget()
	for i, body := range bodies {
		a.knows(body, ids[i])
		b.knows(body, ids[i])
	}
	// And a change of state that one has seen, the other knows of.
	b.stores(flag("c-2", false))
	a.stores(flag("c-2", true))
	a.wantStored(len(bodies) + 2)
}

// Reports of two states at once: whichever the order, each is stored, and none
// of the copies waits for ever on the others.
func TestTwoStatesAtOnce(t *testing.T) {
	t.Parallel()
	b := start(t, external(natstest.Server(t)))
	b.index()
	events := make([]*normalize.Event, copies)
	results := make([]dedupe.Result, copies)
	var wg sync.WaitGroup
	for i := range events {
		events[i] = b.event(flag("c-1", i%2 == 0))
		wg.Go(func() {
			var err error
			if results[i], err = b.dedupe.Once(t.Context(), events[i], b.bus.Publish); err != nil {
				t.Errorf("copy %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	stored := make(map[string]bool)
	states := make(map[string]bool)
	for i, r := range results {
		if !r.Duplicate {
			stored[r.ID] = true
			states[events[i].Identity.State] = true
		}
	}
	b.wantStored(len(stored))
	if len(states) != 2 {
		t.Errorf("%d states are stored, want 2", len(states))
	}
	t.Logf("%d copies of two states: %d stored", copies, len(stored))
}
