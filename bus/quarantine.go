package bus

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/internal/binding"
	"github.com/hookbus/bridge/normalize"
)

// Rejected is a verified body that is no event.
type Rejected struct {
	Provider, Reason string
	Body             []byte
	Received         time.Time
	Headers          map[string]string // of the request; they are kept as Bridge-Header-<name>
	// Repeatable: the same body may come again for another occurrence, since no id and
	// no time is known in it. Each is kept.
	Repeatable bool
}

// ID is the body's id in the quarantine: a digest of provider, reason and body.
func (r Rejected) ID() string { return normalize.Digest("msg", r.Provider, r.Reason, string(r.Body)) }

// ownID is an id that the same body has only if it was received at the same time.
func (r Rejected) ownID() string {
	return normalize.Digest("msg", r.Provider, r.Reason, string(r.Body), r.Received.UTC().Format(time.RFC3339Nano))
}

// Quarantine stores a body that cannot be published as an event, with the
// reason and, if ctx is in a span, with that as TraceHeader. A body too large for
// a message goes to the object store. One that is there already is not stored
// again, unless it is [Rejected.Repeatable]. The errors are those of [Bus.Publish].
func (b *Bus) Quarantine(ctx context.Context, r Rejected) error {
	sum := sha256.Sum256(r.Body)
	msg := &nats.Msg{
		Subject: normalize.Subject(b.cfg.QuarantinePrefix, r.Provider, r.Reason),
		Data:    r.Body,
		Header: nats.Header{
			jetstream.MsgIDHeader: {r.ID()},
			IDHeader:              {r.ID()},
			ProviderHeader:        {r.Provider},
			ReasonHeader:          {r.Reason},
			ReceivedHeader:        {r.Received.UTC().Format(time.RFC3339Nano)},
			DigestHeader:          {hex.EncodeToString(sum[:])},
			SizeHeader:            {strconv.Itoa(len(r.Body))},
		},
	}
	for name, value := range r.Headers {
		msg.Header[HeaderPrefix+name] = []string{value}
	}
	traced(ctx, msg, TraceHeader)
	ack, err := b.publishWhole(ctx, msg, b.cfg.QuarantineStream)
	if err != nil || !ack.Duplicate {
		return err
	}
	another, err := b.another(ctx, r, ack.Sequence)
	if err == nil && another {
		msg.Header[jetstream.MsgIDHeader] = []string{r.ownID()}
		_, err = b.publishWhole(ctx, msg, b.cfg.QuarantineStream)
	}
	return err
}

// another reports whether a body has to be stored though the quarantine's stream says
// that it has one with this id, at that sequence. It has to be if that one was removed
// since: the stream knows its id until the duplicate window is over. A repeatable body
// has to be unless that one was received at the same time, since only that shows that
// they are one occurrence; without an answer it is stored. The error is [ErrUnavailable].
func (b *Bus) another(ctx context.Context, r Rejected, sequence uint64) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	if r.Repeatable {
		var stored *jetstream.RawStreamMsg
		stream, err := b.js.Stream(ctx, b.cfg.QuarantineStream)
		if err == nil {
			stored, err = stream.GetMsg(ctx, sequence)
		}
		return err != nil || !readQuarantined(sequence, stored.Header, stored.Time).Received.Equal(r.Received), nil
	}
	var info jetstream.StreamInfo // from the leader; a message may be read from another replica
	if err := request(ctx, b.nc, "STREAM.INFO."+b.cfg.QuarantineStream, map[string]bool{"deleted_details": true}, &info); err != nil {
		return false, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return sequence < info.State.FirstSeq || slices.Contains(info.State.Deleted, sequence), nil
}

// Quarantined is a body in the quarantine.
type Quarantined struct {
	Rejected        // Body is nil in a list
	Sequence uint64 // in the quarantine's stream
	ID       string // with which the request was answered
	Size     int    // of the body, in bytes
	// Traceparent is the W3C trace context, if the request was traced.
	Traceparent string

	dataref string
}

// QuarantineStream is the quarantine for those who look after it.
type QuarantineStream struct {
	js     jetstream.JetStream
	stream jetstream.Stream
}

// ErrNoQuarantine: a stream or a message is not of a quarantine.
var ErrNoQuarantine = errors.New("bus: this is no quarantine")

// OpenQuarantine finds the stream of that name, with subjects below prefix. The
// errors are jetstream.ErrStreamNotFound and [ErrNoQuarantine].
func OpenQuarantine(ctx context.Context, js jetstream.JetStream, name, prefix string) (*QuarantineStream, error) {
	stream, err := js.Stream(ctx, name)
	if err != nil {
		return nil, err
	}
	subjects := stream.CachedInfo().Config.Subjects
	if !slices.ContainsFunc(subjects, func(s string) bool { return strings.HasPrefix(s, prefix+".") }) {
		return nil, fmt.Errorf("%w: %s takes %v, not %s.>", ErrNoQuarantine, name, subjects, prefix)
	}
	return &QuarantineStream{js: js, stream: stream}, nil
}

