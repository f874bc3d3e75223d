package bus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// recount counts what the store holds, and reports whether it could. What is missing,
// since it was written and not removed, has been lost.
func (s *Spool) recount(ctx context.Context) bool {
	s.mu.Lock() // nothing is being written
	defer s.mu.Unlock()
	if s.givenUp() {
		return false
	}
	state, err := s.state(ctx)
	if err != nil {
		return false
	}
	before, unsure := s.Len(), time.Since(time.Unix(0, s.unsure.Load())) < storeTimeout
	s.counted(state)
	if missing := before - s.Len(); missing > 0 && !unsure {
		s.damaged(fmt.Sprintf("%d messages are missing", missing))
	}
	return true
}

// givenUp reports whether a write that was given up may still be stored, after what is
// stored was counted. The lock is held.
func (s *Spool) givenUp() bool { return s.store.js.PublishAsyncPending() > 0 }

// miscounted reports whether the store holds something else than is counted, after
// nothing was found to hand over.
func (s *Spool) miscounted(ctx context.Context) bool {
	if s.Len() == 0 && s.Events() == 0 {
		s.unread, s.rebuilt = time.Time{}, false
		return false
	}
	s.mu.Lock() // nothing is being written
	defer s.mu.Unlock()
	if s.givenUp() {
		return false
	}
	state, err := s.state(ctx)
	if err != nil {
		return false
	}
	if uint64(s.Len()) != state.Msgs || uint64(s.Events()) != state.Subjects[eventSubject] {
		return true
	}
	switch _, err := s.read(ctx, 1, anySubject); {
	case !errors.Is(err, jetstream.ErrMsgNotFound): // written just now
		s.unread = time.Time{}
	case s.rebuilt: // no more can be done
	case s.unread.IsZero(): // it may pass: the server does not say what the matter is
		s.unread = time.Now()
	case time.Since(s.unread) >= spoolReopen:
		s.lookThrough(ctx)
	}
	return false
}

// lookThrough has the server look through its files for what can be read. A message that
// cannot be read holds up all behind it; after a crash the server looks through the files
// by itself, and would cut off that message and all behind it. The lock is held.
func (s *Spool) lookThrough(ctx context.Context) {
	s.damaged(fmt.Sprintf("%d messages cannot be read", s.Len()))
	s.rebuilt = true
	s.broken.Store(true) // until it is open
	s.close()
	if err := os.Remove(filepath.Join(s.streamDir(), "msgs", "index.db")); err != nil {
		s.log.Warn("the spool is not looked through", "error", err)
	}
	s.reopen(ctx)
	s.notify()
}

// state returns what the store holds, also by subject. The lock is held.
func (s *Spool) state(ctx context.Context) (jetstream.StreamState, error) {
	bounded, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	probes := s.probes.Load()
	info, err := s.store.stream.Info(bounded, jetstream.WithSubjectFilter(anySubject))
	if err != nil {
		if ctx.Err() == nil {
			err = s.fail("counting", probes, err)
		}
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
