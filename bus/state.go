package bus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
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

	// refused says, by stream, why nothing is published to it: it was looked at
	// and would lose what it acknowledges, or was never looked at. A stream that
	// only cannot be reached is not refused; publishing finds that out.
	refused map[string]string
	bucket  jetstream.KeyValue
	changed chan struct{}
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

// Wake has streams and bucket looked at now instead of at the next minute.
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
	return slices.Equal(a.Problems, b.Problems) && slices.Equal(a.Warnings, b.Warnings) && a.Durability == b.Durability &&
		a.StreamCreated.Equal(b.StreamCreated) && a.BucketCreated.Equal(b.BucketCreated)
}

// Incarnation returns when the stream of events was created, as it was when
// last heard of, at most a second ago if the server answers: what was recorded
// of an earlier stream of that name is not in this one. The error is that of
// asking the server.
func (b *Bus) Incarnation(ctx context.Context) (time.Time, error) {
	in := &b.incarnation
	in.Lock()
	defer in.Unlock()
	if time.Since(in.asked) < time.Second {
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

// check brings streams and bucket into being, if it may, and looks at them.
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
	// What gets no answer is as it was.
	st := &State{
		Durability: old.Durability, StreamCreated: old.StreamCreated, BucketCreated: old.BucketCreated,
		refused: maps.Clone(old.refused), bucket: old.bucket,
	}
	stream := b.ensure(ctx, st, b.streamSpec())
	if stream != nil {
		st.StreamCreated = stream.Created
		st.Durability = b.durability(stream.Config)
		if stream.Config.Replicas < 2 && b.server == nil {
			st.warn("stream %s: %s", b.cfg.Stream, st.Durability)
		}
		if got := stream.Config.MaxAge; got != 0 && got < b.cfg.DedupeWindow {
			st.warn("stream %s: it keeps events for %v, less than the dedupe window of %v; set BRIDGE_STREAM_MAX_AGE to change it", b.cfg.Stream, got, b.cfg.DedupeWindow)
		}
		if got := stream.Config.Duplicates; got < b.cfg.DuplicateWindow {
			st.warn("stream %s: its duplicate window is %v, less than the %v asked for; set BRIDGE_DUPLICATE_WINDOW to change it", b.cfg.Stream, got, b.cfg.DuplicateWindow)
		}
		st.judge(stream.Config, b.cfg.SubjectPrefix)
	}
	quarantine := b.ensure(ctx, st, b.quarantineSpec())
	if quarantine != nil {
		st.judge(quarantine.Config, b.cfg.QuarantinePrefix)
	}
	b.checkBodies(ctx, st, stream, quarantine)
	if bucket := b.ensure(ctx, st, b.bucketSpec()); bucket != nil {
		st.BucketCreated = bucket.Created
		if got := bucket.Config.MaxAge; got != 0 && got < b.cfg.DedupeWindow {
			st.warn("bucket %s: its TTL is %v, less than the %v asked for; set BRIDGE_DEDUPE_WINDOW to change it", b.cfg.Bucket, got, b.cfg.DedupeWindow)
		}
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

// judge refuses a stream whose settings lose what it has acknowledged, or that
// would not take our subjects.
func (s *State) judge(c jetstream.StreamConfig, prefix string) {
	delete(s.refused, c.Name)
	refuse := func(format string, args ...any) {
		reason := fmt.Sprintf("stream %s: ", c.Name) + fmt.Sprintf(format, args...)
		s.Problems = append(s.Problems, reason)
		s.refused[c.Name] = reason
	}
	if !covers(c.Subjects, prefix) {
		refuse("it does not take the subjects %s.>", prefix)
	}
	if c.Storage == jetstream.MemoryStorage {
		refuse("memory storage does not outlive a restart; use file storage")
	}
	if c.PersistMode == jetstream.AsyncPersistMode {
		refuse("persist mode async acknowledges before it writes; use the default")
	}
	if c.NoAck {
		refuse("no_ack does not acknowledge; set it to false")
	}
	if c.Retention != jetstream.LimitsPolicy {
		refuse("retention %s removes what a consumer has acknowledged; use limits", strings.ToLower(c.Retention.String()))
	}
	if c.Discard == jetstream.DiscardOld && (c.MaxBytes > 0 || c.MaxMsgs > 0) {
		refuse("it drops old events when full; use discard new, or no limit of size or count")
	}
	if c.MaxMsgsPerSubject > 0 && !(c.Discard == jetstream.DiscardNew && c.DiscardNewPerSubject) {
		refuse("it drops old events of a subject that has max_msgs_per_subject; use no such limit")
	}
	if c.Mirror != nil {
		refuse("it is a mirror of %s and takes no events itself", c.Mirror.Name)
	}
	if c.Sealed {
		refuse("it is sealed and takes no events")
	}
}

// covers reports whether one of the subjects takes in all of ours, which have
// at least two tokens after the prefix.
func covers(subjects []string, prefix string) bool {
	want := strings.Split(prefix+".*.>", ".")
	return slices.ContainsFunc(subjects, func(subject string) bool {
		for i, token := range strings.Split(subject, ".") {
			switch {
			case token == ">":
				return i < len(want)
			case i >= len(want)-1 || token != "*" && token != want[i]:
				return false
			}
		}
		return false
	})
}

func (b *Bus) durability(c jetstream.StreamConfig) string {
	switch {
	case b.server != nil:
		return "a 200 means written and synced to this machine's disk, one copy"
	case c.Replicas >= 3:
		return fmt.Sprintf("a 200 means written by a majority of %d servers", c.Replicas)
	case c.Replicas == 2:
		return "a 200 means written by 2 servers; while one of them is down nothing is stored"
	default:
		return "a 200 means written by one server, which may not have synced it to disk (sync_interval: always would); 3 replicas survive the loss of a server"
	}
}
