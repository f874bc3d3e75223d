package bus

import (
	"container/heap"
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/internal/failpoint"
)

// Run hands over what the spool holds until ctx ends: what is about one entity one after
// the other in the order in which it came, the rest side by side. What handOver returns
// no error for is removed before the next is handed over. After an error it is tried
// again, and what comes later about the entity waits; others go on. What was begun when
// ctx ends is finished. Close comes after Run.
func (s *Spool) Run(ctx context.Context, handOver func(context.Context, Spooled) error) {
	for ctx.Err() == nil {
		if s.broken.Load() && !s.open(ctx) {
			wait(ctx, spoolReopen)
			continue
		}
		if !s.recount(ctx) {
			wait(ctx, spoolRetry)
			continue
		}
		d := &drain{
			Spool: s, handOver: handOver, results: make(chan result, spoolWorkers),
			checked: time.Now(), looked: make(map[string]uint64), exhausted: make(map[string]bool), queues: make(map[string]*queue),
		}
		d.run(ctx)
		wait(ctx, spoolRetry)
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// drain is what Run knows of the store that is open. Each message is looked at once, to
// know whom it is about, and is in the queue of its entity until it has left.
type drain struct {
	*Spool
	handOver  func(context.Context, Spooled) error
	looked    map[string]uint64 // up to which sequence, by subject
	exhausted map[string]bool   // by subject: the last look found nothing
	queues    map[string]*queue // by entity
	ready     []*queue          // their first messages have not failed
	parked    parked            // to be tried again
	results   chan result
	busy      int       // messages being handed over
	size      int       // bytes of their bodies
	again     int       // those of the messages that had failed before
	oldFirst  bool      // the next to be tried is one that had failed
	refused   int       // how many new ones the bus did not take since it took one
	stalled   bool      // it has not taken spoolTries of them
	tries     int       // until refill, while it is stalled
	retries   int       // until refill, of those that fail once more
	refill    time.Time // of both
	room      time.Time // when it was looked for
	over      bool      // all is to be looked at anew
	checked   time.Time // when idle has had the store looked at
}

// queue holds the sequences of an entity's messages. It is in one of drain's ready and
// parked, or its first message is being handed over.
type queue struct {
	entity    string
	sequences []uint64
	failed    int // attempts with the first
	missed    int // reads that did not find the first
	until     time.Time
}

// parked is a heap: who has waited longest is first.
type parked []*queue

func (p parked) Len() int           { return len(p) }
func (p parked) Less(i, j int) bool { return p[i].until.Before(p[j].until) }
func (p parked) Swap(i, j int)      { p[i], p[j] = p[j], p[i] }
func (p *parked) Push(q any)        { *p = append(*p, q.(*queue)) }
func (p *parked) Pop() any {
	last := len(*p) - 1
	q := (*p)[last]
	*p = (*p)[:last]
	return q
}

// result says what became of the first message of a queue.
type result struct {
	stored
	queue      *queue
	again      bool
	failed     error
	notRemoved error
}

// run returns when ctx ends, and when the store is to be opened or looked at anew. Nothing
// is being handed over then.
func (d *drain) run(ctx context.Context) {
	done, ticked := ctx.Done(), false
	for {
		more := d.begin(ctx)
		end := d.ends(ctx)
		if !more && d.busy == 0 && (end || d.idle(ctx, ticked)) {
			return
		}
		if d.tight.Load() && !end && time.Since(d.room) >= spoolRetry {
			if d.room = time.Now(); d.makeRoom() == nil && !d.tight.Load() {
				d.problem("")
			}
		}
		var tick <-chan time.Time
		switch {
		case more:
			tick = time.After(0)
		case len(d.parked) > 0 || d.stalled || d.tight.Load() || d.busy == 0 && (d.count.Load() != 0 || d.events.Load() != 0):
			tick = time.After(spoolRetry)
		}
		ticked = false
		select {
		case r := <-d.results:
			d.ended(r)
		case <-d.wake:
			clear(d.exhausted)
		case <-tick:
			ticked = true
		case <-done:
			done = nil
		}
		for len(d.results) > 0 {
			d.ended(<-d.results)
		}
	}
}

func (d *drain) ends(ctx context.Context) bool {
	return ctx.Err() != nil || d.over || d.broken.Load()
}

// idle has the store looked at when nothing could be handed over for a while and nothing
// is being written, and reports whether all is to be looked at anew.
func (d *drain) idle(ctx context.Context, ticked bool) bool {
	if !ticked && time.Since(d.checked) < spoolRetry || d.slow.Load() || len(d.places) > 0 {
		return false
	}
	d.checked = time.Now()
	if len(d.queues) == 0 {
		d.stalled = false
		clear(d.looked) // if something is stored it was overlooked
	}
	store := d.store
	return d.miscounted(ctx) || d.store != store
}

// begin has as many messages handed over as may be, and reports whether there is more to
// look at.
func (d *drain) begin(ctx context.Context) bool {
	if now := time.Now(); now.After(d.refill) {
		d.tries, d.retries, d.refill = spoolTries, spoolTries, now.Add(spoolRetry)
		clear(d.exhausted)
	}
	for n := 0; n < spoolLooks && len(d.results) == 0; n++ {
		if d.ends(ctx) || d.slow.Load() || d.busy == spoolWorkers || d.size > spoolBytes || d.stalled && d.tries == 0 {
			return false
		}
		d.oldFirst = !d.oldFirst
		begun := d.oldFirst && d.retry(ctx) || d.next(ctx) || d.retry(ctx)
		if !begun {
			return false
		}
	}
	return true
}

// retry tries again what was parked, and reports whether there was any. It leaves half
// of the places to what is tried for the first time.
func (d *drain) retry(ctx context.Context) bool {
	if len(d.parked) == 0 || d.again >= spoolWorkers/2 || d.retries == 0 || time.Now().Before(d.parked[0].until) {
		return false
	}
	d.retries--
	d.first(ctx, heap.Pop(&d.parked).(*queue))
	return true
}

// next tries, or looks at, what comes next, and reports whether there was any.
func (d *drain) next(ctx context.Context) bool {
	if len(d.ready) > 0 {
		q := d.ready[0]
		d.ready = d.ready[1:]
		d.first(ctx, q)
		return true
	}
	// Of the rejected bodies, which may be many and are all in one queue, one is enough.
	return d.queues[rejected] == nil && d.look(ctx, otherSubject) || len(d.queues) < spoolKnown && d.look(ctx, eventSubject)
}

// look looks at the next message, and reports whether there was one.
func (d *drain) look(ctx context.Context, subject string) bool {
	if d.exhausted[subject] {
		return false
	}
	msg, err := d.read(ctx, d.looked[subject]+1, subject)
	if err != nil {
		d.exhausted[subject] = true
		return false
	}
	d.looked[subject] = msg.Sequence
	m := decodeStored(msg)
	if m.event {
		d.waiting.looked(m.entity(), m.sequence)
	}
	q := d.queues[m.entity()]
	if q != nil {
		q.sequences = append(q.sequences, m.sequence)
		return true
	}
	q = &queue{entity: m.entity(), sequences: []uint64{m.sequence}}
	d.queues[q.entity] = q
	d.hand(ctx, q, m)
	return true
}

// first hands over the first message of a queue. One that is not there may have been
// removed after all, or the server could not read it just now.
func (d *drain) first(ctx context.Context, q *queue) {
	msg, err := d.read(ctx, q.sequences[0], anySubject)
	switch found := err == nil && msg.Sequence == q.sequences[0]; {
	case found:
		q.missed = 0
		d.hand(ctx, q, decodeStored(msg))
	case err != nil && !errors.Is(err, jetstream.ErrMsgNotFound):
		d.park(q, spoolRetry)
	case q.missed < spoolMisses:
		q.missed++
		d.park(q, spoolRetry)
	default:
		d.over = true
	}
}

func (d *drain) hand(ctx context.Context, q *queue, m stored) {
	r := result{stored: m, queue: q, again: q.failed > 0}
	d.busy++
	d.size += m.size
	if r.again {
		d.again++
	}
	if d.stalled {
		d.tries--
	}
	go func() {
		failpoint.Hit("drain")
		if r.failed = d.handOver(context.WithoutCancel(ctx), m.Spooled); r.failed == nil {
			failpoint.Hit("drain-stored")
			r.notRemoved = d.remove(m)
		}
		d.results <- r
	}()
}

func (d *drain) ended(r result) {
	d.busy--
	d.size -= r.size
	if r.again {
		d.again--
	}
	q := r.queue
	switch {
	case r.notRemoved != nil:
		d.over = true
	case r.failed == nil:
		if r.again {
			d.retries++
		}
		d.stalled, d.refused = false, 0
		d.moving.Store(true)
		if d.full.Swap(false) {
			d.problem("")
		}
		d.left(q)
	case errors.Is(r.failed, ErrNotConnected): // that says nothing about the entity
		if r.again {
			heap.Push(&d.parked, q)
		} else {
			d.ready = append(d.ready, q)
		}
		d.stall()
		d.tries = 0
	case errors.Is(r.failed, ErrUnavailable): // that of a few says nothing about the bus
		d.park(q, spoolPark)
		if r.again {
			break
		}
		if d.refused++; d.refused >= spoolTries {
			d.stall()
		}
	default:
		d.park(q, min(spoolRetry<<q.failed, spoolPark))
	}
}

// left takes the first message off its queue.
func (d *drain) left(q *queue) {
	q.failed, q.missed = 0, 0
	if q.sequences = q.sequences[1:]; len(q.sequences) > 0 {
		d.ready = append(d.ready, q)
	} else {
		delete(d.queues, q.entity)
	}
}

func (d *drain) park(q *queue, pause time.Duration) {
	q.failed = min(q.failed+1, 3)
	q.until = time.Now().Add(pause)
	heap.Push(&d.parked, q)
}

// stall has the bus tried now and then only, until it takes something.
func (d *drain) stall() {
	d.moving.Store(false)
	if !d.stalled {
		d.stalled, d.tries, d.refill = true, 0, time.Now().Add(spoolRetry)
	}
}

// remove removes a message. A purge of many, while others are written, has cost messages
// (nats-server 2.15.2).
func (s *Spool) remove(m stored) error {
	ctx, cancel := withTimeout(context.Background(), apiTimeout)
	defer cancel()
	probes := s.probes.Load()
	if err := s.store.stream.DeleteMsg(ctx, m.sequence); err != nil && !s.gone(m.sequence) {
		s.unsure.Store(time.Now().UnixNano())
		return s.fail("removing", probes, late(ctx, err))
	}
	s.count.Add(-1)
	if m.event {
		s.events.Add(-1)
		s.waiting.add(m.entity(), -1)
	}
	return nil
}

// gone reports whether a message is not there any more: it may have been removed without
// an answer in time. That it is not found once may pass.
func (s *Spool) gone(sequence uint64) bool {
	for n := range spoolMisses {
		if n > 0 {
			time.Sleep(spoolRetry)
		}
		msg, err := s.read(context.Background(), sequence, anySubject)
		if err == nil && msg.Sequence == sequence || err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
			return false
		}
	}
	return true
}
