package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The stream of copies. What it holds is the record of how far the replay came;
// its metadata say what was selected.
const (
	recordKey   = "bridge-replay"
	completeKey = "bridge-replay-complete"
	// keepLeast is the shortest time for which copies may be kept.
	keepLeast = time.Second
	// duplicates is the duplicate window. It only has to cover what is on its way
	// when a run takes over from another; the server keeps the ids in memory.
	duplicates = 10 * time.Second
)

func streamName(name string) string    { return "REPLAY_" + name }
func subjectPrefix(name string) string { return "replay." + name + "." }

// record is a replay's selection as fixed at the start of its first run.
type record struct {
	Stream  string    `json:"stream"`
	Created time.Time `json:"stream_created"`
	First   uint64    `json:"first"` // sequences, both included
	Last    uint64    `json:"last"`
	Filters []string  `json:"filters,omitempty"`
	Types   []string  `json:"types,omitempty"`
	IDs     []string  `json:"ids,omitempty"`
	Subject string    `json:"subject,omitempty"`
	Run     string    `json:"run"`
}

func (c *record) selects(typ string, h nats.Header) bool {
	return (len(c.Types) == 0 || slices.Contains(c.Types, typ)) &&
		(len(c.IDs) == 0 || slices.Contains(c.IDs, attribute(h, "id"))) &&
		(c.Subject == "" || attribute(h, "subject") == c.Subject)
}

// begin fixes what a new replay selects.
func (r *run) begin(ctx context.Context, s Selection) error {
	info, err := streamOf(ctx, r.js, r.opts.Stream)
	if err != nil {
		return err
	}
	subjects := info.Config.Subjects
	if copies := subjectPrefix(r.name) + ">"; Taken(subjects, copies) {
		return fmt.Errorf("%w: copies go to %s, which %s takes itself (%v): choose another subject prefix for it", ErrSubject, copies, r.opts.Stream, subjects)
	}
	for _, filter := range s.Filters {
		if !Taken(subjects, filter) {
			return fmt.Errorf("%w: nothing on %s can be in %s, which takes %v", ErrSubject, filter, r.opts.Stream, subjects)
		}
	}
	if !r.opts.DryRun {
		switch _, err := r.js.Stream(ctx, streamName(r.name)); {
		case err == nil:
			return fmt.Errorf("%w: %s", ErrExists, r.name)
		case !errors.Is(err, jetstream.ErrStreamNotFound):
			return err
		}
	}
	first, err := firstOf(ctx, r.js, info, s.Since, s.FromSeq)
	if err != nil {
		return err
	}
	last := info.State.LastSeq
	if s.ToSeq > 0 {
		last = min(last, s.ToSeq)
	}
	if !s.Until.IsZero() {
		next, err := sequenceAt(ctx, r.js, r.opts.Stream, s.Until)
		if err != nil {
			return err
		}
		last = min(last, next-1)
	}
	r.record = record{
		Stream: r.opts.Stream, Created: info.Created, First: first, Last: last,
		Filters: s.Filters, Types: s.Types, IDs: s.IDs, Subject: s.Subject, Run: r.id,
	}
	r.read, r.counted = first-1, first-1
	return nil
}

// resume reads what a replay selects, and how far it came.
func (r *run) resume(ctx context.Context) error {
	stream, err := r.js.Stream(ctx, streamName(r.name))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("%w: there is no stream %s", ErrNoReplay, streamName(r.name))
	}
	if err != nil {
		return err
	}
	r.created(stream)
	config := stream.CachedInfo().Config
	if err := json.Unmarshal([]byte(config.Metadata[recordKey]), &r.record); err != nil {
		return fmt.Errorf("%w: the stream %s is not that of a replay", ErrNoReplay, streamName(r.name))
	}
	r.result.Before = stream.CachedInfo().State.LastSeq
	if r.result.Complete = config.Metadata[completeKey] != ""; r.result.Complete {
		return nil
	}
	if r.record.Stream != r.opts.Stream {
		return fmt.Errorf("%w: %s is a replay of the stream %s, not of %s", ErrLost, r.name, r.record.Stream, r.opts.Stream)
	}
	n, last, err := r.lastCopy(ctx)
	if err != nil {
		return err
	}
	r.stored, r.result.Before = n, n
	r.read = r.record.First - 1
	if n > 0 {
		r.read = last.sequence
	}
	r.tail, r.counted = r.read, r.read
	return nil
}

