package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// ErrNoBucket: there is none, or it was not seen yet.
var ErrNoBucket = errors.New("bus: no bucket")

// Entry is what the bucket has under a name.
type Entry struct {
	Name  string // of characters that a key-value key may have
	Value []byte
}

// Put writes entries into the bucket, side by side, and returns when all are
// stored. After an error any of them may be stored. The errors are [ErrUnavailable]
// and [ErrNoBucket]; after either, streams and bucket are looked at.
func (b *Bus) Put(ctx context.Context, entries ...Entry) (err error) {
	defer func() {
		if err != nil {
			b.Wake()
		}
	}()
	if !b.nc.IsConnected() {
		return ErrNotConnected
	}
	st := b.state.Load()
	if st.bucket == nil {
		return ErrNoBucket
	}
	// As jetstream.KeyValue does it (NATS ADR-8), but without a wait for each.
	messages := make([]*nats.Msg, len(entries))
	for i, e := range entries {
		messages[i] = &nats.Msg{Subject: "$KV." + b.cfg.Bucket + "." + e.Name, Header: nats.Header{}, Data: e.Value}
	}
	if b.bucketGroup != nil && st.bucketAtomic {
		return b.putGrouped(ctx, messages)
	}
	acks := make([]jetstream.PubAckFuture, len(messages))
	for i, msg := range messages {
		if acks[i], err = b.js.PublishMsgAsync(msg, once); err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	for _, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		}
	}
	return nil
}

func (b *Bus) putGrouped(ctx context.Context, messages []*nats.Msg) error {
	errs := make([]error, len(messages))
	var wg sync.WaitGroup
	for i, msg := range messages {
		wg.Go(func() { _, errs[i] = b.bucketGroup.publish(ctx, msg) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}
