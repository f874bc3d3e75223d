package bus

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/internal/natstest"
)

// putAll puts items, in no order.
func putAll(t *testing.T, s *Spool, n int, item func(int) Spooled) {
	t.Helper()
	var wg sync.WaitGroup
	for w := range 32 {
		wg.Go(func() {
			for i := w; i < n; i += 32 {
				if err := s.Put(t.Context(), item(i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// running runs the spool until the test ends.
func running(t *testing.T, s *Spool, handOver func(context.Context, Spooled) error) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.Run(ctx, handOver) })
	t.Cleanup(func() {
		stop()
		wg.Wait()
	})
}

func subject(item Spooled) string { return item.Event.CloudEvent.Subject() }

// What has failed once is tried again, however many others fail for ever.
func TestSpoolTriesAllAgain(t *testing.T) {
	t.Parallel()
	for _, failure := range []error{errors.New("in doubt"), ErrUnavailable} {
		t.Run(failure.Error(), func(t *testing.T) {
			t.Parallel()
			s := slowSpool(t, 0)
			putAll(t, s, 150, func(i int) Spooled { return report(t, fmt.Sprint("bad-", i), 1) })
			putAll(t, s, 1, func(int) Spooled { return report(t, "good", 1) })
			var tried atomic.Int32
			running(t, s, func(_ context.Context, item Spooled) error {
				if subject(item) == "good" && tried.Add(1) > 1 {
					return nil
				}
				return failure
			})
			natstest.Eventually(t, time.Minute, "it is tried again", func() bool { return tried.Load() > 1 })
		})
	}
}

// Attempts that take long hold up nobody, neither the first nor those after a failure.
func TestSpoolSlowAttempts(t *testing.T) {
	t.Parallel()
	s := slowSpool(t, 0)
	putAll(t, s, 40, func(i int) Spooled { return report(t, fmt.Sprint("bad-", i), 1) })
	putAll(t, s, 1, func(int) Spooled { return report(t, "good", 1) })
	var mu sync.Mutex
	attempts := make(map[string]int)
	answers := []chan struct{}{make(chan struct{}), make(chan struct{})} // to the first attempts, and to the second
	gone, over := make(chan string, 2), make(chan struct{})
	var again atomic.Int32
	running(t, s, func(_ context.Context, item Spooled) error {
		if strings.HasPrefix(subject(item), "good") {
			gone <- subject(item)
			return nil
		}
		mu.Lock()
		n := attempts[subject(item)]
		attempts[subject(item)]++
		mu.Unlock()
		if n == 1 {
			again.Add(1)
		}
		if n < len(answers) {
			select {
			case <-answers[n]:
			case <-over:
			}
		}
		return ErrUnavailable
	})
	t.Cleanup(func() { close(over) }) // before it waits for what was begun
	wait := func(name string, answer chan struct{}) {
		t.Helper()
		defer close(answer)
		select {
		case got := <-gone:
			if got != name {
				t.Errorf("%s has left, not %s", got, name)
			}
		case <-time.After(time.Minute):
			t.Errorf("%s has not left", name)
		}
	}
	wait("good", answers[0])
	natstest.Eventually(t, time.Minute, "many are tried again", func() bool { return again.Load() >= 16 })
	putAll(t, s, 1, func(int) Spooled { return report(t, "good too", 1) })
	wait("good too", answers[1])
}

// Thousands of reports about one thing leave one after the other, and hold up nobody.
func TestSpoolManyReportsOfOneThing(t *testing.T) {
	t.Parallel()
	s := slowSpool(t, 0)
	const reports = 2000
	putAll(t, s, reports, func(i int) Spooled { return report(t, "c", i) })
	putAll(t, s, 1, func(int) Spooled { return report(t, "good", 1) })
	var left, before atomic.Int32
	running(t, s, func(_ context.Context, item Spooled) error {
		if subject(item) == "good" {
			before.Store(left.Load())
			return nil
		}
		left.Add(1)
		return nil
	})
	natstest.Eventually(t, time.Minute, "all have left", func() bool { return s.Len() == 0 })
	if left.Load() != reports || before.Load() == reports {
		t.Errorf("%d have left, %d of them before the last", left.Load(), before.Load())
	}
}

// unreadable answers some reads with an error, as a server that cannot open a file.
type unreadable struct {
	jetstream.Stream
	fails func(ctx context.Context, sequence uint64) error
}

func (u unreadable) GetMsg(ctx context.Context, sequence uint64, options ...jetstream.GetMsgOpt) (*jetstream.RawStreamMsg, error) {
	if err := u.fails(ctx, sequence); err != nil {
		return nil, err
	}
	return u.Stream.GetMsg(ctx, sequence, options...)
}

// failReads has reads fail with what fails returns.
func failReads(s *Spool, fails func(ctx context.Context, sequence uint64) error) {
	s.store.stream = unreadable{s.store.stream, fails}
}

// A message that failed and then cannot be read for a moment is not passed by the next
// about the same entity.
func TestSpoolCannotReadForAMoment(t *testing.T) {
	t.Parallel()
	s := slowSpool(t, 0)
	var sees, stored atomic.Bool
	sees.Store(true)
	var asks atomic.Int32 // for the second message
	failReads(s, func(_ context.Context, sequence uint64) error {
		if sees.Load() {
			return nil
		}
		if sequence == 2 {
			asks.Add(1)
		}
		return jetstream.ErrMsgNotFound
	})
	for i, customer := range []string{"bad", "c", "c", "c"} {
		if err := s.Put(t.Context(), report(t, customer, i)); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	var got []string
	failed := make(chan struct{})
	fail := sync.OnceFunc(func() {
		sees.Store(false)
		close(failed)
	})
	running(t, s, func(_ context.Context, item Spooled) error {
		mu.Lock()
		defer mu.Unlock()
		if subject(item) == "bad" && !stored.Load() {
			return ErrUnavailable
		}
		select {
		case <-failed:
		default:
			fail()
			return errors.New("in doubt")
		}
		got = append(got, string(item.Event.CloudEvent.Data()))
		return nil
	})
	<-failed
	natstest.Eventually(t, time.Minute, "it is looked for", func() bool { return asks.Load() > 0 })
	sees.Store(true)
	natstest.Eventually(t, time.Minute, "the others have left", func() bool { return s.Len() == 1 })
	stored.Store(true)
	natstest.Eventually(t, time.Minute, "all have left", func() bool { return s.Len() == 0 })
	if !slices.IsSorted(got[:3]) {
		t.Errorf("they left as %v", got)
	}
}

// A message that cannot be read for longer than that leaves as soon as it can be, also if
// another cannot be stored.
func TestSpoolCannotReadForAWhile(t *testing.T) {
	t.Parallel()
	s := slowSpool(t, 0)
	var sees atomic.Bool
	var asks atomic.Int32
	sees.Store(true)
	failReads(s, func(_ context.Context, sequence uint64) error {
		if sequence != 2 || sees.Load() {
			return nil
		}
		asks.Add(1)
		return jetstream.ErrMsgNotFound
	})
	for i, customer := range []string{"bad", "c"} {
		if err := s.Put(t.Context(), report(t, customer, i)); err != nil {
			t.Fatal(err)
		}
	}
	var tried atomic.Bool
	running(t, s, func(_ context.Context, item Spooled) error {
		if subject(item) == "bad" {
			return ErrUnavailable
		}
		if !tried.Swap(true) {
			sees.Store(false)
			return errors.New("in doubt")
		}
		return nil
	})
	natstest.Eventually(t, time.Minute, "it is looked for again and again", func() bool { return asks.Load() > 2*spoolMisses })
	sees.Store(true)
	natstest.Eventually(t, 20*time.Second, "it has left", func() bool { return s.Len() == 1 })
}

// What could not be found once is looked for again, also if nothing else happens.
func TestSpoolFindsNothingOnce(t *testing.T) {
	t.Parallel()
	s := slowSpool(t, 0)
	putAll(t, s, 1, func(int) Spooled { return report(t, "c", 1) })
	<-s.wake // as if it was there before the spool was opened
	var asked atomic.Int32
	failReads(s, func(context.Context, uint64) error {
		if asked.Add(1) <= 2 { // a rejected body, an event
			return jetstream.ErrMsgNotFound
		}
		return nil
	})
	running(t, s, func(context.Context, Spooled) error { return nil })
	natstest.Eventually(t, 20*time.Second, "it has left", func() bool { return s.Len() == 0 })
}

// Nor do those that fail all the time keep it from being looked for.
func TestSpoolFindsNothingWhileOthersFail(t *testing.T) {
	t.Parallel()
	s := slowSpool(t, 0)
	const bad = 300
	putAll(t, s, bad, func(i int) Spooled { return report(t, fmt.Sprint("bad-", i), 1) })
	putAll(t, s, 1, func(int) Spooled { return report(t, "good", 1) })
	var sees atomic.Bool
	failReads(s, func(_ context.Context, sequence uint64) error {
		if sequence > bad && !sees.Load() {
			return jetstream.ErrMsgNotFound
		}
		return nil
	})
	var tried atomic.Int32
	running(t, s, func(_ context.Context, item Spooled) error {
		if subject(item) == "good" {
			return nil
		}
		tried.Add(1)
		time.Sleep(100*time.Millisecond + rand.N(200*time.Millisecond)) // it takes as long
		return errors.New("in doubt")
	})
	natstest.Eventually(t, time.Minute, "others fail again and again", func() bool { return tried.Load() > 2*bad })
	sees.Store(true)
	natstest.Eventually(t, 10*time.Second, "it has left", func() bool { return s.Len() == bad })
}

// A read that takes too long does not have all wait for the slowest attempt.
func TestSpoolSlowRead(t *testing.T) {
	t.Parallel()
	s := slowSpool(t, 0)
	var slow atomic.Bool
	failReads(s, func(ctx context.Context, _ uint64) error {
		if !slow.Swap(false) {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	})
	putAll(t, s, 1, func(int) Spooled { return report(t, "slow", 1) })
	begun, over, left := make(chan struct{}), make(chan struct{}), make(chan struct{})
	running(t, s, func(_ context.Context, item Spooled) error {
		if subject(item) == "slow" {
			close(begun)
			<-over
		} else {
			close(left)
		}
		return nil
	})
	t.Cleanup(func() { close(over) }) // before it waits for what was begun
	<-begun
	slow.Store(true)
	putAll(t, s, 1, func(int) Spooled { return report(t, "good", 1) })
	select {
	case <-left:
	case <-time.After(time.Minute):
		t.Error("it has not left")
	}
}

// One that the bus does not take, or a thousand, says little about others: what can be
// stored leaves soon.
func TestSpoolFewTaken(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ refused, doubts int }{{1, 600}, {1000, 0}} {
		t.Run(fmt.Sprint(test.refused, " refused"), func(t *testing.T) {
			t.Parallel()
			s := slowSpool(t, 0)
			putAll(t, s, test.refused, func(i int) Spooled { return report(t, fmt.Sprint("refused-", i), 1) })
			putAll(t, s, test.doubts, func(i int) Spooled { return report(t, fmt.Sprint("doubt-", i), 1) })
			putAll(t, s, 1, func(int) Spooled { return report(t, "good", 1) })
			running(t, s, func(_ context.Context, item Spooled) error {
				switch {
				case subject(item) == "good":
					return nil
				case strings.HasPrefix(subject(item), "refused"):
					return ErrUnavailable
				}
				return errors.New("in doubt")
			})
			start := time.Now()
			natstest.Eventually(t, 20*time.Second, "what can be stored has left", func() bool { return s.Len() == test.refused+test.doubts })
			t.Log(time.Since(start))
		})
	}
}

// While all leaves as fast as it comes, the spool takes what comes at the same moment.
func TestSpoolBurstWhileItLeaves(t *testing.T) {
	t.Parallel()
	for _, disk := range []time.Duration{0, 5 * time.Millisecond, 20 * time.Millisecond} {
		t.Run(disk.String(), func(t *testing.T) {
			t.Parallel()
			s := slowSpool(t, disk)
			running(t, s, func(context.Context, Spooled) error { return nil })
			var wg sync.WaitGroup
			for i := range 200 {
				wg.Go(func() {
					if err := s.Put(t.Context(), report(t, fmt.Sprint(i), 1)); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
		})
	}
}

// uncounted does not say once what is stored.
type uncounted struct {
	jetstream.Stream
	said *atomic.Bool
}

func (u uncounted) Info(ctx context.Context, options ...jetstream.StreamInfoOpt) (*jetstream.StreamInfo, error) {
	if !u.said.Swap(true) {
		return nil, context.DeadlineExceeded
	}
	return u.Stream.Info(ctx, options...)
}

// A write that was given up is not missed, also if what is stored could not be counted.
func TestSpoolCannotCountAtOnce(t *testing.T) {
	t.Parallel()
	s := slowSpool(t, 0)
	s.store.stream = uncounted{s.store.stream, new(atomic.Bool)}
	s.add(report(t, "c", 1), 1)
	s.unsure.Store(time.Now().UnixNano())
	for range 2 {
		s.recount(t.Context())
	}
	if s.Warning() != "" || s.Len() != 0 {
		t.Errorf("%d in the spool; %s", s.Len(), s.Warning())
	}
}

// flaky now and then does not find a message, takes too long to read or remove one, or
// removes one and does not say so.
type flaky struct{ jetstream.Stream }

func (f flaky) GetMsg(ctx context.Context, sequence uint64, options ...jetstream.GetMsgOpt) (*jetstream.RawStreamMsg, error) {
	switch rand.IntN(100) {
	case 0:
		return nil, context.DeadlineExceeded
	case 1, 2:
		return nil, jetstream.ErrMsgNotFound
	}
	return f.Stream.GetMsg(ctx, sequence, options...)
}

func (f flaky) DeleteMsg(ctx context.Context, sequence uint64) error {
	switch rand.IntN(100) {
	case 0:
		return context.DeadlineExceeded
	case 1:
		return cmp.Or(f.Stream.DeleteMsg(ctx, sequence), context.DeadlineExceeded)
	}
	return f.Stream.DeleteMsg(ctx, sequence)
}

// Whatever fails, each event is handed over, in the order of its entity, no two of one
// at the same moment; and then nobody waits.
func TestSpoolWhereMuchFails(t *testing.T) {
	t.Parallel()
	s := slowSpool(t, 0)
	s.store.stream = flaky{s.store.stream}
	const entities, each = 20, 20
	var mu sync.Mutex
	under, left := make(map[string]bool), make(map[string][]string)
	running(t, s, func(_ context.Context, item Spooled) error {
		e := item.Event.CloudEvent
		mu.Lock()
		defer mu.Unlock()
		if under[e.Subject()] {
			t.Error("two of one entity")
		}
		under[e.Subject()] = true
		mu.Unlock()
		time.Sleep(rand.N(2 * time.Millisecond)) // it takes as long
		mu.Lock()
		under[e.Subject()] = false
		switch rand.IntN(40) {
		case 0:
			return errors.New("in doubt")
		case 1:
			return ErrUnavailable
		case 2:
			return ErrNotConnected
		}
		if events := left[e.Subject()]; !slices.Contains(events, string(e.Data())) {
			left[e.Subject()] = append(events, string(e.Data()))
		} else if events[len(events)-1] != string(e.Data()) {
			t.Errorf("%s again after %s", e.Data(), events[len(events)-1])
		}
		return nil
	})
	var wg sync.WaitGroup
	for c := range entities {
		wg.Go(func() {
			for n := range each {
				for s.Put(t.Context(), report(t, fmt.Sprint(c), 100+n)) != nil {
				}
			}
		})
	}
	wg.Wait()
	natstest.Eventually(t, time.Minute, "all have left", func() bool {
		w := &s.waiting
		w.mu.Lock()
		defer w.mu.Unlock()
		return s.Len() == 0 && s.Events() == 0 && w.unknown == 0 && len(w.entities) == 0
	})
	mu.Lock()
	defer mu.Unlock()
	for c, events := range left {
		if len(events) != each || !slices.IsSorted(events) {
			t.Errorf("of %s left %v", c, events)
		}
	}
	if len(left) != entities || s.Warning() != "" {
		t.Errorf("of %d entities something left; %s", len(left), s.Warning())
	}
}

// What was given up and is stored after all is not overlooked by a count in between: the
// next of its entity would seem to have left with it.
func TestSpoolCountsNothingGivenUp(t *testing.T) {
	t.Parallel()
	s := slowSpool(t, 0)
	js := s.store.js.(*slowStore).JetStream
	s.store.js = js
	body := bytes.Repeat([]byte("x"), 500_000)
	for range 20 {
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
				defer cancel()
				s.put(ctx, Spooled{Rejected: &Rejected{Provider: "waldo", Reason: "body_not_json", Body: body}})
			})
		}
		wg.Wait()
		if !s.recount(t.Context()) { // at once, or when all is known
			natstest.Eventually(t, 10*time.Second, "counted", func() bool { return s.recount(t.Context()) })
		}
		natstest.Eventually(t, 10*time.Second, "all answered", func() bool { return js.PublishAsyncPending() == 0 })
		if n := s.Stored(t); s.Len() != n {
			t.Fatalf("%d counted, %d stored", s.Len(), n)
		}
	}
}

// lateRemoval gives the first removal up, which is done later.
type lateRemoval struct {
	jetstream.Stream
	given *atomic.Bool
}

func (l lateRemoval) DeleteMsg(ctx context.Context, sequence uint64) error {
	if !l.given.Swap(true) {
		return context.DeadlineExceeded
	}
	return l.Stream.DeleteMsg(ctx, sequence)
}

// A message whose removal was given up and done later, while it is handed over again, is
// removed: the store is not opened anew, and nothing is missed.
func TestSpoolRemovesLate(t *testing.T) {
	t.Parallel()
	s := slowSpool(t, 0)
	stream := s.store.stream
	s.store.stream = lateRemoval{stream, new(atomic.Bool)}
	putAll(t, s, 1, func(int) Spooled { return report(t, "c", 1) })
	var handed, opened atomic.Int32
	running(t, s, func(ctx context.Context, _ Spooled) error {
		if handed.Add(1) == 2 {
			return stream.DeleteMsg(ctx, 1)
		}
		return nil
	})
	natstest.Eventually(t, 20*time.Second, "it has left", func() bool {
		if s.broken.Load() {
			opened.Add(1)
		}
		return s.Len() == 0 && handed.Load() > 1
	})
	if opened.Load() > 0 || s.Warning() != "" {
		t.Errorf("opened anew %d times; %s", opened.Load(), s.Warning())
	}
}

// A removal that was given up before a count and done after it is no loss.
func TestSpoolMissesNothingRemovedLate(t *testing.T) {
	t.Parallel()
	s := slowSpool(t, 0)
	putAll(t, s, 2, func(i int) Spooled { return report(t, fmt.Sprint("c-", i), 1) })
	stream := s.store.stream
	s.store.stream = lateRemoval{stream, new(atomic.Bool)}
	if s.remove(stored{sequence: 1}) == nil {
		t.Fatal("removed")
	}
	s.recount(t.Context())
	if err := stream.DeleteMsg(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	s.recount(t.Context())
	if s.Len() != 1 || s.Warning() != "" {
		t.Errorf("%d in the spool; %s", s.Len(), s.Warning())
	}
}
