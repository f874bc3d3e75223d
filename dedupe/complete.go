package dedupe

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/bus"
)

// completeTimeout is how long a request waits for the index to catch up, which
// as a rule takes milliseconds, before it counts as incomplete. A message whose
// acknowledgement was lost comes again within it.
const completeTimeout = indexAckWait + 500*time.Millisecond

// completeness asks how far the index is, for all who want to know at a time together.
type completeness struct {
	bus      *bus.Bus
	stream   together[*jetstream.StreamInfo]
	consumer together[*jetstream.ConsumerInfo]
}

// wait waits until all that the stream holds now after a sequence is indexed, and
// reports whether it is. A question that gets no answer, as when the connection is lost,
// is asked again. An answer that lacks the latest message known to this process comes
// from a server that is behind. This process's indexer is told to hurry.
func (c *completeness) wait(ctx context.Context, after uint64, latest *entry, hurry chan<- struct{}) bool {
	ctx, cancel := context.WithTimeout(ctx, completeTimeout)
	defer cancel()
	var last uint64
	known := false
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		var err error
		if !known {
			last, err = c.lastSequence(ctx, latest)
			known = err == nil
		}
		if known {
			if last <= after {
				return true
			}
			var done bool
			if done, err = c.indexedTo(ctx, last); done {
				return true
			}
			select {
			case hurry <- struct{}{}:
			default:
			}
		}
		if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrConsumerNotFound) {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
	}
}

func (c *completeness) lastSequence(ctx context.Context, latest *entry) (uint64, error) {
	info, err := c.stream.ask(ctx, func(ctx context.Context) (*jetstream.StreamInfo, error) {
		s, err := c.bus.JetStream().Stream(ctx, c.bus.Stream())
		if err != nil {
			return nil, err
		}
		return s.CachedInfo(), nil
	})
	if err != nil {
		return 0, err
	}
	if latest != nil && latest.Stream == info.Created.UnixNano() {
		return max(info.State.LastSeq, latest.Sequence), nil
	}
	return info.State.LastSeq, nil
}

// indexedTo reports whether a sequence and all before it are indexed. It goes by
// what is acknowledged: a leader that has just been elected may not know yet what is
// pending.
func (c *completeness) indexedTo(ctx context.Context, last uint64) (bool, error) {
	info, err := c.consumer.ask(ctx, func(ctx context.Context) (*jetstream.ConsumerInfo, error) { return consumerOf(ctx, c.bus) })
	if err != nil {
		return false, err
	}
	return info.AckFloor.Stream >= last, nil
}

// together asks a question once for all who come before it is asked.
type together[T any] struct {
	mu     sync.Mutex
	asking bool
	next   *answer[T] // to the question that is not asked yet
}

type answer[T any] struct {
	there chan struct{}
	value T
	err   error
}

// ask returns the answer to a question that was asked after the call of ask. One
// question is under way at a time, for indexTimeout at most.
func (t *together[T]) ask(ctx context.Context, question func(context.Context) (T, error)) (T, error) {
	t.mu.Lock()
	if t.next == nil {
		t.next = &answer[T]{there: make(chan struct{})}
	}
	a := t.next
	if !t.asking {
		t.asking = true
		go t.run(question)
	}
	t.mu.Unlock()
	select {
	case <-a.there:
		return a.value, a.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

func (t *together[T]) run(question func(context.Context) (T, error)) {
	for {
		t.mu.Lock()
		a := t.next
		t.next, t.asking = nil, a != nil
		t.mu.Unlock()
		if a == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), indexTimeout)
		a.value, a.err = question(ctx)
		cancel()
		close(a.there)
	}
}
