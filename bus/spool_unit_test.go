package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
)

// slowStore takes messages as a server whose disk is slow: it stores all that have
// come, one after the other, and then acknowledges them.
type slowStore struct {
	jetstream.JetStream
	sync time.Duration

	mu      sync.Mutex
	come    []slowAck
	storing bool
}

type slowAck struct {
	msg *nats.Msg
	ok  chan *jetstream.PubAck
	err chan error
}

func (a slowAck) Ok() <-chan *jetstream.PubAck { return a.ok }
func (a slowAck) Err() <-chan error            { return a.err }
func (a slowAck) Msg() *nats.Msg               { return a.msg }

func (s *slowStore) PublishMsgAsync(msg *nats.Msg, _ ...jetstream.PublishOpt) (jetstream.PubAckFuture, error) {
	a := slowAck{msg, make(chan *jetstream.PubAck, 1), make(chan error, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.come = append(s.come, a)
	if !s.storing {
		s.storing = true
		go s.store()
	}
	return a, nil
}

func (s *slowStore) store() {
	for {
		s.mu.Lock()
		all := s.come
		s.come = nil
		s.storing = len(all) > 0
		s.mu.Unlock()
		if len(all) == 0 {
			return
		}
		for _, a := range all {
			time.Sleep(s.sync)
			if _, err := s.PublishMsg(context.Background(), a.msg); err != nil {
				a.err <- err
			}
		}
		for _, a := range all {
			a.ok <- nil
		}
	}
}

// slowSpool returns a spool on a disk that takes so long for each message.
func slowSpool(t *testing.T, sync time.Duration) *Spool {
	t.Helper()
	s, err := OpenSpool(t.Context(), SpoolConfig{Dir: t.TempDir(), MaxBytes: 1 << 30, MaxBody: 1 << 20, LockWait: time.Second}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	s.store.js = &slowStore{JetStream: s.store.js, sync: sync}
	return s
}

// report is the n-th about a customer.
func report(t *testing.T, customer string, n int) Spooled {
	t.Helper()
	p, _ := normalize.ByName("waldo")
	e, err := p.Event(fmt.Appendf(nil, `{"event":"flag","customerId":%q,"n":%d}`, customer, n), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	e.SetToken(fmt.Sprint(customer, n))
	return Spooled{Event: e}
}

// puts puts items at the same moment, and returns when all are in Put.
func puts(t *testing.T, s *Spool, wg *sync.WaitGroup, items ...Spooled) {
	t.Helper()
	for _, item := range items {
		wg.Go(func() {
			if err := s.Put(t.Context(), item); err != nil {
				t.Error(err)
			}
		})
	}
	for _, item := range items {
		natstest.Eventually(t, 10*time.Second, "it is in Put", func() bool { return s.coming.has(item.entity()) || s.waiting.has(item.entity()) })
	}
}

func others(t *testing.T, n int) (items []Spooled) {
	t.Helper()
	for i := range n {
		items = append(items, report(t, fmt.Sprint("other-", i), 1))
	}
	return items
}

// Many webhooks at the same moment are all kept by a disk that takes some
// milliseconds for each, and none of them twice.
func TestSpoolBurstOnASlowDisk(t *testing.T) {
	t.Parallel()
	s := slowSpool(t, 5*time.Millisecond)
	const requests = 300 // 1.5 s
	errs := make(chan error, requests)
	var wg sync.WaitGroup
	for i := range requests {
		wg.Go(func() {
			errs <- s.Put(t.Context(), Spooled{Rejected: &Rejected{Provider: "waldo", Reason: "body_not_json", Body: fmt.Append(nil, i)}})
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	info, err := s.store.stream.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.State.Msgs != requests || s.Problem() != "" {
		t.Errorf("%d stored, want %d; problem %q", info.State.Msgs, requests, s.Problem())
	}
}

// An event that waits for its turn to be written is not passed by the next of its
// entity, neither on the way to the bus nor in the spool.
func TestSpoolQueueKeepsTheOrder(t *testing.T) {
	t.Parallel()
	s := slowSpool(t, 20*time.Millisecond)
	var wg sync.WaitGroup
	puts(t, s, &wg, others(t, 80)...) // 1.6 s
	puts(t, s, &wg, report(t, "c", 1))
	s.moving.Store(true) // the bus takes others
	if !s.Behind(t.Context(), report(t, "c", 2)) {
		t.Error("past the one that waits in Put")
	}
	puts(t, s, &wg, report(t, "c", 2))
	wg.Wait()
	for sequence, first := uint64(1), true; ; sequence++ {
		msg, err := s.store.stream.GetMsg(t.Context(), sequence)
		if err != nil {
			t.Fatal(err)
		}
		if e := decodeSpooled(msg).Event; e.CloudEvent.Subject() == "c" {
			if got, want := string(e.CloudEvent.Data()), `{"event":"flag","customerId":"c","n":1}`; first && got != want {
				t.Errorf("%s is first", got)
			}
			if !first {
				return
			}
			first = false
		}
	}
}

// forgetful does not remove one of three messages, and says of another that it has not.
type forgetful struct {
	jetstream.Stream
	failure error
	mu      *sync.Mutex
	asked   *int
	failed  func()
}

func (f forgetful) DeleteMsg(ctx context.Context, sequence uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	*f.asked++
	switch *f.asked % 3 {
	case 1:
		f.failed()
		return f.failure
	case 2:
		f.failed()
		return cmp.Or(f.Stream.DeleteMsg(ctx, sequence), f.failure)
	}
	return f.Stream.DeleteMsg(ctx, sequence)
}

// A report that was handed over and could not be removed is handed over again before
// the next about the same thing: after that it would be stored again.
func TestSpoolThatCannotRemove(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		failure error
		broken  bool // the store is opened anew
	}{{context.DeadlineExceeded, false}, {errors.New("the disk fails"), true}} {
		t.Run(test.failure.Error(), func(t *testing.T) {
			t.Parallel()
			s := slowSpool(t, 0)
			const customers, each = 6, 3
			for n := range each {
				for c := range customers {
					if err := s.Put(t.Context(), report(t, fmt.Sprint(c), n)); err != nil {
						t.Fatal(err)
					}
				}
			}
			var mu, removing sync.Mutex
			calls, asked, last := 0, 0, make(map[string]string)
			handOver := func(_ context.Context, item Spooled) error {
				mu.Lock()
				defer mu.Unlock()
				if calls++; calls%5 == 0 {
					return errors.New("in doubt")
				}
				e := item.Event.CloudEvent
				if got := string(e.Data()); got < last[e.Subject()] {
					t.Errorf("%s after %s", got, last[e.Subject()])
				} else {
					last[e.Subject()] = got
				}
				return nil
			}
			for s.Len() > 0 {
				if s.broken.Load() && !s.open(t.Context()) {
					t.Fatal(s.Problem())
				}
				ctx, stop := context.WithTimeout(t.Context(), time.Minute)
				stream := s.store.stream
				if f, again := stream.(forgetful); again {
					stream = f.Stream
				}
				f := forgetful{stream, test.failure, &removing, &asked, func() {}}
				if test.broken {
					f.failed = stop
				}
				s.store.stream = f
				var running sync.WaitGroup
				running.Go(func() { s.Run(ctx, handOver) })
				natstest.Eventually(t, time.Minute, "all have left", func() bool { return s.Len() == 0 || ctx.Err() != nil })
				stop()
				running.Wait()
			}
			for c := range customers {
				want := report(t, fmt.Sprint(c), each-1).Event.CloudEvent
				if got := last[want.Subject()]; got != string(want.Data()) {
					t.Errorf("the last is %s, want %s", got, want.Data())
				}
			}
			if w := &s.waiting; w.unknown != 0 || len(w.entities) != 0 {
				t.Errorf("nothing waits, but %d events and %d entities are counted", w.unknown, len(w.entities))
			}
			if calls <= customers*each*6/5 {
				t.Errorf("handed over %d times: nothing was handed over again", calls)
			}
		})
	}
}

// While the store is opened anew, which a disk may hold up, all hear soon that
// nothing is taken, so that the bus can be tried.
func TestSpoolThatIsOpenedTakesNothing(t *testing.T) {
	t.Parallel()
	s := slowSpool(t, 0)
	s.broken.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for _, item := range others(t, 100) {
		wg.Go(func() {
			if err := s.Put(ctx, item); err == nil || ctx.Err() != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// What had been begun before the disk was found to be well does not have the store opened
// anew: when a disk stands still for a moment, all that is under way is late.
func TestSpoolManyLate(t *testing.T) {
	t.Parallel()
	s := slowSpool(t, 0)
	late := func(probes int64) {
		s.fail("writing", probes, context.DeadlineExceeded)
		natstest.Eventually(t, 10*time.Second, "the disk was probed", func() bool { return !s.slow.Load() })
	}
	begun := s.probes.Load()
	late(begun)
	late(begun)
	if s.broken.Load() {
		t.Fatalf("to be opened anew: %s", s.Problem())
	}
	late(s.probes.Load()) // the disk is well, and the store does not answer
	if !s.broken.Load() {
		t.Error("not to be opened anew")
	}
}

// A write that has waited for a probe has its whole time.
func TestSpoolWriteAfterAProbe(t *testing.T) {
	t.Parallel()
	s := slowSpool(t, spoolTimeout/2)
	s.Probe(spoolTimeout * 3 / 4)
	if err := s.Put(t.Context(), report(t, "c", 1)); err != nil {
		t.Fatal(err)
	}
	if n := s.probes.Load(); n != 0 {
		t.Errorf("probed %d times", n)
	}
}

// hanging removes nothing, and says nothing.
type hanging struct{ jetstream.Stream }

func (hanging) DeleteMsg(ctx context.Context, _ uint64) error {
	<-ctx.Done()
	return ctx.Err()
}

// A removal that takes too long has the disk probed, as a write does.
func TestSpoolSlowRemoval(t *testing.T) {
	t.Parallel()
	s := slowSpool(t, 0)
	putAll(t, s, 1, func(int) Spooled { return report(t, "c", 1) })
	s.store.stream = hanging{s.store.stream}
	if err := s.remove(stored{sequence: 1}); err == nil {
		t.Fatal("removed")
	}
	if s.broken.Load() {
		t.Errorf("to be opened anew: %s", s.Problem())
	}
}
