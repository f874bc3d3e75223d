package bus

import (
	"context"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
)

// storeBatch stores messages of one stream as one atomic batch (NATS ADR-50):
// all of them, in this order, or none. It returns the sequence of the first; the
// others follow it. The stream must allow atomic publishing; every message has
// headers. After an error that is no API error they may be stored: publishing each
// with its id tells.
//
// What one server that syncs every write does was read in nats-server 2.15.2:
//   - processJetStreamAtomicBatchMsg (stream.go) writes the messages to a store of
//     the batch. At the commit it syncs that, checks all messages, copies them into
//     the stream, syncs that once, and then answers with the sequence of the last.
//     Nothing else enters the stream meanwhile. This takes as long as about eight
//     single messages, and longer where files are slow to be removed.
//   - One duplicate has the batch refused (10201), as has one byte too many.
//   - After a crash in the middle recovery (jetstream.go) completes a batch of
//     which the stream has a part, and forgets any other.
//   - Consumers, but not who reads a message of the stream, may have messages of
//     the batch before they are synced.
//   - A write or sync that fails in the middle gets no answer, and what had been
//     copied counts as a duplicate from then on: see [embedded.failed].
func storeBatch(ctx context.Context, js jetstream.JetStream, messages []*nats.Msg) (first uint64, err error) {
	ack, err := jetstreamext.PublishMsgBatch(ctx, js, messages, jetstreamext.BatchFlowControl{})
	if err != nil {
		for _, m := range messages {
			for _, name := range []string{jetstreamext.BatchIDHeader, jetstreamext.BatchSeqHeader, jetstreamext.BatchCommitHeader} {
				delete(m.Header, name)
			}
		}
		return 0, err
	}
	return ack.Sequence - uint64(len(messages)) + 1, nil
}

const (
	few            = 8        // fewer messages are never worth a batch
	maxBatch       = 1000     // messages, the server's limit
	maxBatchBytes  = 4 << 20  // which are written twice
	maxGroupedSize = 32 << 10 // far from the limits of one message
	// measureAgain is for how long a measurement counts.
	measureAgain = 5 * time.Second
)

// group publishes the messages of concurrent callers: each by itself, at once,
// or, when there are so many that it is much faster, all that wait as a batch
// while the next wait for its end.
type group struct {
	js      jetstream.JetStream
	timeout time.Duration // of a batch
	// alone publishes a message by itself.
	alone func(context.Context, *nats.Msg) (*jetstream.PubAck, error)

	mu       sync.Mutex
	waiting  []*waiter
	inFlight int  // published by themselves now
	storing  bool // a batch, now

	perMessage, perBatch measured  // what the server takes for one
	batchAt              time.Time // end of the last batch
	pays                 func(messages int) bool

	// seen holds the hashes of the ids published last, each at its place. An id that
	// comes again would have its whole batch refused.
	seen [1 << 15]uint64
	seed maphash.Seed
}

func newGroup(js jetstream.JetStream, timeout time.Duration, alone func(context.Context, *nats.Msg) (*jetstream.PubAck, error)) *group {
	g := &group{js: js, timeout: timeout, alone: alone, seed: maphash.MakeSeed()}
	g.pays = g.batchPays
	return g
}

// waiter is a message whose turn it is when it may be published by itself or,
// if it is batched, when its batch is done.
type waiter struct {
	msg    *nats.Msg
	size   int
	single bool // never in a batch
	turn   chan struct{}
	nth    int // of those published by themselves at the time

	batched  bool
	sequence uint64
	err      error
}

