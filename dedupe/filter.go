package dedupe

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bits-and-blooms/bloom/v3"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/bus"
)

// filter holds the names in the bucket, in about 2.5 MiB for each million of them. It
// is behind the bucket by a part of the duplicate window. A name that it lacks is new,
// or was stored so recently that the stream, asked to store it again, says so itself:
// the bucket need not be read. Being a Bloom filter, it also seems to have one in some
// thousand of the new names.
type filter struct {
	mu          sync.RWMutex
	generations []generation
	covers      time.Time     // the names of all that was stored before are in it
	duplicates  time.Duration // the stream's duplicate window
}

// generation is a part of the filter that is dropped when all in it is out of date.
type generation struct {
	names  *bloom.BloomFilter
	count  uint
	newest time.Time
}

const (
	generationNames = 1 << 18
	mostGenerations = 64   // 16 million names, 40 MiB
	falsePositives  = 1e-4 // of one generation
	filterBatch     = 1000
	filterPause     = 250 * time.Millisecond // between batches that are not full
	filterEvery     = time.Second
	filterFullRetry = time.Hour
	filterStuck     = 30 * time.Second
)

var (
	filterRetry = time.Minute
	// leastWindow is the duplicate window below which the filter is not used, since it
	// learns of a name only after some seconds.
	leastWindow = time.Minute
)

// lacks reports whether the stream would recognise an event of this name, and of
// no other, if it had been stored before: what the filter does not cover has to be
// within three quarters of the duplicate window.
func (f *filter) lacks(name string) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.usable() && !slices.ContainsFunc(f.generations, func(g generation) bool { return g.names.TestString(name) })
}

// usable reports whether lacks may answer. The lock is held.
func (f *filter) usable() bool {
	if f.duplicates < leastWindow {
		return false
	}
	// By both clocks: one of them stands still while the machine is suspended.
	now, until := time.Now(), f.covers.Add(f.duplicates-f.duplicates/4)
	return now.Before(until) && now.Round(0).Before(until.Round(0))
}

// add takes in a name, which it may forget when the window has passed. It reports
// whether there was room.
func (f *filter) add(n named, window time.Duration) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n.written.Add(window).Before(time.Now()) {
		return true
	}
	for len(f.generations) > 0 && f.generations[0].newest.Add(window).Before(time.Now()) {
		f.generations = f.generations[1:]
	}
	if last := len(f.generations) - 1; last < 0 || f.generations[last].count == generationNames {
		if last == mostGenerations-1 {
			return false
		}
		f.generations = append(f.generations, generation{names: bloom.NewWithEstimates(generationNames, falsePositives)})
	}
	g := &f.generations[len(f.generations)-1]
	if !g.names.TestOrAddString(n.name) { // a state is written again and again
		g.count++
	}
	g.newest = n.written
	return true
}

// empty forgets all names. The filter is not usable then.
func (f *filter) empty() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.generations, f.covers = nil, time.Time{}
}

// covered says that the names of all that was stored before a time are in the
// filter, and returns whether it is usable now.
func (f *filter) covered(before time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.covers = before
	return f.usable()
}

// window says what the stream's duplicate window is.
func (f *filter) window(duplicates time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.duplicates = duplicates
}

// follow keeps the filter up to date until ctx ends.
func (x *Indexer) follow(ctx context.Context) {
	for ctx.Err() == nil {
		st := x.bus.State()
		if st.Bucket() == nil || st.BucketCreated.IsZero() || !x.bus.Connected() {
			wait(ctx, st.Changed(), indexRetry)
			continue
		}
		if err := x.watch(ctx, st); err != nil && ctx.Err() == nil {
			if x.bus.Connected() { // else that is logged
				x.log.Warn("following the bucket interrupted: it is read for every event", "error", err)
			}
			x.bus.Wake()
			retry := filterRetry
			if errors.Is(err, errFull) {
				retry = filterFullRetry
			}
			wait(ctx, st.Changed(), retry)
		}
	}
}

