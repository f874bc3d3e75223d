package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/normalize"
)

// Ack is the stream's answer: the message is stored.
type Ack struct {
	Sequence uint64
	// Duplicate: a message with this id had been stored before, at Sequence, perhaps
	// by an earlier attempt of the same Publish whose acknowledgement was lost.
	Duplicate bool
}

// JetStream API errors (nats-server, server/errors.json).
const (
	errMessageTooLarge = 10054 // beyond the stream's maximum message size
	errStoreFailed     = 10077 // the stream is full
	errHeadersTooLarge = 10097
	errIDInProcess     = 10158 // a copy with this id is on its way into the stream
	errTooManyRequests = 10167 // the stream's queue is full for the moment
)

// hasCode reports whether an error is an answer of the JetStream API with that code.
func hasCode(err error, code jetstream.ErrorCode) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == code
}

// final reports whether the server has refused a message for more than a moment.
func final(err error) bool {
	var api *jetstream.APIError
	if !errors.As(err, &api) {
		return false
	}
	switch api.ErrorCode {
	case errIDInProcess, errTooManyRequests:
		return false
	case errStoreFailed:
		return true
	}
	return api.Code != 503
}

// noRoom reports whether a stream was not created because the account, the server or the
// limit for one stream has less room than its max_bytes.
func noRoom(err *jetstream.APIError) bool {
	return slices.Contains([]jetstream.ErrorCode{10002, 10023, 10047, 10122}, err.ErrorCode) ||
		err.ErrorCode == 10005 && strings.Contains(err.Description, "insufficient storage") // of a cluster
}

// Publish stores the event and returns when the stream has acknowledged it.
// Until the publish timeout has passed it tries again, with the same id, so
// that a lost acknowledgement or a new leader does not cost the event. A body too
// large for a message goes to the object store first. If ctx is in a span, the
// event's traceparent names it.
// The errors are [ErrUnavailable] and [ErrNotPublishable].
func (b *Bus) Publish(ctx context.Context, e *normalize.Event) (Ack, error) {
	msg, err := encode(e, b.cfg.SubjectPrefix)
	if err != nil {
		return Ack{}, err
	}
	traced(ctx, msg, "ce-traceparent")
	start := time.Now()
	defer func() { b.metrics.publishSeconds.Observe(time.Since(start).Seconds()) }()
	return b.publishWhole(ctx, msg, b.cfg.Stream)
}

// publishWhole publishes a message, if need be with its body as an object.
func (b *Bus) publishWhole(ctx context.Context, msg *nats.Msg, stream string) (Ack, error) {
	ack, err := b.publish(ctx, msg, stream)
	if len(msg.Data) > 0 && tooLarge(err) {
		if err := b.moveBody(ctx, msg); err != nil {
			return Ack{}, err
		}
		return b.publish(ctx, msg, stream)
	}
	return ack, err
}

func (b *Bus) publish(ctx context.Context, msg *nats.Msg, stream string) (ack Ack, err error) {
	if reason := b.state.Load().refused[stream]; reason != "" {
		return Ack{}, fmt.Errorf("%w: %s", ErrUnavailable, reason)
	}
	if !b.nc.IsConnected() {
		return Ack{}, ErrNotConnected
	}
	if stream == b.cfg.Stream {
		defer func() { b.note(err) }()
	}
	msg.Header[jetstream.ExpectedStreamHeader] = []string{stream}
	end := time.Now().Add(b.cfg.PublishTimeout)
	alone := func(ctx context.Context, msg *nats.Msg) (*jetstream.PubAck, error) { return b.attempt(ctx, msg, end) }
	attempt := alone
	if b.group != nil && b.state.Load().atomic && stream == b.cfg.Stream {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end)
		defer cancel()
		attempt = b.group.publish
	}
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 320*time.Millisecond) {
		ack, err := attempt(ctx, msg)
		attempt = alone // what may be stored already goes by itself
		if err == nil && ack.Duplicate {
			if err := b.server.failed(stream); err != nil {
				b.Wake()
				return Ack{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
			}
		}
		if err == nil {
			return Ack{Sequence: ack.Sequence, Duplicate: ack.Duplicate}, nil
		}
		switch {
		case tooLarge(err), hasCode(err, errHeadersTooLarge):
			return Ack{}, fmt.Errorf("%w: %w", ErrNotPublishable, err)
		case final(err):
			b.Wake()
			return Ack{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
		case !b.nc.IsConnected():
			return Ack{}, fmt.Errorf("%w: %w", ErrNotConnected, err)
		case errors.Is(err, jetstream.ErrNoStreamResponse):
			b.Wake()
		}
		wait = min(wait, time.Until(end))
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		if ctx.Err() != nil || !time.Now().Before(end) {
			b.Wake()
			return Ack{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
}

// failing says since when, and why, the stream takes no events though there is a
// connection: the server or the account is full, the user may not publish.
type failing struct {
	first, last time.Time // attempts that failed
	reason      string    // of the first
}

const (
	failingFor   = 5 * time.Second // how long it may take none before there is a warning
	failingKnown = time.Minute     // how long that warning stays without another attempt
)

func (f *failing) warns() bool {
	return f != nil && f.last.Sub(f.first) > failingFor && time.Since(f.last) < failingKnown
}

// note keeps what came of publishing an event.
func (b *Bus) note(err error) {
	old := b.failing.Load()
	switch {
	case err == nil && old != nil:
		b.failing.Store(nil)
		b.Wake()
	case errors.Is(err, ErrUnavailable) && b.nc.IsConnected():
		now := time.Now()
		f := failing{first: now, last: now, reason: strings.TrimPrefix(err.Error(), ErrUnavailable.Error()+": ")}
		if old != nil {
			f.first, f.reason = old.first, old.reason
		}
		b.failing.CompareAndSwap(old, &f)
	}
}

// once is for publishing without the client's own attempts after the first.
var once = jetstream.WithRetryAttempts(0)

// attempt publishes once and waits a third of the publish timeout: an
// acknowledgement that has not come by then is lost, or its stream is without
// a leader.
func (b *Bus) attempt(ctx context.Context, msg *nats.Msg, end time.Time) (*jetstream.PubAck, error) {
	if third := time.Now().Add(b.cfg.PublishTimeout / 3); third.Before(end) {
		end = third
	}
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	return b.js.PublishMsg(ctx, msg, once)
}
