package bus_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
)

// published is what a caller of Publish was answered.
type published struct {
	id  string
	ack bus.Ack
	err error
}

// together publishes the events when all of them wait.
func together(t *testing.T, b *bus.Bus, events []*normalize.Event) []published {
	t.Helper()
	waiting, release := b.HoldGroup()
	var callers sync.WaitGroup
	answers := make([]published, len(events))
	for i, e := range events {
		callers.Go(func() {
			ack, err := b.Publish(t.Context(), e)
			answers[i] = published{e.CloudEvent.ID(), ack, err}
		})
	}
	natstest.Eventually(t, within, "all wait", func() bool { return waiting() == len(events) })
	release()
	callers.Wait()
	return answers
}

func newEvents(t *testing.T, n int) []*normalize.Event {
	t.Helper()
	events := make([]*normalize.Event, n)
	for i := range events {
		events[i] = newEvent(t, i)
	}
	return events
}

// wantStored wants every event to be stored where its answer says, the copies of
// one in one place, and nothing else in the stream.
func wantStored(t *testing.T, b *bus.Bus, answers []published) {
	t.Helper()
	at := make(map[string]uint64)
	for _, a := range answers {
		if a.err != nil {
			t.Errorf("%s: %v", a.id, a.err)
			continue
		}
		if before, again := at[a.id]; again && before != a.ack.Sequence {
			t.Errorf("%s is at %d and %d", a.id, before, a.ack.Sequence)
		}
		at[a.id] = a.ack.Sequence
		if got := message(t, b.JetStream(), b.Stream(), a.ack.Sequence).Header.Get(jetstream.MsgIDHeader); got != a.id {
			t.Errorf("message %d: got the id %s, want %s", a.ack.Sequence, got, a.id)
		}
	}
	if got := streamInfo(t, b.JetStream(), b.Stream()).State.Msgs; got != uint64(len(at)) {
		t.Errorf("the stream holds %d messages, want %d", got, len(at))
	}
}

// batches returns the messages and bytes of each batch in the stream; those of
// the name "" were published by themselves.
func batches(t *testing.T, b *bus.Bus) (messages, bytes map[string]int) {
	t.Helper()
	messages, bytes = make(map[string]int), make(map[string]int)
	for sequence := range streamInfo(t, b.JetStream(), b.Stream()).State.LastSeq {
		m := message(t, b.JetStream(), b.Stream(), sequence+1)
		id := m.Header.Get("Nats-Batch-Id")
		messages[id]++
		bytes[id] += len(m.Data)
	}
	return messages, bytes
}

func TestGroup(t *testing.T) {
	b := openReady(t, embedded(t))
	answers := together(t, b, newEvents(t, 100))
	wantStored(t, b, answers)
	for _, a := range answers {
		if a.ack.Duplicate {
			t.Errorf("%s is a duplicate", a.id)
		}
	}
	if messages, _ := batches(t, b); len(messages) != 1 || messages[""] != 0 {
		t.Errorf("batches: %v, want one", messages)
	}
	for _, a := range answers { // the duplicate window knows them
		e := newEvent(t, "")
		e.CloudEvent.SetID(a.id)
		if ack, err := b.Publish(t.Context(), e); err != nil || ack != (bus.Ack{Sequence: a.ack.Sequence, Duplicate: true}) {
			t.Errorf("again: got %+v, %v; want a duplicate of %d", ack, err, a.ack.Sequence)
		}
	}
}

// Without company nothing is in a batch.
func TestNoGroup(t *testing.T) {
	b := openReady(t, embedded(t))
	b.GroupAlways()
	for i := range 10 {
		mustPublish(t, b, newEvent(t, i))
	}
	if messages, _ := batches(t, b); messages[""] != 10 {
		t.Errorf("batches: %v, want none", messages)
	}
}

