package bus_test

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/natstest"
)

// events is a stream that is fit for events.
func events(change func(*jetstream.StreamConfig)) jetstream.StreamConfig {
	c := jetstream.StreamConfig{
		Name:       "WEBHOOKS",
		Subjects:   []string{"webhooks.>"},
		Storage:    jetstream.FileStorage,
		Discard:    jetstream.DiscardNew,
		Duplicates: 10 * time.Minute,
	}
	change(&c)
	return c
}

// A stream that would lose what it has acknowledged gets nothing.
func TestRefusedStreams(t *testing.T) {
	for _, test := range []struct {
		name, want string
		change     func(*jetstream.StreamConfig)
	}{
		{"memory storage", "memory storage", func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage }},
		{"async persistence", "persist mode async", func(c *jetstream.StreamConfig) { c.PersistMode = jetstream.AsyncPersistMode }},
		{"no acknowledgements", "no_ack", func(c *jetstream.StreamConfig) { c.NoAck = true }},
		{"interest retention", "retention interest", func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy }},
		{"work queue", "retention workqueue", func(c *jetstream.StreamConfig) { c.Retention = jetstream.WorkQueuePolicy }},
		{"discard old, max_bytes", "drops old events", func(c *jetstream.StreamConfig) { c.Discard, c.MaxBytes = jetstream.DiscardOld, 1<<20 }},
		{"discard old, max_msgs", "drops old events", func(c *jetstream.StreamConfig) { c.Discard, c.MaxMsgs = jetstream.DiscardOld, 1000 }},
		{"discard old, max_msgs_per_subject", "drops old events", func(c *jetstream.StreamConfig) {
			c.Discard, c.MaxMsgsPerSubject = jetstream.DiscardOld, 1000
		}},
		// Discard new alone refuses nothing when a subject is full: the server
		// drops the subject's oldest message, as it does in a key-value bucket.
		{"discard new, max_msgs_per_subject", "drops old events", func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1000 }},
		{"mirror", "mirror of ORIGIN", func(c *jetstream.StreamConfig) {
			c.Subjects, c.Mirror = nil, &jetstream.StreamSource{Name: "ORIGIN"}
		}},
		{"foreign subjects", "does not take the subjects webhooks.>", func(c *jetstream.StreamConfig) { c.Subjects = []string{"other.>"} }},
		{"one level of subjects", "does not take the subjects webhooks.>", func(c *jetstream.StreamConfig) { c.Subjects = []string{"webhooks.*"} }},
		{"a part of the subjects", "does not take the subjects webhooks.>", func(c *jetstream.StreamConfig) { c.Subjects = []string{"webhooks.waldo.>"} }},
		{"subjects of a longer prefix", "does not take the subjects webhooks.>", func(c *jetstream.StreamConfig) { c.Subjects = []string{"webhooks2.>"} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := natstest.Server(t)
			js := jetStream(t, s.ClientURL())
			if test.name == "mirror" {
				create(t, js, map[string]jetstream.StreamConfig{"": {Name: "ORIGIN", Subjects: []string{"webhooks.>"}}})
			}
			create(t, js, map[string]jetstream.StreamConfig{"": events(test.change)})
			wantRefused(t, open(t, external(s)), "stream WEBHOOKS: ", test.want)
		})
	}
	t.Run("sealed", func(t *testing.T) {
		b := openReady(t, external(natstest.Server(t)))
		c := streamInfo(t, b.JetStream(), b.Stream()).Config
		c.Sealed = true
		if _, err := b.JetStream().UpdateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		b.Wake()
		waitProblem(t, b, "sealed")
		wantRefused(t, b, "stream WEBHOOKS: ", "sealed")
	})
	t.Run("quarantine", func(t *testing.T) {
		s := natstest.Server(t)
		c := events(func(c *jetstream.StreamConfig) {
			c.Name, c.Subjects, c.Storage = "WEBHOOKS_QUARANTINE", []string{"quarantine.>"}, jetstream.MemoryStorage
		})
		create(t, jetStream(t, s.ClientURL()), map[string]jetstream.StreamConfig{"": c})
		b := open(t, external(s))
		waitProblem(t, b, "stream WEBHOOKS_QUARANTINE: memory storage")
	})
}

// wantRefused waits for a problem that begins and goes on so, and wants nothing
// to be published.
func wantRefused(t *testing.T, b *bus.Bus, start, want string) {
	t.Helper()
	waitState(t, b, "looked at the stream", func(st *bus.State) bool {
		return st.Ready() || strings.HasPrefix(st.Problems[0], start)
	})
	st := b.State()
	if st.Ready() {
		t.Fatalf("ready, but %q should be refused", want)
	}
	if problems := strings.Join(st.Problems, "\n"); !strings.Contains(problems, want) {
		t.Errorf("problems %q do not name %q", problems, want)
	}
	wantError(t, b, newEvent(t, 1), bus.ErrUnavailable)
	if got := streamInfo(t, b.JetStream(), b.Stream()).State.Msgs; got != 0 {
		t.Errorf("%d messages were published", got)
	}
}

