package dedupe_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/internal/natstest"
)

func TestIndexerCatchesUp(t *testing.T) {
	t.Parallel()
	cfg := external(natstest.Server(t))
	cfg.DuplicateWindow = shortly
	b := start(t, cfg)
	stop := b.index()
	first := b.stores(screening("first"))
	b.indexed()
	stop()
	ids := make(map[body]string)
	for n := range 100 {
		body := transfer(fmt.Sprintf("we-%d", n), "2026-07-01T10:00:00.000Z", "", fmt.Sprintf("t-%d", n))
		ids[body] = b.stores(body)
	}
	b.forget()
	b.index()
	b.indexed()
	b.knows(screening("first"), first)
	for body, id := range ids {
		b.wantNames(body, id)
		b.knows(body, id)
	}
	if n := b.metric("bridge_dedupe_errors_total"); n != 0 {
		t.Errorf("%v reads or writes of the bucket failed", n)
	}
}

// Others may publish to the stream; what has no names has nothing to index.
func TestIndexerPassesOverUnnamedMessages(t *testing.T) {
	t.Parallel()
	b := start(t, external(natstest.Server(t)))
	b.index()
	for range 3 {
		if _, err := b.js.Publish(t.Context(), "webhooks.foreign.event", []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	id := b.stores(screening("1"))
	b.indexed()
	b.wantNames(screening("1"), id)
	if got := b.metric("bridge_index_unnamed_total"); got != 3 {
		t.Errorf("bridge_index_unnamed_total is %v, want 3", got)
	}
}

// A name that the bucket cannot hold never will: trying again for ever would
// keep the lag up, and a thousand of them would stop the indexer.
func TestIndexerPassesOverInvalidNames(t *testing.T) {
	t.Parallel()
	b := start(t, external(natstest.Server(t)))
	b.index()
	for _, header := range []nats.Header{
		{bus.KeyHeader: {"not a key"}},
		{bus.KeyHeader: {"1"}, bus.AliasesHeader: {"2,,3"}},
		{bus.StateKeyHeader: {"*"}, bus.StateHeader: {"1"}},
	} {
		if _, err := b.js.PublishMsg(t.Context(), &nats.Msg{Subject: "webhooks.foreign.event", Header: header}); err != nil {
			t.Fatal(err)
		}
	}
	b.stores(screening("1"))
	b.indexedWithin(5 * time.Second)
}

// The bucket takes nothing, so that what is stored waits for the indexer.
func TestLagRisesAndFalls(t *testing.T) {
	t.Parallel()
	b := start(t, external(natstest.Server(t)))
	b.index()
	b.stores(screening("0"))
	b.indexed()
	b.stopBus()
	b.deleteStream(bucketStream)
	for n := range 5 {
		b.stores(screening(fmt.Sprint(n + 1)))
	}
	b.eventually("the lag is 5 messages", func() bool { return b.metric("bridge_index_lag_messages") == 5 })
	if got := b.metric("bridge_index_lag_seconds"); got <= 0 || got > time.Since(b.begun).Seconds() {
		t.Errorf("bridge_index_lag_seconds is %v, %v after the first event", got, time.Since(b.begun))
	}

	b.runBus()
	b.eventually("nothing lags behind", func() bool {
		return b.metric("bridge_index_lag_messages") == 0 && b.metric("bridge_index_lag_seconds") == 0
	})
	if got, want := b.indexer.Lag(), (dedupe.Lag{}); got != want {
		t.Errorf("Lag: got %+v, want %+v", got, want)
	}
}

// Someone has taken the stream's only consumer: nothing is indexed, and the
// gauges must say so.
func TestLagShowsThatThereIsNoConsumer(t *testing.T) {
	t.Parallel()
	b := start(t, external(natstest.Server(t)))
	b.deleteStream("WEBHOOKS")
	if _, err := b.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "WEBHOOKS", Subjects: []string{"webhooks.>"}, Discard: jetstream.DiscardNew, MaxConsumers: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.js.CreateConsumer(t.Context(), "WEBHOOKS", jetstream.ConsumerConfig{Durable: "other"}); err != nil {
		t.Fatal(err)
	}
	b.index()
	b.stores(screening("1"))
	b.eventually("bridge_index_lag_messages says that the event is not indexed", func() bool {
		return b.metric("bridge_index_lag_messages") == 1
	})
}

// What cannot be asked is not known to be indexed.
func TestLagGrowsWhileItCannotBeMeasured(t *testing.T) {
	t.Parallel()
	cfg := external(natstest.Server(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "bridge", Password: "p", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"$JS.API.CONSUMER.>"}}}}}
	}))
	cfg.User, cfg.Password = "bridge", "p"
	b := start(t, cfg)
	b.index()
	b.stores(screening("1"))
	b.eventually("bridge_index_lag_seconds grows", func() bool { return b.metric("bridge_index_lag_seconds") > 7 })
}

