package dedupe_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
)

func TestStateReports(t *testing.T) {
	const (
		approved = "AUTO_APPROVED"
		rejected = "MANUALLY_REJECTED"
	)
	type step struct {
		body      body
		at        time.Duration // of receipt, after the first one's
		duplicate bool
		others    bool // events of other things were stored since
	}
	tests := []struct {
		name  string
		steps func(id string) []step
	}{
		{"the same twice", func(id string) []step {
			return []step{{body: flag(id, true)}, {body: flag(id, true), at: time.Second, duplicate: true}}
		}},
		{"there and back", func(id string) []step {
			return []step{
				{body: flag(id, true)}, {body: flag(id, false)}, {body: flag(id, true)},
				{body: flag(id, true), duplicate: true}, {body: flag(id, false)}, {body: flag(id, false), duplicate: true},
			}
		}},
		{"back in a report with a requestId", func(id string) []step {
			return []step{
				{body: flag(id, true)}, {body: flagOfRequest("r-"+id, id, false)}, {body: flag(id, true)},
				// The one with a name is known however often the state has changed.
				{body: flagOfRequest("r-"+id, id, false), duplicate: true}, {body: flag(id, true), duplicate: true},
			}
		}},
		{"there in a report with a requestId", func(id string) []step {
			return []step{
				{body: flagOfRequest("r-"+id, id, true)}, {body: flag(id, false)}, {body: flagOfRequest("s-"+id, id, true)}, {body: flag(id, false)},
			}
		}},
		{"one thing says nothing about another", func(id string) []step {
			return []step{
				{body: flag(id, true)}, {body: flag("other-"+id, false)}, {body: flag(id, true), duplicate: true, others: true},
				{body: session(id, approved)}, {body: session("other-"+id, rejected)}, {body: session(id, approved), duplicate: true, others: true},
			}
		}},
		{"the same after the state window", func(id string) []step {
			return []step{
				{body: flag(id, true)}, {body: flag(id, true), at: windows.State - time.Second, duplicate: true},
				{body: flag(id, true), at: windows.State}, {body: flag(id, true), at: windows.State + time.Minute, duplicate: true},
			}
		}},
		{"a clock that is an hour ahead", func(id string) []step {
			return []step{{body: flag(id, true)}, {body: flag(id, true), at: time.Hour}}
		}},
		{"a clock that is an hour behind", func(id string) []step {
			return []step{{body: flag(id, true)}, {body: flag(id, true), at: -time.Hour}}
		}},
		{"a clock that is an hour behind, between two states", func(id string) []step {
			return []step{{body: flag(id, true)}, {body: flag(id, false), at: -time.Hour}, {body: flag(id, true)}}
		}},
		{"a transition twice, hours apart", func(id string) []step {
			return []step{{body: session(id, approved)}, {body: session(id, approved), at: 30 * time.Hour, duplicate: true}}
		}},
		{"a transition twice, the dedupe window apart", func(id string) []step {
			return []step{{body: session(id, approved)}, {body: session(id, approved), at: windows.Dedupe}}
		}},
		{"a session that goes back", func(id string) []step {
			return []step{
				{body: session(id, approved)}, {body: session(id, rejected), at: time.Second},
				{body: session(id, approved), at: 2 * time.Second}, {body: session(id, approved), at: time.Hour, duplicate: true},
			}
		}},
	}
	play := func(t *testing.T, b *bridge, indexing bool, settled func()) {
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				b := b.in(t)
				before, stored := b.stored(), 0
				seen := make(map[string]bool)
				last := make(map[string]string) // id stored last, by body
				for i, s := range test.steps(slug(t)) {
					if s.others && !indexing {
						s.duplicate = false // what was stored in between might be about it
					}
					r := b.once(b.eventAt(s.body, s.at))
					switch {
					case r.Duplicate != s.duplicate:
						t.Fatalf("step %d: %s: duplicate %v, want %v", i+1, s.body.text, r.Duplicate, s.duplicate)
					case r.Duplicate && r.ID != last[s.body.text]:
						t.Errorf("step %d: the id %s is not that of the event stored before, %s", i+1, r.ID, last[s.body.text])
					case !r.Duplicate && seen[r.ID]:
						t.Errorf("step %d: the id %s was there before", i+1, r.ID)
					}
					if !r.Duplicate {
						stored++
						seen[r.ID], last[s.body.text] = true, r.ID
					}
					settled()
				}
				b.wantStored(before + stored)
			})
		}
	}
	t.Run("without an indexer", func(t *testing.T) {
		t.Parallel()
		play(t, start(t, external(natstest.Server(t))), false, func() {})
	})
	t.Run("indexed after each", func(t *testing.T) {
		t.Parallel()
		cfg := external(natstest.Server(t))
		cfg.DuplicateWindow = shortly // the index alone
		b := start(t, cfg)
		b.index()
		play(t, b, true, b.indexed)
	})
}

