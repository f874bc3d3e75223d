package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
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
		if s.broken.Load() && !s.open(ctx) {
			wait(ctx, spoolReopen)
			continue
		}
		n, err := s.drain(ctx, limit, handOver)
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
		case n > 0, s.begin > 0:
		case err != nil, len(s.parked) > 0, s.tight.Load():
			wait(ctx, spoolRetry)
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

// drain hands over the oldest messages, limit at most, removes what was taken,
// and returns how many that were. After the first ErrUnavailable, which is returned
// rather than any other error, no more is begun.
func (s *Spool) drain(ctx context.Context, limit int, handOver func(context.Context, Spooled) error) (n int, err error) {
	batch, err := s.oldest(ctx, limit)
	var order []string // of entities
	groups := make(map[string][]stored)
	for _, m := range batch {
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
		switch {
		case failed == nil:
			failpoint.Hit("drain-stored")
			s.moving.Store(true)
			done[m.sequence] = true
		case errors.Is(failed, ErrUnavailable):
			s.moving.Store(false)
			err = failed
			s.parked[key] = time.Now().Add(spoolPark)
		default:
			err = cmp.Or(err, failed)
			s.parked[key] = time.Now().Add(spoolRetry)
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
	return len(done), cmp.Or(s.remove(batch, done), err)
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

// oldest reads the messages to hand over next. Those of parked entities are left
// out. Of the reports about one thing only one is among them: after a crash,
// what had been stored is handed over again, and a report is recognised only
// until the next is stored.
func (s *Spool) oldest(ctx context.Context, limit int) (batch []stored, err error) {
	if s.begin == 0 { // else what is behind would never be reached where reading is slow
		maps.DeleteFunc(s.parked, func(_ string, until time.Time) bool { return time.Now().After(until) })
	}
	subject := anySubject
	if _, parked := s.parked[rejected]; parked {
		subject = eventSubject
	}
	reports, held := make(map[string]bool), make(map[string]bool)
	next, size := s.begin+1, 0
	s.begin = 0
	for scanned := 0; len(batch) < limit && size <= spoolBatchBytes; scanned++ {
		if scanned == spoolScan {
			if len(batch) == 0 { // all of parked entities: look behind them
				s.begin = next - 1
			}
			break
		}
		msg, err := s.read(ctx, next, subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		}
		if err != nil {
			return batch, err
		}
		next = msg.Sequence + 1
		m := stored{msg.Sequence, msg.Subject == eventSubject, decodeSpooled(msg)}
		entity := m.entity()
		if _, parked := s.parked[entity]; parked || held[entity] {
			continue
		}
		if key := m.stateKey(); key != "" {
			if held[entity] = reports[key]; held[entity] {
				continue
			}
			reports[key] = true
		}
		batch, size = append(batch, m), size+len(msg.Data)
	}
	return batch, nil
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
