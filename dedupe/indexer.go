package dedupe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/bus"
)

// IndexerName is the durable consumer that all replicas share.
const IndexerName = "bridge-indexer"

// Where the consumer keeps which bucket it fills, and from which stream: one that
// was restored from a backup has the consumer that it had, and may be another.
const (
	nameMetadata   = "bridge-bucket"
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
	patience atomic.Int64  // how long one write may take, a time.Duration
	most     atomic.Int64  // entries in one write; below indexMost there is one write at a time
	slowly   sync.Mutex    // held by that one write
	stale    time.Time     // since when the consumer is of another bucket or stream; zero: it is not
	edited   chan struct{} // says that the consumer has to be looked at again
	looked   time.Time     // when a consumer of another bucket's name was seen last
	idle     time.Time     // since when nobody has been seen to read from it
	failed   string        // why it does not work, as logged; empty: it does
}

// NewIndexer returns an indexer; [Indexer.Run] does the work.
func NewIndexer(b *bus.Bus, d *Deduper, log *slog.Logger, reg prometheus.Registerer) (*Indexer, error) {
	x := &Indexer{bus: b, dedupe: d, log: log, pause: indexPause, edited: make(chan struct{}, 1), unnamed: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "bridge_index_unnamed_total",
		Help: "Messages in the stream without the bridge's headers, which the indexer passed over.",
	})}
	x.lag.Store(&measured{at: time.Now()})
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
			Help: "Age of the oldest message that is not yet indexed, or not known to be. Above the duplicate window, redeliveries may be stored again.",
		}, func() float64 { return x.Lag().Oldest.Seconds() }),
	} {
		errs = append(errs, reg.Register(c))
	}
	return x, errors.Join(errs...)
}

// fills reports whether the consumer with that metadata fills the bucket from the
// stream.
func fills(metadata map[string]string, st *bus.State) bool {
	bucket, stream := incarnations(st)
	return metadata[bucketMetadata] == bucket && metadata[streamMetadata] == stream
}

// another returns the name of the bucket that the consumer with that metadata fills,
// if it is not this bucket's: that of a bridge with other settings.
func another(metadata map[string]string, st *bus.State) string {
	if name := metadata[nameMetadata]; st.Bucket() != nil && name != st.Bucket().Bucket() {
		return name
	}
	return ""
}

// unfit says why a consumer with these settings, which somebody has edited, does not
// deliver every event until it is indexed; nothing, if it does.
func unfit(c jetstream.ConsumerConfig) string {
	switch {
	case c.FilterSubject != "" || len(c.FilterSubjects) > 0:
		return "the consumer has a filter"
	case c.MaxDeliver > 0:
		return "the consumer gives messages up"
	case c.AckPolicy != jetstream.AckExplicitPolicy:
		return "the consumer does not wait for each acknowledgement"
	}
	return ""
}

// incarnations returns what the consumer's metadata say of bucket and stream.
func incarnations(st *bus.State) (bucket, stream string) {
	return st.BucketCreated.UTC().Format(time.RFC3339Nano), st.StreamCreated.UTC().Format(time.RFC3339Nano)
}

const (
	indexWorkers    = 4
	indexPending    = 256 // messages delivered and not acknowledged
	indexAckWait    = 3 * time.Second
	indexRetry      = 250 * time.Millisecond
	indexRetryLater = time.Second
	indexHeartbeat  = 500 * time.Millisecond // after two without one the consumer is looked for again
	drainTimeout    = time.Second
	measureLagEvery = 2 * time.Second
	staleFor        = 5 * time.Second // streams and bucket are looked at again each second meanwhile
	worksAfter      = 5 * time.Second // without a message; what does not work fails sooner

	errPendingLimit = 10121 // the server, the account or the stream allows fewer messages not acknowledged
)

// takeOverAfter is how long a consumer that fills a bucket of another name must have
// had no reader before it is replaced: between two requests a reader is not seen.
var takeOverAfter = 15 * time.Second

// errStale: streams or bucket have changed since the bus looked at them.
var errStale = errors.New("dedupe: stream or bucket has changed")