// A stream that has one of the events already refuses the batch.
func TestGroupWithADuplicate(t *testing.T) {
	b := openReady(t, embedded(t))
	events := newEvents(t, 20)
	msg, err := bus.Encode(events[7])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.JetStream().PublishMsg(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
	answers := together(t, b, events)
	wantStored(t, b, answers)
	for i, a := range answers {
		if a.ack.Duplicate != (i == 7) {
			t.Errorf("event %d: duplicate is %v", i, a.ack.Duplicate)
		}
	}
	if got := answers[7].ack.Sequence; got != 1 {
		t.Errorf("the duplicate is of %d, want 1", got)
	}
	if messages, _ := batches(t, b); messages[""] != 20 {
		t.Errorf("batches: %v, want none", messages)
	}
}

// Copies at one moment are one message, and cost the others no batch.
func TestGroupWithCopies(t *testing.T) {
	b := openReady(t, embedded(t))
	events := newEvents(t, 20)
	for range 30 {
		events = append(events, newEvent(t, 7))
	}
	answers := together(t, b, events)
	wantStored(t, b, answers)
	first := 0
	for _, a := range answers {
		if !a.ack.Duplicate {
			first++
		}
	}
	if first != 20 {
		t.Errorf("%d are no duplicate, want 20", first)
	}
	if messages, _ := batches(t, b); messages[""] != 0 {
		t.Errorf("batches: %v, want all in one", messages)
	}
}

func TestGroupIsBounded(t *testing.T) {
	for _, test := range []struct {
		name          string
		events        []*normalize.Event
		alone, groups int
	}{
		{"messages", newEvents(t, 1500), 0, 2},
		{"bytes", sizedEvents(t, 300, 30_000), 0, 3},
		{"bytes of a message", append(sizedEvents(t, 2, 100_000), newEvents(t, 10)...), 2, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := openReady(t, embedded(t))
			wantStored(t, b, together(t, b, test.events))
			messages, bytes := batches(t, b)
			if messages[""] != test.alone {
				t.Errorf("%d were published by themselves, want %d", messages[""], test.alone)
			}
			delete(messages, "")
			if len(messages) != test.groups {
				t.Errorf("%d batches, want %d", len(messages), test.groups)
			}
			for id, n := range messages {
				if n > 1000 || bytes[id] > 4<<20 {
					t.Errorf("a batch of %d messages, %d bytes", n, bytes[id])
				}
			}
		})
	}
}

// sizedEvents returns events with bodies of that size.
func sizedEvents(t *testing.T, n, size int) []*normalize.Event {
	t.Helper()
	events := make([]*normalize.Event, n)
	for i := range events {
		events[i] = bigEvent(t, size)
		events[i].CloudEvent.SetID(fmt.Sprint("big-", i))
	}
	return events
}

// What has room is stored, and what has none is refused.
func TestGroupOnAFullStream(t *testing.T) {
	cfg := embedded(t)
	cfg.StreamMaxBytes = 64 << 10
	cfg.PublishTimeout = 600 * time.Millisecond
	b := openReady(t, cfg)
	var stored []published
	for _, a := range together(t, b, newEvents(t, 100)) {
		if a.err == nil {
			stored = append(stored, a)
		} else if !errors.Is(a.err, bus.ErrUnavailable) || !strings.Contains(a.err.Error(), "maximum bytes exceeded") {
			t.Errorf("full: got the error %v", a.err)
		}
	}
	if len(stored) < 10 || len(stored) > 90 {
		t.Errorf("%d stored", len(stored))
	}
	wantStored(t, b, stored)
}

// Whoever has gone while he waited is not stored.
func TestGroupCanceled(t *testing.T) {
	b := openReady(t, embedded(t))
	waiting, release := b.HoldGroup()
	ctx, cancel := context.WithCancel(t.Context())
	answers := make([]published, 20)
	var callers, gone sync.WaitGroup
	for i := range answers {
		e := newEvent(t, i)
		publish := func(ctx context.Context) {
			ack, err := b.Publish(ctx, e)
			answers[i] = published{e.CloudEvent.ID(), ack, err}
		}
		if i%4 == 0 {
			gone.Go(func() { publish(ctx) })
		} else {
			callers.Go(func() { publish(t.Context()) })
		}
	}
	natstest.Eventually(t, within, "all wait", func() bool { return waiting() == len(answers) })
	cancel()
	gone.Wait()
	release()
	callers.Wait()
	var stored []published
	for i, a := range answers {
		if i%4 != 0 {
			stored = append(stored, a)
		} else if !errors.Is(a.err, bus.ErrUnavailable) || !errors.Is(a.err, context.Canceled) {
			t.Errorf("event %d: got %v, want %q and %q", i, a.err, bus.ErrUnavailable, context.Canceled)
		}
	}
	wantStored(t, b, stored)
}

