package dedupe_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/internal/natstest"
)

// Between two looks of the bus at streams and bucket.
func TestBucketUnreachable(t *testing.T) {
	t.Parallel()
	b := start(t, external(natstest.Server(t)))
	b.stopBus()
	b.deleteStream(bucketStream)

	for name, body := range namedBodies {
		before := b.metric("bridge_dedupe_errors_total")
		b.knows(body, b.stores(body)) // by the stream's duplicate window
		if b.metric("bridge_dedupe_errors_total") <= before {
			t.Errorf("%s: bridge_dedupe_errors_total stays at %v", name, before)
		}
	}
	before := b.stored()
	reports := []body{flag("c-9", true), flag("c-9", false), flag("c-9", true), flag("c-9", true), session("s-1", "AUTO_APPROVED"), session("s-1", "AUTO_APPROVED")}
	ids := make(map[string]bool)
	for _, body := range reports {
		ids[b.stores(body)] = true
	}
	if len(ids) != len(reports) {
		t.Errorf("%d reports have %d ids", len(reports), len(ids))
	}
	b.wantStored(before + len(reports))
}

// The bucket is somebody else's and stays away: the stream takes events all
// the same, and its duplicate window protects.
func TestEventsAreStoredWhileTheBucketIsMissing(t *testing.T) {
	t.Parallel()
	b := startUnmanaged(t)
	b.deleteStream(bucketStream)
	b.bus.Wake()
	b.eventually("the bus has seen it", func() bool { return !b.bus.State().Ready() })
	b.knows(screening("1"), b.stores(screening("1")))
	if b.metric("bridge_dedupe_errors_total") == 0 {
		t.Error("bridge_dedupe_errors_total is 0")
	}
	b.stores(flag("c-1", true))
	b.stores(flag("c-1", false))
	b.stores(flag("c-1", true))
}

func TestLostBucketIsRebuilt(t *testing.T) {
	t.Parallel()
	cfg := external(natstest.Server(t))
	cfg.DuplicateWindow = shortly
	b := start(t, cfg)
	b.index()
	bodies := []body{screening("1"), transfer("we-2", "2026-07-01T10:00:00.000Z", "we-1", "t-1"), flagOfRequest("r-1", "c-1", true), session("s-1", "AUTO_APPROVED")}
	var ids []string
	for _, body := range bodies {
		ids = append(ids, b.stores(body))
	}
	b.indexed()
	b.forget()
	had := b.consumer()

	b.loseBucket()
	b.eventually("the consumer is another", func() bool {
		c := b.consumer()
		return c != nil && c.Created.After(had.Created)
	})
	b.indexed()
	b.forget()
	for i, body := range bodies[:3] {
		b.knows(body, ids[i])
		b.wantNames(body, ids[i])
	}
	for i, body := range bodies {
		if key := b.event(body).Identity.StateKey; key != "" && b.entry(key).ID != ids[i] {
			t.Errorf("state of %s: got %+v, want id %s", body.text, b.entry(key), ids[i])
		}
	}
	b.stores(flag("c-1", false))
	b.stores(session("s-1", "MANUALLY_REJECTED"))
}

// loseBucket deletes the bucket and returns when the bus has made another.
func (b *bridge) loseBucket() {
	b.t.Helper()
	had := b.bus.State().BucketCreated
	b.deleteStream(bucketStream)
	b.bus.Wake()
	b.eventually("the bucket is made again", func() bool {
		st := b.bus.State()
		return st.Ready() && st.BucketCreated.After(had)
	})
}

// While a bucket is being filled again, the report that it names as the last
// one need not be the last one in the stream: here it has come to "approved"
// and not yet to "rejected". The second "approved" is a real one.
func TestHalfRebuiltBucketSwallowsNothing(t *testing.T) {
	t.Parallel()
	b := start(t, external(natstest.Server(t)))
	stop := b.index()
	approved, rejected := session("s-1", "AUTO_APPROVED"), session("s-1", "MANUALLY_REJECTED")
	b.stores(approved)
	b.indexed()
	key := b.event(approved).Identity.StateKey
	kv := b.bus.State().Bucket()
	first, err := kv.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	b.stores(rejected)
	b.indexed()
	stop()
	config := b.consumer().Config
	b.loseBucket()

	// What the indexer does up to there.
	config.Metadata = map[string]string{"bridge-bucket-created": b.bus.State().BucketCreated.UTC().Format(time.RFC3339Nano)}
	if err := b.js.DeleteConsumer(t.Context(), b.bus.Stream(), dedupe.IndexerName); err != nil {
		t.Fatal(err)
	}
	if _, err := b.js.CreateConsumer(t.Context(), b.bus.Stream(), config); err != nil {
		t.Fatal(err)
	}
	if _, err := b.bus.State().Bucket().Put(t.Context(), key, first.Value()); err != nil {
		t.Fatal(err)
	}

	if r := b.once(b.eventAt(approved, time.Minute)); r.Duplicate {
		t.Errorf("approved, rejected, approved: the last one is answered as a duplicate of %s", r.ID)
	}
}

