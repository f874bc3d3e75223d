package replay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/dedupe"
)

// Reset is what setting a consumer back would do.
type Reset struct {
	Consumer string `json:"consumer"`
	Stream   string `json:"stream"`
	// Acknowledged is the sequence up to which the consumer is done; Outstanding
	// the number of messages behind it that are delivered and not acknowledged.
	Acknowledged uint64 `json:"acknowledged_sequence"`
	Outstanding  int    `json:"outstanding"`
	// From is the sequence to which it is set back, Messages the number of messages
	// that it receives from there on, and Types that number by CloudEvents type; what
	// is no event counts as "".
	From     uint64            `json:"from_sequence"`
	Messages uint64            `json:"messages"`
	Types    map[string]uint64 `json:"types"`
	Done     bool              `json:"done"` // [Reset.Apply] has done it

	nc *nats.Conn
}

// PlanReset looks at what it means to set a durable pull consumer back to the
// first message stored at since or later, or to a sequence; one of the two has
// to be given. It changes nothing.
//
// It refuses, with [ErrRefused], the bridge's own indexer, a push or an
// ephemeral consumer, one whose deliver policy does not let the server set it
// there, and a place at which it would pass over messages that it has not
// acknowledged. Other errors are [ErrInvalid], [ErrNoStream], [ErrNoConsumer],
// [ErrBeyondEnd], [ErrPermission] and [bus.ErrNoJetStream].
func PlanReset(ctx context.Context, nc *nats.Conn, stream, consumer string, since time.Time, fromSeq uint64) (*Reset, error) {
	if since.IsZero() == (fromSeq == 0) {
		return nil, fmt.Errorf("%w: a time or a sequence, one of the two", ErrInvalid)
	}
	if err := (Selection{Since: since, FromSeq: fromSeq}).check(time.Now()); err != nil {
		return nil, err
	}
	if consumer == dedupe.IndexerName {
		return nil, fmt.Errorf("%w: %s is the bridge's own, by which it recognises redeliveries", ErrRefused, consumer)
	}
	ctx, done := forbidden(ctx, nc)
	defer done()
	p := &Reset{Consumer: consumer, Stream: stream, Types: map[string]uint64{}, nc: nc}
	if err := p.look(ctx, since, fromSeq); err != nil {
		return nil, explain(ctx, err)
	}
	return p, nil
}

func (p *Reset) look(ctx context.Context, since time.Time, fromSeq uint64) error {
	js, err := jetstream.New(p.nc)
	if err != nil {
		return err
	}
	stream, err := streamOf(ctx, js, p.Stream)
	if err != nil {
		return err
	}
	info, err := consumerOf(ctx, js, p.Stream, p.Consumer)
	if err != nil {
		return err
	}
	if p.From, err = firstOf(ctx, js, stream, since, fromSeq); err != nil {
		return err
	}
	if err := p.allowed(ctx, js, &info.Config); err != nil {
		return err
	}
	p.Acknowledged, p.Outstanding = info.AckFloor.Stream, info.NumAckPending
	filters := info.Config.FilterSubjects
	if f := info.Config.FilterSubject; f != "" {
		filters = []string{f}
	}
	if next := p.Acknowledged + 1; p.From > next {
		all, err := countFrom(ctx, js, p.Stream, filters, next)
		if err != nil {
			return err
		}
		left, err := countFrom(ctx, js, p.Stream, filters, p.From)
		if err != nil {
			return err
		}
		if all > left {
			return fmt.Errorf("%w: %s has acknowledged everything up to sequence %d only, and would pass over %d messages before %d",
				ErrRefused, p.Consumer, p.Acknowledged, all-left, p.From)
		}
	}
	return scan(ctx, js, part{
		stream: p.Stream, from: p.From, to: stream.State.LastSeq, filters: filters, headersOnly: true,
	}, func(_ uint64, msg jetstream.Msg) error {
		typ, _ := eventType(msg.Headers())
		p.Messages++
		p.Types[typ]++
		return nil
	})
}

func consumerOf(ctx context.Context, js jetstream.JetStream, stream, name string) (*jetstream.ConsumerInfo, error) {
	consumer, err := js.Consumer(ctx, stream, name)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound), errors.Is(err, jetstream.ErrInvalidConsumerName):
		return nil, fmt.Errorf("%w: %s of the stream %s", ErrNoConsumer, name, stream)
	case errors.Is(err, jetstream.ErrNotPullConsumer):
		return nil, fmt.Errorf("%w: %s is a push consumer: whoever is subscribed would be sent everything at once", ErrRefused, name)
	case err != nil:
		return nil, err
	}
	return consumer.CachedInfo(), nil
}

// allowed applies the server's conditions, to say why before it refuses.
func (p *Reset) allowed(ctx context.Context, js jetstream.JetStream, c *jetstream.ConsumerConfig) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s %s", ErrRefused, p.Consumer, fmt.Sprintf(format, args...))
	}
	if c.Durable == "" {
		return refuse("is not durable: its own client makes it anew when it needs one")
	}
	switch c.DeliverPolicy {
	case jetstream.DeliverAllPolicy:
	case jetstream.DeliverByStartSequencePolicy:
		if p.From < c.OptStartSeq {
			return refuse("was made to begin at sequence %d, and the server does not set it back further, to %d", c.OptStartSeq, p.From)
		}
	case jetstream.DeliverByStartTimePolicy:
		start, err := sequenceAt(ctx, js, p.Stream, *c.OptStartTime)
		if err != nil {
			return err
		}
		if p.From < start {
			return refuse("was made to begin at %s, sequence %d, and the server does not set it back further, to %d", c.OptStartTime.Format(time.RFC3339), start, p.From)
		}
	default:
		return refuse("has the deliver policy %q, and the server sets back only those of all, by_start_sequence and by_start_time", c.DeliverPolicy)
	}
	return nil
}

// Apply sets the consumer back. Its clients go on as they are: they receive all from
// there on, again or for the first time, including messages that they have now and have
// not acknowledged. The errors are [ErrRefused], [ErrNoConsumer], [ErrPermission] and
// those of the NATS client.
func (p *Reset) Apply(ctx context.Context) error {
	ctx, done := forbidden(ctx, p.nc)
	defer done()
	js, err := jetstream.New(p.nc)
	if err != nil {
		return err
	}
	if _, err := consumerOf(ctx, js, p.Stream, p.Consumer); err != nil {
		return explain(ctx, err)
	}
	_, err = js.ResetConsumerToSequence(ctx, p.Stream, p.Consumer, p.From)
	switch {
	case errors.Is(err, jetstream.ErrConsumerInvalidReset):
		err = fmt.Errorf("%w: the server does not set %s to sequence %d", ErrRefused, p.Consumer, p.From)
	case errors.Is(err, nats.ErrNoResponders), errors.Is(err, context.DeadlineExceeded):
		// A consumer answers this request itself, from API level 4 on; to any
		// other the server says nothing.
		err = fmt.Errorf("%w: %s does not answer: it has no leader, or this NATS server is older than 2.14, the first that can", ErrRefused, p.Consumer)
	}
	p.Done = err == nil
	return explain(ctx, err)
}
