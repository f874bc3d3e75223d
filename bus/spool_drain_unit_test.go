package bus

import (
	"context"
	"errors"
	"fmt"
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

// blind finds nothing for a while, as a server that cannot open a file.
type blind struct {
	jetstream.Stream
	sees *atomic.Bool
	asks *atomic.Int32 // for the second message
}

func (b blind) GetMsg(ctx context.Context, sequence uint64, options ...jetstream.GetMsgOpt) (*jetstream.RawStreamMsg, error) {
	if b.sees.Load() {
		return b.Stream.GetMsg(ctx, sequence, options...)
	}
	if sequence == 2 {
		b.asks.Add(1)
	}
	return nil, jetstream.ErrMsgNotFound
}

// A message that failed and then cannot be read for a moment is not passed by the next
// about the same entity.
func TestSpoolCannotReadForAMoment(t *testing.T) {
	t.Parallel()
	s := slowSpool(t, 0)
	var sees, stored atomic.Bool
	sees.Store(true)
	var asks atomic.Int32
	s.store.stream = blind{s.store.stream, &sees, &asks}
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
	s.unsure.Store(true)
	for range 2 {
		s.recount(t.Context())
	}
	if s.Warning() != "" || s.Len() != 0 {
		t.Errorf("%d in the spool; %s", s.Len(), s.Warning())
	}
}