func TestAcceptedStreams(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*jetstream.StreamConfig)
	}{
		{"discard old without a limit of size", func(c *jetstream.StreamConfig) { c.Discard, c.MaxAge = jetstream.DiscardOld, time.Hour }},
		{"discard new, all limits", func(c *jetstream.StreamConfig) {
			c.MaxBytes, c.MaxMsgs, c.MaxMsgsPerSubject, c.DiscardNewPerSubject = 1<<20, 1000, 100, true
		}},
		{"more subjects", func(c *jetstream.StreamConfig) { c.Subjects = []string{"other", "webhooks.>"} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := natstest.Server(t)
			create(t, jetStream(t, s.ClientURL()), map[string]jetstream.StreamConfig{"": events(test.change)})
			mustPublish(t, openReady(t, external(s)), newEvent(t, 1))
		})
	}
	t.Run("subjects of a shorter prefix", func(t *testing.T) {
		s := natstest.Server(t)
		create(t, jetStream(t, s.ClientURL()), map[string]jetstream.StreamConfig{"": events(func(c *jetstream.StreamConfig) { c.Subjects = []string{"acme.>"} })})
		cfg := external(s)
		cfg.SubjectPrefix = "acme.eu.webhooks"
		mustPublish(t, openReady(t, cfg), newEvent(t, 1))
	})
}

// The server does with discard new what TestRefusedStreams says it does.
func TestServerDropsOldMessagesOfAFullSubject(t *testing.T) {
	js := jetStream(t, natstest.Server(t).ClientURL())
	create(t, js, map[string]jetstream.StreamConfig{"": events(func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1 })})
	for range 2 {
		if _, err := js.Publish(t.Context(), "webhooks.waldo.flag", nil); err != nil {
			t.Fatal(err)
		}
	}
	if st := streamInfo(t, js, "WEBHOOKS").State; st.Msgs != 1 || st.FirstSeq != 2 {
		t.Errorf("the stream holds %d messages from sequence %d on, want the second alone", st.Msgs, st.FirstSeq)
	}
}

// Dedupe goes on without its bucket; so must publishing.
func TestPublishGoesOnWithoutTheBucket(t *testing.T) {
	s := natstest.Server(t)
	all := somebodyElses()
	delete(all, "KV_webhooks-dedupe")
	create(t, jetStream(t, s.ClientURL()), all)
	cfg := external(s)
	cfg.Manage = false
	b := open(t, cfg)
	waitState(t, b, "the missing bucket is noticed", func(st *bus.State) bool {
		return strings.Contains(strings.Join(append(st.Problems, st.Warnings...), "\n"), "webhooks-dedupe")
	})
	if b.State().Bucket() != nil {
		t.Error("State has a bucket")
	}
	mustPublish(t, b, newEvent(t, 1))
}

func TestWarnings(t *testing.T) {
	for _, test := range []struct {
		name, want string
		change     func(map[string]jetstream.StreamConfig)
	}{
		{"one replica", "stream WEBHOOKS: a 200 means written by one server, which may not have synced it to disk", func(map[string]jetstream.StreamConfig) {}},
		{"short duplicate window", "stream WEBHOOKS: its duplicate window is 1m0s, less than the 10m0s asked for", func(all map[string]jetstream.StreamConfig) {
			c := all["WEBHOOKS"]
			c.Duplicates = time.Minute
			all["WEBHOOKS"] = c
		}},
		{"short TTL of the bucket", "bucket webhooks-dedupe: its TTL is 1h0m0s, less than the 168h0m0s asked for", func(all map[string]jetstream.StreamConfig) {
			c := all["KV_webhooks-dedupe"]
			c.MaxAge = time.Hour
			all["KV_webhooks-dedupe"] = c
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := natstest.Server(t)
			all := somebodyElses()
			test.change(all)
			create(t, jetStream(t, s.ClientURL()), all)
			b := openReady(t, external(s))
			if warnings := strings.Join(b.State().Warnings, "\n"); !strings.Contains(warnings, test.want) {
				t.Errorf("warnings: got %q, want %q among them", warnings, test.want)
			}
			mustPublish(t, b, newEvent(t, 1))
		})
	}
}

// The quarantine's size is reserved when it is made. A disk with less room is
// no riddle.
func TestNoRoomForTheQuarantine(t *testing.T) {
	b := open(t, external(natstest.Server(t, func(o *server.Options) { o.JetStreamMaxStore = 32 << 20 })))
	waitProblem(t, b, "stream WEBHOOKS_QUARANTINE: ")
	waitProblem(t, b, "it is to hold 67108864 bytes: free as much on the server's disk, or set BRIDGE_QUARANTINE_MAX_BYTES to less")
	mustPublish(t, b, newEvent(t, 1))
}
