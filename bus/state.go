package bus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// State is what is known of streams and bucket.
type State struct {
	// Problems says what is missing or wrong with connection, streams and
	// bucket. Without the bucket, or with a broken quarantine, events are stored
	// all the same.
	Problems []string
	// Warnings says what is weaker than was asked for.
	Warnings []string
	// Durability says in one sentence what an acknowledgement is worth here.
	Durability string
	// StreamCreated and BucketCreated name the incarnations of the stream of
	// events and of the bucket.
	StreamCreated, BucketCreated time.Time
	// DuplicateWindow is the stream's; 0 as long as it is not known.
	DuplicateWindow time.Duration

	// Failing: nothing is known to be wrong, but the stream takes no events.
	Failing bool

	// refused says, by stream, why nothing is published to it: it was looked at
	// and would lose what it acknowledges, or was never looked at. A stream that
	// only cannot be reached is not refused; publishing finds that out.
	refused map[string]string
	stream  jetstream.Stream
	bucket  jetstream.KeyValue
	// The stream of events, and that of the bucket, take atomic batches.
	atomic, bucketAtomic bool
	// bodiesRefused says why no body goes to the object store.
	bodiesRefused string
	changed       chan struct{}
}

// Ready reports whether there is no problem.
func (s *State) Ready() bool { return len(s.Problems) == 0 }

// notLookedAt is why nothing is published before the first look.
const notLookedAt = "stream not looked at yet"

// Refused reports whether a stream has settings that lose what it acknowledges:
// that does not pass by itself, as an outage does.
func (s *State) Refused() bool {
	for _, reason := range s.refused {
		if reason != notLookedAt {
			return true
		}
	}
	return false
}

// Bucket returns the dedupe bucket; nil if there is none.
func (s *State) Bucket() jetstream.KeyValue { return s.bucket }

// Changed returns a channel that is closed when another state takes the place
// of this one.
func (s *State) Changed() <-chan struct{} { return s.changed }

// State returns the state as it is now. It must not be changed.
func (b *Bus) State() *State {
	st := b.state.Load()
	if st.Ready() && !b.nc.IsConnected() {
		offline := *st
		offline.Problems = []string{"not connected to NATS"}
		return &offline
	}
	return st
}

// Wake has [Bus.Run] look at streams and bucket now instead of at the next minute.
func (b *Bus) Wake() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

const (
	checkEvery         = time.Minute
	checkPause         = 200 * time.Millisecond // at least, between two checks
	retryPause         = time.Second            // after a check that failed
	apiTimeout         = 2 * time.Second        // for what is done about one stream
	incarnationTimeout = 400 * time.Millisecond
)

// Run looks at streams and bucket at once, every minute and whenever
// [Bus.Wake] is called, creates what is missing if it may, and publishes the
// result as [Bus.State]. It returns when ctx ends.
func (b *Bus) Run(ctx context.Context) {
	for ctx.Err() == nil {
		st := b.check(ctx)
		if ctx.Err() != nil {
			return
		}
		b.publishState(st)
		next := checkEvery
		if !st.Ready() {
			next = retryPause
		}
		select {
		case <-ctx.Done():
		case <-time.After(next):
		case <-b.wake:
			select {
			case <-ctx.Done():
			case <-time.After(checkPause):
			}
		}
	}
}

// publishState makes st the state, and logs what is new in it.
func (b *Bus) publishState(st *State) {
	old := b.state.Load()
	if same(old, st) {
		return
	}
	st.changed = make(chan struct{})
	b.state.Store(st)
	close(old.changed)
	for _, p := range st.Problems {
		if !slices.Contains(old.Problems, p) {
			b.log.Error("not ready", "problem", p)
		}
	}
	for _, w := range st.Warnings {
		if !slices.Contains(old.Warnings, w) {
			b.log.Warn(w)
		}
	}
	if st.Ready() && (!old.Ready() || old.Durability != st.Durability) {
		b.log.Info("ready", "stream", b.cfg.Stream, "durability", st.Durability)
	}
}

func same(a, b *State) bool {
	return slices.Equal(a.Problems, b.Problems) && slices.Equal(a.Warnings, b.Warnings) && a.Durability == b.Durability && a.atomic == b.atomic && a.bucketAtomic == b.bucketAtomic && a.DuplicateWindow == b.DuplicateWindow &&
		a.StreamCreated.Equal(b.StreamCreated) && a.BucketCreated.Equal(b.BucketCreated)
}

