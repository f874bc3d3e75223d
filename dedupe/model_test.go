package dedupe

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/normalize"
)

// The model runs the real protocol of state reports against an index and a
// stream in memory, under a scheduler that decides which of the deliveries
// takes its next step, which crashes there, which publish fails, and how far
// behind a read is. In some runs what fails goes to a spool, which no crash
// empties. Everything follows from the seed.

var (
	schedules = flag.Int("schedules", 1000, "random schedules of the state report model")
	firstSeed = flag.Uint64("seed", 1, "seed of the first schedule of the model")
)

func TestStateReportModel(t *testing.T) {
	seen := make(map[string]int)
	for i := range *schedules {
		seed := *firstSeed + uint64(i)
		w := runSchedule(t, seed, breakage{})
		if faults := w.faults(); len(faults) > 0 {
			t.Fatalf("seed %d:\n%s\n%s", seed, strings.Join(w.log, "\n"), strings.Join(faults, "\n"))
		}
		for what, n := range w.seen {
			seen[what] += n
		}
	}
	t.Logf("%d schedules: %v", *schedules, seen)
	for _, what := range []string{"accepted", "duplicate", "conflict", "stale read", "crash", "failed publish", "lost acknowledgement", "token shared", "waited in the spool", "passed the spool"} {
		if seen[what] == 0 {
			t.Errorf("no schedule had a %s", what)
		}
	}
}

// The model must find the faults that the protocol's rules are there against.
func TestStateReportModelFindsFaults(t *testing.T) {
	for name, broken := range map[string]breakage{
		"a read alone finds a duplicate":      {noWriteBack: true},
		"a read alone finds a token to share": {bareJoin: true},
		"a write does not ask for a revision": {blind: true},
		"all reports of a state have one id":  {oneToken: true},
		"the index need not be complete":      {unasked: true},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(40_000) {
				if w := runSchedule(t, seed, broken); len(w.faults()) > 0 {
					t.Logf("seed %d: %v", seed, w.faults())
					return
				}
			}
			t.Error("no fault found: the model is blind to it")
		})
	}
}

// breakage is a way to break the protocol.
type breakage struct{ noWriteBack, blind, oneToken, bareJoin, unasked bool }

// world is one run: the index, the stream, the deliveries, and what was seen.
type world struct {
	breakage
	mu     sync.Mutex
	rng    *rand.Rand
	clock  int // steps taken
	named  int // the occurrence that has a name and only records its state
	spool  bool
	actors []*actor
	index  map[string][][]byte // revision n of a name stands at n-1
	stream []message
	ids    map[string]int // sequence by message id
	// indexed holds the sequences that the indexer has acknowledged.
	indexed map[uint64]bool

	log  []string
	seen map[string]int
}

// actor is one delivery of an occurrence, or the indexer at one message.
type actor struct {
	name       string
	occurrence int
	delivery   bool
	waiting    bool
	done       bool
	failed     bool
	grant      chan fate
	steps      []int   // when it took one; the first is its begin
	answer     *Result // of a delivery that was answered 200
	ended      int
	unjudged   bool // it passed the spool
	tried      int  // when it last began to leave the spool

	spooled   *normalize.Event // what a crash leaves in the spool
	spooledAt int
}

// maxSteps is far above what a schedule takes that comes to an end.
const maxSteps = 5000

type fate int

const (
	goOn fate = iota
	crashBefore
	crashAfter
)

type message struct {
	event  *normalize.Event
	storer *actor
	at     int
}

// state returns what an occurrence reports. They alternate between two states,
// but for the one that has a name, and so a state that no other has.
func (w *world) state(occurrence int) string {
	if occurrence == w.named {
		return "N"
	}
	return string(rune('A' + occurrence%2))
}