// Run indexes until ctx ends; messages begun are finished, those fetched are
// given back. It makes the consumer if it is missing. It makes it anew, to start
// one dedupe window ago, if it has filled another bucket than this, or if somebody
// has edited it so that not all is indexed. Of two bridges with buckets of different
// names the first keeps it.
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
			pause := indexRetry
			switch text := err.Error(); {
			case !x.bus.Connected(): // that is logged
				x.failed = ""
			case text != x.failed:
				x.log.Warn("indexing interrupted", "error", err)
				x.failed = text
			case !errors.Is(err, errStale): // it goes on
				pause = indexRetryLater
			}
			x.bus.Wake()
			wait(ctx, nil, pause)
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
	most, expiry := allowed(consumer, indexPending), 5*time.Second
	if longest := consumer.CachedInfo().Config.MaxRequestExpires; longest > 0 {
		expiry = min(expiry, longest)
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(most), jetstream.PullHeartbeat(indexHeartbeat), jetstream.PullExpiry(expiry))
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
		case <-x.edited:
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
	begun := time.Now()
	for {
		msg, err := messages.Next(jetstream.NextContext(next))
		if err == nil || time.Since(begun) > worksAfter {
			x.failed = ""
		}
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

// allowed returns how many messages a consumer may be asked for at a time, n at most: the
// server, or somebody who edited the consumer, may bound that.
func allowed(c jetstream.Consumer, n int) int {
	if most := c.CachedInfo().Config.MaxRequestBatch; most > 0 {
		return min(n, most)
	}
	return n
}

// consumer returns the consumer that fills the bucket of this state.
func (x *Indexer) consumer(ctx context.Context, st *bus.State) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	js, stream := x.bus.JetStream(), x.bus.Stream()
	bucket, created := incarnations(st)
	c, err := js.Consumer(ctx, stream, IndexerName)
	if err == nil {
		reason, err := x.again(c.CachedInfo(), st)
		if err != nil {
			return nil, err
		}
		if reason == "" {
			x.stale = time.Time{}
			return c, nil
		}
		x.log.Info("indexing again", "reason", reason, "since", x.dedupe.windows.Dedupe)
		if err := js.DeleteConsumer(ctx, stream, IndexerName); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return nil, err
		}
	} else if !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil, err
	}
	x.stale = time.Time{}
	start := time.Now().Add(-x.dedupe.windows.Dedupe)
	config := jetstream.ConsumerConfig{
		Durable:       IndexerName,
		Description:   "writes the names of stored events into the dedupe bucket",
		DeliverPolicy: jetstream.DeliverByStartTimePolicy,
		OptStartTime:  &start,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       indexAckWait,
		MaxDeliver:    -1,
		MaxAckPending: indexPending,
		HeadersOnly:   true,
		Metadata:      map[string]string{nameMetadata: st.Bucket().Bucket(), bucketMetadata: bucket, streamMetadata: created},
	}
	c, err = js.CreateConsumer(ctx, stream, config)
	if api := (*jetstream.APIError)(nil); errors.As(err, &api) && api.ErrorCode == errPendingLimit {
		config.MaxAckPending = 0 // as many as are allowed
		c, err = js.CreateConsumer(ctx, stream, config)
	}
	if errors.Is(err, jetstream.ErrConsumerExists) { // by another bridge just now
		return x.consumer(ctx, st)
	}
	return c, err
}

// again says why a consumer has to be made anew; nothing, if it is the one that
// fills the bucket of this state. An error says why that cannot be told yet.
func (x *Indexer) again(c *jetstream.ConsumerInfo, st *bus.State) (reason string, err error) {
	metadata := c.Config.Metadata
	if other := another(metadata, st); other != "" {
		if !x.abandoned(c) {
			return "", fmt.Errorf("dedupe: the indexer of stream %s writes to the bucket %s: this bridge, with %s, takes its place when it has stood still for %v; bridges of one stream need one BRIDGE_DEDUPE_BUCKET", c.Stream, other, st.Bucket().Bucket(), takeOverAfter)
		}
		return "the bucket has another name, and nobody fills " + other, nil
	}
	if fills(metadata, st) {
		return unfit(c.Config), nil
	}
	if after(metadata[bucketMetadata], st.BucketCreated) || after(metadata[streamMetadata], st.StreamCreated) {
		// Another replica knows a newer one; or there is none, since a clock
		// was set back.
		if x.stale.IsZero() {
			x.stale = time.Now()
		}
		if time.Since(x.stale) < staleFor {
			return "", errStale
		}
	}
	return "the bucket or the stream is new", nil
}

// abandoned reports whether nobody has read from a consumer for takeOverAfter, all of
// which it was looked at from time to time.
func (x *Indexer) abandoned(c *jetstream.ConsumerInfo) bool {
	now := time.Now()
	if c.NumWaiting > 0 || now.Sub(x.looked) > takeOverAfter/2 {
		x.idle = now
	}
	x.looked = now
	return now.Sub(x.idle) > takeOverAfter
}

// after reports whether a time in the metadata is later than t.
func after(text string, t time.Time) bool {
	at, err := time.Parse(time.RFC3339Nano, text)
	return err == nil && at.After(t)
}
