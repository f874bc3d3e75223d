package dedupe

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/bus"
)

// Lag is how far the index is behind the stream.
type Lag struct {
	Messages uint64
	Oldest   time.Duration // age of the oldest message not yet indexed
}

type measured struct {
	Lag
	at       time.Time         // not later than the answers
	consumer map[string]string // metadata of the consumer
	made     time.Time         // when the consumer was
	failing  time.Time         // since when there is a connection and no answer; zero: there was one
}

// lagUnknown is how long there has to be no answer before what was stored meanwhile
// counts as not indexed.
const lagUnknown = 3 * measureLagEvery

// Lag returns how far the index was behind a few seconds ago. While that cannot be
// measured, what may not be indexed gets older.
func (x *Indexer) Lag() Lag {
	m := x.lag.Load()
	lag := m.Lag
	if !m.failing.IsZero() && time.Since(m.failing) > lagUnknown {
		lag.Oldest += time.Since(m.failing)
	}
	return lag
}

// indexed returns a time such that all that was stored before it was indexed when the
// lag was measured; zero if that was the lag of another bucket.
func (x *Indexer) indexed(st *bus.State) time.Time {
	lag := x.lag.Load()
	if !fills(lag.consumer, st) {
		return time.Time{}
	}
	return lag.at.Add(-lag.Oldest)
}

// unanswered returns what is known after a question asked at that time got no answer.
func (m measured) unanswered(asked time.Time, connected bool) measured {
	if !connected { // nothing is stored either
		m.failing = time.Time{}
	} else if m.failing.IsZero() {
		m.failing = asked
	}
	return m
}

// measureLag keeps the lag up to date, also while nothing is indexed.
func (x *Indexer) measureLag(ctx context.Context) {
	var had held
	for ctx.Err() == nil {
		at := time.Now()
		m, err := x.measure(ctx)
		m.at = at
		if err != nil {
			m = x.lag.Load().unanswered(at, x.bus.Connected())
		} else {
			had = x.compare(ctx, had, &m)
		}
		x.lag.Store(&m)
		wait(ctx, nil, measureLagEvery)
	}
}

func (x *Indexer) measure(ctx context.Context) (m measured, err error) {
	ctx, cancel := context.WithTimeout(ctx, measureLagEvery)
	defer cancel()
	js := x.bus.JetStream()
	s, err := js.Stream(ctx, x.bus.Stream())
	if err != nil {
		return m, err
	}
	stream := s.CachedInfo()
	x.dedupe.filter.window(stream.Config.Duplicates)
	m.Messages = stream.State.Msgs // without a consumer
	next := uint64(1)
	switch info, err := consumerOf(ctx, x.bus); {
	case err == nil:
		m.Messages, next = info.NumPending+uint64(info.NumAckPending), info.AckFloor.Stream+1
		m.consumer, m.made = info.Config.Metadata, info.Created
	case !errors.Is(err, jetstream.ErrConsumerNotFound):
		return m, err
	case errors.Is(err, errUnfit): // the indexer, which may be at work, has not seen it
		select {
		case x.edited <- struct{}{}:
		default:
		}
	}
	if m.Messages == 0 {
		return m, nil
	}
	oldest, err := s.GetMsg(ctx, next, jetstream.WithGetMsgSubject(">"))
	if err != nil {
		return m, err
	}
	m.Oldest = max(0, time.Since(oldest.Time))
	return m, nil
}

// held is what the bucket held when it was looked at.
type held struct {
	bucket, consumer time.Time // when they were made
	last             uint64    // sequence of the bucket's last message
	stored           time.Time // and when that was stored
	doubted          bool      // it has seemed to hold less since
}

// compare has the index built again if the bucket has lost its end, as on a server that
// had not synced it before a crash, and the consumer still counts those messages as
// acknowledged: their names would never come again. Of several bridges one does it. As
// soon as it seems so, or cannot be told, nothing counts as indexed.
func (x *Indexer) compare(ctx context.Context, had held, m *measured) held {
	st := x.bus.State()
	if st.Bucket() == nil || m.made.IsZero() {
		return had
	}
	ctx, cancel := context.WithTimeout(ctx, measureLagEvery)
	defer cancel()
	js := x.bus.JetStream()
	s, err := js.Stream(ctx, "KV_"+st.Bucket().Bucket())
	if err != nil {
		m.consumer = nil
		return had
	}
	info := s.CachedInfo()
	now := held{bucket: info.Created, consumer: m.made, last: info.State.LastSeq, stored: info.State.LastTime}
	if !now.bucket.Equal(had.bucket) || !now.consumer.Equal(had.consumer) {
		return now
	}
	if now.last >= had.last { // not lost, or lost and grown again
		msg, err := s.GetMsg(ctx, had.last) // there is none if its name was written once more
		if err != nil || !msg.Time.After(had.stored) {
			return now
		}
	}
	m.consumer = nil
	if !had.doubted { // a leader that has just been elected may not know yet all that it has
		had.doubted = true
		return had
	}
	if err := js.DeleteConsumer(ctx, x.bus.Stream(), IndexerName); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return had
	}
	x.log.Warn("the bucket has lost its end: indexing again", "had", had.last, "has", now.last)
	return now
}

// consumerOf describes the consumer that fills the bridge's bucket. The error is
// [jetstream.ErrConsumerNotFound] also if the consumer that is there fills another
// bucket; if it leaves events out, it is errUnfit, which wraps that.
func consumerOf(ctx context.Context, b *bus.Bus) (*jetstream.ConsumerInfo, error) {
	c, err := b.JetStream().Consumer(ctx, b.Stream(), IndexerName)
	if err != nil {
		return nil, err
	}
	info := c.CachedInfo()
	if another(info.Config.Metadata, b.State()) != "" {
		return nil, jetstream.ErrConsumerNotFound
	}
	if unfit(info.Config) != "" {
		return nil, errUnfit
	}
	return info, nil
}

var errUnfit = fmt.Errorf("%w: the one there was edited", jetstream.ErrConsumerNotFound)