// No mark stays behind a report that went through.
func TestReportsLeaveNoMark(t *testing.T) {
	t.Parallel()
	b := start(t, external(natstest.Server(t)))
	for _, body := range []body{flag("c-1", true), flagOfRequest("r-1", "c-1", false), flag("c-1", true), flag("c-1", true)} {
		r := b.once(b.event(body))
		if got := b.entry(b.event(body).Identity.StateKey); got.Mark != nil || got.ID != r.ID {
			t.Errorf("after %s: got %+v, want id %s and no mark", body.text, got, r.ID)
		}
	}
}

// A process stores "true" and crashes. While a copy is on its way, "false" is
// stored: the copy may as well be a second "true", so it is stored too.
func TestCopyThatWasOvertakenIsStored(t *testing.T) {
	t.Parallel()
	server := natstest.Server(t)
	b, other := start(t, external(server)), start(t, external(server))
	first := crashAfterPublish(b, flag("c-1", true))
	overtake := sync.OnceFunc(func() { other.stores(flag("c-1", false)) })
	r, err := b.dedupe.Once(t.Context(), b.event(flag("c-1", true)), func(ctx context.Context, e *normalize.Event) (bus.Ack, error) {
		overtake()
		return b.bus.Publish(ctx, e)
	})
	if err != nil || r.Duplicate || r.ID == first {
		t.Errorf("got %+v, %v; want it stored, with another id than %s", r, err, first)
	}
	b.wantStored(3)
	b.knows(flag("c-1", true), r.ID)
}

// certain stores a report, once it can be told whether it is stored already.
func certain(b *bridge, e *normalize.Event) (r dedupe.Result) {
	b.t.Helper()
	natstest.Eventually(b.t, within, "it can be told", func() bool {
		var err error
		if r, err = b.dedupe.OnceCertain(b.t.Context(), e, b.bus.Publish); err != nil && !errors.Is(err, dedupe.ErrDoubt) {
			b.t.Fatal(err)
		}
		return err == nil
	})
	return r
}

// A report out of a spool has its token and the time of its receipt. It is a
// copy only of a report that came before it, with no other between.
func TestReportsThatHaveWaited(t *testing.T) {
	b := start(t, external(natstest.Server(t)))
	b.index()
	waited := func(body body, at time.Duration, token string) dedupe.Result {
		t.Helper()
		e := b.eventAt(body, at)
		e.SetToken(token)
		return certain(b, e)
	}
	direct := func(body body, at time.Duration) dedupe.Result {
		t.Helper()
		return b.once(b.eventAt(body, at))
	}
	want := func(r dedupe.Result, duplicate bool) {
		t.Helper()
		if r.Duplicate != duplicate {
			t.Errorf("duplicate %v, want %v", r.Duplicate, duplicate)
		}
	}

	want(direct(flag("copy", true), 0), false)
	want(waited(flag("copy", true), time.Second, "a"), true)

	// It was received first; the one that is stored is perhaps not its copy.
	want(direct(flag("earlier", true), time.Second), false)
	want(waited(flag("earlier", true), 0, "b"), false)
	want(waited(flag("earlier", true), 0, "b"), true) // once more after a crash

	// Another came between, at another replica, and is stored already.
	want(direct(flag("between", false), time.Second), false)
	want(direct(flag("between", true), 2*time.Second), false)
	want(waited(flag("between", true), 0, "c"), false)
	// What comes for real after that is not its copy either.
	want(direct(flag("after", false), time.Second), false)
	want(waited(flag("after", true), 0, "d"), false)
	want(direct(flag("after", true), 2*time.Second), false)

	// A later one has passed the spool: copies are recognised all the same, and
	// what came between is stored.
	want(direct(flag("passed", true), 3*time.Second), false)
	want(waited(flag("passed", true), 0, "e"), false)
	want(waited(flag("passed", true), 500*time.Millisecond, "f"), true)
	want(waited(flag("passed", false), time.Second, "g"), false)
	want(waited(flag("passed", false), 2*time.Second, "h"), true)

	// More came since than are remembered.
	for i := range 10 {
		want(direct(flag("many", i%2 == 0), time.Duration(i+2)*time.Second), false)
	}
	want(waited(flag("many", true), 0, "i"), false)
	want(waited(flag("many", true), time.Second, "j"), false)                    // unclear
	want(waited(flag("many", true), 10*time.Second+time.Millisecond, "k"), true) // of the ninth

	// The acknowledgement of its first attempt was lost, and another is stored
	// since.
	e := b.event(flag("lost", true))
	if _, err := b.dedupe.OnceCertain(t.Context(), e, func(ctx context.Context, e *normalize.Event) (bus.Ack, error) {
		b.bus.Publish(ctx, e)
		return bus.Ack{}, bus.ErrUnavailable
	}); !errors.Is(err, bus.ErrUnavailable) {
		t.Fatal(err)
	}
	want(direct(flag("lost", false), time.Second), false)
	want(certain(b, e), true)
	if m := b.entry(e.Identity.StateKey).Mark; m != nil {
		t.Errorf("mark left: %+v", m)
	}
}

