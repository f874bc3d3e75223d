package replay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	maxPending      = 512      // copies sent and not acknowledged
	maxPendingBytes = 32 << 20 // and their bodies
	ackTimeout      = 5 * time.Second
	lastAcks        = time.Second // how long a run that is ended waits for them
	// patience is how long a run goes on without anything being read or stored.
	patience      = 30 * time.Second
	retryAfter    = 250 * time.Millisecond
	progressEvery = 200 * time.Millisecond
)

// errUnacknowledged: an acknowledgement is not the one that was expected.
var errUnacknowledged = errors.New("copies were not stored in their place")

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// run is one run of a replay, by one goroutine.
type run struct {
	js      jetstream.JetStream
	name    string
	id      string // of this run
	opts    Options
	record  record
	started time.Time
	result  Result

	stream  jetstream.Stream // of the copies; nil: not created yet
	stored  uint64           // copies in it, as far as is known
	tail    uint64           // original of the last of them, as far as was looked up
	pending []copied         // sent after those, in order
	bytes   int              // of their bodies
	read    uint64           // sequence up to which every message was looked at
	counted uint64           // and counted: after an interruption some are read again
	yielded bool             // to the copies of another run, once, before this one had stored any

	next  time.Time // when the rate allows the next copy
	moved time.Time // when something was read or stored last
	shown time.Time // when progress was reported last
}

// copied is a copy that was sent.
type copied struct {
	sequence uint64 // of the original
	typ      string
	size     int
	ack      jetstream.PubAckFuture
}

func newRun(nc *nats.Conn, name string, o Options) (*run, error) {
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncTimeout(ackTimeout))
	now := time.Now()
	return &run{
		js: js, name: name, id: strings.ToLower(rand.Text()), opts: o,
		started: now, next: now, moved: now, shown: now,
		result: Result{DryRun: o.DryRun, Types: map[string]uint64{}},
	}, err
}

// finish reads and copies until the end, in spite of interruptions that pass.
func (r *run) finish(ctx context.Context) error {
	err := r.attempt(ctx)
	for err != nil && ctx.Err() == nil && passes(err) && time.Since(r.moved) < patience {
		select {
		case <-ctx.Done():
		case <-time.After(retryAfter):
			if err = r.settle(ctx); err == nil {
				err = r.attempt(ctx)
			}
		}
	}
	if err == nil && r.stream != nil && !r.opts.DryRun {
		err = r.complete(ctx)
	} else if ctx.Err() != nil && r.js.Conn().IsConnected() {
		// What is on its way is to be in the result.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastAcks)
		defer cancel()
		_ = r.await(ctx, 0, 0) // the error that ended the run is the one to tell
	}
	r.result.Complete = err == nil && !r.opts.DryRun
	return err
}

// passes reports whether an error may be gone at the next attempt.
func passes(err error) bool {
	for _, target := range []error{ErrNoStream, ErrSubject, ErrExists, ErrNoReplay, ErrLost, ErrBusy, jetstream.ErrStreamNotFound} {
		if errors.Is(err, target) {
			return false
		}
	}
	var api *jetstream.APIError
	if !errors.As(err, &api) {
		return true
	}
	switch api.ErrorCode {
	case jetstream.JSErrCodeStreamWrongLastSequence, jetstream.JSErrCodeStreamWrongLastSequenceConstant, errIDInProcess, errTooManyRequests:
		return true
	case errStoreFailed:
		return false
	}
	return api.Code >= 500
}

// JetStream API errors (nats-server, server/errors.json).
const (
	errSubjectsOverlap = 10065
	errStoreFailed     = 10077 // the stream is full
	errIDInProcess     = 10158 // a copy with this id is on its way into the stream
	errTooManyRequests = 10167 // the stream's queue is full for the moment
)

// attempt goes on behind what has been read.
func (r *run) attempt(ctx context.Context) error {
	if err := r.same(ctx); err != nil {
		return err
	}
	p := part{
		stream: r.opts.Stream, from: r.read + 1, to: r.record.Last, filters: r.record.Filters,
		headersOnly: r.opts.DryRun,
	}
	err := scan(ctx, r.js, p, func(seq uint64, msg jetstream.Msg) error { return r.take(ctx, seq, msg) })
	var api *jetstream.APIError
	if errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeOverlappingFilterSubjects {
		return fmt.Errorf("%w: one filter covers another: leave out the narrower one", ErrSubject)
	}
	if err == nil {
		err = r.await(ctx, 0, 0)
	}
	return err
}