func runSchedule(t *testing.T, seed uint64, broken breakage) *world {
	w := &world{
		breakage: broken,
		rng:      rand.New(rand.NewPCG(seed, 1)),
		index:    make(map[string][][]byte),
		ids:      make(map[string]int),
		seen:     make(map[string]int),
		indexed:  make(map[uint64]bool),
	}
	synctest.Test(t, func(*testing.T) { w.play() })
	return w
}

func (w *world) play() {
	process := func() *Deduper { // each delivery is in a process of its own
		return &Deduper{
			index:       modelIndex{w},
			incarnation: func(context.Context) (time.Time, error) { return time.Unix(1, 0), nil },
			complete:    w.complete,
			looks:       make(chan struct{}, 1),
			holds:       func(context.Context, uint64, string) (bool, error) { return true, nil },
			windows:     Windows{State: time.Hour, Dedupe: 2 * time.Hour},
			errors:      prometheus.NewCounter(prometheus.CounterOpts{Name: "errors"}),
		}
	}
	w.named, w.spool = w.rng.IntN(8), w.rng.IntN(2) == 0
	var queue []int // occurrences to deliver
	for o := range 2 + w.rng.IntN(4) {
		queue = append(queue, o)
		for w.rng.IntN(2) == 0 {
			queue = append(queue, o)
		}
	}
	for i := range queue { // some come late
		if j := i + w.rng.IntN(2); j < len(queue) {
			queue[i], queue[j] = queue[j], queue[i]
		}
	}
	crashes := w.rng.IntN(3)
	var unindexed []int // places in the stream
	indexed := 0
	for {
		w.settle()
		for ; indexed < len(w.stream); indexed++ {
			unindexed = append(unindexed, indexed)
		}
		var live []*actor
		restarted := false
		for _, a := range w.actors {
			switch {
			case !a.done:
				live = append(live, a)
			case w.clock > maxSteps:
			case a.failed && a.spooled != nil:
				next := w.begin(a.occurrence, "delivery", true, w.delivering(process(), a.occurrence, a.spooled))
				next.steps, next.spooledAt = a.steps, a.spooledAt
				restarted = true
			case a.failed && a.delivery: // the provider tries again
				queue = append(queue, a.occurrence)
			case a.failed: // the consumer delivers again
				unindexed = append(unindexed, a.occurrence)
			}
			a.failed = a.failed && !a.done
		}
		if restarted {
			continue
		}
		pick := w.rng.IntN(len(live) + 2)
		switch {
		case pick < len(live):
			f := goOn
			if w.clock > maxSteps {
				f, queue, unindexed = crashBefore, nil, nil
			} else if crashes > 0 && w.rng.IntN(10) == 0 {
				crashes--
				f = crashBefore + fate(w.rng.IntN(2))
			}
			a := live[pick]
			a.waiting = false
			a.grant <- f
		case pick == len(live) && len(queue) > 0:
			w.begin(queue[0], "delivery", true, w.delivering(process(), queue[0], nil))
			queue = queue[1:]
		case len(unindexed) > 0:
			w.begin(unindexed[0], "indexer", false, w.indexing(process(), w.stream[unindexed[0]]))
			unindexed = unindexed[1:]
		case len(live) == 0 && len(queue) == 0:
			return
		}
	}
}

// settle lets every actor come to its next step or its end.
func (w *world) settle() {
	for {
		synctest.Wait()
		w.mu.Lock()
		busy := slices.ContainsFunc(w.actors, func(a *actor) bool { return !a.done && !a.waiting })
		w.mu.Unlock()
		if !busy {
			return
		}
		time.Sleep(5 * time.Millisecond) // fake time: those who pause after a conflict go on
	}
}

type actorKey struct{}

