package dedupe

import (
	"context"
	"crypto/rand"
	"errors"
	mathrand "math/rand/v2"
	"time"

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
// stream lets one in. A report of another state puts its own mark in the
// place, after which the former state counts as new again. What is concluded
// from an entry holds only if the entry can be written at the revision read.
func (d *Deduper) onceReport(ctx context.Context, e *normalize.Event, publish Publish) (Result, error) {
	for {
		token, known := d.mark(ctx, e, true)
		if known != nil {
			return Result{ID: known.ID, Duplicate: true}, nil
		}
		e.SetToken(token)
		ack, err := publish(ctx, e)
		if err != nil {
			return Result{}, err
		}
		result := Result{ID: e.CloudEvent.ID(), Duplicate: ack.Duplicate}
		created, err := d.incarnation(ctx)
		var last bool
		if err == nil {
			stored := entry{Stream: created.UnixNano(), Sequence: ack.Sequence, ID: result.ID}
			last = d.settle(ctx, reportOf(e, stored), ack.Duplicate)
		}
		// A copy of a report that is no longer the last one may be a real
		// second occurrence: begin again.
		if !ack.Duplicate || last {
			return result, nil
		}
		if ctx.Err() != nil {
			return Result{}, ctx.Err()
		}
	}
}

// mark announces the event's state and returns the token to publish it with;
// if judge is set and the report stored last says the same and is recent, it
// returns that report instead. A bucket that cannot be read or written leaves
// a fresh token.
func (d *Deduper) mark(ctx context.Context, e *normalize.Event, judge bool) (token string, known *entry) {
	fresh := rand.Text()
	window := d.windows.State
	if e.Identity.Transition {
		window = d.windows.Dedupe
	}
	err := d.change(ctx, e.Identity.StateKey, func(last *entry) bool {
		token, known = fresh, nil
		switch {
		case last.Mark != nil && last.Mark.State == e.Identity.State:
			token = last.Mark.Token
		case judge && last.Mark == nil && last.State == e.Identity.State &&
			e.Received.Sub(time.Unix(0, last.Received)).Abs() < window:
			stored := *last
			known = &stored
		default:
			last.Mark = &mark{State: e.Identity.State, Token: token}
		}
		// In the first two cases the entry is written back as it is: the read
		// may have come from a replica that is behind.
		return true
	})
	if err != nil {
		return fresh, nil
	}
	return token, known
}

// settle records a stored report, unless a later one is recorded, and removes
// its mark. With confirm it writes in any case; it reports whether the entry
// written names the report as the last one.
func (d *Deduper) settle(ctx context.Context, r report, confirm bool) (last bool) {
	return d.record(ctx, r, confirm, &last) == nil && last
}

func (d *Deduper) record(ctx context.Context, r report, confirm bool, last *bool) error {
	return d.change(ctx, r.key, func(e *entry) bool {
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
		*last = e.Stream == r.stored.Stream && e.Sequence == r.stored.Sequence
		return changed
	})
}

// changeTimeout bounds the attempts to change an entry that others change too.
const changeTimeout = 2 * time.Second

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