// watch follows the bucket, from its beginning, until ctx ends, the state changes or
// following fails. Once it has caught up, it keeps new names back for a quarter of the
// duplicate window: that long the stream itself recognises their copies.
func (x *Indexer) watch(ctx context.Context, st *bus.State) error {
	f := &x.dedupe.filter
	f.empty()
	defer f.empty()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-ctx.Done():
		case <-st.Changed():
			cancel()
		}
	}()
	keep := st.DuplicateWindow / 4
	js, stream := x.bus.JetStream(), "KV_"+st.Bucket().Bucket()
	c, err := js.CreateConsumer(ctx, stream, jetstream.ConsumerConfig{
		Description:       "follows the names in the dedupe bucket",
		DeliverPolicy:     jetstream.DeliverAllPolicy,
		AckPolicy:         jetstream.AckNonePolicy,
		HeadersOnly:       true,
		InactiveThreshold: keep + time.Minute,
		Replicas:          1,
		MemoryStorage:     true,
	})
	if err != nil {
		return err
	}
	defer func() { // if this fails, the server does it
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), indexTimeout)
		defer cancel()
		js.DeleteConsumer(ctx, stream, c.CachedInfo().Name)
	}()

	batch := allowed(c, filterBatch)
	subjects, next, position := "$KV."+st.Bucket().Bucket()+".", uint64(1), uint64(0)
	var kept []named // not yet in the filter
	var question struct {
		asked, indexed time.Time
		last           uint64 // in the bucket then
		open           bool
	}
	unknown, readThrough, caughtUp, moved := true, false, false, time.Now()
	for ctx.Err() == nil {
		full := false
		if len(kept) == 0 {
			kept, err = x.fetch(c, batch, subjects, &next)
			// In a cluster the servers may learn a moment later where a new consumer is.
			if unknown = unknown && errors.Is(err, nats.ErrNoResponders); err != nil && !unknown {
				return err
			}
			if len(kept) > 0 {
				moved, full = time.Now(), len(kept) == batch
			}
		}
		for len(kept) > 0 && (!caughtUp || time.Since(kept[0].written) > keep || time.Since(moved) > keep) {
			if !f.add(kept[0], x.dedupe.windows.Dedupe) {
				return errFull
			}
			position, kept = kept[0].position, kept[1:]
		}
		if !question.open && time.Since(question.asked) > filterEvery {
			// In this order: what was indexed then is in the bucket now.
			question.asked, question.indexed = time.Now(), x.indexed(st)
			if question.last, err = x.lastInBucket(ctx, st, position); err != nil { // no more is covered
				x.bus.Wake()
			} else if question.last < position {
				return errSetBack
			}
			question.open = err == nil
		}
		if question.open && question.last <= position {
			// Of the names that were in the bucket at the first question, some may have been
			// written anew since, before they were read: they come before the second.
			if readThrough {
				caughtUp = f.covered(question.indexed)
			}
			readThrough = true
			question.open, moved = false, time.Now()
		}
		if len(kept) > 0 {
			wait(ctx, nil, filterEvery)
			continue
		}
		if time.Since(moved) > filterStuck {
			return errBehind
		}
		if !full {
			wait(ctx, nil, filterPause)
		}
	}
	return nil
}

// fetch returns the next names in the bucket, most at most.
func (x *Indexer) fetch(c jetstream.Consumer, most int, subjects string, next *uint64) (names []named, err error) {
	if !x.bus.Connected() { // the client would keep a subscription for ever
		return nil, nil
	}
	batch, err := c.FetchNoWait(most)
	if err != nil {
		return nil, err
	}
	for msg := range batch.Messages() {
		meta, err := msg.Metadata()
		if err != nil {
			return nil, err
		}
		if meta.Sequence.Consumer != *next {
			return nil, errGap
		}
		*next++
		names = append(names, named{strings.TrimPrefix(msg.Subject(), subjects), meta.Sequence.Stream, meta.Timestamp})
	}
	return names, batch.Error()
}

// named is a name in the bucket.
type named struct {
	name     string
	position uint64
	written  time.Time
}

var (
	errBehind  = errors.New("dedupe: what the bucket has does not come")
	errGap     = errors.New("dedupe: a message of the bucket was lost on the way")
	errSetBack = errors.New("dedupe: the bucket has lost its end")
	errFull    = errors.New("dedupe: the bucket has more names than the filter takes")
)

// lastInBucket returns the sequence of the bucket's last message; for an empty bucket,
// in which nothing is left to come, at most the position.
func (x *Indexer) lastInBucket(ctx context.Context, st *bus.State, position uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, indexTimeout)
	defer cancel()
	s, err := x.bus.JetStream().Stream(ctx, "KV_"+st.Bucket().Bucket())
	if err != nil {
		return 0, err
	}
	info := s.CachedInfo()
	if !info.Created.Equal(st.BucketCreated) {
		return 0, errStale
	}
	if info.State.Msgs == 0 {
		return min(info.State.LastSeq, position), nil
	}
	return info.State.LastSeq, nil
}