func (w *world) begin(occurrence int, what string, delivery bool, run func(context.Context, *actor) error) *actor {
	w.clock++
	a := &actor{
		name: fmt.Sprintf("#%d %s of %d (%s)", len(w.actors), what, occurrence, map[bool]string{true: w.state(occurrence), false: "-"}[delivery]), occurrence: occurrence, delivery: delivery,
		grant: make(chan fate), steps: []int{w.clock},
	}
	w.actors = append(w.actors, a)
	w.log = append(w.log, fmt.Sprintf("%3d %s begins", w.clock, a.name))
	go func() {
		a.failed = true
		defer func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			a.done, a.ended = true, w.clock
		}()
		if run(context.WithValue(context.Background(), actorKey{}, a), a) == nil {
			a.failed = false
		}
	}()
	return a
}

// delivering takes a delivery of an occurrence to its answer, and one that goes
// to the spool to where it is stored; spooled is what was in the spool before a
// crash.
func (w *world) delivering(d *Deduper, occurrence int, spooled *normalize.Event) func(context.Context, *actor) error {
	e := spooled
	if e == nil {
		e = &normalize.Event{CloudEvent: event.New(), Identity: normalize.Identity{StateKey: "state", State: w.state(occurrence)}, Received: w.now()}
		if occurrence == w.named {
			e.Identity.Key = fmt.Sprintf("name-%d", occurrence)
			e.CloudEvent.SetID(e.Identity.Key)
		}
	}
	keep := func() *normalize.Event { c := *e; c.CloudEvent = e.CloudEvent.Clone(); return &c }
	once := d.Once
	if w.spool {
		once = d.OnceCertain
	}
	return func(ctx context.Context, a *actor) error {
		var r Result
		err := bus.ErrUnavailable
		switch {
		case spooled != nil:
			a.spooled = keep()
		case w.passes(a):
			e.SetToken(a.name)
			if _, err = w.publish(ctx, e); err == nil {
				r = Result{ID: e.CloudEvent.ID()}
			}
		default:
			r, err = once(ctx, e, w.publish)
		}
		if err != nil && !w.spool {
			return err
		}
		if err != nil && spooled == nil {
			w.step(ctx, "into the spool", func(a *actor) { a.spooled, a.spooledAt = keep(), w.clock })
		}
		for tries := 0; err != nil; tries++ {
			for range w.wait() {
				w.step(ctx, "wait in the spool", func(*actor) { w.seen["waited in the spool"]++ })
			}
			e = keep()
			w.mu.Lock()
			a.tried = w.clock
			w.mu.Unlock()
			if r, err = once(ctx, e, w.publish); tries > 2 {
				once = d.Once
			}
		}
		a.answer = &r
		w.saw(a, map[bool]string{true: "duplicate", false: "accepted"}[r.Duplicate])
		return nil
	}
}

// passes decides whether a report passes a spool that takes nothing more, and so
// is stored unjudged.
func (w *world) passes(a *actor) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	a.unjudged = w.spool && a.occurrence != w.named && w.rng.IntN(8) == 0
	if a.unjudged {
		w.seen["passed the spool"]++
	}
	return a.unjudged
}

// wait is for how many steps nothing is taken from the spool.
func (w *world) wait() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(30)
}

// now is the time on everybody's clock.
func (w *world) now() time.Time {
	return time.Unix(1000, 0).Add(time.Duration(w.clock) * time.Millisecond)
}

