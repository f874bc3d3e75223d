// Package dedupe recognises redeliveries. The stream is the truth; a key-value
// bucket is its index, written after the fact by the [Indexer], so that no
// crash can leave a name in it whose event was never stored.
//
// [Deduper.Once] stores an event unless it is there already. When it is
// unclear whether two requests report one occurrence or two, both are stored:
// a duplicate is cheaper than a lost event.
package dedupe

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/failpoint"
	"github.com/hookbus/bridge/normalize"
)

// Windows says how long an occurrence is remembered.
type Windows struct {
	// State is the age up to which a report equal to the last one is a
	// duplicate, where the same report may be made again for real.
	State time.Duration
	// Dedupe is the same for transitions of a named session; it is also how
	// long the bucket remembers, and how far back an index is rebuilt.
	Dedupe time.Duration
}

// Publish stores an event, as [bus.Bus.Publish] does.
type Publish func(context.Context, *normalize.Event) (bus.Ack, error)

// Result says where an event is.
type Result struct {
	ID        string // CloudEvents id of the stored event
	Duplicate bool   // it had been stored before
}

// Deduper is safe for concurrent use.
type Deduper struct {
	index index
	// incarnation may be a second old; newIncarnation is not.
	incarnation, newIncarnation func(context.Context) (time.Time, error)
	// complete waits a moment for all that the stream holds, at the call, after a
	// sequence to be indexed, and reports whether it is.
	complete func(ctx context.Context, after uint64) bool
	hurry    chan struct{} // tells the indexer not to gather more: somebody waits
	// holds reports whether the stream has, or has had, the message of that id at
	// that sequence.
	holds   func(ctx context.Context, sequence uint64, id string) (bool, error)
	looks   chan struct{} // one element for each call of holds under way
	windows Windows
	latest  atomic.Pointer[entry] // the latest message that this process knows to be stored
	reports keyedLock
	filter  filter
	errors  prometheus.Counter
	unread  prometheus.Counter
}

// New returns a deduper over the bus's bucket.
func New(b *bus.Bus, w Windows, reg prometheus.Registerer) (*Deduper, error) {
	d := &Deduper{
		index:          bucket{b},
		incarnation:    b.Incarnation,
		newIncarnation: b.NewIncarnation,
		holds:          b.Holds,
		windows:        w,
		looks:          make(chan struct{}, 32),
		hurry:          make(chan struct{}, 1),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bridge_dedupe_errors_total",
			Help: "Reads and writes of the dedupe bucket that failed; the stream's duplicate window protects meanwhile.",
		}),
		unread: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bridge_dedupe_unread_total",
			Help: "Events known to be new without a read of the dedupe bucket.",
		}),
	}
	c := &completeness{bus: b}
	d.complete = func(ctx context.Context, after uint64) bool { return c.wait(ctx, after, d.latest.Load(), d.hurry) }
	return d, errors.Join(reg.Register(d.errors), reg.Register(d.unread))
}

// indexTimeout bounds one read or write of the bucket. When it is exceeded the
// event is published all the same.
const indexTimeout = 500 * time.Millisecond

// Once stores the event by publish, unless the index knows it, and says where
// it is. The bucket's being out of reach is no error: the stream's duplicate
// window protects meanwhile. The errors are those of publish, and
// bus.ErrUnavailable when ctx ends first. After an error the event has the token
// and the id with which it may be tried again.
func (d *Deduper) Once(ctx context.Context, e *normalize.Event, publish Publish) (Result, error) {
	return d.once(ctx, e, publish, false)
}

// OnceCertain does the same for a caller that can wait: where Once would store
// a state report in doubt, it returns [ErrDoubt].
func (d *Deduper) OnceCertain(ctx context.Context, e *normalize.Event, publish Publish) (Result, error) {
	return d.once(ctx, e, publish, true)
}

func (d *Deduper) once(ctx context.Context, e *normalize.Event, publish Publish, certain bool) (Result, error) {
	if e.Identity.Judged() {
		return d.onceReport(ctx, e, publish, certain)
	}
	names := e.Identity.Names()
	// The duplicate window knows an event by its key alone.
	if len(names) == 1 && d.filter.lacks(names[0]) {
		d.unread.Inc()
	} else if known := d.lookup(ctx, names); known != nil {
		return Result{ID: known.ID, Duplicate: true}, nil
	}
	if failpoint.ClaimFirst {
		created, _ := d.incarnation(ctx)
		d.remember(ctx, names, entry{Stream: created.UnixNano(), storedEvent: storedEvent{Sequence: 1, ID: e.CloudEvent.ID()}})
	}
	failpoint.Hit("looked-up")
	ack, err := publish(ctx, e)
	if err != nil {
		return Result{}, err
	}
	failpoint.Hit("published")
	result := Result{ID: e.CloudEvent.ID(), Duplicate: ack.Duplicate}
	created, err := d.incarnation(ctx)
	if err != nil {
		return result, nil // the indexer will do it
	}
	stored := entry{Stream: created.UnixNano(), storedEvent: storedEvent{Sequence: ack.Sequence, ID: result.ID}}
	d.saw(stored)
	switch {
	case ack.Duplicate: // the stored copy may have had other aliases
		d.remember(ctx, names[1:], stored)
	case e.Identity.StateKey != "":
		d.settle(ctx, reportOf(e, stored)) // if it fails, the indexer does it
	}
	return result, nil
}