// A replica that cannot reach the bucket stores a report without a mark. Until
// the indexer has come to it, the bucket names the report before as the last
// one, and the other replicas believe it.
func TestReportStoredWithoutTheBucketIsNotOverlooked(t *testing.T) {
	t.Parallel()
	server := natstest.Server(t)
	b := start(t, external(server))
	cfg := external(server)
	cfg.Bucket = "another"
	cut := start(t, cfg)
	cut.stopBus()
	cut.deleteStream("KV_another")

	b.stores(flag("c-1", true))
	cut.stores(flag("c-1", false))
	if r := b.once(b.event(flag("c-1", true))); r.Duplicate {
		t.Errorf("true, false, true: the last one is answered as a duplicate of %s", r.ID)
	}
}

// A process has stored a report and crashed, and the indexer is behind. The
// same report, made again for real after the state window, is another.
func TestMarkDoesNotOutliveTheStateWindow(t *testing.T) {
	t.Parallel()
	b := start(t, external(natstest.Server(t)))
	crashAfterPublish(b, flag("c-1", true))
	if r := b.once(b.eventAt(flag("c-1", true), windows.State+time.Minute)); r.Duplicate {
		t.Errorf("a report one minute after the state window is answered as a duplicate of %s", r.ID)
	}
	b.wantStored(2)
}

// A server that has much to do takes messages while its API is silent.
func TestSilentAPIDelaysNoEvent(t *testing.T) {
	t.Parallel()
	server := natstest.Server(t)
	b := start(t, external(server))
	b.stopBus()
	nc := natstest.Connect(t, server.ClientURL())
	if _, err := nc.SubscribeSync("silence"); err != nil { // else there is an answer: no responders
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := server.GlobalAccount().AddMapping("$JS.API.STREAM.INFO.WEBHOOKS", "silence"); err != nil {
		t.Fatal(err)
	}
	for _, body := range []body{screening("1"), flag("c-1", true)} {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		begun := time.Now()
		r, err := b.dedupe.Once(ctx, b.event(body), b.bus.Publish)
		if err != nil || r.Duplicate {
			t.Fatalf("%s: got %+v, %v", body.text, r, err)
		}
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("%s: the answer came after %v", body.text, took)
		}
	}
}

func TestRecreatedStreamKnowsNothing(t *testing.T) {
	t.Parallel()
	b := start(t, external(natstest.Server(t)))
	b.index()
	bodies := []body{screening("1"), transfer("we-2", "2026-07-01T10:00:00.000Z", "we-1", "t-1"), flagOfRequest("r-1", "c-1", true), flag("c-2", true), session("s-1", "AUTO_APPROVED")}
	for _, body := range bodies {
		b.stores(body)
	}
	b.indexed()
	b.recreateStream()
	var ids []string
	for _, body := range bodies {
		// The bus asks once a second which incarnation of the stream it is.
		var id string
		b.eventually("it is stored again: "+body.text, func() bool {
			r := b.once(b.event(body))
			id = r.ID
			return !r.Duplicate
		})
		ids = append(ids, id)
	}
	b.wantStored(len(bodies))
	b.indexed()
	for i, body := range bodies {
		b.knows(body, ids[i])
		b.wantNames(body, ids[i])
	}
}

// An indexer whose bus has not looked at the streams lately must not take the
// messages of a new stream for those of the old one.
func TestIndexerKnowsWhichStreamItReads(t *testing.T) {
	t.Parallel()
	cfg := external(natstest.Server(t))
	cfg.DuplicateWindow = shortly
	b, slow := start(t, cfg), start(t, cfg)
	slow.index()
	slow.stores(screening("0"))
	slow.indexed()
	slow.stopBus()

	b.recreateStream()
	id := b.stores(screening("1"))
	b.eventually("the slow one's indexer has done what it can", func() bool {
		c := b.consumer()
		return c != nil && c.AckFloor.Stream > 0 || slow.log.count("indexing interrupted") > 1
	})
	slow.runBus()
	b.indexed()
	b.forget()
	b.eventually("the bus has asked which stream it is", func() bool {
		return b.incarnation().Equal(b.bus.State().StreamCreated)
	})
	b.knows(screening("1"), id)
}

