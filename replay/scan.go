package replay

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// The most that is asked for at once, in messages and bytes; two messages of
	// the largest size always fit.
	readBatch = 1000
	readBytes = 8 << 20
	// readIdle is how long they may take before the server is asked whether any
	// are still to come.
	readIdle = 2 * time.Second
	// readForget is how long after our last request the server drops a consumer.
	readForget = 30 * time.Second
)

// errGap: messages were delivered and did not arrive, or do not come. Reading
// again from the same place is enough.
var errGap = errors.New("reading the stream was interrupted")

// part is a part of a stream, read in order.
type part struct {
	stream      string
	from, to    uint64 // sequences, both included
	filters     []string
	headersOnly bool
}

// scan hands each message to f and returns when there is no more up to p.to. It
// does not need the message at p.to, nor any other, to exist.
func scan(ctx context.Context, js jetstream.JetStream, p part, f func(seq uint64, msg jetstream.Msg) error) error {
	if p.from > p.to {
		return nil
	}
	consumer, err := js.CreateConsumer(ctx, p.stream, reading(jetstream.ConsumerConfig{
		DeliverPolicy:  jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:    p.from,
		FilterSubjects: p.filters,
		HeadersOnly:    p.headersOnly,
	}))
	if err != nil {
		return err
	}
	bytes := max(readBytes, 2*int(js.Conn().MaxPayload()))
	left, received := consumer.CachedInfo().NumPending, uint64(0)
	for left > 0 {
		last := received
		err := fetch(ctx, consumer, int(min(readBatch, left)), bytes, func(msg jetstream.Msg) (more bool, err error) {
			meta, err := msg.Metadata()
			if err != nil {
				return false, err
			}
			if received++; meta.Sequence.Consumer != received {
				return false, errGap
			}
			if left = meta.NumPending; meta.Sequence.Stream >= p.to {
				left = 0
			}
			if meta.Sequence.Stream <= p.to {
				err = f(meta.Sequence.Stream, msg)
			}
			return left > 0, err
		})
		if err != nil {
			return err
		}
		if received == last { // what was left may have been deleted
			info, err := consumer.Info(ctx)
			if err == nil && (info.NumPending > 0 || info.Delivered.Consumer > received) {
				err = errGap
			}
			return err
		}
	}
	return nil
}

// fetch hands the next messages to f, at most n, until it has enough. In a cluster the
// servers may learn only a moment after a consumer was made where it is.
func fetch(ctx context.Context, consumer jetstream.Consumer, n, bytes int, f func(jetstream.Msg) (more bool, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, readIdle)
	defer cancel()
	for {
		batch, err := consumer.Fetch(n, jetstream.FetchMaxBytes(bytes), jetstream.FetchContext(ctx))
		if err != nil {
			return err
		}
		for msg := range batch.Messages() {
			if more, err := f(msg); err != nil || !more {
				return err
			}
		}
		switch err := batch.Error(); {
		case errors.Is(err, context.DeadlineExceeded):
			return nil
		case !errors.Is(err, nats.ErrNoResponders):
			return err
		}
		select {
		case <-ctx.Done():
			return nats.ErrNoResponders
		case <-time.After(retryAfter):
		}
	}
}

// reading completes the configuration of a consumer that only reads and that
// the server forgets by itself.
func reading(c jetstream.ConsumerConfig) jetstream.ConsumerConfig {
	c.AckPolicy = jetstream.AckNonePolicy
	c.MemoryStorage = true
	c.Replicas = 1
	c.InactiveThreshold = readForget
	return c
}

// sequenceAt returns the sequence of the first message stored at t or later, or
// the one after the last. The server finds it in its index when it creates a
// consumer that begins at this time.
func sequenceAt(ctx context.Context, js jetstream.JetStream, stream string, t time.Time) (uint64, error) {
	consumer, err := js.CreateConsumer(ctx, stream, reading(jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartTimePolicy,
		OptStartTime:  &t,
		HeadersOnly:   true,
	}))
	if err != nil {
		return 0, err
	}
	return consumer.CachedInfo().Delivered.Stream + 1, nil
}

// countFrom returns how many messages match from a sequence on.
func countFrom(ctx context.Context, js jetstream.JetStream, stream string, filters []string, from uint64) (uint64, error) {
	consumer, err := js.CreateConsumer(ctx, stream, reading(jetstream.ConsumerConfig{
		DeliverPolicy:  jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:    from,
		FilterSubjects: filters,
		HeadersOnly:    true,
	}))
	if err != nil {
		return 0, err
	}
	return consumer.CachedInfo().NumPending, nil
}

// firstOf returns the first sequence, which exists or is still to come, at or after
// since or fromSeq, of which at most one is set.
func firstOf(ctx context.Context, js jetstream.JetStream, info *jetstream.StreamInfo, since time.Time, fromSeq uint64) (uint64, error) {
	if fromSeq > info.State.LastSeq {
		return 0, fmt.Errorf("%w: %s ends at sequence %d, before %d", ErrBeyondEnd, info.Config.Name, info.State.LastSeq, fromSeq)
	}
	if !since.IsZero() {
		return sequenceAt(ctx, js, info.Config.Name, since)
	}
	return max(fromSeq, info.State.FirstSeq, 1), nil
}

// eventType returns an event's type, or false for a message that is none.
func eventType(h nats.Header) (string, bool) {
	if h.Get("ce-specversion") == "" {
		return "", false
	}
	t := attribute(h, "type")
	return t, t != ""
}

// attribute reads a CloudEvents attribute, undoing the binding's encoding.
func attribute(h nats.Header, name string) string {
	encoded := h.Get("ce-" + name)
	if value, err := url.PathUnescape(encoded); err == nil {
		return value
	}
	return encoded
}