func TestGroupOfAClosedBus(t *testing.T) {
	b := openReady(t, embedded(t))
	waiting, release := b.HoldGroup()
	failed := make(chan error, 20)
	for _, e := range newEvents(t, 20) {
		go func() {
			_, err := b.Publish(t.Context(), e)
			failed <- err
		}()
	}
	natstest.Eventually(t, within, "all wait", func() bool { return waiting() == 20 })
	closeBus(t, b)
	release()
	for range 20 {
		if err := <-failed; !errors.Is(err, bus.ErrUnavailable) {
			t.Errorf("Publish: got %v, want %q", err, bus.ErrUnavailable)
		}
	}
}

// A caller that panics leaves no place taken.
func TestGroupPanic(t *testing.T) {
	b := openReady(t, embedded(t))
	for range 20 {
		func() {
			defer func() {
				if got := recover(); got != "test" {
					t.Errorf("recovered %v", got)
				}
			}()
			b.GroupPanics("test")
			b.Publish(t.Context(), newEvent(t, rand.Text()))
		}()
	}
	wantStored(t, b, together(t, b, newEvents(t, 20)))
}

// A stream of an earlier version is switched over; somebody else's is taken as it
// is.
func TestGroupNeedsAtomicPublish(t *testing.T) {
	for _, test := range []struct {
		name             string
		on, manage, want bool
	}{
		{"ours", false, true, true},
		{"somebody else's", false, false, false},
		{"somebody else's, switched on", true, false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := embedded(t)
			t.Run("before", func(t *testing.T) { allowAtomic(t, openReady(t, cfg), test.on) })
			cfg.Manage = test.manage
			b := openReady(t, cfg)
			if got := b.State().Warnings; len(got) != 0 {
				t.Errorf("warnings: %q", got)
			}
			if test.want {
				wantStored(t, b, together(t, b, newEvents(t, 20)))
				if messages, _ := batches(t, b); messages[""] != 0 {
					t.Errorf("batches: %v, want one", messages)
				}
				return
			}
			_, release := b.HoldGroup()
			defer release()
			mustPublish(t, b, newEvent(t, "not held"))
		})
	}
}