// Incarnation returns when the stream of events was created: what was recorded of an
// earlier stream of that name is not in this one. The answer is at most a second old;
// if the server does not answer, it is the last that was known. The error is that of
// asking the server.
func (b *Bus) Incarnation(ctx context.Context) (time.Time, error) {
	return b.created(ctx, time.Second)
}

// NewIncarnation is [Bus.Incarnation] for callers that have heard of a later stream: it
// always asks the server.
func (b *Bus) NewIncarnation(ctx context.Context) (time.Time, error) {
	return b.created(ctx, 0)
}

func (b *Bus) created(ctx context.Context, fresh time.Duration) (time.Time, error) {
	in := &b.incarnation
	in.Lock()
	defer in.Unlock()
	if time.Since(in.asked) < fresh {
		return in.created, in.err
	}
	// The answer, and a failure too, is for all who wait behind this caller, so
	// the caller's own context does not count.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), incarnationTimeout)
	defer cancel()
	s, err := b.js.Stream(ctx, b.cfg.Stream)
	in.asked, in.err = time.Now(), nil
	if err != nil {
		b.Wake()
		if !in.created.IsZero() && !errors.Is(err, jetstream.ErrStreamNotFound) {
			return in.created, nil // no answer is no news
		}
		in.created, in.err = time.Time{}, err
		return in.created, in.err
	}
	if created := s.CachedInfo().Created; !created.Equal(in.created) {
		in.created = created
		b.Wake()
	}
	return in.created, nil
}

// check creates streams and bucket, if they are missing and it may, and looks at them.
func (b *Bus) check(ctx context.Context) *State {
	old := b.state.Load()
	if !b.nc.IsConnected() { // nothing else is known to have changed
		reason := "not connected to NATS"
		if err := b.nc.LastError(); err != nil {
			reason += ": " + err.Error()
		}
		offline := *old
		offline.Problems = []string{reason}
		return &offline
	}
	// What gets no answer stays as it was.
	st := &State{
		Durability: old.Durability, DuplicateWindow: old.DuplicateWindow, StreamCreated: old.StreamCreated, BucketCreated: old.BucketCreated,
		refused: maps.Clone(old.refused), stream: old.stream, atomic: old.atomic, bucket: old.bucket, bucketAtomic: old.bucketAtomic, bodiesRefused: old.bodiesRefused,
	}
	replicas := 0 // of the stream of events, where it is known
	var stream *jetstream.StreamInfo
	if s := b.ensure(ctx, st, b.streamSpec()); s != nil {
		stream, st.stream = s.CachedInfo(), s
		st.StreamCreated = stream.Created
		replicas = stream.Config.Replicas
		b.lookAtStream(st, stream)
	}
	if f := b.failing.Load(); f.warns() && st.Ready() {
		st.Failing = true
		st.warn("stream %s: it takes no events: %s", b.cfg.Stream, f.reason)
	}
	var quarantine *jetstream.StreamInfo
	if s := b.ensure(ctx, st, b.quarantineSpec()); s != nil {
		quarantine = s.CachedInfo()
		b.lookAtQuarantine(st, quarantine, replicas)
	}
	b.checkBodies(ctx, st, stream, quarantine)
	if s := b.ensure(ctx, st, b.bucketSpec()); s != nil {
		bucket := s.CachedInfo()
		st.BucketCreated, st.bucketAtomic = bucket.Created, bucket.Config.AllowAtomicPublish
		b.lookAtBucket(st, bucket, replicas)
		ctx, cancel := context.WithTimeout(ctx, apiTimeout)
		defer cancel()
		if kv, err := b.js.KeyValue(ctx, b.cfg.Bucket); err == nil {
			st.bucket = kv
		} else {
			st.problem("bucket %s: %v", b.cfg.Bucket, err)
		}
	}
	return st
}

func (s *State) problem(format string, args ...any) {
	s.Problems = append(s.Problems, fmt.Sprintf(format, args...))
}

func (s *State) warn(format string, args ...any) {
	s.Warnings = append(s.Warnings, fmt.Sprintf(format, args...))
}