// The bucket is somebody else's and missing: events are stored and not indexed,
// and the gauges must say so.
func TestLagShowsThatThereIsNoBucket(t *testing.T) {
	t.Parallel()
	b := startUnmanaged(t)
	b.index()
	b.stores(screening("1"))
	b.indexed()
	b.deleteStream(bucketStream)
	b.bus.Wake()
	b.eventually("the bus has seen it", func() bool { return !b.bus.State().Ready() })
	for n := range 3 {
		b.stores(screening(fmt.Sprint(n + 2)))
	}
	b.eventually("bridge_index_lag_messages says that 3 events are not indexed", func() bool {
		return b.metric("bridge_index_lag_messages") == 3
	})
}

// The server, or the account, allows fewer messages not acknowledged than the indexer
// would take.
func TestIndexerWithinALimitOfPendingMessages(t *testing.T) {
	t.Parallel()
	const limit, events = 3, 100
	b := start(t, external(natstest.Server(t, func(o *server.Options) { o.JetStreamLimits.MaxAckPending = limit })))
	ids := make(map[body]string)
	for n := range events {
		body := screening(fmt.Sprint(n))
		ids[body] = b.stores(body)
	}
	b.index()
	b.indexed()
	if got := b.consumer().Config.MaxAckPending; got != limit {
		t.Errorf("the consumer has up to %d messages out, want %d", got, limit)
	}
	for body, id := range ids {
		b.wantNames(body, id)
	}
}

// What keeps the indexer from its work for days is not logged four times a second,
// and is when it comes again.
func TestLastingFailureIsLoggedOnce(t *testing.T) {
	t.Parallel()
	s := natstest.Server(t)
	b := start(t, external(s))
	b.deleteStream("WEBHOOKS")
	if _, err := b.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "WEBHOOKS", Subjects: []string{"webhooks.>"}, Discard: jetstream.DiscardNew, MaxConsumers: 1}); err != nil {
		t.Fatal(err)
	}
	taken := func() {
		t.Helper()
		b.eventually("the only consumer is another", func() bool {
			b.js.DeleteConsumer(t.Context(), "WEBHOOKS", dedupe.IndexerName)
			_, err := b.js.CreateConsumer(t.Context(), "WEBHOOKS", jetstream.ConsumerConfig{Durable: "other"})
			return err == nil
		})
	}
	taken()
	attempts, err := natstest.Connect(t, s.ClientURL()).SubscribeSync("$JS.API.CONSUMER.CREATE.WEBHOOKS.bridge-indexer")
	if err != nil {
		t.Fatal(err)
	}
	b.index()
	for range 4 {
		if _, err := attempts.NextMsg(within); err != nil {
			t.Fatal(err)
		}
	}
	if n := b.log.count("indexing interrupted"); n != 1 {
		t.Errorf("logged %d times, want once", n)
	}
	if err := b.js.DeleteConsumer(t.Context(), "WEBHOOKS", "other"); err != nil {
		t.Fatal(err)
	}
	b.stores(screening("1"))
	b.indexed()
	logged := b.log.count("indexing interrupted")
	taken()
	b.eventually("that the consumer is gone is logged, and why there is no other", func() bool { return b.log.count("indexing interrupted") >= logged+2 })
}

