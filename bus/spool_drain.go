package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/internal/failpoint"
)

// Run hands over what the spool holds until ctx ends, the oldest first: what is
// about one entity in the order in which it came, the rest side by side. What
// handOver returns no error for is removed. After an error it is tried again,
// and with it what comes later about the entity; others go on. What was begun
// when ctx ends is finished. Close comes after Run.
func (s *Spool) Run(ctx context.Context, handOver func(context.Context, Spooled) error) {
	limit := spoolBatch
	for ctx.Err() == nil {
		if s.broken.Load() {
			s.begin = 0
			if !s.open(ctx) {
				wait(ctx, spoolReopen)
				continue
			}
		}
		n, more, err := s.drain(ctx, limit, handOver)
		if n > 0 && s.full.Swap(false) {
			s.problem("")
		}
		if s.tight.Load() && s.makeRoom() == nil && !s.tight.Load() {
			s.problem("")
		}
		limit = spoolBatch
		switch {
		case errors.Is(err, ErrUnavailable):
			limit = 1 // one is enough to find out
			wait(ctx, spoolRetry)
		case n > 0, more:
		case err != nil, len(s.parked) > 0, s.tight.Load():
			wait(ctx, spoolRetry)
		case s.begin > 0:
			s.begin = 0 // there should be nothing before
		default:
			s.recount(ctx)
			select {
			case <-ctx.Done():
			case <-s.wake:
			}
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// stored is a message of the spool.
type stored struct {
	sequence uint64
	event    bool // as it was counted
	Spooled
}

// parking is for an entity of which a message could not be handed over: that one is tried
// again, and what comes later about the entity waits.
type parking struct {
	until    time.Time
	sequence uint64
}

// batch is what is handed over next.
type batch struct {
	messages []stored
	again    []stored          // of parked entities: the first of each
	held     map[string]uint64 // entities of which more was seen: its sequence
	end      uint64            // sequence up to which all was looked at
	more     bool              // there may be more behind it
}

// drain hands over the oldest messages, limit at most, and as many of parked entities,
// removes what was taken, and returns how many that were, and whether there may be more
// now. After the first ErrUnavailable, which is returned rather than any other error, no
// more is begun. That what has failed before fails again is no error.
func (s *Spool) drain(ctx context.Context, limit int, handOver func(context.Context, Spooled) error) (n int, more bool, err error) {
	b, err := s.oldest(ctx, limit)
	all := append(b.messages, b.again...)
	var order []string // of entities
	groups := make(map[string][]stored)
	for _, m := range all {
		key := m.entity()
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], m)
	}
	var mu sync.Mutex
	done := make(map[uint64]bool)
	take := func(key string, m stored) bool {
		mu.Lock()
		stop := ctx.Err() != nil || errors.Is(err, ErrUnavailable)
		mu.Unlock()
		if stop {
			return false
		}
		failpoint.Hit("drain")
		failed := handOver(context.WithoutCancel(ctx), m.Spooled)
		mu.Lock()
		defer mu.Unlock()
		_, again := s.parked[key]
		switch {
		case failed == nil:
			failpoint.Hit("drain-stored")
			s.moving.Store(true)
			done[m.sequence] = true
			delete(s.parked, key)
		case errors.Is(failed, ErrNotConnected): // that says nothing about the entity
			s.moving.Store(false)
			err = failed
		case errors.Is(failed, ErrUnavailable):
			s.parked[key] = parking{time.Now().Add(spoolPark), m.sequence}
			if !again {
				s.moving.Store(false)
				err = failed
			}
		default:
			s.parked[key] = parking{time.Now().Add(spoolRetry), m.sequence}
			if !again {
				err = cmp.Or(err, failed)
			}
		}
		return failed == nil
	}
	var wg sync.WaitGroup
	places := make(chan struct{}, spoolWorkers)
	for _, key := range order {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			for _, m := range groups[key] {
				if !take(key, m) {
					return
				}
			}
		})
	}
	wg.Wait()
	if failed := s.remove(all, done); failed != nil {
		s.begin = 0
		return len(done), false, failed
	}
	before := s.begin
	s.begin = s.passed(b, done)
	return len(done), b.more && s.begin > before, err
}

// passed returns a sequence up to which the store holds only messages of parked entities.
func (s *Spool) passed(b batch, done map[uint64]bool) uint64 {
	end := b.end
	back := func(entity string, sequence uint64) {
		if _, parked := s.parked[entity]; !parked {
			end = min(end, sequence-1)
		}
	}
	for _, m := range b.messages {
		if !done[m.sequence] {
			back(m.entity(), m.sequence)
		}
	}
	for _, m := range b.again { // more of its entity may be behind it
		back(m.entity(), m.sequence)
	}
	for entity, sequence := range b.held {
		back(entity, sequence)
	}
	return end
}

// remove removes the messages of a batch that are done, one by one: a purge while
// others are written has cost messages (nats-server 2.15.2).
func (s *Spool) remove(batch []stored, done map[uint64]bool) error {
	for _, m := range batch {
		if !done[m.sequence] {
			continue
		}
		ctx, cancel := withTimeout(context.Background(), apiTimeout)
		err := s.store.stream.DeleteMsg(ctx, m.sequence)
		cancel()
		if err != nil {
			s.unsure.Store(true)
			return s.fail("removing", err)
		}
		s.count.Add(-1)
		if m.event {
			s.events.Add(-1)
			s.waiting.removed(m.entity(), m.sequence)
		}
	}
	return nil
}

