package dedupe

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hookbus/bridge/bus"
)

// SlowDisk has the bucket written as by a server that syncs every write: one entry
// after the other, also those that nobody waits for any more, and those written
// together are acknowledged together. It returns how many were.
func (d *Deduper) SlowDisk(sync time.Duration) (written *atomic.Int64) {
	disk := &slowDisk{index: d.index, sync: sync}
	d.index = disk
	return &disk.written
}

type slowDisk struct {
	index
	sync    time.Duration
	mu      sync.Mutex
	written atomic.Int64
}

func (s *slowDisk) put(ctx context.Context, entries ...bus.Entry) error {
	done := make(chan error, 1)
	go func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		time.Sleep(time.Duration(len(entries)) * s.sync)
		s.written.Add(int64(len(entries)))
		done <- s.index.put(context.Background(), entries...)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// LoseAnswer has the answer of the next conditional write get lost, which was done.
func (d *Deduper) LoseAnswer() { d.index = &lossy{index: d.index} }

type lossy struct {
	index
	lost atomic.Bool
}

func (l *lossy) swap(ctx context.Context, name string, value []byte, revision uint64) error {
	err := l.index.swap(ctx, name, value, revision)
	if l.lost.CompareAndSwap(false, true) && err == nil {
		return context.DeadlineExceeded
	}
	return err
}

// LoseRead has the answer of the next read get lost.
func (d *Deduper) LoseRead() { d.index = &deaf{index: d.index} }

type deaf struct {
	index
	lost atomic.Bool
}

func (l *deaf) get(ctx context.Context, name string) ([]byte, uint64, error) {
	if l.lost.CompareAndSwap(false, true) {
		return nil, 0, context.DeadlineExceeded
	}
	return l.index.get(ctx, name)
}

// HearsLate has the deduper believe that the stream is the one created then,
// until it asks in any case.
func (d *Deduper) HearsLate(created time.Time) {
	d.incarnation = func(context.Context) (time.Time, error) { return created, nil }
}

// Lacks reports whether the filter is certain that none of the names is stored,
// but for those that the duplicate window knows.
func (d *Deduper) Lacks(names []string) bool { return d.filter.lacks(names[0]) }

// Measured returns when the lag, and what the bucket holds, was measured last.
func (x *Indexer) Measured() time.Time { return x.lag.Load().at }

// LetGather has the indexer, which does not run yet, leave more time for messages
// to gather.
func (x *Indexer) LetGather(d time.Duration) { x.pause = d }

// Hurry has, for all tests, the filter be asked with short duplicate windows, and
// follow the bucket again soon, and an indexer that has stopped replaced soon.
func Hurry() { leastWindow, filterRetry, takeOverAfter = time.Second, time.Second/2, 5*time.Second }
