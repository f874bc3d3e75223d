package dedupe

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/hookbus/bridge/bus"
)

func TestKeyedLock(t *testing.T) {
	var k keyedLock
	var wg sync.WaitGroup
	counts := map[string]*int{"a": new(int), "b": new(int)}
	for range 200 {
		for key, n := range counts {
			wg.Go(func() {
				unlock, err := k.lock(t.Context(), key)
				if err != nil {
					t.Error(err)
					return
				}
				defer unlock()
				*n++ // the race detector sees who else is inside
			})
		}
	}
	wg.Wait()
	if *counts["a"] != 200 || *counts["b"] != 200 || len(k.locks) != 0 {
		t.Errorf("%d and %d were inside, %d keys are kept", *counts["a"], *counts["b"], len(k.locks))
	}
}

func TestKeyedLockGivesUp(t *testing.T) {
	var k keyedLock
	unlock, err := k.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.lock(ctx, "a"); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	unlock()
	if unlock, err = k.lock(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	unlock()
	if len(k.locks) != 0 {
		t.Errorf("%d keys are kept", len(k.locks))
	}
}
