package dedupe

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/bus"
)

// IndexerName is the durable consumer that all replicas share.
const IndexerName = "bridge-indexer"

// bucketMetadata is where the consumer keeps which bucket it has filled.
const bucketMetadata = "bridge-bucket-created"

// Indexer writes the names of stored events into the bucket. Every replica
// runs one; they share the work.
type Indexer struct {
	bus     *bus.Bus
	dedupe  *Deduper
	log     *slog.Logger
	lag     atomic.Pointer[Lag]
	unnamed prometheus.Counter
}

// Lag is how far the index is behind the stream.
type Lag struct {
	Messages uint64
	Oldest   time.Duration // age of the oldest message not yet indexed
}

// NewIndexer returns an indexer; [Indexer.Run] does the work.
func NewIndexer(b *bus.Bus, d *Deduper, log *slog.Logger, reg prometheus.Registerer) (*Indexer, error) {
	x := &Indexer{bus: b, dedupe: d, log: log, unnamed: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "bridge_index_unnamed_total",
		Help: "Messages in the stream without the bridge's headers, which the indexer passed over.",
	})}
	x.lag.Store(&Lag{})
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

// Lag returns how far the index was behind a few seconds ago.
func (x *Indexer) Lag() Lag { return *x.lag.Load() }

const (
	indexWorkers  = 16
	indexPending  = 1024 // messages delivered and not acknowledged
	indexRetry    = time.Second
	measureLagAll = 2 * time.Second
)

// Run indexes until ctx ends; messages begun are finished. It makes the
// consumer where it is missing, and makes it anew, to start one dedupe window
// ago, where the bucket is another than the consumer has filled.
func (x *Indexer) Run(ctx context.Context) {
	for ctx.Err() == nil {
		st := x.bus.State()
		if !st.Ready() {
			wait(ctx, st.Changed(), indexRetry)
			continue
		}
		if err := x.index(ctx, st); err != nil && ctx.Err() == nil {
			x.log.Warn("indexing interrupted", "error", err)
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
	messages, err := consumer.Messages(jetstream.PullMaxMessages(indexPending), jetstream.PullHeartbeat(2*time.Second), jetstream.PullExpiry(5*time.Second))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		select {
		case <-ctx.Done():
		case <-st.Changed():
		}
		messages.Stop()
	})
	wg.Go(func() { x.measureLag(ctx, consumer) })

	work := make(chan jetstream.Msg)
	defer close(work)
	for range indexWorkers {
		wg.Go(func() {
			for msg := range work {
				x.handle(msg, st)
			}
		})
	}
	for {
		msg, err := messages.Next()
		if errors.Is(err, jetstream.ErrMsgIteratorClosed) {
			return nil
		}
		if err != nil {
			messages.Stop()
			return err
		}
		work <- msg
	}
}

// consumer returns the consumer that fills the bucket of this state.
func (x *Indexer) consumer(ctx context.Context, st *bus.State) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	js, stream := x.bus.JetStream(), x.bus.Stream()
	bucket := st.BucketCreated.UTC().Format(time.RFC3339Nano)
	c, err := js.Consumer(ctx, stream, IndexerName)
	if err == nil {
		if c.CachedInfo().Config.Metadata[bucketMetadata] == bucket {
			return c, nil
		}
		x.log.Info("the bucket is new: indexing again", "since", x.dedupe.windows.Dedupe)
		if err := js.DeleteConsumer(ctx, stream, IndexerName); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return nil, err
		}
	} else if !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil, err
	}
	start := time.Now().Add(-x.dedupe.windows.Dedupe)
	c, err = js.CreateConsumer(ctx, stream, jetstream.ConsumerConfig{
		Durable:       IndexerName,
		Description:   "writes the names of stored events into the dedupe bucket",
		DeliverPolicy: jetstream.DeliverByStartTimePolicy,
		OptStartTime:  &start,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       30 * time.Second,
		MaxDeliver:    -1,
		MaxAckPending: indexPending,
		HeadersOnly:   true,
		Metadata:      map[string]string{bucketMetadata: bucket},
	})
	if errors.Is(err, jetstream.ErrConsumerExists) { // by another replica just now
		return js.Consumer(ctx, stream, IndexerName)
	}
	return c, err
}

// handle writes the names of one message and acknowledges it; what fails comes
// again.
func (x *Indexer) handle(msg jetstream.Msg, st *bus.State) {
	// Not the caller's context: what was begun is finished, within the bounds
	// of each write.
	ctx := context.Background()
	if err := x.write(ctx, msg, st.StreamCreated.UnixNano()); err != nil {
		msg.NakWithDelay(indexRetry)
		return
	}
	msg.Ack()
}

func (x *Indexer) write(ctx context.Context, msg jetstream.Msg, stream int64) error {
	meta, err := msg.Metadata()
	if err != nil {
		return err
	}
	h := msg.Headers()
	stored := entry{Stream: stream, Sequence: meta.Sequence.Stream, ID: h.Get(jetstream.MsgIDHeader)}
	key, stateKey := h.Get(bus.KeyHeader), h.Get(bus.StateKeyHeader)
	if key == "" && stateKey == "" {
		x.unnamed.Inc()
		return nil
	}
	if key != "" {
		names := []string{key}
		if aliases := h.Get(bus.AliasesHeader); aliases != "" {
			names = append(names, strings.Split(aliases, ",")...)
		}
		if err := x.dedupe.remember(ctx, names, stored); err != nil {
			return err
		}
	}
	if stateKey == "" {
		return nil
	}
	received, err := time.Parse(time.RFC3339Nano, h.Get("ce-recordedtime"))
	if err != nil {
		received = meta.Timestamp
	}
	stored.State, stored.Received = h.Get(bus.StateHeader), received.UnixNano()
	var last bool
	return x.dedupe.record(ctx, report{key: stateKey, token: h.Get(bus.TokenHeader), stored: stored}, false, &last)
}

// measureLag keeps the lag up to date.
func (x *Indexer) measureLag(ctx context.Context, c jetstream.Consumer) {
	for tick := time.NewTicker(measureLagAll); ; {
		if lag, err := x.measure(ctx, c); err == nil {
			x.lag.Store(&lag)
		}
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
	}
}

func (x *Indexer) measure(ctx context.Context, c jetstream.Consumer) (Lag, error) {
	ctx, cancel := context.WithTimeout(ctx, measureLagAll)
	defer cancel()
	info, err := c.Info(ctx)
	if err != nil {
		return Lag{}, err
	}
	lag := Lag{Messages: info.NumPending + uint64(info.NumAckPending)}
	if lag.Messages == 0 {
		return lag, nil
	}
	s, err := x.bus.JetStream().Stream(ctx, x.bus.Stream())
	if err != nil {
		return Lag{}, err
	}
	oldest, err := s.GetMsg(ctx, info.AckFloor.Stream+1, jetstream.WithGetMsgSubject(">"))
	if err != nil {
		return Lag{}, err
	}
	lag.Oldest = max(0, time.Since(oldest.Time))
	return lag, nil
}
