package dedupe

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/failpoint"
)

// IndexerName is the durable consumer that all replicas share.
const IndexerName = "bridge-indexer"

// Where the consumer keeps which bucket it fills, and from which stream: one that
// was restored from a backup has the consumer that it had, and may be another.
const (
	bucketMetadata = "bridge-bucket-created"
	streamMetadata = "bridge-stream-created"
)

// Indexer writes the names of stored events into the bucket. Every replica
// runs one; they share the work.
type Indexer struct {
	bus      *bus.Bus
	dedupe   *Deduper
	log      *slog.Logger
	lag      atomic.Pointer[measured]
	unnamed  prometheus.Counter
	pause    time.Duration // between small batches
	patience atomic.Int64  // with one write, a duration
	most     atomic.Int64  // entries of a write; below indexMost there is one at a time
	slowly   sync.Mutex    // held by who writes then
	stale    time.Time     // since when the consumer is of another bucket or stream; zero: it is not
}

// NewIndexer returns an indexer; [Indexer.Run] does the work.
func NewIndexer(b *bus.Bus, d *Deduper, log *slog.Logger, reg prometheus.Registerer) (*Indexer, error) {
	x := &Indexer{bus: b, dedupe: d, log: log, pause: indexPause, unnamed: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "bridge_index_unnamed_total",
		Help: "Messages in the stream without the bridge's headers, which the indexer passed over.",
	})}
	x.lag.Store(&measured{})
	x.patience.Store(int64(indexTimeout))
	x.most.Store(4 * indexFew) // nothing is known of how fast writes are
	var errs []error
	for _, c := range []prometheus.Collector{
		x.unnamed,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "bridge_index_lag_messages",
			Help: "Messages in the stream that are not yet indexed, by all replicas together.",
		}, func() float64 { return float64(x.Lag().Messages) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "bridge_index_lag_seconds",
			Help: "Age of the oldest message that is not yet indexed. Above the duplicate window, redeliveries may be stored again.",
		}, func() float64 { return x.Lag().Oldest.Seconds() }),
	} {
		errs = append(errs, reg.Register(c))
	}
	return x, errors.Join(errs...)
}

// fills reports whether the consumer with that metadata fills the bucket from the
// stream. Earlier versions did not keep the stream.
func fills(metadata map[string]string, st *bus.State) bool {
	bucket, stream := incarnations(st)
	reads := metadata[streamMetadata]
	return metadata[bucketMetadata] == bucket && (reads == stream || reads == "")
}

// incarnations returns what the consumer's metadata say of bucket and stream.
func incarnations(st *bus.State) (bucket, stream string) {
	return st.BucketCreated.UTC().Format(time.RFC3339Nano), st.StreamCreated.UTC().Format(time.RFC3339Nano)
}

const (
	indexWorkers    = 4
	indexBatch      = 64  // messages that a worker takes at once
	indexEnough     = 16  // do not wait for more
	indexPending    = 256 // messages delivered and not acknowledged
	indexPause      = 50 * time.Millisecond
	indexAckWait    = 3 * time.Second
	indexRetry      = 250 * time.Millisecond
	indexPatience   = 2 * time.Second        // with a write, at most; a report waits longer for the index
	indexFew        = 4                      // entries, which any disk stores in that time
	indexMost       = 256                    // entries: no limit
	indexHeartbeat  = 500 * time.Millisecond // after two without one the consumer is looked for again
	drainTimeout    = time.Second
	measureLagEvery = 2 * time.Second
	staleFor        = 5 * time.Second // streams and bucket are looked at again each second meanwhile
)

// errStale: streams or bucket have changed since the bus looked at them.
var errStale = errors.New("dedupe: stream or bucket has changed")

// Run indexes until ctx ends; messages begun are finished, those fetched are
// given back. It makes the consumer where it is missing, and makes it anew, to
// start one dedupe window ago, where the bucket is another than the consumer
// has filled.
func (x *Indexer) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { x.measureLag(ctx) })
	wg.Go(func() { x.follow(ctx) })
	for ctx.Err() == nil {
		st := x.bus.State()
		if st.Bucket() == nil || st.StreamCreated.IsZero() || !x.bus.Connected() {
			wait(ctx, st.Changed(), indexRetry)
			continue
		}
		if err := x.index(ctx, st); err != nil && ctx.Err() == nil {
			if x.bus.Connected() { // else that is logged
				x.log.Warn("indexing interrupted", "error", err)
			}
			x.bus.Wake()
			wait(ctx, nil, indexRetry)
		}
	}
}

func wait(ctx context.Context, changed <-chan struct{}, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-changed:
	case <-time.After(d):
	}
}

