package ingress

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/internal/failpoint"
	"github.com/hookbus/bridge/normalize"
)

// Spool keeps what the bus cannot take, as [bus.Spool] does.
type Spool interface {
	Put(context.Context, bus.Spooled) error
	// Len returns how many wait in it.
	Len() int
	// Behind reports whether an item must go behind what waits in it.
	Behind(context.Context, bus.Spooled) bool
	// Stalled says that the bus takes nothing.
	Stalled()
	// Problem says why it takes nothing; it is empty if it does.
	Problem() string
	// Warning says what damage may have been done to what it held.
	Warning() string
}

var _ Spool = (*bus.Spool)(nil)

const (
	// spoolReserve is the part of a request's time that is left for the spool.
	spoolReserve = time.Second
	// patience is how long the spool waits for the index to be complete before
	// a state report is stored in doubt.
	patience = time.Minute
	// handOverTimeout bounds one attempt to move a message out of the spool.
	handOverTimeout = 7 * time.Second
)

// keep brings a verified webhook to where it is safe: the stream, the
// quarantine or, while the bus cannot take it or others wait in it, the spool.
func (h *Handler) keep(ctx context.Context, item bus.Spooled, deadline time.Time) answer {
	once := h.dedupe.Once
	if h.spool != nil {
		once = h.dedupe.OnceCertain
		if h.spool.Behind(ctx, item) {
			if a, err := h.put(ctx, &item); err == nil {
				return a
			}
			// The spool is full or broken: out of order is better than not at
			// all. But the report by which a state report is judged may be in the
			// spool, so that it is stored unjudged.
			if e := item.Event; e != nil && e.Identity.Judged() {
				once = unjudged
			}
		}
	}
	inTime, cancel := context.WithDeadline(ctx, deadline.Add(-h.reserve()))
	defer cancel()
	a, err := h.deliver(inTime, &item, once)
	if err != nil && h.spool != nil {
		if item.Event != nil && errors.Is(err, bus.ErrUnavailable) {
			h.spool.Stalled()
		}
		// It counts as received now, after all that came while it was under way:
		// its copy may be among that, and may be stored.
		if e := item.Event; e != nil && e.Identity.Judged() {
			e.Received = h.now()
		}
		var full error
		if a, full = h.put(ctx, &item); full == nil {
			return a
		}
		err = errors.Join(err, full)
	}
	if err != nil {
		return refuse(BusUnavailable, err)
	}
	return a
}

// reserve is how much of a request's time is left for the spool.
func (h *Handler) reserve() time.Duration {
	if h.spool == nil {
		return 0
	}
	return spoolReserve
}

// put writes to the spool. An event that cannot be written there cannot be
// published either, and becomes a rejected body.
func (h *Handler) put(ctx context.Context, item *bus.Spooled) (answer, error) {
	if e := item.Event; e != nil && e.CloudEvent.ID() == "" {
		e.SetToken(rand.Text())
	}
	err := h.spool.Put(ctx, *item)
	if item.Event != nil && errors.Is(err, bus.ErrNotPublishable) {
		*item = reject(*item, NotPublishable)
		err = h.spool.Put(ctx, *item)
	}
	if err != nil {
		return answer{}, err
	}
	if r := item.Rejected; r != nil {
		return answer{result: spooled, id: r.ID()}, nil
	}
	return answer{result: spooled, id: item.Event.CloudEvent.ID(), typ: item.Event.CloudEvent.Type()}, nil
}

// reject makes a rejected body of an event.
func reject(item bus.Spooled, reason Reason) bus.Spooled {
	e := item.Event
	return bus.Spooled{Rejected: &bus.Rejected{
		Provider: e.Provider, Reason: string(reason), Body: e.CloudEvent.Data(), Received: e.Received, Headers: item.Headers,
		Repeatable: e.Identity.Judged(),
	}}
}

// deliver stores an event once. A body that is no event, and an event that can never
// be published, go to the quarantine.
func (h *Handler) deliver(ctx context.Context, item *bus.Spooled, once once) (answer, error) {
	if item.Event != nil {
		result, err := once(ctx, item.Event, h.bus.Publish)
		switch {
		case err == nil && result.Duplicate:
			return answer{result: duplicate, id: result.ID, typ: item.Event.CloudEvent.Type()}, nil
		case err == nil:
			return answer{result: accepted, id: result.ID, typ: item.Event.CloudEvent.Type()}, nil
		case !errors.Is(err, bus.ErrNotPublishable):
			return answer{}, err
		}
		*item = reject(*item, NotPublishable)
	}
	if err := h.bus.Quarantine(ctx, *item.Rejected); err != nil {
		return answer{}, fmt.Errorf("quarantine: %w", err)
	}
	failpoint.Hit("quarantined")
	return answer{result: quarantined, id: item.Rejected.ID(), reason: Reason(item.Rejected.Reason)}, nil
}

// unjudged stores a state report whatever is known, under the id that it was given for
// the spool, which may hold it after all.
func unjudged(ctx context.Context, e *normalize.Event, publish dedupe.Publish) (dedupe.Result, error) {
	ack, err := publish(ctx, e)
	return dedupe.Result{ID: e.CloudEvent.ID(), Duplicate: ack.Duplicate}, err
}

type once = func(context.Context, *normalize.Event, dedupe.Publish) (dedupe.Result, error)

// doubts knows since when reports about a thing out of the spool are in doubt.
type doubts struct {
	mu    sync.Mutex
	since map[string]time.Time
}

// last returns how long a doubt has lasted, and has it begin if there was none.
func (d *doubts) last(thing string, now time.Time) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	since, ok := d.since[thing]
	if !ok {
		since = now
		if d.since == nil {
			d.since = make(map[string]time.Time)
		}
		d.since[thing] = now
	}
	return now.Sub(since)
}

func (d *doubts) over(thing string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.since, thing)
}

func (d *doubts) allOver() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.since)
}

// HandOver stores what the spool held, for [bus.Spool.Run]. A state report in doubt,
// of which it cannot be told now whether it is stored, waits until the doubt is over,
// for a minute at most, and so do those about the same thing behind it, all together.
func (h *Handler) HandOver(ctx context.Context, item bus.Spooled) (err error) {
	defer func() {
		if p := recover(); p != nil {
			h.log.ErrorContext(ctx, "panic", "type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
			err = errPanic
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, handOverTimeout)
	defer cancel()
	if h.tracer != nil {
		ctx = under(ctx, item.Traceparent)
	}
	var thing string // that is reported about
	if item.Event != nil {
		thing = item.Event.Identity.StateKey
	}
	a, err := h.deliver(ctx, &item, h.dedupe.OnceCertain)
	switch {
	case !errors.Is(err, dedupe.ErrDoubt): // patience is for when the bus takes events
		h.doubts.over(thing)
	case h.doubts.last(thing, h.now()) > patience:
		a, err = h.deliver(ctx, &item, h.dedupe.Once)
	}
	if err == nil && h.spool.Len() <= 1 { // nothing but this
		h.doubts.allOver()
	}
	if err != nil {
		h.log.DebugContext(ctx, "from the spool", "error", err.Error())
		return err
	}
	if item.Rejected != nil {
		h.metrics.quarantined.WithLabelValues(item.Rejected.Provider, item.Rejected.Reason).Inc()
	}
	h.log.DebugContext(ctx, "from the spool", "result", a.result, "id", a.id)
	return nil
}