func (b *bridge) incarnation() time.Time {
	b.t.Helper()
	created, err := b.bus.Incarnation(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	return created
}

// recreateStream deletes the stream and returns when the bus has made another.
func (b *bridge) recreateStream() {
	b.t.Helper()
	had := b.bus.State().StreamCreated
	b.deleteStream(b.bus.Stream())
	b.bus.Wake()
	b.eventually("the stream is made again", func() bool {
		st := b.bus.State()
		return st.Ready() && st.StreamCreated.After(had)
	})
}

// All of it in one process, stopped and started again on the same directory.
func TestRestart(t *testing.T) {
	t.Parallel()
	cfg := defaults()
	cfg.DataDir, cfg.EmbeddedListen = t.TempDir(), "127.0.0.1:0"
	cfg.DuplicateWindow = shortly

	bodies := []body{screening("1"), transfer("we-2", "2026-07-01T10:00:00.000Z", "we-1", "t-1"), flagOfRequest("r-1", "c-1", true), flag("c-2", true), session("s-1", "AUTO_APPROVED")}
	var ids []string
	before := start(t, cfg)
	stop := before.index()
	for _, body := range bodies {
		ids = append(ids, before.stores(body))
	}
	before.indexed()
	stop()
	late := transfer("we-5", "2026-07-01T11:00:00.000Z", "", "t-2") // not yet indexed
	lateID := before.stores(late)
	consumer := before.consumer()
	before.forget()
	before.close()

	b := start(t, cfg)
	b.begun = before.begun
	b.knows(bodies[0], ids[0])
	b.index()
	b.indexed()
	for i, body := range bodies {
		b.knows(body, ids[i])
	}
	b.knows(late, lateID)
	b.wantNames(late, lateID)
	if got := b.consumer(); !got.Created.Equal(consumer.Created) {
		t.Errorf("the consumer of %v is not the one of %v", got.Created, consumer.Created)
	} else if had, want := got.Delivered.Consumer-consumer.Delivered.Consumer, got.Delivered.Stream-consumer.Delivered.Stream; had != want {
		t.Errorf("%d messages were delivered after the restart, want the %d not yet indexed", had, want)
	}
	b.stores(flag("c-2", false))
	b.stores(flag("c-2", true))
}

// What is known stays known when the connection is lost and comes back: neither
// the bucket nor the stream's incarnation is forgotten meanwhile.
func TestReportsAreKnownAfterAReconnect(t *testing.T) {
	t.Parallel()
	port, dir := natstest.FreePort(t), t.TempDir()
	run := func() *server.Server {
		return natstest.Server(t, func(o *server.Options) { o.Port, o.StoreDir = port, dir })
	}
	s := run()
	b := start(t, external(s))
	b.index()
	report, named := session("s-1", "AUTO_APPROVED"), screening("1")
	ids := []string{b.stores(report), b.stores(named)}
	b.indexed()
	for range 3 {
		s.Shutdown()
		s.WaitForShutdown()
		b.eventually("the loss is noticed", func() bool { return !b.bus.State().Ready() })
		if b.bus.State().Bucket() == nil {
			t.Error("the bucket is forgotten")
		}
		s = run()
		b.eventually("the connection is back", b.js.Conn().IsConnected)
		b.knows(named, ids[1]) // at once
		// The server may have lost the indexer's last acknowledgement, and
		// delivers again then.
		b.indexed()
		b.knows(report, ids[0])
	}
}

// A cluster that looks for a leader says nothing about the bucket, which can be
// used all the same: what gets no answer is as it was.
func TestSilentAPITakesNoBucket(t *testing.T) {
	t.Parallel()
	s := natstest.Server(t)
	b := start(t, external(s))
	b.index()
	report := session("s-1", "AUTO_APPROVED")
	id := b.stores(report)
	b.indexed()
	nc := natstest.Connect(t, s.ClientURL())
	if _, err := nc.SubscribeSync("silence"); err != nil { // else there is an answer: no responders
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := s.GlobalAccount().AddMapping("$JS.API.STREAM.INFO."+bucketStream, "silence"); err != nil {
		t.Fatal(err)
	}
	b.bus.Wake()
	b.eventually("the bus has got no answer", func() bool { return !b.bus.State().Ready() })
	b.knows(report, id)
}