// oldest reads the messages to hand over next. Of the reports about one thing only one
// is among them: after a crash, what had been stored is handed over again, and a report
// is recognised only until the next is stored.
func (s *Spool) oldest(ctx context.Context, limit int) (b batch, err error) {
	b = batch{held: make(map[string]uint64), end: s.begin}
	reports, size := make(map[string]bool), 0
	for _, key := range s.expired() {
		if len(b.again) == min(limit, spoolAgain) || size > spoolBatchBytes/2 {
			break
		}
		sequence := s.parked[key].sequence
		msg, err := s.read(ctx, sequence, anySubject)
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound), err == nil && msg.Sequence != sequence: // it is gone
			delete(s.parked, key)
			b.end = min(b.end, sequence)
			continue
		case err != nil:
			return b, err
		}
		m := decodeStored(msg)
		reports[m.stateKey()] = true
		b.again, size = append(b.again, m), size+len(msg.Data)
	}
	subject := anySubject
	if _, parked := s.parked[rejected]; parked {
		subject = eventSubject
	}
	for range spoolScan {
		if len(b.messages) == limit || size > spoolBatchBytes {
			break
		}
		msg, err := s.read(ctx, b.end+1, subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return b, nil
		}
		if err != nil {
			return b, err
		}
		b.end = msg.Sequence
		m := decodeStored(msg)
		entity, key := m.entity(), m.stateKey()
		_, parked := s.parked[entity]
		_, held := b.held[entity]
		switch {
		case parked, held:
		case key != "" && reports[key]:
			b.held[entity] = m.sequence
		default:
			reports[key] = true
			b.messages, size = append(b.messages, m), size+len(msg.Data)
		}
	}
	b.more = true
	return b, nil
}

func decodeStored(msg *jetstream.RawStreamMsg) stored {
	return stored{msg.Sequence, msg.Subject == eventSubject, decodeSpooled(msg)}
}

// expired returns the parked entities whose time has come, the oldest first.
func (s *Spool) expired() (entities []string) {
	for entity, p := range s.parked {
		if time.Now().After(p.until) {
			entities = append(entities, entity)
		}
	}
	slices.SortFunc(entities, func(a, b string) int { return cmp.Compare(s.parked[a].sequence, s.parked[b].sequence) })
	return entities
}

// read returns the first message from a sequence on.
func (s *Spool) read(ctx context.Context, sequence uint64, subject string) (*jetstream.RawStreamMsg, error) {
	bounded, cancel := withTimeout(ctx, spoolTimeout)
	defer cancel()
	msg, err := s.store.stream.GetMsg(bounded, sequence, jetstream.WithGetMsgSubject(subject))
	if err != nil && bounded.Err() != nil {
		err = context.Cause(bounded)
	}
	if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) && ctx.Err() == nil {
		return nil, s.fail("reading", err)
	}
	return msg, err
}

// recount counts again after nothing was found to hand over. What is missing then, since
// it was written and not removed, has been lost.
func (s *Spool) recount(ctx context.Context) {
	if s.Len() == 0 && s.Events() == 0 {
		return
	}
	s.mu.Lock() // nothing is being written
	defer s.mu.Unlock()
	unsure, messages, events := s.unsure.Swap(false), s.Len(), s.Events()
	state, err := s.state(ctx)
	if err != nil {
		s.log.Warn("counting what the spool holds", "error", err)
		return
	}
	if uint64(messages) != state.Msgs || uint64(events) != state.Subjects[eventSubject] {
		s.counted(state) // else who waits is known, and counting again would forget it
	}
	if missing := messages - s.Len(); missing > 0 && !unsure {
		s.damaged(fmt.Sprintf("%d messages are missing", missing))
	}
	if s.Len() == 0 {
		s.unread = time.Time{}
		return
	}
	switch _, err := s.read(ctx, 1, anySubject); {
	case !errors.Is(err, jetstream.ErrMsgNotFound): // written just now
		s.unread = time.Time{}
	case s.rebuilt: // no more can be done
	case s.unread.IsZero(): // it may pass: the server does not say what the matter is
		s.unread = time.Now()
		time.AfterFunc(spoolReopen, s.notify)
	case time.Since(s.unread) >= spoolReopen:
		s.lookThrough(ctx)
	}
}

// lookThrough has the server look through its files for what can be read. A message that
// cannot be read holds up all behind it; after a crash the server looks through the files
// by itself, and would cut off that message and all behind it. The lock is held.
func (s *Spool) lookThrough(ctx context.Context) {
	s.damaged(fmt.Sprintf("%d messages cannot be read", s.Len()))
	s.rebuilt = true
	s.close()
	if err := os.Remove(filepath.Join(s.streamDir(), "msgs", "index.db")); err != nil {
		s.log.Warn("the spool is not looked through", "error", err)
	}
	s.reopen(ctx)
	s.notify()
}

// state returns what the store holds, also by subject.
func (s *Spool) state(ctx context.Context) (jetstream.StreamState, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	info, err := s.store.stream.Info(ctx, jetstream.WithSubjectFilter(anySubject))
	if err != nil {
		return jetstream.StreamState{}, err
	}
	return info.State, nil
}

func (s *Spool) counted(state jetstream.StreamState) {
	events := state.Subjects[eventSubject]
	s.count.Store(int64(state.Msgs))
	s.events.Store(int64(events))
	s.waiting.reset(int(events), state.LastSeq)
}