func (w *world) indexing(d *Deduper, m message) func(context.Context, *actor) error {
	return func(ctx context.Context, _ *actor) error {
		id := m.event.CloudEvent.ID()
		stored := entry{Stream: time.Unix(1, 0).UnixNano(), storedEvent: storedEvent{Sequence: uint64(w.ids[id]), ID: id}}
		if !m.event.Identity.Judged() {
			if err := d.remember(ctx, m.event.Identity.Names(), stored); err != nil {
				return err
			}
		}
		if err := d.settle(ctx, reportOf(m.event, stored)); err != nil {
			return err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.indexed[stored.Sequence] = true
		return nil
	}
}

// step waits for the scheduler, does f, and ends the actor if it is to crash.
func (w *world) step(ctx context.Context, what string, f func(*actor)) {
	a := ctx.Value(actorKey{}).(*actor)
	w.mu.Lock()
	a.waiting = true
	w.mu.Unlock()
	fate := <-a.grant
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clock++
	a.steps = append(a.steps, w.clock)
	if fate != crashBefore {
		w.log = append(w.log, fmt.Sprintf("%3d %s: %s", w.clock, a.name, what))
		f(a)
	}
	if fate != goOn {
		w.log = append(w.log, fmt.Sprintf("    %s crashes", a.name))
		w.seen["crash"]++
		runtime.Goexit()
	}
}

func (w *world) saw(a *actor, what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen[what]++
	w.log = append(w.log, fmt.Sprintf("    %s: %s", a.name, what))
}

func (w *world) publish(ctx context.Context, e *normalize.Event) (ack bus.Ack, err error) {
	w.step(ctx, "publish", func(a *actor) {
		if w.rng.IntN(12) == 0 {
			w.seen["failed publish"]++
			err = bus.ErrUnavailable
			return
		}
		id := e.CloudEvent.ID()
		if w.oneToken && e.Identity.Judged() {
			id = e.Identity.State
			e.CloudEvent.SetID(id)
		}
		sequence, duplicate := w.ids[id]
		if !duplicate {
			stored := *e
			stored.CloudEvent = e.CloudEvent.Clone()
			w.stream = append(w.stream, message{event: &stored, storer: a, at: w.clock})
			sequence = len(w.stream)
			w.ids[id] = sequence
		} else if w.stream[sequence-1].storer != a {
			w.seen["token shared"]++
		}
		w.log = append(w.log, fmt.Sprintf("    %s, sequence %d, duplicate %v", e.Identity.State, sequence, duplicate))
		ack = bus.Ack{Sequence: uint64(sequence), Duplicate: duplicate}
		if w.rng.IntN(12) == 0 {
			w.seen["lost acknowledgement"]++
			err = bus.ErrUnavailable
		}
	})
	return ack, err
}

// complete waits for the indexer, as the real one does.
func (w *world) complete(ctx context.Context, after uint64) (done bool) {
	if w.unasked {
		return true
	}
	last := 0
	w.step(ctx, "ask for the last sequence", func(*actor) { last = len(w.stream) })
	for range 200 {
		w.step(ctx, "ask for the index", func(*actor) {
			done = true
			for sequence := after + 1; sequence <= uint64(last); sequence++ {
				done = done && w.indexed[sequence]
			}
		})
		if done {
			return true
		}
	}
	w.saw(ctx.Value(actorKey{}).(*actor), "index incomplete")
	return false
}

// modelIndex is the bucket. A read may return any revision that ever was.
type modelIndex struct{ *world }

func (w modelIndex) get(ctx context.Context, name string) (value []byte, revision uint64, err error) {
	w.step(ctx, "get", func(*actor) {
		n := len(w.index[name])
		if n > 0 && w.rng.IntN(3) == 0 {
			n = w.rng.IntN(n)
			w.seen["stale read"]++
		}
		if revision = uint64(n); n > 0 {
			value = w.index[name][n-1]
		}
		w.log = append(w.log, fmt.Sprintf("    revision %d of %d: %s", n, len(w.index[name]), value))
	})
	return value, revision, nil
}

func (w modelIndex) put(ctx context.Context, entries ...bus.Entry) error {
	for _, e := range entries {
		w.step(ctx, "put", func(*actor) { w.index[e.Name] = append(w.index[e.Name], e.Value) })
	}
	return nil
}

func (w modelIndex) swap(ctx context.Context, name string, value []byte, revision uint64) (err error) {
	var had []byte
	if revision > 0 {
		had = w.index[name][revision-1]
	}
	same := bytes.Equal(had, value)
	if same && (w.noWriteBack && !bytes.Contains(value, []byte("mark")) || w.bareJoin && bytes.Contains(value, []byte("mark"))) {
		return nil
	}
	w.step(ctx, "swap", func(a *actor) {
		if len(w.index[name]) != int(revision) && !w.blind {
			w.seen["conflict"]++
			err = errConflict
			return
		}
		w.index[name] = append(w.index[name], value)
		w.log = append(w.log, fmt.Sprintf("    revision %d: %s", len(w.index[name]), value))
	})
	return err
}

// faults says what the run has lost and what it has stored twice.
//
// Lost: a delivery was answered "duplicate" of a message although, when it
// began, a later message of another state was already stored; or, from the
// spool, of a message whose delivery began when a report of another state had been
// received, judged and stored since. Twice: two messages report one occurrence, though nothing of another state was under way
// from the begin of the two deliveries that stored them to the end (of one that
// waited in the spool: to its receipt), the index was never found incomplete,
// the second had not waited in the spool while the first was delivered elsewhere
// or left another spool, no report passed the spool just before, and all was
// stored in the order of its receipt.
func (w *world) faults() (faults []string) {
	if w.clock > maxSteps {
		return []string{"it goes on for ever"}
	}
	for _, a := range w.actors {
		if a.answer == nil {
			continue
		}
		sequence, stored := w.ids[a.answer.ID]
		if !stored {
			faults = append(faults, fmt.Sprintf("lost: %s was answered with an id that is not stored", a.name))
			continue
		}
		if !w.stream[sequence-1].event.Identity.Judged() {
			continue // known by its name
		}
		for _, m := range w.stream[sequence:] {
			if m.event.Identity.State != w.state(a.occurrence) && m.at < a.steps[0] {
				faults = append(faults, fmt.Sprintf("lost: %s is answered by sequence %d, but another state came between", a.name, sequence))
			}
		}
		by := w.stream[sequence-1].storer
		for _, m := range w.stream[:sequence-1] {
			if a.spooledAt > 0 && m.event.Identity.Judged() && !m.storer.unjudged && by.occurrence != a.occurrence && m.event.Identity.State != w.state(a.occurrence) &&
				a.spooledAt < m.storer.steps[0] && m.at < by.steps[0] {
				faults = append(faults, fmt.Sprintf("lost: %s, from the spool, is answered by sequence %d, but another state came before that", a.name, sequence))
			}
		}
	}
	if w.seen["index incomplete"] > 0 {
		return faults
	}
	for i, second := range w.stream[:min(len(w.stream), remembered)] { // what comes after may be forgotten
		for j, first := range w.stream[:i] {
			other := func(s string) bool { return s != w.state(first.storer.occurrence) }
			waited := second.storer.spooledAt > 0 && second.storer.spooledAt < second.at
			if waited && second.storer.steps[0] < first.storer.steps[0] {
				continue // what is stored meanwhile may be another occurrence
			}
			since := w.stream[j+1 : i]
			if !waited {
				since = w.stream[:i]
			}
			if !slices.IsSortedFunc(since, func(a, b message) int { return a.storer.steps[0] - b.storer.steps[0] }) {
				continue // stored in another order than received
			}
			if waited && first.storer.spooledAt > 0 && second.storer.tried < first.at {
				continue // they left two spools at the same time
			}
			if second.storer.unjudged || !waited && w.seen["passed the spool"] > 0 {
				continue // what passes is not announced, and may not be indexed yet
			}
			until := second.at
			if waited { // what is received later does not matter
				until = second.storer.steps[0]
			}
			if first.storer.occurrence == second.storer.occurrence && !w.underWay(other, min(first.storer.steps[0], second.storer.steps[0]), until) {
				faults = append(faults, fmt.Sprintf("twice: %s and %s stored one occurrence", first.storer.name, second.storer.name))
			}
		}
	}
	return faults
}

// underWay reports whether a delivery of such a state was under way at some
// time between the two.
func (w *world) underWay(state func(string) bool, from, to int) bool {
	return slices.ContainsFunc(w.actors, func(a *actor) bool {
		return a.delivery && state(w.state(a.occurrence)) && a.steps[0] < to && from < a.ended
	})
}