func allowAtomic(t *testing.T, b *bus.Bus, on bool) {
	t.Helper()
	c := streamInfo(t, b.JetStream(), b.Stream()).Config
	c.AllowAtomicPublish = on
	if _, err := b.JetStream().UpdateStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

// Somebody switches it off under a running bus.
func TestGroupIsRefused(t *testing.T) {
	b := openReady(t, embedded(t))
	allowAtomic(t, b, false)
	wantStored(t, b, together(t, b, newEvents(t, 20)))
	if messages, _ := batches(t, b); messages[""] != 20 {
		t.Errorf("batches: %v, want none", messages)
	}
}

// A server that stops in the middle of batches has every event that was
// acknowledged, once. What it would have on its disk then is copied while it runs.
func TestGroupInACrash(t *testing.T) {
	cfg := embedded(t)
	b := openReady(t, cfg)
	b.GroupAlways()
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	stored := make(map[string]uint64)
	var callers sync.WaitGroup
	defer callers.Wait()
	defer cancel()
	for range 64 {
		callers.Go(func() {
			for ctx.Err() == nil {
				e := newEvent(t, rand.Text())
				ack, err := b.Publish(context.WithoutCancel(ctx), e)
				if err != nil {
					t.Errorf("Publish: %v", err)
				}
				mu.Lock()
				stored[e.CloudEvent.ID()] = ack.Sequence
				mu.Unlock()
			}
		})
	}
	acknowledged := func() map[string]uint64 {
		mu.Lock()
		defer mu.Unlock()
		return maps.Clone(stored)
	}
	type crash struct {
		dir  string
		want map[string]uint64
	}
	var crashes []crash
	for range 5 {
		c, before := crash{dir: filepath.Join(t.TempDir(), "data")}, len(acknowledged())
		natstest.Eventually(t, within, "more events", func() bool {
			c.want = acknowledged()
			return len(c.want) >= before+100
		})
		copyDir(t, c.dir, cfg.DataDir)
		crashes = append(crashes, c)
	}
	cancel()
	callers.Wait()
	for i, c := range crashes {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			cfg := cfg
			cfg.DataDir, cfg.EmbeddedListen = c.dir, "127.0.0.1:0"
			b := openReady(t, cfg)
			got, inBatches := make(map[string]uint64), 0
			for sequence := range streamInfo(t, b.JetStream(), b.Stream()).State.LastSeq {
				m := message(t, b.JetStream(), b.Stream(), sequence+1)
				id := m.Header.Get(jetstream.MsgIDHeader)
				if before := got[id]; before != 0 {
					t.Errorf("%s is at %d and %d", id, before, sequence+1)
				}
				got[id] = sequence + 1
				if m.Header.Get("Nats-Batch-Id") != "" {
					inBatches++
				}
			}
			for id, sequence := range c.want {
				if got[id] != sequence {
					t.Errorf("%s is at %d, was acknowledged at %d", id, got[id], sequence)
				}
			}
			if inBatches < len(c.want)/2 {
				t.Errorf("%d in batches of %d acknowledged", inBatches, len(c.want))
			}
			t.Logf("%d acknowledged, %d stored", len(c.want), len(got))
		})
	}
}

// copyDir copies files as they are one after the other; some may go meanwhile.
func copyDir(t *testing.T, to, from string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		name := filepath.Join(to, strings.TrimPrefix(path, from))
		if d.IsDir() {
			return os.MkdirAll(name, 0o700)
		}
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		return os.WriteFile(name, content, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What a synced publish costs by itself and in company. How they compare depends
// on what a sync takes on the disk of the temporary directory: docs/performance.md.
func BenchmarkPublishSynced(b *testing.B) {
	for _, callers := range []int{1, 256} {
		for _, how := range []string{"single", "grouped"} {
			b.Run(fmt.Sprintf("%s-%d", how, callers), func(b *testing.B) {
				benchmarkPublish(b, callers, how == "grouped")
			})
		}
	}
}

func benchmarkPublish(b *testing.B, callers int, grouped bool) {
	cfg := testConfig()
	cfg.DataDir, cfg.EmbeddedListen = filepath.Join(b.TempDir(), "data"), "127.0.0.1:0"
	bridge, err := bus.Open(b.Context(), cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	var running sync.WaitGroup
	running.Go(func() { bridge.Run(ctx) })
	defer func() {
		cancel()
		running.Wait()
		bridge.Close(context.Background())
	}()
	for st := bridge.State(); !st.Ready(); st = bridge.State() {
		<-st.Changed()
	}
	publish := func(ctx context.Context, e *normalize.Event) error {
		if grouped {
			_, err := bridge.Publish(ctx, e)
			return err
		}
		msg, err := bus.Encode(e)
		if err == nil {
			_, err = bridge.JetStream().PublishMsg(ctx, msg)
		}
		return err
	}
	pattern, run := newEvent(b, "benchmark"), rand.Text()
	var n atomic.Int64
	b.ResetTimer()
	var workers sync.WaitGroup
	for range callers {
		workers.Go(func() {
			for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
				e := *pattern
				e.CloudEvent = pattern.CloudEvent.Clone()
				e.CloudEvent.SetID(fmt.Sprint(run, i))
				if err := publish(ctx, &e); err != nil {
					b.Error(err)
				}
			}
		})
	}
	workers.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
