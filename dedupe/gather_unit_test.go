package dedupe

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Events that come one by one are indexed together, but for the first after a pause,
// and where there are many none waits.
func TestGather(t *testing.T) {
	t.Parallel()
	x := &Indexer{pause: time.Hour, dedupe: &Deduper{hurry: make(chan struct{}, 1)}}
	work, batches := make(chan jetstream.Msg), make(chan []jetstream.Msg)
	go func() {
		defer close(batches)
		x.gather(work, batches, indexEnough)
	}()
	send := func(n int) {
		for range n {
			select {
			case work <- nil:
			case msgs := <-batches:
				t.Fatalf("a batch of %d", len(msgs))
			}
		}
	}
	want := func(n int) {
		t.Helper()
		if msgs := <-batches; len(msgs) != n {
			t.Fatalf("a batch of %d, want %d", len(msgs), n)
		}
	}
	send(1)
	want(1)
	send(indexEnough)
	want(indexEnough)
	send(3)
	x.dedupe.hurry <- struct{}{}
	want(3)
	send(2)
	close(work)
	want(2)
	if msgs, ok := <-batches; ok {
		t.Fatalf("a batch of %d after the last", len(msgs))
	}
}

// What waits goes as one batch, of a bounded size.
func TestGatherTakesWhatWaits(t *testing.T) {
	t.Parallel()
	x := &Indexer{dedupe: &Deduper{hurry: make(chan struct{}, 1)}}
	work, batches := make(chan jetstream.Msg, 2*indexBatch), make(chan []jetstream.Msg, 4)
	for range indexBatch + 1 {
		work <- nil
	}
	close(work)
	x.gather(work, batches, indexEnough)
	if first, second := len(<-batches), len(<-batches); first != indexBatch || second != 1 {
		t.Errorf("batches of %d and %d, want %d and 1", first, second, indexBatch)
	}
}