// A copy that comes while a report out of a spool is on its way is stored with it.
func TestReportThatHasWaitedIsJoined(t *testing.T) {
	t.Parallel()
	server := natstest.Server(t)
	b, other := start(t, external(server)), start(t, external(server))
	e := b.event(flag("c-1", true))
	e.SetToken("own")
	var joined dedupe.Result
	r, err := b.dedupe.OnceCertain(t.Context(), e, func(ctx context.Context, e *normalize.Event) (bus.Ack, error) {
		if joined.ID == "" {
			joined = other.once(other.eventAt(flag("c-1", true), time.Second))
		}
		return b.bus.Publish(ctx, e)
	})
	if err != nil || joined.Duplicate || r.ID != joined.ID {
		t.Errorf("got %+v, %v, and for its copy %+v", r, err, joined)
	}
	b.wantStored(1)
}

// A report out of a spool that was received before one on its way leaves that one's
// mark: a copy of it is still recognised.
func TestReportThatHasWaitedLeavesALaterMark(t *testing.T) {
	t.Parallel()
	server := natstest.Server(t)
	b, other := start(t, external(server)), start(t, external(server))
	other.index()
	var once sync.Once
	r, err := b.dedupe.Once(t.Context(), b.eventAt(flag("c-1", false), time.Second), func(ctx context.Context, e *normalize.Event) (bus.Ack, error) {
		once.Do(func() {
			before := other.event(flag("c-1", true))
			before.SetToken("own")
			if r := certain(other, before); r.Duplicate {
				t.Errorf("the one before: %+v", r)
			}
			other.stores(flag("c-1", false)) // the copy, with the first one's token
		})
		return b.bus.Publish(ctx, e)
	})
	if err != nil || !r.Duplicate {
		t.Errorf("got %+v, %v, want what its copy has stored", r, err)
	}
	b.wantStored(2)
}

// What the bucket was asked to write is written once more if the answer is lost.
func TestMarkWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	b := start(t, external(natstest.Server(t)))
	b.dedupe.LoseAnswer()
	b.index()
	e := b.event(flag("c-1", true))
	if r, err := b.dedupe.OnceCertain(t.Context(), e, b.bus.Publish); err != nil || r.Duplicate {
		t.Errorf("got %+v, %v", r, err)
	}
	b.knows(flag("c-1", true), e.CloudEvent.ID())
	if m := b.entry(e.Identity.StateKey).Mark; m != nil {
		t.Errorf("mark left: %+v", m)
	}
	b.wantStored(1)
}

// One that was stored before a crash is known by its id, when the stream no
// longer knows it and one that had been received before is stored behind it.
func TestReportHandedOverAgain(t *testing.T) {
	cfg := external(natstest.Server(t))
	cfg.DuplicateWindow = shortly
	b := start(t, cfg)
	b.index()
	hand := func(flagged bool, at time.Duration, token string) dedupe.Result {
		e := b.eventAt(flag("c", flagged), at)
		e.SetToken(token)
		return certain(b, e)
	}
	first := hand(true, 5*time.Second, "own")
	hand(false, 4*time.Second, "other")
	b.forget()
	b.indexed()
	if again := hand(true, 5*time.Second, "own"); !again.Duplicate || again.ID != first.ID {
		t.Errorf("got %+v, want the duplicate of %s", again, first.ID)
	}
	b.wantStored(2)
}

// Who can wait is told of a doubt instead of having a report stored again.
func TestDoubt(t *testing.T) {
	b := start(t, external(natstest.Server(t))) // no indexer
	b.stores(flag("c", true))
	b.stores(screening("not indexed"))
	e := b.event(flag("c", true))
	if _, err := b.dedupe.OnceCertain(t.Context(), e, b.bus.Publish); !errors.Is(err, dedupe.ErrDoubt) {
		t.Errorf("OnceCertain: %v, want ErrDoubt", err)
	}
	b.wantStored(2)
	b.index()
	b.indexed()
	if r, err := b.dedupe.OnceCertain(t.Context(), e, b.bus.Publish); err != nil || !r.Duplicate {
		t.Errorf("once it is indexed: %+v, %v", r, err)
	}
	b.wantStored(2)
}
