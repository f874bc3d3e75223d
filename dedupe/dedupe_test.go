package dedupe_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
)

// namedBodies have a name; the first is the second attempt of an event.
var namedBodies = map[string]body{
	"dfns":                   transfer("we-2", "2026-07-01T10:00:00.000Z", "we-1", "t-1"),
	"dataspike":              screening("1"),
	"osapher":                verification("51824753556"),
	"waldo with a requestId": flagOfRequest("r-1", "c-1", true),
	"waldo without customer": {"waldo", `{"event":"flag","requestId":"r-2","flagged":true}`},
}

func TestNamedTwiceIsOneBeforeTheIndexerRan(t *testing.T) {
	t.Parallel()
	b := start(t, external(natstest.Server(t)))
	for name, body := range namedBodies {
		b.knows(body, b.stores(body))
		if key := b.event(body).Identity.Key; b.entry(key).Sequence != 0 {
			t.Errorf("%s: its key is in the bucket, although no indexer ran", name)
		}
	}
}

func TestNamedTwiceIsOneAfterTheDuplicateWindow(t *testing.T) {
	t.Parallel()
	cfg := external(natstest.Server(t))
	cfg.DuplicateWindow = shortly
	b := start(t, cfg)
	ids := make(map[string]string)
	for name, body := range namedBodies {
		ids[name] = b.stores(body)
	}
	b.index()
	b.indexed()
	b.forget()
	for name, body := range namedBodies {
		b.knows(body, ids[name])
		b.wantNames(body, ids[name])
	}
	b.wantStored(len(namedBodies))
}

// Two attempts of Dfns have nothing in common but what the aliases are made
// of, if the date changes too.
func TestAttemptsAreOne(t *testing.T) {
	t.Parallel()
	cfg := external(natstest.Server(t))
	cfg.DuplicateWindow = shortly
	b := start(t, cfg)
	b.index()
	first := transfer("we-1", "2026-07-01T10:00:00.000Z", "", "t-1")
	id := b.stores(first)
	b.indexed()
	b.forget()

	second := transfer("we-2", "2026-07-01T10:01:00.000Z", "we-1", "t-1")
	b.knows(second, id)
	b.wantNames(second, id)
	b.knows(transfer("we-3", "2026-07-01T10:13:00.000Z", "we-2", "t-1"), id)

	b.stores(transfer("we-2", "2026-07-01T10:01:00.000Z", "we-1", "t-2"))
	b.wantStored(2)
}

func TestDuplicatePubAckWritesTheAliases(t *testing.T) {
	t.Parallel()
	b := start(t, external(natstest.Server(t)))
	id := b.stores(transfer("we-1", "2026-07-01T10:00:00.000Z", "", "t-1"))
	second := transfer("we-2", "2026-07-01T10:00:00.000Z", "we-1", "t-1")
	b.knows(second, id)
	for _, alias := range b.event(second).Identity.Aliases {
		if got := b.entry(alias); got.ID != id || got.Sequence != 1 {
			t.Errorf("alias: got %+v, want sequence 1 and id %s", got, id)
		}
	}
	b.knows(transfer("we-3", "2026-07-01T10:13:00.000Z", "we-2", "t-1"), id)
	b.wantStored(1)
}

// What went wrong in publish goes back as it is, and the event can come again.
func TestPublishErrorsPassThrough(t *testing.T) {
	t.Parallel()
	b := start(t, external(natstest.Server(t)))
	for name, body := range map[string]body{
		"named":                screening("1"),
		"named with a state":   flagOfRequest("r-1", "c-1", true),
		"state report":         flag("c-2", true),
		"transition of states": session("s-1", "AUTO_APPROVED"),
	} {
		for _, want := range []error{bus.ErrUnavailable, bus.ErrNotPublishable, errors.New("another")} {
			r, err := b.dedupe.Once(t.Context(), b.event(body), func(context.Context, *normalize.Event) (bus.Ack, error) {
				return bus.Ack{}, want
			})
			if err != want || r != (dedupe.Result{}) {
				t.Errorf("%s: got %+v, %v; want the error %q alone", name, r, err, want)
			}
		}
		b.knows(body, b.stores(body))
	}
}

// A process that crashes between the acknowledgement and all that follows has
// stored the event and answered nothing: the provider sends a copy.
func TestCopyAfterACrash(t *testing.T) {
	t.Parallel()
	bodies := map[string]body{
		"named":              screening("1"),
		"named with aliases": transfer("we-2", "2026-07-01T10:00:00.000Z", "we-1", "t-1"),
		"named with a state": flagOfRequest("r-1", "c-1", true),
		"state report":       flag("c-2", true),
		"transition":         session("s-1", "AUTO_APPROVED"),
	}
	t.Run("before the indexer ran", func(t *testing.T) {
		t.Parallel()
		b := start(t, external(natstest.Server(t)))
		for _, body := range bodies {
			b.knows(body, crashAfterPublish(b, body))
		}
		b.wantStored(len(bodies))
	})
	t.Run("after the indexer ran", func(t *testing.T) {
		t.Parallel()
		cfg := external(natstest.Server(t))
		cfg.DuplicateWindow = shortly
		b := start(t, cfg)
		ids := make(map[string]string)
		for name, body := range bodies {
			ids[name] = crashAfterPublish(b, body)
		}
		b.index()
		b.indexed()
		b.forget()
		for name, body := range bodies {
			b.knows(body, ids[name])
			if key := b.event(body).Identity.StateKey; key != "" && b.entry(key).Mark != nil {
				t.Errorf("%s: the mark of the crashed process is still there", name)
			}
		}
		b.wantStored(len(bodies))
	})
}

// crashAfterPublish stores the body as Once does, and goes no further. It
// returns the event's id.
func crashAfterPublish(b *bridge, body body) (id string) {
	b.t.Helper()
	e := b.event(body)
	errCrash := errors.New("crash")
	_, err := b.dedupe.Once(b.t.Context(), e, func(ctx context.Context, e *normalize.Event) (bus.Ack, error) {
		if ack, err := b.bus.Publish(ctx, e); err != nil || ack.Duplicate {
			return ack, fmt.Errorf("publish: %+v, %w", ack, err)
		}
		return bus.Ack{}, errCrash
	})
	if err != errCrash {
		b.t.Fatal(err)
	}
	return e.CloudEvent.ID()
}

// A read that is lost with its connection is made once more.
func TestReadThatIsLost(t *testing.T) {
	t.Parallel()
	cfg := external(natstest.Server(t))
	cfg.DuplicateWindow = shortly // the index alone
	b := start(t, cfg)
	stop := b.index()
	id := b.stores(screening("1"))
	b.indexed()
	stop() // else the filter would say that others are new
	b.forget()
	b.dedupe.LoseRead()
	b.knows(screening("1"), id)
}
