package dedupe

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"time"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/failpoint"
	"github.com/hookbus/bridge/normalize"
)

// report is a stored state report: what settling it needs.
type report struct {
	key, token string
	stored     entry
}

func reportOf(e *normalize.Event, stored entry) report {
	stored.State, stored.Received = e.Identity.State, e.Received.UnixNano()
	return report{key: e.Identity.StateKey, token: e.Token, stored: stored}
}

// onceReport stores a state report unless it is the one stored last.
//
// The entry of its key holds the report stored last and, while one is being
// published, a mark with its state and a random token, which is part of the
// message id. Copies of a report that is under way use its token, so that the
// stream lets one in; a report of another state puts its own mark in the place.
//
// A report is a copy of the one that the entry names as the last only if the
// index is complete, so that no other has come between, and if the entry can
// then be written at the revision read, since the read may have come from a
// replica that is behind. In doubt it is stored.
func (d *Deduper) onceReport(ctx context.Context, e *normalize.Event, publish Publish) (Result, error) {
	// One at a time in this process: a thousand copies that wait for each other
	// take less time than a thousand that write over each other.
	unlock, err := d.reports.lock(ctx, e.Identity.StateKey)
	if err != nil {
		return Result{}, err
	}
	defer unlock()
	asked, isComplete := false, false
	complete := func(after uint64) bool { // asked once, after this delivery began
		if !asked {
			asked, isComplete = true, d.complete(ctx, after)
		}
		return isComplete
	}
	for {
		token, known := d.mark(ctx, e, complete)
		if known != nil {
			return Result{ID: known.ID, Duplicate: true}, nil
		}
		e.SetToken(token)
		failpoint.Hit("marked")
		ack, err := publish(ctx, e)
		if err != nil {
			return Result{}, err
		}
		failpoint.Hit("published")
		result := Result{ID: e.CloudEvent.ID(), Duplicate: ack.Duplicate}
		created, err := d.incarnation(ctx)
		last := false
		if err == nil {
			stored := entry{Stream: created.UnixNano(), Sequence: ack.Sequence, ID: result.ID}
			confirm := ack.Duplicate && complete(ack.Sequence)
			last, err = d.settle(ctx, reportOf(e, stored), confirm)
			last = last && confirm && err == nil
		}
		if !ack.Duplicate || last {
			failpoint.Hit("settled")
			return result, nil
		}
		if ctx.Err() != nil {
			return Result{}, fmt.Errorf("%w: %w", bus.ErrUnavailable, ctx.Err())
		}
	}
}

// mark announces the event's state and returns the token to publish it with,
// or the report stored last, of which the event is a copy. A bucket that cannot
// be read or written leaves a fresh token.
func (d *Deduper) mark(ctx context.Context, e *normalize.Event, complete func(after uint64) bool) (token string, known *entry) {
	fresh := rand.Text()
	window := d.windows.State
	if e.Identity.Transition {
		window = d.windows.Dedupe
	}
	recent := func(received int64) bool { return e.Received.Sub(time.Unix(0, received)).Abs() < window }
	edit := func(last *entry) bool {
		token, known = fresh, nil
		switch m := last.Mark; {
		case m != nil && m.State == e.Identity.State && recent(m.Received):
			token = m.Token
		case m == nil && last.State == e.Identity.State && recent(last.Received) && complete(last.Sequence):
			stored := *last
			known = &stored
		default:
			last.Mark = &mark{State: e.Identity.State, Token: fresh, Received: e.Received.UnixNano()}
		}
		return true
	}
	err := d.change(ctx, e.Identity.StateKey, edit)
	if err != nil { // perhaps lost with a connection that is back by now
		err = d.change(ctx, e.Identity.StateKey, edit)
	}
	if err != nil {
		return fresh, nil
	}
	return token, known
}

// settle records a stored report, unless a later one is recorded, and removes
// its mark. It reports whether the entry names the report as the last one; that
// holds only if it was written, which confirm demands in any case.
func (d *Deduper) settle(ctx context.Context, r report, confirm bool) (last bool, err error) {
	err = d.change(ctx, r.key, func(e *entry) bool {
		changed := confirm
		if e.before(r.stored) {
			stored := r.stored
			stored.Mark = e.Mark
			*e = stored
			changed = true
		}
		if e.Mark != nil && e.Mark.Token == r.token {
			e.Mark = nil
			changed = true
		}
		last = e.Stream == r.stored.Stream && e.Sequence == r.stored.Sequence
		return changed
	})
	return last, err
}

// changeTimeout bounds the attempts to change an entry that others change too.
const changeTimeout = completeTimeout + 500*time.Millisecond

// change reads an entry, has it edited and writes it, until no other write came
// between or edit returns false, which leaves the entry as it is.
func (d *Deduper) change(ctx context.Context, name string, edit func(*entry) bool) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	for {
		e, revision, err := d.read(ctx, name)
		if err != nil {
			return err
		}
		if !edit(&e) {
			return nil
		}
		err = d.swap(ctx, name, e.encode(), revision)
		if !errors.Is(err, errConflict) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(mathrand.N(4 * time.Millisecond)):
		}
	}
}

func (d *Deduper) swap(ctx context.Context, name string, value []byte, revision uint64) error {
	ctx, cancel := context.WithTimeout(ctx, indexTimeout)
	defer cancel()
	_, err := d.index.swap(ctx, name, value, revision)
	if err != nil && !errors.Is(err, errConflict) {
		d.errors.Inc()
	}
	return err
}