// saw keeps the latest message that the stream has acknowledged: a server that is
// behind may not tell of it.
func (d *Deduper) saw(stored entry) {
	for {
		latest := d.latest.Load()
		if latest != nil && !latest.before(stored) || d.latest.CompareAndSwap(latest, &stored) {
			return
		}
	}
}

// lookup returns the entry by which one of the names is known, and writes it
// under the others. Nil: none is known, or that cannot be found out.
func (d *Deduper) lookup(ctx context.Context, names []string) *entry {
	entries := make([]*entry, len(names))
	var wg sync.WaitGroup
	for i, name := range names[1:] {
		wg.Go(func() { entries[i+1] = d.stored(ctx, name) })
	}
	entries[0] = d.stored(ctx, names[0])
	wg.Wait()

	var known *entry
	var unknown []string
	for i, e := range entries {
		switch {
		case e == nil, known == nil && !d.there(ctx, e.storedEvent):
			unknown = append(unknown, names[i])
		case known == nil:
			known = e
		}
	}
	if known != nil {
		d.remember(ctx, unknown, *known)
	}
	return known
}

// stored returns what the index has under name, if that is in the stream as it
// is now.
func (d *Deduper) stored(ctx context.Context, name string) *entry {
	e, revision, err := d.read(ctx, name)
	if err != nil && ctx.Err() == nil { // perhaps lost with a connection that is back by now
		e, revision, err = d.read(ctx, name)
	}
	if err != nil || revision == 0 || e.Sequence == 0 {
		return nil
	}
	return &e
}

// there reports whether the message that an entry names is in the stream, or was
// until somebody deleted it. It never was if the stream was set back and the bucket
// was not: by a backup, or by a server that lost what it had not synced. Without an
// answer the index is believed.
func (d *Deduper) there(ctx context.Context, s storedEvent) bool {
	if failpoint.ClaimFirst {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, indexTimeout)
	defer cancel()
	select { // the answer is the whole message, which may be large
	case d.looks <- struct{}{}:
		defer func() { <-d.looks }()
	case <-ctx.Done():
		d.errors.Inc()
		return true
	}
	there, err := d.holds(ctx, s.Sequence, s.ID)
	if err != nil {
		d.errors.Inc()
		return true
	}
	return there
}

// remember writes the entry under the names, as far as it can.
func (d *Deduper) remember(ctx context.Context, names []string, e entry) error {
	if len(names) == 0 {
		return nil
	}
	return d.put(ctx, under(names, e)...)
}

func under(names []string, e entry) []bus.Entry {
	entries, value := make([]bus.Entry, len(names)), e.encode()
	for i, name := range names {
		entries[i] = bus.Entry{Name: name, Value: value}
	}
	return entries
}

// read returns the entry under name and its revision, 0 if there is none. Of
// an entry about another incarnation of the stream only the mark is returned.
func (d *Deduper) read(ctx context.Context, name string) (entry, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, indexTimeout)
	defer cancel()
	value, revision, err := d.index.get(ctx, name)
	if err != nil {
		d.errors.Inc()
		return entry{}, 0, err
	}
	if revision == 0 {
		return entry{}, 0, nil
	}
	e := decodeEntry(value)
	if e.Sequence != 0 {
		created, err := d.incarnation(ctx)
		if err == nil && e.Stream > created.UnixNano() { // made just now, or replaced by a backup
			created, err = d.newIncarnation(ctx)
		}
		if err != nil {
			d.errors.Inc()
			return entry{}, 0, err
		}
		if e.Stream != created.UnixNano() {
			e = entry{Mark: e.Mark}
		}
	}
	return e, revision, nil
}

func (d *Deduper) put(ctx context.Context, entries ...bus.Entry) error {
	ctx, cancel := context.WithTimeout(ctx, indexTimeout)
	defer cancel()
	err := d.index.put(ctx, entries...)
	if err != nil {
		d.errors.Inc()
	}
	return err
}