// index consumes until ctx ends, the state changes or the consumer fails.
func (x *Indexer) index(ctx context.Context, st *bus.State) error {
	consumer, err := x.consumer(ctx, st)
	if err != nil {
		return err
	}
	// The consumer is that of the stream as it is now; so must the state be.
	s, err := x.bus.JetStream().Stream(ctx, x.bus.Stream())
	if err != nil {
		return err
	}
	if !s.CachedInfo().Created.Equal(st.StreamCreated) {
		return errStale
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(indexPending), jetstream.PullHeartbeat(indexHeartbeat), jetstream.PullExpiry(5*time.Second))
	if err != nil {
		return err
	}
	next, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	taken := taken{since: make(map[jetstream.Msg]time.Time)}
	over := make(chan struct{})
	defer close(over)
	go taken.keep(over)
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	writing, stopWriting := context.WithCancel(context.Background())
	defer stopWriting()
	var wg sync.WaitGroup
	defer func() {
		defer time.AfterFunc(drainTimeout, stopWriting).Stop()
		wg.Wait()
	}()
	defer cancel()
	defer close(ended)
	wg.Go(func() {
		select {
		case <-ended:
			messages.Stop()
			return
		case <-ctx.Done():
		case <-st.Changed():
			cancel()
		}
		time.AfterFunc(drainTimeout, stopWriting)
		messages.Drain() // what was fetched still comes; not without a connection
		wait(context.Background(), ended, drainTimeout)
		giveUp()
	})
	work := make(chan jetstream.Msg, indexPending)
	defer close(work)
	batches := make(chan []jetstream.Msg)
	wg.Go(func() {
		defer close(batches)
		enough := indexEnough
		if most := consumer.CachedInfo().Config.MaxAckPending; most > 0 { // for all bridges together
			enough = min(enough, most/8)
		}
		x.gather(work, batches, enough)
	})
	for range indexWorkers {
		wg.Go(func() {
			for msgs := range batches {
				x.handle(writing, msgs, st, &taken)
			}
		})
	}
	for {
		msg, err := messages.Next(jetstream.NextContext(next))
		switch {
		case errors.Is(err, jetstream.ErrMsgIteratorClosed), errors.Is(err, context.Canceled):
			return nil
		case err != nil:
			return err
		case ctx.Err() != nil:
			msg.Nak() // for the next indexer, at once
		default:
			taken.add(msg)
			work <- msg
		}
	}
}

// consumer returns the consumer that fills the bucket of this state.
func (x *Indexer) consumer(ctx context.Context, st *bus.State) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	js, stream := x.bus.JetStream(), x.bus.Stream()
	bucket, created := incarnations(st)
	c, err := js.Consumer(ctx, stream, IndexerName)
	if err == nil {
		metadata := c.CachedInfo().Config.Metadata
		if fills(metadata, st) {
			x.stale = time.Time{}
			return c, nil
		}
		if after(metadata[bucketMetadata], st.BucketCreated) || after(metadata[streamMetadata], st.StreamCreated) {
			// Another replica knows a newer one; or there is none, since a clock
			// was set back.
			if x.stale.IsZero() {
				x.stale = time.Now()
			}
			if time.Since(x.stale) < staleFor {
				return nil, errStale
			}
		}
		x.log.Info("the bucket or the stream is new: indexing again", "since", x.dedupe.windows.Dedupe)
		if err := js.DeleteConsumer(ctx, stream, IndexerName); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return nil, err
		}
	} else if !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil, err
	}
	x.stale = time.Time{}
	start := time.Now().Add(-x.dedupe.windows.Dedupe)
	c, err = js.CreateConsumer(ctx, stream, jetstream.ConsumerConfig{
		Durable:       IndexerName,
		Description:   "writes the names of stored events into the dedupe bucket",
		DeliverPolicy: jetstream.DeliverByStartTimePolicy,
		OptStartTime:  &start,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       indexAckWait,
		MaxDeliver:    -1,
		MaxAckPending: indexPending,
		HeadersOnly:   true,
		Metadata:      map[string]string{bucketMetadata: bucket, streamMetadata: created},
	})
	if errors.Is(err, jetstream.ErrConsumerExists) { // by another replica just now
		return js.Consumer(ctx, stream, IndexerName)
	}
	return c, err
}

// after reports whether a time in the metadata is later than t.
func after(text string, t time.Time) bool {
	at, err := time.Parse(time.RFC3339Nano, text)
	return err == nil && at.After(t)
}

// gather makes batches of messages. Where few come, they wait for each other for a
// moment instead of waking all concerned one by one: the stream knows them meanwhile.
func (x *Indexer) gather(work <-chan jetstream.Msg, batches chan<- []jetstream.Msg, enough int) {
	last := time.Time{}
	for msg := range work {
		msgs := []jetstream.Msg{msg}
		more := time.NewTimer(time.Until(last.Add(x.pause)))
		for waiting := true; waiting && len(msgs) < enough; {
			select {
			case msg, waiting = <-work:
				if waiting {
					msgs = append(msgs, msg)
				}
			case <-more.C:
				waiting = false
			case <-x.dedupe.hurry:
				waiting = false
			}
		}
		more.Stop()
		for waiting := true; waiting && len(msgs) < indexBatch; {
			select {
			case msg, waiting = <-work:
				if waiting {
					msgs = append(msgs, msg)
				}
			default:
				waiting = false
			}
		}
		batches <- msgs
		last = time.Now()
	}
}

// taken is the messages that wait for being indexed or are, which as a rule takes
// milliseconds. Where it takes longer, they are not to come again meanwhile: they
// would be written again behind what is being written.
type taken struct {
	mu    sync.Mutex
	since map[jetstream.Msg]time.Time
}