const (
	listHeartbeat = 500 * time.Millisecond // after two without one the consumer is made anew, where it was
	listAttempts  = 3                      // to make it
)

// All yields what is in the quarantine at the call, the oldest first, without
// the bodies.
func (q *QuarantineStream) All(ctx context.Context) iter.Seq2[Quarantined, error] {
	return func(yield func(Quarantined, error) bool) {
		info, err := q.stream.Info(ctx)
		if err != nil {
			yield(Quarantined{}, err)
			return
		}
		if info.State.Msgs == 0 {
			return
		}
		consumer, err := q.stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{HeadersOnly: true, MaxResetAttempts: listAttempts})
		if err != nil {
			yield(Quarantined{}, err)
			return
		}
		messages, err := consumer.Messages(jetstream.PullHeartbeat(listHeartbeat))
		if err != nil {
			yield(Quarantined{}, err)
			return
		}
		stop := context.AfterFunc(ctx, messages.Stop)
		defer stop()
		defer messages.Stop()
		for {
			next, cancel := context.WithTimeout(ctx, apiTimeout)
			msg, err := messages.Next(jetstream.NextContext(next))
			cancel()
			switch {
			case errors.Is(err, jetstream.ErrNoHeartbeat):
				continue
			case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
				// What was last may have been removed meanwhile.
				info, err := consumer.Info(ctx)
				if err != nil {
					yield(Quarantined{}, err)
					return
				}
				if info.NumPending > 0 {
					continue
				}
				return
			case err != nil:
				yield(Quarantined{}, err)
				return
			}
			meta, err := msg.Metadata()
			if err != nil {
				yield(Quarantined{}, err)
				return
			}
			if !yield(readQuarantined(meta.Sequence.Stream, msg.Headers(), meta.Timestamp), nil) || meta.NumPending == 0 || meta.Sequence.Stream >= info.State.LastSeq {
				return
			}
		}
	}
}

// Get returns one, with its body. The error is jetstream.ErrMsgNotFound if there
// is none at that sequence, and jetstream.ErrObjectNotFound if its body is gone.
func (q *QuarantineStream) Get(ctx context.Context, sequence uint64) (Quarantined, error) {
	msg, err := q.stream.GetMsg(ctx, sequence)
	if err != nil {
		return Quarantined{}, err
	}
	item := readQuarantined(msg.Sequence, msg.Header, msg.Time)
	if item.Body = msg.Data; item.dataref != "" {
		item.Body, err = binding.ReadObject(ctx, q.js, item.dataref)
	}
	return item, err
}

// Remove removes one for good, and its body from the object store unless another
// has the same. What is gone already is no error; the error of a message that is
// not of a quarantine is [ErrNoQuarantine].
func (q *QuarantineStream) Remove(ctx context.Context, item Quarantined) error {
	if item.Provider == "" || item.Reason == "" {
		return ErrNoQuarantine
	}
	if err := q.stream.SecureDeleteMsg(ctx, item.Sequence); err != nil {
		if _, gone := q.stream.GetMsg(ctx, item.Sequence); !errors.Is(gone, jetstream.ErrMsgNotFound) {
			return err
		}
	}
	bucket, name, ok := binding.Dataref(item.dataref)
	if !ok {
		return nil
	}
	for other, err := range q.All(ctx) {
		if err != nil || other.dataref == item.dataref {
			return err
		}
	}
	store, err := q.js.ObjectStore(ctx, bucket)
	if err == nil {
		err = store.Delete(ctx, name)
	}
	if errors.Is(err, jetstream.ErrObjectNotFound) || errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil
	}
	return err
}

func readQuarantined(sequence uint64, h nats.Header, stored time.Time) Quarantined {
	item := Quarantined{
		Rejected: Rejected{Provider: h.Get(ProviderHeader), Reason: h.Get(ReasonHeader), Received: stored, Headers: make(map[string]string)},
		Sequence: sequence,
		ID:       cmp.Or(h.Get(IDHeader), h.Get(jetstream.MsgIDHeader)), // earlier versions wrote the second only
		dataref:  h.Get(datarefHeader),

		Traceparent: h.Get(TraceHeader),
	}
	item.Size, _ = strconv.Atoi(h.Get(SizeHeader))
	if received, err := time.Parse(time.RFC3339Nano, h.Get(ReceivedHeader)); err == nil {
		item.Received = received
	}
	for name := range h {
		if original, ok := strings.CutPrefix(name, HeaderPrefix); ok {
			item.Headers[original] = h.Get(name)
		}
	}
	return item
}
