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

// ErrDoubt: whether a state report is stored cannot be told now. Nothing was
// published, or only under a token that another report has too.
var ErrDoubt = errors.New("dedupe: not to be told whether the report is stored")

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
// replica that is behind. In doubt it is stored, or with certain refused.
//
// A report that has waited in a spool keeps the token under which it may have
// been stored before. It can be older than the report stored last.
func (d *Deduper) onceReport(ctx context.Context, e *normalize.Event, publish Publish, certain bool) (_ Result, err error) {
	own, waited := e.Token, e.Token != ""
	if !waited {
		own = rand.Text()
	}
	defer func() {
		if err != nil {
			e.SetToken(own) // which no other report has
		}
	}()
	// One at a time in this process: a thousand copies that wait for each other
	// take less time than a thousand that write over each other.
	unlock, err := d.reports.lock(ctx, e.Identity.StateKey)
	if err != nil {
		return Result{}, err
	}
	defer unlock()
	patience := completeTimeout
	if certain { // the caller tries again
		patience = indexTimeout
	}
	ask := func(after uint64) bool {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return d.complete(ctx, after)
	}
	asked, isComplete := false, false
	complete := func(after uint64) bool {
		if waited { // what was stored before the last report may have come between, too
			return ask(0)
		}
		if !asked { // once, after this delivery began
			asked, isComplete = true, ask(after)
		}
		return isComplete
	}
	old := ""
	for {
		m, known, err := d.mark(ctx, e, own, old, waited, certain, complete)
		if err != nil && certain {
			return Result{}, err
		}
		if known != nil {
			return Result{ID: known.ID, Duplicate: true}, nil
		}
		e.SetToken(m.Token)
		joined := m.Token != own
		failpoint.Hit("marked")
		ack, err := publish(ctx, e)
		if err != nil {
			return Result{}, err
		}
		failpoint.Hit("published")
		result := Result{ID: e.CloudEvent.ID(), Duplicate: ack.Duplicate}
		created, err := d.incarnation(ctx)
		stored := entry{Stream: created.UnixNano(), Sequence: ack.Sequence, ID: result.ID}
		if !ack.Duplicate || !joined { // what was let in under our own token is this report
			switch {
			case err != nil: // the indexer does it
			case ack.Duplicate:
				d.unmark(ctx, reportOf(e, stored))
			default:
				d.settle(ctx, reportOf(e, stored))
			}
			failpoint.Hit("settled")
			return result, nil
		}
		indexed := err == nil && ask(ack.Sequence)
		last, passed := false, false
		if indexed {
			if last, passed = d.isLast(ctx, e.Identity.StateKey, stored); last {
				return result, nil
			}
		} else if certain {
			return Result{}, ErrDoubt
		}
		if !indexed || passed { // in doubt it is stored; or the mark was left behind
			old = m.Token
		}
		if ctx.Err() != nil {
			return Result{}, fmt.Errorf("%w: %w", bus.ErrUnavailable, ctx.Err())
		}
	}
}

// mark announces the event's state and returns the mark with whose token it is
// to be published, or the report stored last, of which the event is a copy. With
// ErrDoubt the mark is the event's own.
func (d *Deduper) mark(ctx context.Context, e *normalize.Event, own, old string, waited, certain bool, complete func(after uint64) bool) (under mark, known *entry, err error) {
	window := d.windows.State
	if e.Identity.Transition {
		window = d.windows.Dedupe
	}
	now := e.Received.UnixNano()
	ours := mark{State: e.Identity.State, Token: own, Received: now}
	doubt := false
	edit := func(last *entry) bool {
		under, known, doubt = ours, nil, false
		other := last.otherThan(e.Identity.State)
		between := func(received int64) bool { // or, of one that has waited, perhaps
			return received < other && other < now || waited && min(now, received) < other
		}
		recent := func(received int64) bool { return time.Duration(now-received).Abs() < window }
		if last.Mark != nil && last.Mark.Token == old {
			last.Mark = nil
		}
		// Whoever joined one that has waited would be taken for it.
		if waited && !complete(0) {
			doubt = true
			return false
		}
		if m := last.Mark; m != nil && m.State == e.Identity.State && recent(m.Received) && !(waited && between(m.Received)) {
			under = *m
			return true
		}
		if last.Mark == nil && last.State == e.Identity.State && recent(last.Received) && !between(last.Received) {
			if waited || complete(last.Sequence) {
				stored := *last
				known = &stored
				return true
			}
			if doubt = true; certain {
				return false
			}
		}
		if waited && now < other {
			return false
		}
		last.Mark = &ours
		return true
	}
	failed := d.change(ctx, e.Identity.StateKey, edit)
	if failed != nil { // perhaps lost with a connection that is back by now
		failed = d.change(ctx, e.Identity.StateKey, edit)
	}
	switch {
	case failed != nil:
		return ours, nil, fmt.Errorf("%w: %w", ErrDoubt, failed)
	case doubt:
		return ours, nil, ErrDoubt
	}
	return under, known, nil
}

// settle records a stored report and removes its mark.
func (d *Deduper) settle(ctx context.Context, r report) error {
	return d.change(ctx, r.key, func(e *entry) bool {
		changed := e.record(r.stored)
		if e.Mark != nil && e.Mark.Token == r.token {
			e.Mark = nil
			changed = true
		}
		return changed
	})
}

// unmark removes the mark of a report that is settled already. What is not, its
// storer or the indexer settles: they know when it was received.
func (d *Deduper) unmark(ctx context.Context, r report) error {
	return d.change(ctx, r.key, func(e *entry) bool {
		if e.Mark == nil || e.Mark.Token != r.token || e.before(r.stored) {
			return false
		}
		e.Mark = nil
		return true
	})
}

// isLast reports whether the entry, which may not be settled yet, names no later
// report than one of which all that comes after it is indexed. It is believed
// only if the entry can be written back. Passed: it names a later one.
func (d *Deduper) isLast(ctx context.Context, key string, r entry) (last, passed bool) {
	err := d.change(ctx, key, func(e *entry) bool {
		passed = r.before(*e)
		last = !passed
		return last
	})
	return last && err == nil, passed
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
