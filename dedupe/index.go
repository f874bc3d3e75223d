package dedupe

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/bus"
)

// entry is a bucket value: where the event of a name is, or, under a state
// key, where the report stored last is, and the report under way.
type entry struct {
	Stream int64 `json:"stream,omitempty"` // creation of the stream, Unix nanoseconds
	storedEvent
	// Earlier holds the reports stored before, in the order of the stream. That
	// is not the order of their receipt where one has waited in a spool.
	Earlier []storedEvent `json:"earlier,omitempty"`
	// Forgotten is when the latest of those that Earlier no longer holds was
	// received, in Unix nanoseconds.
	Forgotten int64 `json:"forgotten,omitempty"`
	Mark      *mark `json:"mark,omitempty"`
}

// storedEvent is a message of the stream.
type storedEvent struct {
	Sequence uint64 `json:"seq,omitempty"` // 0: nothing stored
	ID       string `json:"id,omitempty"`  // CloudEvents id
	// For a state report:
	State    string `json:"state,omitempty"`
	Received int64  `json:"received,omitempty"` // Unix nanoseconds
}

// remembered is how many reports an entry holds.
const remembered = 8

// reports returns the stored reports that the entry holds, in the order of the
// stream.
func (e *entry) reports() []storedEvent {
	if e.Sequence == 0 {
		return nil
	}
	return append(slices.Clone(e.Earlier), e.storedEvent)
}

func byReceipt(a, b storedEvent) int {
	return cmp.Or(cmp.Compare(a.Received, b.Received), cmp.Compare(a.Sequence, b.Sequence))
}

// record takes in a stored report, in whatever order they come, and reports
// whether that has changed the entry.
func (e *entry) record(r entry) (changed bool) {
	switch {
	case e.Stream > r.Stream: // a report of an earlier stream
		return false
	case e.Stream < r.Stream:
		r.Mark = e.Mark
		*e = r
		return true
	}
	at, known := slices.BinarySearchFunc(e.reports(), r.Sequence, func(s storedEvent, sequence uint64) int {
		return cmp.Compare(s.Sequence, sequence)
	})
	if known {
		return false
	}
	all := slices.Insert(e.reports(), at, r.storedEvent)
	if n := len(all) - remembered; n > 0 {
		e.Forgotten = max(e.Forgotten, slices.MaxFunc(all[:n], byReceipt).Received)
		all = all[n:]
	}
	e.Earlier, e.storedEvent = all[:len(all)-1], all[len(all)-1]
	return true
}

// mark announces a report that is being published.
type mark struct {
	State    string `json:"state"`
	Token    string `json:"token"`
	Received int64  `json:"received"` // Unix nanoseconds
}

// before reports whether e is about an earlier message than o. A stream that
// was created later comes after.
func (e entry) before(o entry) bool {
	return e.Stream < o.Stream || e.Stream == o.Stream && e.Sequence < o.Sequence
}

func (e entry) encode() []byte {
	value, err := json.Marshal(e)
	if err != nil {
		panic(err) // strings and integers only
	}
	return value
}

// decodeEntry reads a value; one that is not ours counts as an empty entry.
func decodeEntry(value []byte) entry {
	var e entry
	if json.Unmarshal(value, &e) != nil {
		return entry{}
	}
	return e
}

// errConflict: the entry is not at the revision given.
var errConflict = errors.New("dedupe: entry has changed")

// index is the bucket. A read may be answered by a replica that is behind.
type index interface {
	// get returns revision 0 if there is no such name.
	get(ctx context.Context, name string) (value []byte, revision uint64, err error)
	// put writes all, side by side. After an error any of them may be written.
	put(ctx context.Context, entries ...bus.Entry) error
	// swap writes if the entry is at that revision (0: if there is none), else it
	// returns errConflict.
	swap(ctx context.Context, name string, value []byte, revision uint64) error
}

// bucket is the index in NATS. After a failure it has the bus look at the bucket.
type bucket struct{ bus *bus.Bus }

var _ index = bucket{}

func (b bucket) kv() (jetstream.KeyValue, error) {
	if !b.bus.Connected() {
		return nil, bus.ErrNotConnected
	}
	if kv := b.bus.State().Bucket(); kv != nil {
		return kv, nil
	}
	return nil, bus.ErrNoBucket
}

func (b bucket) get(ctx context.Context, name string) ([]byte, uint64, error) {
	kv, err := b.kv()
	if err != nil {
		return nil, 0, err
	}
	e, err := kv.Get(ctx, name)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		b.bus.Wake()
		return nil, 0, err
	}
	return e.Value(), e.Revision(), nil
}

func (b bucket) put(ctx context.Context, entries ...bus.Entry) error {
	return b.bus.Put(ctx, entries...)
}

func (b bucket) swap(ctx context.Context, name string, value []byte, revision uint64) error {
	kv, err := b.kv()
	if err != nil {
		return err
	}
	if revision == 0 {
		_, err = kv.Create(ctx, name, value) // also over a deleted entry
	} else {
		_, err = kv.Update(ctx, name, value, revision)
	}
	switch {
	case errors.Is(err, jetstream.ErrKeyExists), errors.Is(err, jetstream.ErrKeyRevisionMismatch):
		return errConflict
	case err != nil:
		b.bus.Wake()
	}
	return err
}
