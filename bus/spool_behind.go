package bus

import (
	"context"
	"hash/maphash"
	"sync"
	"time"
)

// waiting knows which entities have events in the spool, or on the way into it. As long
// as the entity of some event that the store held when it was counted is unknown, every
// entity counts as waiting.
type waiting struct {
	mu       sync.Mutex
	seed     maphash.Seed
	entities map[uint64]int // events by the entity's hash
	unknown  int            // events that were there when the store was counted
	last     uint64         // the sequence of the last of them
}

// reset says what the store holds.
func (w *waiting) reset(events int, last uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seed, w.entities, w.unknown, w.last = maphash.MakeSeed(), make(map[uint64]int), events, last
}

// add counts an event that is about to be written or, with -1, is not after all, or was
// removed.
func (w *waiting) add(entity string, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	hash := maphash.String(w.seed, entity)
	if w.entities[hash] += n; w.entities[hash] <= 0 {
		delete(w.entities, hash)
	}
}

// looked says whom an event of the store is about.
func (w *waiting) looked(entity string, sequence uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if sequence <= w.last {
		w.unknown--
		w.entities[maphash.String(w.seed, entity)]++
	}
}

func (w *waiting) has(entity string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.unknown > 0 || w.entities[maphash.String(w.seed, entity)] > 0
}

// Stalled says that the bus has not taken something.
func (s *Spool) Stalled() { s.moving.Store(false) }

// Behind reports whether an item has to be put behind what waits: an event behind
// those of its entity, a rejected body behind others, and each behind all while the bus
// takes nothing. While the last few events leave, an event waits for them: otherwise
// events that come as fast as others leave would keep the spool in use for ever.
func (s *Spool) Behind(ctx context.Context, item Spooled) bool {
	if item.Event == nil {
		return s.Len() > s.Events() || s.Len() > 0 && !s.moving.Load()
	}
	ctx, cancel := context.WithTimeout(ctx, spoolRetry)
	defer cancel()
	for entity := item.entity(); s.Events() > 0 || s.coming.has(entity); wait(ctx, time.Millisecond) {
		if s.moving.Load() && !s.waiting.has(entity) && !s.coming.has(entity) {
			return false
		}
		if !s.moving.Load() || s.Events() > spoolFew || ctx.Err() != nil {
			return true
		}
	}
	return false
}