// What is waited for longer than messages are out and writes may take as a rule is
// written all the same, and not again and again.
func TestIndexerOnASlowDisk(t *testing.T) {
	t.Parallel()
	b := start(t, external(natstest.Server(t)))
	const events = 300
	for i := range events {
		b.stores(transfer(fmt.Sprint("we-", i), "2026-07-01T10:00:00.000Z", fmt.Sprint("we-x", i), fmt.Sprint("t-", i)))
	}
	const names = 3 * events
	written := b.dedupe.SlowDisk(8 * time.Millisecond)
	b.index()
	b.indexed()
	if n := written.Load(); n < names || n > names+names/2 {
		t.Errorf("%d entries written, want %d and few of them twice", n, names)
	}
}

// What is the matter with the quarantine is no matter of the index.
func TestIndexerNeedsNoQuarantine(t *testing.T) {
	t.Parallel()
	b := startUnmanaged(t)
	b.deleteStream("WEBHOOKS_QUARANTINE")
	b.bus.Wake()
	b.eventually("the bus has seen it", func() bool { return !b.bus.State().Ready() })
	b.index()
	b.stores(screening("1"))
	b.indexedWithin(4 * time.Second)
}

// Somebody has edited the consumer so that events are not indexed, or never were: the
// lag was 0. It is made anew, also while the indexer runs.
func TestEditedConsumerIsReplaced(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		edit    func(*jetstream.ConsumerConfig)
		running bool
	}{
		{"filter", func(c *jetstream.ConsumerConfig) { c.FilterSubject = "webhooks.none" }, true},
		{"filters", func(c *jetstream.ConsumerConfig) { c.FilterSubjects = []string{"webhooks.none", "webhooks.nothing"} }, false},
		{"deliveries", func(c *jetstream.ConsumerConfig) { c.MaxDeliver = 1 }, false},
		{"acknowledgements", func(c *jetstream.ConsumerConfig) { c.AckPolicy = jetstream.AckAllPolicy }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := external(natstest.Server(t))
			cfg.DuplicateWindow = shortly
			b := start(t, cfg)
			stop := b.index()
			b.stores(screening("0"))
			b.indexed()
			if !tt.running {
				stop()
			}
			was := b.consumer()
			config := was.Config
			tt.edit(&config)
			if config.AckPolicy != was.Config.AckPolicy { // which cannot be edited
				if err := b.js.DeleteConsumer(t.Context(), "WEBHOOKS", dedupe.IndexerName); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := b.js.CreateOrUpdateConsumer(t.Context(), "WEBHOOKS", config); err != nil {
				t.Fatal(err)
			}
			id := b.stores(screening("1"))
			if !tt.running {
				b.index()
			}
			b.eventually("another consumer", func() bool {
				c := b.consumer()
				return c != nil && c.Config.FilterSubject == "" && c.Config.FilterSubjects == nil && c.Config.MaxDeliver == -1 && c.Config.AckPolicy == jetstream.AckExplicitPolicy
			})
			b.indexed()
			b.wantNames(screening("1"), id)
		})
	}
}

func TestDeletedConsumerIsRecreated(t *testing.T) {
	t.Parallel()
	cfg := external(natstest.Server(t))
	cfg.DuplicateWindow = shortly
	b := start(t, cfg)
	b.index()
	first := b.stores(screening("1"))
	b.indexed()
	if err := b.js.DeleteConsumer(t.Context(), cfg.Stream, dedupe.IndexerName); err != nil {
		t.Fatal(err)
	}
	second := b.stores(screening("2"))
	b.indexed()
	b.forget()
	b.wantNames(screening("1"), first)
	b.wantNames(screening("2"), second)
	b.knows(screening("2"), second)
}

// Run ends at once, and whatever it has written it has acknowledged too.
func TestIndexerStopsPromptly(t *testing.T) {
	t.Parallel()
	const events = 500
	b := start(t, external(natstest.Server(t)))
	for n := range events {
		b.stores(screening(fmt.Sprint(n)))
	}
	indexed := func() uint64 {
		s, err := b.js.Stream(t.Context(), bucketStream)
		if err != nil {
			t.Fatal(err)
		}
		return s.CachedInfo().State.Msgs
	}
	stop := b.index()
	b.eventually("the indexer is at work", func() bool { return indexed() > 0 })
	begun := time.Now()
	stop()
	if took := time.Since(begun); took > time.Second {
		t.Errorf("it took %v to stop", took)
	}
	names := indexed()
	t.Logf("stopped at %d of %d", names, events)
	b.eventually("every message that was written is acknowledged", func() bool {
		c := b.consumer()
		return c.NumPending+uint64(c.NumAckPending) == events-names
	})
	if again := indexed(); again != names {
		t.Errorf("%d names were written after Run had returned", again-names)
	}
}

