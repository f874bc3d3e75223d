package dedupe

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/failpoint"
	"github.com/hookbus/bridge/normalize"
)

// report is a stored state report, with what is needed to settle it.
type report struct {
	key, token string
	stored     entry
}

func reportOf(e *normalize.Event, stored entry) report {
	stored.State, stored.Received = e.Identity.State, e.Received.UnixNano()
	return report{key: e.Identity.StateKey, token: e.Token, stored: stored}
}

// ErrDoubt: it cannot be told now whether a state report is stored. Nothing was
// published, or only under a token that another report has too.
var ErrDoubt = errors.New("dedupe: it cannot be told now whether the report is stored")

// reporting is one attempt to store a state report unless it is the one stored
// last.
//
// The entry of its key holds the report stored last and, while one is being
// published, a mark with its state and a random token, which is part of the
// message id. Copies of a report that is under way use its token, so that the
// stream lets one in; a report of another state puts its own mark in the place.
//
// A report is a copy of the one that the entry names as the last only if the
// index is complete, so that no other has come between, and if the entry can
// then be written at the revision read, since the read may have come from a
// replica that is behind. In doubt it is stored, or refused if only what is
// certain will do.
type reporting struct {
	*Deduper
	event *normalize.Event
	// own is a token that no other report has. A report that has waited in a spool
	// may be stored under it already, and can be older than the report stored last.
	own     string
	ownID   string // of the event under that token, if it has waited
	waited  bool
	certain bool
	// old is the token of a mark that was left behind: its report has another after
	// it, or that cannot be told.
	old string
	// gone is the sequence of a report that the entry names and the stream has not.
	gone uint64
	// indexed is whether the index was complete after the delivery began; nil
	// until it is asked.
	indexed *bool
}

func (d *Deduper) onceReport(ctx context.Context, e *normalize.Event, publish Publish, certain bool) (Result, error) {
	r := &reporting{Deduper: d, event: e, own: e.Token, waited: e.Token != "", certain: certain}
	if r.waited {
		r.ownID = e.CloudEvent.ID()
	} else {
		r.own = rand.Text()
	}
	result, err := r.once(ctx, publish)
	if err != nil {
		e.SetToken(r.own)
	}
	return result, err
}

func (r *reporting) once(ctx context.Context, publish Publish) (Result, error) {
	key := r.event.Identity.StateKey
	// One at a time in this process: a thousand copies that wait for each other
	// take less time than a thousand that write over each other.
	unlock, err := r.reports.lock(ctx, key)
	if err != nil {
		return Result{}, err
	}
	defer unlock()
	for {
		m, known, err := r.mark(ctx)
		if err != nil && r.certain {
			return Result{}, err
		}
		if known != nil {
			if r.there(ctx, *known) {
				return Result{ID: known.ID, Duplicate: true}, nil
			}
			r.gone = known.Sequence
			continue
		}
		r.event.SetToken(m.Token)
		failpoint.Hit("marked")
		ack, err := publish(ctx, r.event)
		if err != nil {
			return Result{}, err
		}
		failpoint.Hit("published")
		result := Result{ID: r.event.CloudEvent.ID(), Duplicate: ack.Duplicate}
		created, err := r.incarnation(ctx)
		stored := entry{Stream: created.UnixNano(), storedEvent: storedEvent{Sequence: ack.Sequence, ID: result.ID}}
		if err == nil {
			r.saw(stored)
		}
		if !ack.Duplicate || m.Token == r.own { // what was let in under our own token is this report
			switch {
			case err != nil: // the indexer does it
			case ack.Duplicate:
				r.unmark(ctx, reportOf(r.event, stored))
			default:
				r.settle(ctx, reportOf(r.event, stored))
			}
			failpoint.Hit("settled")
			return result, nil
		}
		switch {
		case err == nil && r.ask(ctx, ack.Sequence):
			last, passed := r.isLast(ctx, key, stored)
			if last {
				return result, nil
			}
			if passed {
				r.old = m.Token
			}
		case r.certain:
			return Result{}, ErrDoubt
		default:
			r.old = m.Token
		}
		if ctx.Err() != nil {
			return Result{}, fmt.Errorf("%w: %w", bus.ErrUnavailable, ctx.Err())
		}
	}
}

