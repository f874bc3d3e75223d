package dedupe

import (
	"context"
	"fmt"
	"sync"

	"github.com/hookbus/bridge/bus"
)

// keyedLock is a lock for each key that is in use. Its zero value is ready.
type keyedLock struct {
	mu    sync.Mutex
	locks map[string]*waiters
}

type waiters struct {
	n    int           // who has the lock or waits for it
	free chan struct{} // holds one element while nobody has it
}

// lock waits for the key's lock. The error is bus.ErrUnavailable, if ctx ends first.
func (k *keyedLock) lock(ctx context.Context, key string) (unlock func(), err error) {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = make(map[string]*waiters)
	}
	w := k.locks[key]
	if w == nil {
		w = &waiters{free: make(chan struct{}, 1)}
		w.free <- struct{}{}
		k.locks[key] = w
	}
	w.n++
	k.mu.Unlock()

	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if w.n--; w.n == 0 {
			delete(k.locks, key)
		}
	}
	select {
	case <-w.free:
		return func() { w.free <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("%w: %w", bus.ErrUnavailable, ctx.Err())
	}
}