// What was fetched and not begun when an indexer stops is for the next one.
func TestIndexerTakesOverAtOnce(t *testing.T) {
	t.Parallel()
	const events = 500
	b := start(t, external(natstest.Server(t)))
	for n := range events {
		b.stores(screening(fmt.Sprint(n)))
	}
	stop := b.index()
	b.eventually("the indexer is at work", func() bool {
		c := b.consumer()
		return c != nil && c.AckFloor.Consumer > 0
	})
	stop()
	b.index()
	b.indexedWithin(5 * time.Second)
}

// A state report that can only be judged by a complete index does not wait for
// events to gather.
func TestReportHurriesTheIndexer(t *testing.T) {
	t.Parallel()
	b := start(t, external(natstest.Server(t)))
	b.indexer.LetGather(time.Hour)
	b.index()
	id := b.stores(flag("c-1", true))
	for n := range 10 {
		b.stores(screening(fmt.Sprint(n)))
	}
	b.knows(flag("c-1", true), id)
}

// An index is filled from one dedupe window ago.
func TestIndexerStartsOneWindowAgo(t *testing.T) {
	t.Parallel()
	t.Run("consumer", func(t *testing.T) {
		b := start(t, external(natstest.Server(t)))
		before := time.Now()
		b.index()
		b.eventually("the consumer is there", func() bool { return b.consumer() != nil })
		got := b.consumer().Config.OptStartTime
		if got == nil || got.Before(before.Add(-windows.Dedupe)) || got.After(time.Now().Add(-windows.Dedupe)) {
			t.Errorf("it starts at %v, want %v before %v", got, windows.Dedupe, before)
		}
	})
	t.Run("older message", func(t *testing.T) {
		w := windows
		w.Dedupe = 300 * time.Millisecond
		b := startWith(t, external(natstest.Server(t)), w)
		b.stores(screening("old"))
		stored := time.Now()
		b.eventually("the event is older than the window", func() bool { return time.Since(stored) > w.Dedupe })
		b.index()
		b.eventually("the consumer is there", func() bool { return b.consumer() != nil })
		id := b.stores(screening("new"))
		b.indexed()
		b.wantNames(screening("new"), id)
		if got := b.entry(b.event(screening("old")).Identity.Key); got.Sequence != 0 {
			t.Errorf("an event older than the window is indexed: %+v", got)
		}
	})
}

// A consumer whose metadata name a later bucket than there is (the server's clock
// was set back; an older bucket was restored) does not stop the index for ever.
func TestConsumerOfALaterBucket(t *testing.T) {
	b := start(t, external(natstest.Server(t)))
	_, err := b.js.CreateConsumer(t.Context(), "WEBHOOKS", jetstream.ConsumerConfig{Durable: "bridge-indexer", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1, HeadersOnly: true,
		Metadata: map[string]string{"bridge-bucket-created": b.bus.State().BucketCreated.Add(time.Hour).UTC().Format(time.RFC3339Nano)}})
	if err != nil {
		t.Fatal(err)
	}
	b.index()
	b.stores(screening("1"))
	b.indexed()
}

// A server, or an operator, may bound what a consumer is asked for.
func TestBoundedRequests(t *testing.T) {
	t.Parallel()
	b := start(t, external(natstest.Server(t, func(o *server.Options) { o.JetStreamLimits.MaxRequestBatch = 10 })))
	b.index()
	b.unread("a")
	b.indexed()
	consumer, err := b.js.Consumer(t.Context(), b.bus.Stream(), dedupe.IndexerName)
	if err != nil {
		t.Fatal(err)
	}
	config := consumer.CachedInfo().Config
	config.MaxRequestBatch, config.MaxRequestExpires = 1, time.Second
	if _, err := b.js.UpdateConsumer(t.Context(), b.bus.Stream(), config); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		b.stores(screening(fmt.Sprint("b", i)))
	}
	b.indexed()
}
