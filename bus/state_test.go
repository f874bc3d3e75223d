package bus_test

import (
	"strconv"
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
			b := open(t, external(s))
			wantRefused(t, b, "stream WEBHOOKS: ", test.want)
			if test.name == "mirror" {
				return // another stream is to be named
			}
			for _, problem := range b.State().Problems {
				follow(t, js, problem)
			}
			b.Wake()
			waitReady(t, b)
			mustPublish(t, b, newEvent(t, 1))
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
		follow(t, b.JetStream(), b.State().Problems[0])
		b.Wake()
		waitReady(t, b)
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

// follow does what the command at the end of a problem or warning does: nats
// stream edit, nats stream rm or nats kv del. The flags are those of natscli.
func follow(t *testing.T, js jetstream.JetStream, advice string) {
	t.Helper()
	i := strings.LastIndex(advice, "nats ")
	if i < 0 {
		t.Fatalf("no command in %q", advice)
	}
	command, _, _ := strings.Cut(advice[i:], ", and ")
	words := strings.Fields(strings.NewReplacer("'", "", "=", " ").Replace(command))
	name := words[3]
	switch strings.Join(words[:3], " ") {
	case "nats kv del":
		name = "KV_" + name
		fallthrough
	case "nats stream rm":
		if err := js.DeleteStream(t.Context(), name); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		return
	case "nats stream edit":
	default:
		t.Fatalf("no command of natscli: %s", command)
	}
	c := streamInfo(t, js, name).Config
	for flags := words[4:]; len(flags) > 0; {
		flag, value := flags[0], ""
		if flags = flags[1:]; len(flags) > 0 {
			value = flags[0]
		}
		if strings.HasPrefix(flag, "--") {
			set(t, &c, flag, value)
		}
	}
	if _, err := js.UpdateStream(t.Context(), c); err != nil {
		t.Fatalf("%s: %v", command, err)
	}
}

func set(t *testing.T, c *jetstream.StreamConfig, flag, value string) {
	t.Helper()
	switch flag {
	case "--ack":
		c.NoAck = false
	case "--no-discard-per-subject":
		c.DiscardNewPerSubject = false
	case "--discard":
		c.Discard = jetstream.DiscardNew
	case "--retention":
		c.Retention = jetstream.LimitsPolicy
	case "--subjects":
		c.Subjects = strings.Split(value, ",")
	case "--max-msgs-per-subject":
		c.MaxMsgsPerSubject = -1
	case "--max-msg-size":
		c.MaxMsgSize = -1
	case "--max-msgs":
		c.MaxMsgs = -1
	case "--max-bytes":
		c.MaxBytes = map[string]int64{"-1": -1, "1GB": 1 << 30}[value]
	case "--dupe-window":
		c.Duplicates = duration(t, value)
	case "--max-age":
		c.MaxAge = duration(t, value)
	default:
		t.Fatalf("unknown flag %s", flag)
	}
}

func duration(t *testing.T, text string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Where a stream has to be made anew, the server leaves no other way.
func TestServerDoesNotChange(t *testing.T) {
	for _, test := range []struct {
		name          string
		wrong, mended func(*jetstream.StreamConfig)
	}{
		{"memory storage", func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage }, func(c *jetstream.StreamConfig) { c.Storage = jetstream.FileStorage }},
		{"persist mode async", func(c *jetstream.StreamConfig) { c.PersistMode = jetstream.AsyncPersistMode }, func(c *jetstream.StreamConfig) { c.PersistMode = jetstream.DefaultPersistMode }},
		{"retention workqueue", func(c *jetstream.StreamConfig) { c.Retention = jetstream.WorkQueuePolicy }, func(c *jetstream.StreamConfig) { c.Retention = jetstream.LimitsPolicy }},
		{"sealed", nil, func(c *jetstream.StreamConfig) { c.Sealed = false }},
	} {
		t.Run(test.name, func(t *testing.T) {
			js := jetStream(t, natstest.Server(t).ClientURL())
			wrong := test.wrong
			if wrong == nil {
				wrong = func(*jetstream.StreamConfig) {}
			}
			create(t, js, map[string]jetstream.StreamConfig{"": events(wrong)})
			c := streamInfo(t, js, "WEBHOOKS").Config
			if test.wrong == nil { // only an existing stream can be sealed
				c.Sealed = true
				if _, err := js.UpdateStream(t.Context(), c); err != nil {
					t.Fatal(err)
				}
			}
			test.mended(&c)
			if _, err := js.UpdateStream(t.Context(), c); err == nil {
				t.Error("the server changes it: say how instead of having the stream made anew")
			}
		})
	}
}

// Without a variable that has an effect only the command is named.
func TestAdviceForUnmanagedStreams(t *testing.T) {
	s := natstest.Server(t)
	all := somebodyElses()
	change(all, "WEBHOOKS", func(c *jetstream.StreamConfig) { c.Duplicates = time.Minute })
	create(t, jetStream(t, s.ClientURL()), all)
	cfg := external(s)
	cfg.Manage = false
	b := openReady(t, cfg)
	warnings := strings.Join(b.State().Warnings, "\n")
	if !strings.Contains(warnings, "nats stream edit WEBHOOKS --dupe-window 10m0s") || strings.Contains(warnings, "set BRIDGE_") {
		t.Errorf("warnings: %q", warnings)
	}
}

func change(all map[string]jetstream.StreamConfig, name string, f func(*jetstream.StreamConfig)) {
	c := all[name]
	f(&c)
	all[name] = c
}

const bucketStream = "KV_webhooks-dedupe"

// What makes the bucket useless is a problem, as its absence is; events are
// stored all the same.
func TestUselessBucket(t *testing.T) {
	for _, test := range []struct {
		name, want string
		change     func(*jetstream.StreamConfig)
	}{
		{"mirror", "it is a mirror", func(c *jetstream.StreamConfig) {
			*c = jetstream.StreamConfig{Name: c.Name, MaxMsgsPerSubject: 1, Mirror: &jetstream.StreamSource{Name: "KV_origin"}}
		}},
		{"interest", "retention interest", func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy }},
		{"work queue", "retention workqueue", func(c *jetstream.StreamConfig) { c.Retention = jetstream.WorkQueuePolicy }},
		{"no acknowledgements", "no_ack", func(c *jetstream.StreamConfig) { c.NoAck = true }},
		{"discard new per subject", "discard_new_per_subject", func(c *jetstream.StreamConfig) { c.DiscardNewPerSubject = true }},
		{"sealed", "it is sealed", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := natstest.Server(t)
			js := jetStream(t, s.ClientURL())
			all := somebodyElses()
			if test.name == "mirror" {
				create(t, js, map[string]jetstream.StreamConfig{"": {Name: "KV_origin", Subjects: []string{"$KV.origin.>"}, MaxMsgsPerSubject: 1}})
			}
			if test.change != nil {
				change(all, bucketStream, test.change)
			}
			create(t, js, all)
			if test.change == nil {
				c := streamInfo(t, js, bucketStream).Config
				c.Sealed = true
				if _, err := js.UpdateStream(t.Context(), c); err != nil {
					t.Fatal(err)
				}
			}
			b := open(t, external(s))
			waitProblem(t, b, "bucket webhooks-dedupe: "+test.want)
			mustPublish(t, b, newEvent(t, 1))
			for _, problem := range b.State().Problems {
				follow(t, js, problem)
			}
			b.Wake()
			waitReady(t, b)
			kv, err := js.KeyValue(t.Context(), "webhooks-dedupe")
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if _, err := kv.PutString(t.Context(), "name", "value"); err != nil {
					t.Errorf("the mended bucket takes no names: %v", err)
				}
			}
			if _, err := kv.Get(t.Context(), "name"); err != nil {
				t.Errorf("the mended bucket keeps no names: %v", err)
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	for _, test := range []struct {
		name, want string
		change     func(map[string]jetstream.StreamConfig)
	}{
		{"one replica", "stream WEBHOOKS: a 200 means written by one server, which may not have synced it to disk", func(map[string]jetstream.StreamConfig) {}},
		{"small events", "stream WEBHOOKS: its max_msg_size of 300 may be less", func(all map[string]jetstream.StreamConfig) {
			change(all, "WEBHOOKS", func(c *jetstream.StreamConfig) { c.MaxMsgSize = 300 })
		}},
		{"few events of a subject", "stream WEBHOOKS: discard_new_per_subject refuses events of a subject that has 3", func(all map[string]jetstream.StreamConfig) {
			change(all, "WEBHOOKS", func(c *jetstream.StreamConfig) { c.DiscardNewPerSubject, c.MaxMsgsPerSubject = true, 3 })
		}},
		{"short duplicate window", "stream WEBHOOKS: its duplicate window is 1m0s, less than the 10m0s asked for", func(all map[string]jetstream.StreamConfig) {
			change(all, "WEBHOOKS", func(c *jetstream.StreamConfig) { c.Duplicates = time.Minute })
		}},
		{"short age of events", "stream WEBHOOKS: it keeps events for 2h0m0s, less than the dedupe window", func(all map[string]jetstream.StreamConfig) {
			change(all, "WEBHOOKS", func(c *jetstream.StreamConfig) { c.MaxAge = 2 * time.Hour })
		}},
		{"unlimited quarantine", "stream WEBHOOKS_QUARANTINE: it has no limit of age, size or count", func(all map[string]jetstream.StreamConfig) {
			change(all, "WEBHOOKS_QUARANTINE", func(c *jetstream.StreamConfig) { c.MaxAge, c.MaxBytes, c.MaxMsgs = 0, -1, -1 })
		}},
		{"short TTL of the bucket", "bucket webhooks-dedupe: its TTL is 1h0m0s, less than the 168h0m0s asked for", func(all map[string]jetstream.StreamConfig) {
			change(all, bucketStream, func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour })
		}},
		{"memory storage of the bucket", "bucket webhooks-dedupe: memory storage", func(all map[string]jetstream.StreamConfig) {
			change(all, bucketStream, func(c *jetstream.StreamConfig) {
				c.Storage, c.Compression = jetstream.MemoryStorage, jetstream.NoCompression
			})
		}},
		{"async persistence of the bucket", "bucket webhooks-dedupe: persist mode async", func(all map[string]jetstream.StreamConfig) {
			change(all, bucketStream, func(c *jetstream.StreamConfig) { c.PersistMode = jetstream.AsyncPersistMode })
		}},
		{"bucket that drops old names", "bucket webhooks-dedupe: it drops old names when full", func(all map[string]jetstream.StreamConfig) {
			change(all, bucketStream, func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld })
		}},
		{"small values", "bucket webhooks-dedupe: its max_msg_size of 100 is less", func(all map[string]jetstream.StreamConfig) {
			change(all, bucketStream, func(c *jetstream.StreamConfig) { c.MaxMsgSize = 100 })
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := natstest.Server(t)
			js := jetStream(t, s.ClientURL())
			all := somebodyElses()
			test.change(all)
			create(t, js, all)
			b := openReady(t, external(s))
			warning := func() string {
				for _, w := range b.State().Warnings {
					if strings.HasPrefix(w, test.want) {
						return w
					}
				}
				return ""
			}
			if warning() == "" {
				t.Fatalf("warnings: got %q, want %q among them", b.State().Warnings, test.want)
			}
			if test.name != "small events" {
				mustPublish(t, b, newEvent(t, 1))
			}
			if test.name == "one replica" {
				return // more need more servers
			}
			follow(t, js, warning())
			natstest.Eventually(t, within, "the warning is gone", func() bool {
				b.Wake()
				return warning() == "" && b.State().Ready()
			})
		})
	}
	t.Run("other subjects", func(t *testing.T) {
		s := natstest.Server(t)
		create(t, jetStream(t, s.ClientURL()), map[string]jetstream.StreamConfig{"": events(func(c *jetstream.StreamConfig) {
			c.SubjectTransform = &jetstream.SubjectTransformConfig{Source: "webhooks.>", Destination: "hooks.>"}
		})})
		wantWarning(t, openReady(t, external(s)), "stream WEBHOOKS: its subject_transform stores events on other subjects")
	})
	t.Run("bucket of another stream", func(t *testing.T) {
		s := natstest.Server(t)
		openReady(t, external(s))
		cfg := external(s)
		cfg.Stream, cfg.SubjectPrefix = "OTHER", "other"
		wantWarning(t, openReady(t, cfg), "bucket webhooks-dedupe: it is the index of stream WEBHOOKS")
	})
	t.Run("dedupe window shorter than redelivery", func(t *testing.T) {
		cfg := external(natstest.Server(t))
		cfg.DedupeWindow = 24 * time.Hour
		b := openReady(t, cfg)
		wantWarning(t, b, "bucket webhooks-dedupe: its TTL is 24h0m0s, and a provider may try again for 25h0m0s")
	})
}