// take looks at one message.
func (r *run) take(ctx context.Context, seq uint64, msg jetstream.Msg) error {
	if r.opts.Progress != nil && time.Since(r.shown) > progressEvery {
		r.shown = time.Now()
		r.result.Elapsed = r.shown.Sub(r.started)
		r.opts.Progress(Progress{Result: r.result, At: seq, End: r.record.Last})
	}
	typ, event := eventType(msg.Headers())
	selected := event && r.record.selects(typ, msg.Headers())
	tooLarge := false
	switch {
	case !selected:
	case r.opts.DryRun || seq <= r.tail:
		r.count(seq, typ)
	default:
		err := r.copy(ctx, seq, typ, msg)
		if tooLarge = errors.Is(err, nats.ErrMaxPayload); err != nil && !tooLarge {
			return err
		}
	}
	r.read = seq
	if seq <= r.counted {
		return nil
	}
	r.counted, r.moved = seq, time.Now()
	r.result.Scanned++
	switch {
	case !event:
		r.result.NotEvents++
	case !selected:
		r.result.Skipped++
	case tooLarge:
		r.result.TooLarge++
	}
	return nil
}

func (r *run) count(seq uint64, typ string) {
	r.result.Copied++
	r.result.Types[typ]++
	r.result.Last = seq
	if r.result.First == 0 {
		r.result.First = seq
	}
}

// copy sends one copy, when there is room and the rate allows it.
func (r *run) copy(ctx context.Context, seq uint64, typ string, msg jetstream.Msg) error {
	if r.stream == nil {
		if err := r.create(ctx); err != nil {
			return err
		}
	}
	if err := r.pace(ctx); err != nil {
		return err
	}
	size := len(msg.Data())
	if err := r.await(ctx, maxPending-1, max(0, maxPendingBytes-size)); err != nil {
		return err
	}
	h := nats.Header{}
	for name, values := range msg.Headers() {
		// These tell the server what to do with a message.
		if len(name) < 5 || !strings.EqualFold(name[:5], "Nats-") {
			h[name] = values
		}
	}
	sequence := strconv.FormatUint(seq, 10)
	h[NameHeader] = []string{r.name}
	h[SequenceHeader] = []string{sequence}
	h[RunHeader] = []string{r.id}
	h[jetstream.MsgIDHeader] = []string{subjectPrefix(r.name) + sequence}
	h[jetstream.ExpectedStreamHeader] = []string{streamName(r.name)}
	// A condition on the last sequence holds in a cluster, too, whoever leads it.
	// One on the last message's id does not: a replica that has caught up does
	// not know that id, and leaves out what the others store.
	h[jetstream.ExpectedLastSeqHeader] = []string{strconv.FormatUint(r.stored+uint64(len(r.pending)), 10)}
	ack, err := r.js.PublishMsgAsync(&nats.Msg{
		Subject: subjectPrefix(r.name) + msg.Subject(), Header: h, Data: msg.Data(),
	}, jetstream.WithRetryAttempts(0))
	if err != nil {
		return err
	}
	r.pending = append(r.pending, copied{seq, typ, size, ack})
	r.bytes += size
	return nil
}

// pace waits until the rate allows another copy.
func (r *run) pace(ctx context.Context) error {
	if r.opts.Rate == 0 {
		return nil
	}
	now := time.Now()
	if r.next.Before(now) {
		r.next = now // what was not sent in time is not made up for
	}
	timer := time.NewTimer(r.next.Sub(now))
	defer timer.Stop()
	r.next = r.next.Add(time.Second / time.Duration(r.opts.Rate))
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// await takes the acknowledgements that have come, and waits for more until at most
// that many copies, of that many bytes together, are not acknowledged.
func (r *run) await(ctx context.Context, copies, bytes int) error {
	for len(r.pending) > 0 {
		enough := closed
		if len(r.pending) > copies || r.bytes > bytes {
			enough = nil
		}
		oldest := r.pending[0]
		select {
		case ack := <-oldest.ack.Ok():
			if ack.Duplicate || ack.Sequence != r.stored+1 {
				return errUnacknowledged
			}
			r.stored++
			r.bytes -= oldest.size
			r.pending[0] = copied{} // its body can go
			r.pending = r.pending[1:]
			r.count(oldest.sequence, oldest.typ)
			r.moved = time.Now()
		case err := <-oldest.ack.Err():
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-enough:
			return nil
		}
	}
	return nil
}

// settle finds out what is stored, and goes back to the first copy of which the
// acknowledgement is missing.
func (r *run) settle(ctx context.Context) error {
	if r.stream == nil || r.opts.DryRun {
		return nil
	}
	n, last, err := r.lastCopy(ctx)
	switch {
	case err != nil:
		return err
	case n < r.stored:
		return fmt.Errorf("%w: %s has lost copies", ErrLost, streamName(r.name))
	case n > r.stored && last.run != r.id:
		if r.yielded || r.result.Copied > 0 {
			return fmt.Errorf("%w: %s", ErrBusy, r.name)
		}
		// Copies of a run that has just ended may still have been on their way.
		r.yielded = true
		r.read, r.result.Before = last.sequence, n
	case len(r.pending) > 0:
		r.read = r.pending[0].sequence - 1
	}
	r.stored, r.tail = n, last.sequence
	r.pending, r.bytes = nil, 0
	return nil
}
