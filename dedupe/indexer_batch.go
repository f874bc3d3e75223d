package dedupe

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/failpoint"
)

const (
	indexBatch    = 64                    // messages that a worker takes at once
	indexEnough   = 16                    // do not wait for more
	indexPause    = 50 * time.Millisecond // between small batches
	indexPatience = 2 * time.Second       // the longest that a write may take; a report waits longer for the index
	indexFew      = 4                     // entries, which any disk stores in that time
	indexMost     = 256                   // entries: no limit
)

// gather makes batches of messages. If few come, they wait for each other for a moment
// instead of being written one by one: the stream itself knows their copies meanwhile.
func (x *Indexer) gather(work <-chan jetstream.Msg, batches chan<- []jetstream.Msg, enough int) {
	last := time.Time{}
	for msg := range work {
		msgs := []jetstream.Msg{msg}
		more := time.NewTimer(time.Until(last.Add(x.pause)))
		for waiting := true; waiting && len(msgs) < enough; {
			select {
			case msg, waiting = <-work:
				if waiting {
					msgs = append(msgs, msg)
				}
			case <-more.C:
				waiting = false
			case <-x.dedupe.hurry:
				waiting = false
			}
		}
		more.Stop()
		for waiting := true; waiting && len(msgs) < indexBatch; {
			select {
			case msg, waiting = <-work:
				if waiting {
					msgs = append(msgs, msg)
				}
			default:
				waiting = false
			}
		}
		batches <- msgs
		last = time.Now()
	}
}

// taken holds the messages that wait to be indexed or are being indexed, which as a
// rule takes milliseconds. If it takes longer, they must not be redelivered meanwhile:
// they would be written once more, behind what is being written.
type taken struct {
	mu    sync.Mutex
	since map[jetstream.Msg]time.Time
}

func (t *taken) add(msg jetstream.Msg) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.since[msg] = time.Now()
}

func (t *taken) remove(msg jetstream.Msg) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.since, msg)
}

// keep tells the server that they are being worked on, until the end.
func (t *taken) keep(end <-chan struct{}) {
	const every = indexAckWait / 4
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-end:
			return
		case <-tick.C:
		}
		t.mu.Lock()
		for msg, since := range t.since {
			if time.Since(since) > every {
				msg.InProgress()
			}
		}
		t.mu.Unlock()
	}
}

// put writes entries. A server that syncs each of them acknowledges none of those that
// came together before it has stored all. So after a write that was not acknowledged in
// time there is one write at a time, of few entries, and of more as long as that is fast.
func (x *Indexer) put(ctx context.Context, entries []bus.Entry) error {
	if x.most.Load() >= indexMost {
		return x.write(ctx, entries)
	}
	x.slowly.Lock()
	defer x.slowly.Unlock()
	for len(entries) > 0 {
		n := min(len(entries), int(x.most.Load()))
		if err := x.write(ctx, entries[:n]); err != nil {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

func (x *Indexer) write(ctx context.Context, entries []bus.Entry) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	most, patience, begun := x.most.Load(), x.patience.Load(), time.Now()
	within, cancel := context.WithTimeout(ctx, time.Duration(patience))
	defer cancel()
	err := x.dedupe.index.put(within, entries...)
	took := time.Since(begun)
	switch {
	case err == nil:
		x.patience.Store(int64(min(max(indexTimeout, 4*took), indexPatience)))
		if len(entries) == int(most) && took < indexTimeout/4 {
			x.most.CompareAndSwap(most, 2*most)
		}
	case ctx.Err() == nil:
		x.dedupe.errors.Inc()
		if errors.Is(err, context.DeadlineExceeded) {
			x.patience.CompareAndSwap(patience, int64(min(2*time.Duration(patience), indexPatience)))
			x.most.CompareAndSwap(most, max(indexFew, min(most/2, 4*indexFew)))
		}
	}
	return err
}

// handle writes the names of messages and acknowledges them; what fails, or is not
// done when ctx ends, comes again.
func (x *Indexer) handle(ctx context.Context, msgs []jetstream.Msg, st *bus.State, taken *taken) {
	failpoint.Hit("index-write")
	var entries []bus.Entry
	reports := make([]*report, len(msgs))
	for i, msg := range msgs {
		names, stored, r := x.read(msg, st.StreamCreated.UnixNano())
		entries, reports[i] = append(entries, under(names, stored)...), r
	}
	var failed error
	if len(entries) > 0 {
		failed = x.put(ctx, entries)
	}
	begun := time.Now()
	var wg sync.WaitGroup
	for i, msg := range msgs {
		done := func(err error) {
			taken.remove(msg)
			if err != nil {
				msg.NakWithDelay(indexRetry)
				return
			}
			failpoint.Hit("index-ack")
			// Until it is acknowledged the server holds it back; after indexAckWait it
			// delivers it again anyway.
			for msg.Ack() != nil && time.Since(begun) < indexAckWait {
				wait(context.Background(), nil, 20*time.Millisecond)
			}
		}
		if r := reports[i]; r != nil && failed == nil {
			wg.Go(func() { done(x.dedupe.settle(ctx, *r)) })
			continue
		}
		done(failed)
	}
	wg.Wait()
}

// read returns the names of a message, what is to be known under them, and the
// report that it is, if it is one.
func (x *Indexer) read(msg jetstream.Msg, stream int64) (names []string, stored entry, r *report) {
	meta, err := msg.Metadata()
	if err != nil {
		return nil, entry{}, nil // not from a stream
	}
	h := msg.Headers()
	stored = entry{Stream: stream, storedEvent: storedEvent{Sequence: meta.Sequence.Stream, ID: h.Get(jetstream.MsgIDHeader)}}
	key, stateKey := h.Get(bus.KeyHeader), h.Get(bus.StateKeyHeader)
	if key != "" {
		names = append(names, key)
		if aliases := h.Get(bus.AliasesHeader); aliases != "" {
			names = append(names, strings.Split(aliases, ",")...)
		}
	}
	if len(names) == 0 && stateKey == "" || slices.ContainsFunc(names, func(name string) bool { return !digest(name) }) || stateKey != "" && !digest(stateKey) {
		x.unnamed.Inc() // none of ours
		return nil, entry{}, nil
	}
	if stateKey == "" {
		return names, stored, nil
	}
	received, err := time.Parse(time.RFC3339Nano, h.Get("ce-recordedtime"))
	if err != nil {
		received = meta.Timestamp
	}
	report := report{key: stateKey, token: h.Get(bus.TokenHeader), stored: stored}
	report.stored.State, report.stored.Received = h.Get(bus.StateHeader), received.UnixNano()
	return names, stored, &report
}

// digest reports whether a name has the form of normalize.Digest.
func digest(name string) bool {
	b, err := hex.DecodeString(name)
	return err == nil && len(b) == sha256.Size
}