func wantWarning(t *testing.T, b *bus.Bus, text string) {
	t.Helper()
	waitState(t, b, "a warning: "+text, func(st *bus.State) bool { return strings.Contains(strings.Join(st.Warnings, "\n"), text) })
}

// A full stream of events is a problem. A full bucket or quarantine is not:
// events are stored all the same.
func TestFullIsReported(t *testing.T) {
	s := natstest.Server(t)
	js := jetStream(t, s.ClientURL())
	all := somebodyElses()
	change(all, "WEBHOOKS", func(c *jetstream.StreamConfig) { c.MaxMsgs, c.MaxMsgSize = 20, -1 })
	change(all, "WEBHOOKS_QUARANTINE", func(c *jetstream.StreamConfig) { c.MaxBytes = 40 << 10 })
	change(all, bucketStream, func(c *jetstream.StreamConfig) { c.MaxMsgs = 20 })
	create(t, js, all)
	b := openReady(t, external(s))
	quarantine := func(body string) {
		err := b.Quarantine(t.Context(), bus.Rejected{Provider: "waldo", Reason: "type_missing", Body: []byte(body), Received: received})
		if err != nil {
			t.Fatal(err)
		}
	}
	puts := 0
	put := func() {
		puts++
		if _, err := b.State().Bucket().PutString(t.Context(), strconv.Itoa(puts), ""); err != nil {
			t.Fatal(err)
		}
	}

	for i := range 19 {
		mustPublish(t, b, newEvent(t, i))
		put()
	}
	quarantine(strings.Repeat("x", 37<<10))
	b.Wake()
	wantWarning(t, b, "stream WEBHOOKS: nine tenths of its max_msgs are used, after that it takes no more events")
	wantWarning(t, b, "bucket webhooks-dedupe: nine tenths of its max_msgs are used")
	wantWarning(t, b, "stream WEBHOOKS_QUARANTINE: nine tenths of its max_bytes are used")
	if st := b.State(); !st.Ready() {
		t.Errorf("problems: %q", st.Problems)
	}

	put()
	for i := 0; streamInfo(t, js, "WEBHOOKS_QUARANTINE").State.Bytes < 40<<10-512; i++ {
		quarantine(strconv.Itoa(i))
	}
	b.Wake()
	wantWarning(t, b, "bucket webhooks-dedupe: its max_msgs is reached, it takes no more names")
	wantWarning(t, b, "stream WEBHOOKS_QUARANTINE: its max_bytes is reached")
	if st := b.State(); !st.Ready() {
		t.Errorf("problems: %q", st.Problems)
	}
	mustPublish(t, b, newEvent(t, "last"))
	b.Wake()
	waitProblem(t, b, "stream WEBHOOKS: its max_msgs is reached, it takes no more events; nats stream edit WEBHOOKS --max-msgs=-1")
	follow(t, js, b.State().Problems[0])
	for _, w := range b.State().Warnings {
		if strings.Contains(w, "is reached") {
			follow(t, js, w)
		}
	}
	b.Wake()
	waitState(t, b, "room again", func(st *bus.State) bool {
		return st.Ready() && !strings.Contains(strings.Join(st.Warnings, "\n"), "is reached")
	})
	mustPublish(t, b, newEvent(t, "more"))
	put()
}

// A refused publish has the streams looked at: the reason does not wait for the
// next minute.
func TestFullStreamIsReportedAtOnce(t *testing.T) {
	cfg := external(natstest.Server(t))
	cfg.StreamMaxBytes = 16 << 10
	b := openReady(t, cfg)
	for i := 0; ; i++ {
		if _, err := b.Publish(t.Context(), newEvent(t, i)); err != nil {
			break
		}
	}
	waitState(t, b, "it is said", func(st *bus.State) bool {
		return strings.Contains(strings.Join(append(st.Problems, st.Warnings...), "\n"), "max_bytes")
	})
}

// The quarantine's size is reserved when it is made. A disk with less room is
// no riddle.
func TestNoRoomForTheQuarantine(t *testing.T) {
	b := open(t, external(natstest.Server(t, func(o *server.Options) { o.JetStreamMaxStore = 32 << 20 })))
	waitProblem(t, b, "stream WEBHOOKS_QUARANTINE: ")
	waitProblem(t, b, "it is to hold 67108864 bytes: free as much on the server's disk, or set BRIDGE_QUARANTINE_MAX_BYTES to less")
	mustPublish(t, b, newEvent(t, 1))
}
