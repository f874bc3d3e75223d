package bus_test

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
)

// Three servers take seconds to start: all that needs them is one test.
func TestCluster(t *testing.T) {
	c := natstest.Cluster(t, 3)
	cfg := testConfig()
	cfg.URL = c.URL()
	cfg.Replicas = 3
	cfg.PublishTimeout = 15 * time.Second // an election takes up to 9 s, and on a busy machine there may be a second
	b := openReady(t, cfg)

	t.Run("state", func(t *testing.T) {
		if got, want := b.State().Durability, "a 200 means written by a majority of 3 servers"; got != want {
			t.Errorf("Durability: got %q, want %q", got, want)
		}
		if got := b.State().Warnings; len(got) != 0 {
			t.Errorf("warnings: %q", got)
		}
	})

	// A racing copy is answered "duplicate message id is in process" (10158).
	t.Run("copies at once", func(t *testing.T) {
		const copies = 64
		wantOneStored(t, b, publishCopies(t, b, newEvent(t, "copies"), copies), copies)
	})

	t.Run("replicas", func(t *testing.T) { testReplicas(t, cfg) })

	t.Run("leader steps down", func(t *testing.T) {
		load := startLoad(t, b, "stepdown")
		for range 2 {
			load.more(t, 50)
			old := leader(t, c, b.Stream())
			msg, err := b.JetStream().Conn().Request("$JS.API.STREAM.LEADER.STEPDOWN."+b.Stream(), nil, within)
			if err != nil {
				t.Fatal(err)
			}
			var answer struct {
				Success bool                `json:"success"`
				Error   *jetstream.APIError `json:"error"`
			}
			if err := json.Unmarshal(msg.Data, &answer); err != nil || !answer.Success {
				t.Fatalf("leader %d does not step down: %v, %v", old, err, answer.Error)
			}
		}
		load.more(t, 50)
		load.stop(t, b)
	})

	t.Run("leader's server stops", func(t *testing.T) {
		down := leader(t, c, b.Stream())
		cfg := cfg
		cfg.URL = c.Servers[(down+1)%3].ClientURL() // the client's own connection stays
		b := openReady(t, cfg)
		load := startLoad(t, b, "stop")
		load.more(t, 50)
		c.Stop(down)
		load.more(t, 50)
		load.stop(t, b)
	})
}

// testReplicas raises the replicas of existing streams, and does not lower them.
func testReplicas(t *testing.T, cfg bus.Config) {
	cfg.Stream, cfg.SubjectPrefix = "ONE", "one"
	cfg.QuarantineStream, cfg.QuarantinePrefix = "ONE_QUARANTINE", "one-quarantine"
	cfg.Bucket = "one-dedupe"
	names := []string{"ONE", "ONE_QUARANTINE", "KV_one-dedupe"}
	js := jetStream(t, cfg.URL)
	for _, step := range []struct {
		name           string
		replicas, want int
		explicit       bool
	}{
		{"created with one", 1, 1, false},
		{"three by default", 3, 1, false},
		{"three set", 3, 3, true},
		{"one set", 1, 3, true},
	} {
		t.Run(step.name, func(t *testing.T) {
			cfg.Replicas, cfg.Explicit = step.replicas, map[string]bool{"STREAM_REPLICAS": step.explicit}
			b := openReady(t, cfg)
			for _, name := range names {
				if got := streamInfo(t, js, name).Config.Replicas; got != step.want {
					t.Errorf("stream %s has %d replicas, want %d", name, got, step.want)
				}
			}
			mustPublish(t, b, newEvent(t, step.name))
		})
	}
}

// leader returns the index of the server that leads the stream.
func leader(t *testing.T, c *natstest.NATSCluster, stream string) int {
	t.Helper()
	found := -1
	natstest.Eventually(t, within, "the stream has a leader", func() bool {
		for i, s := range c.Servers {
			if s.Running() && s.JetStreamIsStreamLeader(server.DEFAULT_GLOBAL_ACCOUNT, stream) {
				found = i
				return true
			}
		}
		return false
	})
	return found
}

// load publishes events of its own by some goroutines. None may fail.
type load struct {
	end     context.CancelFunc
	workers sync.WaitGroup
	before  uint64 // messages in the stream at the start

	mu     sync.Mutex
	stored map[uint64]string // id by sequence
	failed int
}

func startLoad(t *testing.T, b *bus.Bus, name string) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{end: cancel, stored: make(map[uint64]string), before: streamInfo(t, b.JetStream(), b.Stream()).State.Msgs}
	t.Cleanup(func() {
		l.end()
		l.workers.Wait()
	})
	for w := range 4 {
		l.workers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				l.publish(t, b, newEvent(t, fmt.Sprintf("%s-%d-%d", name, w, i)))
			}
		})
	}
	return l
}

func (l *load) publish(t *testing.T, b *bus.Bus, e *normalize.Event) {
	// An acknowledgement may have been lost: a duplicate is the event itself.
	ack, err := b.Publish(context.Background(), e) // what was begun is finished
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.failed++
		t.Errorf("%s: %v", e.CloudEvent.ID(), err)
		return
	}
	if other := l.stored[ack.Sequence]; other != "" {
		t.Errorf("%s and %s have sequence %d", e.CloudEvent.ID(), other, ack.Sequence)
	}
	l.stored[ack.Sequence] = e.CloudEvent.ID()
}

// more returns when that many more events were published.
func (l *load) more(t *testing.T, n int) {
	t.Helper()
	count := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.stored) + l.failed
	}
	start := count()
	natstest.Eventually(t, 3*within, fmt.Sprintf("%d more events", n), func() bool { return count() >= start+n })
}

// stop ends the load and wants every event to be in the stream, once.
func (l *load) stop(t *testing.T, b *bus.Bus) {
	t.Helper()
	l.end()
	l.workers.Wait()
	if got := streamInfo(t, b.JetStream(), b.Stream()).State.Msgs - l.before; got != uint64(len(l.stored)) {
		t.Errorf("the stream holds %d messages of %d events", got, len(l.stored))
	}
	for sequence, id := range l.stored {
		m := message(t, b.JetStream(), b.Stream(), sequence)
		if got := m.Header.Get(jetstream.MsgIDHeader); got != id {
			t.Errorf("message %d: got the id %s, want %s", sequence, got, id)
		}
	}
}