func (t *taken) add(msg jetstream.Msg) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.since[msg] = time.Now()
}

func (t *taken) remove(msg jetstream.Msg) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.since, msg)
}

// keep tells the server of them until the end.
func (t *taken) keep(end <-chan struct{}) {
	const every = indexAckWait / 4
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-end:
			return
		case <-tick.C:
		}
		t.mu.Lock()
		for msg, since := range t.since {
			if time.Since(since) > every {
				msg.InProgress()
			}
		}
		t.mu.Unlock()
	}
}

// put writes entries. A server that syncs each acknowledges none of those that came
// together before it has stored all: after a write that was not acknowledged in time
// there is one at a time, of few entries, and more of them while that goes fast.
func (x *Indexer) put(ctx context.Context, entries []bus.Entry) error {
	if x.most.Load() >= indexMost {
		return x.write(ctx, entries)
	}
	x.slowly.Lock()
	defer x.slowly.Unlock()
	for len(entries) > 0 {
		n := min(len(entries), int(x.most.Load()))
		if err := x.write(ctx, entries[:n]); err != nil {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

func (x *Indexer) write(ctx context.Context, entries []bus.Entry) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	most, patience, begun := x.most.Load(), x.patience.Load(), time.Now()
	within, cancel := context.WithTimeout(ctx, time.Duration(patience))
	defer cancel()
	err := x.dedupe.index.put(within, entries...)
	took := time.Since(begun)
	switch {
	case err == nil:
		x.patience.Store(int64(min(max(indexTimeout, 4*took), indexPatience)))
		if len(entries) == int(most) && took < indexTimeout/4 {
			x.most.CompareAndSwap(most, 2*most)
		}
	case ctx.Err() == nil:
		x.dedupe.errors.Inc()
		if errors.Is(err, context.DeadlineExceeded) {
			x.patience.CompareAndSwap(patience, int64(min(2*time.Duration(patience), indexPatience)))
			x.most.CompareAndSwap(most, max(indexFew, min(most/2, 4*indexFew)))
		}
	}
	return err
}

// handle writes the names of messages and acknowledges them; what fails, or is not
// done when ctx ends, comes again.
func (x *Indexer) handle(ctx context.Context, msgs []jetstream.Msg, st *bus.State, taken *taken) {
	failpoint.Hit("index-write")
	var entries []bus.Entry
	reports := make([]*report, len(msgs))
	for i, msg := range msgs {
		names, stored, r := x.read(msg, st.StreamCreated.UnixNano())
		entries, reports[i] = append(entries, under(names, stored)...), r
	}
	var failed error
	if len(entries) > 0 {
		failed = x.put(ctx, entries)
	}
	begun := time.Now()
	var wg sync.WaitGroup
	for i, msg := range msgs {
		done := func(err error) {
			taken.remove(msg)
			if err != nil {
				msg.NakWithDelay(indexRetry)
				return
			}
			failpoint.Hit("index-ack")
			// An acknowledgement that cannot be sent would be waited for; after that
			// wait the message comes again anyway.
			for msg.Ack() != nil && time.Since(begun) < indexAckWait {
				wait(context.Background(), nil, 20*time.Millisecond)
			}
		}
		if r := reports[i]; r != nil && failed == nil {
			wg.Go(func() { done(x.dedupe.settle(ctx, *r)) })
			continue
		}
		done(failed)
	}
	wg.Wait()
}

// read returns the names of a message, what is to be known under them, and the
// report that it is, if it is one.
func (x *Indexer) read(msg jetstream.Msg, stream int64) (names []string, stored entry, r *report) {
	meta, err := msg.Metadata()
	if err != nil {
		return nil, entry{}, nil // not from a stream
	}
	h := msg.Headers()
	stored = entry{Stream: stream, storedEvent: storedEvent{Sequence: meta.Sequence.Stream, ID: h.Get(jetstream.MsgIDHeader)}}
	key, stateKey := h.Get(bus.KeyHeader), h.Get(bus.StateKeyHeader)
	if key != "" {
		names = append(names, key)
		if aliases := h.Get(bus.AliasesHeader); aliases != "" {
			names = append(names, strings.Split(aliases, ",")...)
		}
	}
	if len(names) == 0 && stateKey == "" || slices.ContainsFunc(names, func(name string) bool { return !digest(name) }) || stateKey != "" && !digest(stateKey) {
		x.unnamed.Inc() // none of ours
		return nil, entry{}, nil
	}
	if stateKey == "" {
		return names, stored, nil
	}
	received, err := time.Parse(time.RFC3339Nano, h.Get("ce-recordedtime"))
	if err != nil {
		received = meta.Timestamp
	}
	report := report{key: stateKey, token: h.Get(bus.TokenHeader), stored: stored}
	report.stored.State, report.stored.Received = h.Get(bus.StateHeader), received.UnixNano()
	return names, stored, &report
}

// digest reports whether a name has the form of normalize.Digest.
func digest(name string) bool {
	b, err := hex.DecodeString(name)
	return err == nil && len(b) == sha256.Size
}