// publish stores a message. If ctx ends before the message's turn, it is not sent,
// unless it was by then. A batch that is refused is published message by message.
func (g *group) publish(ctx context.Context, msg *nats.Msg) (*jetstream.PubAck, error) {
	w := &waiter{msg: msg, size: len(msg.Data), turn: make(chan struct{})}
	for name, values := range msg.Header {
		w.size += len(name) + len(values[0])
	}
	w.single = w.size > maxGroupedSize
	g.mu.Lock()
	if id := msg.Header.Get(jetstream.MsgIDHeader); id != "" {
		hash := maphash.String(g.seed, id)
		seen := &g.seen[hash%uint64(len(g.seen))]
		w.single = w.single || *seen == hash
		*seen = hash
	}
	g.waiting = append(g.waiting, w)
	g.next()
	g.mu.Unlock()

	select {
	case <-w.turn:
	case <-ctx.Done():
		g.mu.Lock()
		i := slices.Index(g.waiting, w)
		if i >= 0 {
			g.waiting = slices.Delete(g.waiting, i, i+1)
		}
		gone := i >= 0 || w.batched
		g.mu.Unlock()
		if gone {
			return nil, ctx.Err()
		}
	}
	switch {
	case !w.batched:
		return g.publishAlone(ctx, w)
	case w.err != nil:
		return g.alone(ctx, msg)
	}
	return &jetstream.PubAck{Sequence: w.sequence}, nil
}

func (g *group) publishAlone(ctx context.Context, w *waiter) (ack *jetstream.PubAck, err error) {
	start := time.Now()
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.inFlight--
		took := time.Since(start) / time.Duration(w.nth) // at least: the others may have been done before
		if ack != nil && !ack.Duplicate && (w.nth == 1 || took > g.perMessage.time) {
			g.perMessage.add(took)
		}
		g.next()
	}()
	return g.alone(ctx, w.msg)
}

// next gives the turn to those who may have it. The lock is held.
func (g *group) next() {
	for !g.storing && len(g.waiting) > 0 {
		w := g.waiting[0]
		if !w.single && g.pays(g.inFlight+len(g.waiting)) {
			if g.inFlight == 0 {
				g.storing = true
				go g.store(g.take())
			}
			return
		}
		if !g.room() {
			return
		}
		g.waiting = slices.Delete(g.waiting, 0, 1)
		g.inFlight++
		w.nth = g.inFlight
		close(w.turn)
	}
}

// batchPays reports whether a batch stores that many messages in less than a quarter of
// the time, as far as is known; how long a batch takes is found out by trying one.
func (g *group) batchPays(messages int) bool {
	return messages >= few && g.perMessage.time > 0 &&
		(time.Since(g.batchAt) > measureAgain || time.Duration(messages)*g.perMessage.time > 4*g.perBatch.time)
}

// room reports whether one more message may be published by itself. Soon after a batch
// the next one is about to come, and would have to wait for those.
func (g *group) room() bool {
	n := time.Duration(g.inFlight)
	switch {
	case n == 0:
		return true
	case g.perMessage.time == 0:
		return n < few
	case time.Since(g.batchAt) < g.perBatch.time:
		return 8*n*g.perMessage.time < g.perBatch.time
	}
	return true
}

// measured is the shortest that something took lately, 0 if that is not known. A
// busy machine only makes it longer.
type measured struct {
	time time.Duration
	at   time.Time
}

func (m *measured) add(took time.Duration) {
	if m.time == 0 || took < m.time || time.Since(m.at) > measureAgain {
		*m = measured{took, time.Now()}
	}
}

// take takes a batch off the queue. The lock is held.
func (g *group) take() (batch []*waiter) {
	size := 0
	g.waiting = slices.DeleteFunc(g.waiting, func(w *waiter) bool {
		if w.single || len(batch) == maxBatch || size+w.size > maxBatchBytes {
			return false
		}
		w.batched, batch, size = true, append(batch, w), size+w.size
		return true
	})
	return batch
}

func (g *group) store(batch []*waiter) {
	messages := make([]*nats.Msg, len(batch))
	for i, w := range batch {
		messages[i] = w.msg
	}
	ctx, cancel := context.WithTimeout(context.Background(), g.timeout)
	defer cancel()
	start := time.Now()
	first, err := storeBatch(ctx, g.js, messages)
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, w := range batch {
		w.sequence, w.err = first+uint64(i), err
		close(w.turn)
	}
	if err == nil {
		g.perBatch.add(time.Since(start))
		g.batchAt = time.Now()
	}
	g.storing = false
	g.next()
}
