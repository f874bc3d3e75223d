package dedupe

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bits-and-blooms/bloom/v3"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/bus"
)

// filter holds the names in the bucket, a little behind it, in about 2.5 MiB for
// each million of them. A name that it lacks is new, or was stored so recently
// that the stream's duplicate window knows it: for that the bucket need not be
// read. Of a name that it has, one in some thousand is new all the same.
type filter struct {
	mu          sync.RWMutex
	bucket      time.Time // creation of the bucket that it follows
	position    uint64    // up to which it has the bucket's messages
	generations []generation
	until       time.Time // when it may be asked no more, unless it has caught up by then
}

// generation is a part of the filter that is dropped when all in it is out of date.
type generation struct {
	names  *bloom.BloomFilter
	count  uint
	newest time.Time
}

const (
	generationNames = 1 << 18
	falsePositives  = 1e-4 // of one generation
	filterEvery     = time.Second
	filterRetry     = 10 * time.Second
	filterStuck     = 30 * time.Second
	// leastWindow is the duplicate window below which the filter, which takes some
	// seconds to be told, is not asked.
	leastWindow = time.Minute
)

// lacks reports whether the stream would recognise an event of this name, and of
// no other, if it had been stored before.
func (f *filter) lacks(name string) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return time.Now().Before(f.until) && !slices.ContainsFunc(f.generations, func(g generation) bool { return g.names.TestString(name) })
}

func (f *filter) add(name string, position uint64, written time.Time, window time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.position = position
	if written.Add(window).Before(time.Now()) {
		return
	}
	for len(f.generations) > 0 && f.generations[0].newest.Add(window).Before(time.Now()) {
		f.generations = f.generations[1:]
	}
	if n := len(f.generations); n == 0 || f.generations[n-1].count == generationNames {
		f.generations = append(f.generations, generation{names: bloom.NewWithEstimates(generationNames, falsePositives)})
	}
	g := &f.generations[len(f.generations)-1]
	if !g.names.TestOrAddString(name) { // a state is written again and again
		g.count++
	}
	g.newest = written
}

// follows empties the filter if it has followed another bucket.
func (f *filter) follows(bucket time.Time) (position uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.bucket.Equal(bucket) {
		f.bucket, f.position, f.generations, f.until = bucket, 0, nil, time.Time{}
	}
	return f.position
}

// covered says that the names of all that was stored before a time are in the
// filter. What came later has to be within half the duplicate window.
func (f *filter) covered(before time.Time, duplicates time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.until = time.Time{}
	if duplicates >= leastWindow {
		f.until = before.Add(duplicates / 2)
	}
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
			wait(ctx, st.Changed(), filterRetry)
		}
	}
}

// watch follows the bucket until ctx ends, the state changes or following fails.
func (x *Indexer) watch(ctx context.Context, st *bus.State) error {
	f := &x.dedupe.filter
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	js, stream := x.bus.JetStream(), "KV_"+st.Bucket().Bucket()
	c, err := js.CreateConsumer(ctx, stream, jetstream.ConsumerConfig{
		Description:       "follows the names in the dedupe bucket",
		DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:       f.follows(st.BucketCreated) + 1,
		AckPolicy:         jetstream.AckNonePolicy,
		HeadersOnly:       true,
		InactiveThreshold: filterStuck,
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
	messages, err := c.Messages(jetstream.PullHeartbeat(indexHeartbeat), jetstream.PullExpiry(5*time.Second))
	if err != nil {
		return err
	}
	defer messages.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() { cancel(x.compare(ctx, f, st)) })
	subjects := "$KV." + st.Bucket().Bucket() + "."
	for next := uint64(1); ; next++ {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if ctx.Err() != nil {
			if err = context.Cause(ctx); errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		}
		if err != nil {
			return err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		if meta.Sequence.Consumer != next {
			return errGap
		}
		f.add(strings.TrimPrefix(msg.Subject(), subjects), meta.Sequence.Stream, meta.Timestamp, x.dedupe.windows.Dedupe)
	}
}

var (
	errBehind = errors.New("dedupe: what the bucket has does not come")
	errGap    = errors.New("dedupe: a message of the bucket was lost on the way")
)

// compare says, again and again, how far the filter is, until ctx ends, the state
// changes or the filter does not move.
func (x *Indexer) compare(ctx context.Context, f *filter, st *bus.State) error {
	tick := time.NewTicker(filterEvery)
	defer tick.Stop()
	var position uint64
	for moved := time.Now(); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-st.Changed():
			return nil
		case <-tick.C:
		}
		// In this order: what was indexed then is in the bucket now.
		before := x.indexed()
		last, err := x.lastInBucket(ctx, st)
		if err != nil { // until it is answered, no more is covered
			x.bus.Wake()
			continue
		}
		was := position
		position = f.follows(st.BucketCreated)
		if last <= position {
			f.covered(before, st.DuplicateWindow)
		}
		if last <= position || position > was {
			moved = time.Now()
		}
		if time.Since(moved) > filterStuck {
			return errBehind
		}
	}
}

// lastInBucket returns the sequence of the bucket's last message, 0 if it is empty.
func (x *Indexer) lastInBucket(ctx context.Context, st *bus.State) (uint64, error) {
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
		return 0, nil
	}
	return info.State.LastSeq, nil
}