// same finds out whether the stream is still the one that the replay is of.
func (r *run) same(ctx context.Context) error {
	source, err := streamOf(ctx, r.js, r.opts.Stream)
	if err == nil && !source.Created.Equal(r.record.Created) {
		err = fmt.Errorf("%w: the stream %s was made anew since, and counts from 1 again", ErrLost, r.opts.Stream)
	}
	return err
}

func (r *run) created(stream jetstream.Stream) {
	r.stream = stream
	r.result.Name, r.result.Stream = r.name, streamName(r.name)
}

// create makes the stream, at the first copy.
func (r *run) create(ctx context.Context) error {
	text, err := json.Marshal(r.record)
	if err != nil {
		return err
	}
	stream, err := r.js.CreateStream(ctx, jetstream.StreamConfig{
		Name:        streamName(r.name),
		Description: "events of " + r.opts.Stream + " that bridge replay delivers again",
		Subjects:    []string{subjectPrefix(r.name) + ">"},
		Storage:     jetstream.FileStorage,
		Replicas:    r.opts.Replicas,
		MaxAge:      r.opts.Keep,
		Discard:     jetstream.DiscardNew,
		Duplicates:  min(duplicates, r.opts.Keep),
		Metadata:    map[string]string{recordKey: string(text)},
	})
	var api *jetstream.APIError
	switch {
	case errors.Is(err, jetstream.ErrStreamNameAlreadyInUse):
		return fmt.Errorf("%w: %s", ErrExists, r.name)
	case errors.As(err, &api) && api.ErrorCode == errSubjectsOverlap:
		return fmt.Errorf("%w: another stream takes some of %s> already", ErrSubject, subjectPrefix(r.name))
	case err != nil:
		return fmt.Errorf("creating the stream %s: %w", streamName(r.name), err)
	case stream.CachedInfo().Config.Metadata[recordKey] == "": // dropped by a server that does not know it
		return errors.Join(fmt.Errorf("%w: a replay needs NATS server 2.10 or later", ErrInvalid), r.js.DeleteStream(ctx, streamName(r.name)))
	}
	r.created(stream)
	return nil
}

// origin is what a copy says of its original.
type origin struct {
	sequence uint64
	run      string
}

// lastCopy returns the number of copies and the last of them. It asks the
// stream's leader, so that no acknowledged copy is missed.
func (r *run) lastCopy(ctx context.Context) (uint64, origin, error) {
	info, err := r.stream.Info(ctx)
	if err != nil {
		return 0, origin{}, err
	}
	n := info.State.LastSeq
	if n == 0 {
		return 0, origin{}, nil
	}
	msg, err := r.stream.GetMsg(ctx, n)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return 0, origin{}, fmt.Errorf("%w: the last of its %d copies has expired or was deleted", ErrLost, n)
	}
	if err != nil {
		return 0, origin{}, err
	}
	sequence, err := strconv.ParseUint(msg.Header.Get(SequenceHeader), 10, 64)
	if err != nil || msg.Header.Get(NameHeader) != r.name {
		return 0, origin{}, fmt.Errorf("%w: the last message of %s is not a copy", ErrLost, streamName(r.name))
	}
	return n, origin{sequence, msg.Header.Get(RunHeader)}, nil
}

// complete marks the replay as done.
func (r *run) complete(ctx context.Context) error {
	info, err := r.stream.Info(ctx)
	if err != nil {
		return err
	}
	if info.Config.Metadata == nil { // somebody else has removed it
		info.Config.Metadata = make(map[string]string)
	}
	info.Config.Metadata[completeKey] = time.Now().UTC().Format(time.RFC3339)
	_, err = r.js.UpdateStream(ctx, info.Config)
	return err
}
