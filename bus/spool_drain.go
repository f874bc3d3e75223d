package bus

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

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
			s.startOver()
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

// startOver has all be looked at again: what was known about the store may be wrong.
func (s *Spool) startOver() {
	s.begin = 0
	clear(s.parked)
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
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
		p, again := s.parked[key]
		switch {
		case failed == nil:
			failpoint.Hit("drain-stored")
			s.moving.Store(true)
			done[m.sequence] = true
		case errors.Is(failed, ErrNotConnected): // that says nothing about the entity
			s.moving.Store(false)
			err = failed
		case errors.Is(failed, ErrUnavailable):
			s.parked[key] = parking{time.Now().Add(spoolPark), m.sequence, p.next}
			if !again {
				s.moving.Store(false)
				err = failed
			}
		default:
			s.parked[key] = parking{time.Now().Add(spoolRetry), m.sequence, p.next}
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
		s.startOver()
		return len(done), false, failed
	}
	before := s.begin
	s.begin = s.passed(b, done)
	return len(done), b.more && s.begin > before, err
}

// passed ends the parking of those of whom the first message has left, and returns a
// sequence up to which the store holds only messages of parked entities.
func (s *Spool) passed(b batch, done map[uint64]bool) uint64 {
	end := b.end
	for _, m := range b.again {
		if !done[m.sequence] {
			continue
		}
		if next := s.parked[m.entity()].next; next > 0 {
			end = min(end, next-1)
		}
		delete(s.parked, m.entity())
	}
	left := func(entity string, sequence uint64) {
		if p, parked := s.parked[entity]; parked {
			s.parked[entity] = p.before(sequence)
		} else {
			end = min(end, sequence-1)
		}
	}
	for _, m := range b.messages {
		if !done[m.sequence] {
			left(m.entity(), m.sequence)
		}
	}
	for entity, sequence := range b.held {
		left(entity, sequence)
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
