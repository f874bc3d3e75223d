package bus_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hookbus/bridge/bus"
)

// A disk that is full in the middle of a batch leaves messages that the server
// delivers, and calls duplicates, without having synced them.
func TestGroupOnAFullDisk(t *testing.T) {
	dir := smallDisk(t, 8)
	cfg := embedded(t)
	cfg.DataDir, cfg.PublishTimeout = filepath.Join(dir, "data"), 900*time.Millisecond
	events := sizedEvents(t, 100, 10_000)
	ballast := filepath.Join(dir, "ballast")
	var before uint64
	t.Run("full", func(t *testing.T) {
		b := openReady(t, cfg)
		before = mustPublish(t, b, newEvent(t, "before"))
		var disk syscall.Statfs_t
		if err := syscall.Statfs(dir, &disk); err != nil {
			t.Fatal(err)
		}
		const room = 1_700_000 // for a batch, and not for its messages in the stream as well
		if err := os.WriteFile(ballast, make([]byte, int64(disk.Bavail)*disk.Bsize-room), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, a := range together(t, b, events) {
			if !errors.Is(a.err, bus.ErrUnavailable) {
				t.Errorf("%s: got %+v, %v; want %q", a.id, a.ack, a.err, bus.ErrUnavailable)
			}
		}
		waitProblem(t, b, "write error")
		ctx, cancel := context.WithTimeout(t.Context(), cfg.PublishTimeout)
		defer cancel()
		var left atomic.Int64
		var publishers sync.WaitGroup
		for _, e := range events {
			msg, err := bus.Encode(e)
			if err != nil {
				t.Fatal(err)
			}
			publishers.Go(func() {
				ack, err := b.JetStream().PublishMsg(ctx, msg)
				if err != nil {
					return
				}
				left.Add(1)
				if !ack.Duplicate {
					t.Errorf("%s is stored", e.CloudEvent.ID())
				}
				if there, err := b.Holds(t.Context(), ack.Sequence, e.CloudEvent.ID()); err != nil || there {
					t.Errorf("Holds %d: got %v, %v", ack.Sequence, there, err)
				}
			})
		}
		publishers.Wait()
		if left.Load() == 0 {
			t.Error("the batch has left no message in the stream: the disk was full too early")
		}
	})
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	b := openReady(t, cfg)
	answers := []published{{newEvent(t, "before").CloudEvent.ID(), bus.Ack{Sequence: before}, nil}}
	for _, e := range events {
		ack, err := b.Publish(t.Context(), e)
		answers = append(answers, published{e.CloudEvent.ID(), ack, err})
	}
	wantStored(t, b, answers)
}