// ask waits until all that the stream holds now after a sequence is indexed.
func (r *reporting) ask(ctx context.Context, after uint64) bool {
	patience := completeTimeout
	if r.certain { // the caller tries again
		patience = indexTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return r.complete(ctx, after)
}

// mark announces the report's state and returns the mark with whose token it is
// to be published, or the report stored last, of which it is a copy. With
// ErrDoubt the mark is the report's own.
func (r *reporting) mark(ctx context.Context) (under mark, known *storedEvent, err error) {
	e := r.event
	window := r.windows.State
	if e.Identity.Transition {
		window = r.windows.Dedupe
	}
	now := e.Received.UnixNano()
	ours := mark{State: e.Identity.State, Token: r.own, Received: now}
	doubt := false
	edit := func(last *entry) (write bool) {
		under, known, doubt = ours, nil, false
		if r.gone != 0 && last.Sequence >= r.gone { // and what came after it
			*last = entry{Mark: last.Mark}
		}
		if m := last.Mark; m != nil && (m.Token == r.old || m.Token == r.own) {
			last.Mark = nil
		}
		// If this one has waited, a report stored before the last one may have
		// come between, too; and a report that joined it would be taken for it.
		if r.waited && !r.ask(ctx, 0) {
			doubt = true
			return false
		}
		all := last.reports()
		if i := slices.IndexFunc(all, func(s storedEvent) bool { return s.ID == r.ownID }); i >= 0 {
			known = &all[i] // it was stored before a crash
			return true
		}
		// What was received later says nothing about it, unless a clock is wrong.
		reports := slices.DeleteFunc(slices.Clone(all), func(s storedEvent) bool {
			return s.Received > now && (r.waited || s.State != e.Identity.State && s.Sequence != last.Sequence)
		})
		overtaken := r.waited && len(reports) < len(all)
		copyOf := func(state string, received int64) bool {
			return state == e.Identity.State && time.Duration(now-received).Abs() < window
		}
		join := false // the report that the mark announces
		if m := last.Mark; m != nil {
			between := func(s storedEvent) bool { return s.State != m.State && s.Received > m.Received }
			switch {
			case r.waited && m.Received > now: // it is a later one's
				overtaken = true
			case m.State != e.Identity.State: // it may have come between
				reports = nil
			default:
				join = copyOf(m.State, m.Received) && !slices.ContainsFunc(reports, between)
			}
		}
		if n := len(reports); n > 0 && reports[n-1].State == e.Identity.State && (r.waited || !join) {
			before := slices.MaxFunc(reports, byReceipt)
			switch {
			case before.Received < last.Forgotten || !copyOf(before.State, before.Received):
			case r.waited || r.isIndexed(ctx, last.Sequence):
				known = &reports[n-1]
				return true
			default:
				if doubt = true; r.certain {
					return false
				}
			}
		}
		if join {
			under = *last.Mark
			return true
		}
		if !overtaken {
			last.Mark = &ours
		}
		return true
	}
	failed := r.change(ctx, e.Identity.StateKey, edit)
	if failed != nil { // perhaps lost with a connection that is back by now
		failed = r.change(ctx, e.Identity.StateKey, edit)
	}
	switch {
	case errors.Is(failed, bus.ErrUnavailable): // nothing can be published either
		return ours, nil, failed
	case failed != nil:
		return ours, nil, fmt.Errorf("%w: %w", ErrDoubt, failed)
	case doubt:
		return ours, nil, ErrDoubt
	}
	return under, known, nil
}

// isIndexed asks once, after the delivery began.
func (r *reporting) isIndexed(ctx context.Context, after uint64) bool {
	if r.indexed == nil {
		complete := r.ask(ctx, after)
		r.indexed = &complete
	}
	return *r.indexed
}

// settle records a stored report and removes its mark.
func (d *Deduper) settle(ctx context.Context, r report) error {
	return d.change(ctx, r.key, func(e *entry) bool {
		changed := e.record(r.stored)
		// What seems to come after a report just stored may be what the stream has lost.
		for changed && e.Sequence > r.stored.Sequence && len(e.Earlier) > 0 && !d.there(ctx, e.storedEvent) {
			last := len(e.Earlier) - 1
			e.storedEvent, e.Earlier = e.Earlier[last], e.Earlier[:last]
		}
		if e.Mark != nil && e.Mark.Token == r.token {
			e.Mark = nil
			changed = true
		}
		return changed
	})
}

// unmark removes the mark of a report that is settled already. One that is not is
// settled by who stored it or by the indexer: they know when it was received.
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
	err := d.index.swap(ctx, name, value, revision)
	if err != nil && !errors.Is(err, errConflict) {
		d.errors.Inc()
	}
	return err
}
