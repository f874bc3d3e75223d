package dedupe_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
)

// unread stores new events until one was stored without a read of the bucket.
func (b *bridge) unread(prefix string) {
	b.t.Helper()
	before, n := b.metric("bridge_dedupe_unread_total"), 0
	b.eventually("an event is known to be new without a read", func() bool {
		n++
		b.stores(screening(fmt.Sprint(prefix, n)))
		return b.metric("bridge_dedupe_unread_total") > before
	})
}

// lacks reports whether the filter is certain that the event is new.
func (b *bridge) lacks(body body) bool {
	b.t.Helper()
	return b.dedupe.Lacks(b.event(body).Identity.Names())
}

// Every replica, also one that starts later, has in its filter what any of them
// has stored, and still has after the bucket was lost.
func TestFilterFollows(t *testing.T) {
	t.Parallel()
	cfg := external(natstest.Server(t))
	cfg.DuplicateWindow = 4 * time.Second
	first := start(t, cfg)
	first.index()
	known := screening("1")
	id := first.stores(known)
	first.unread("a")
	second := start(t, cfg)
	stop := second.index()
	second.unread("b")
	for _, b := range []*bridge{first, second} {
		b.indexed()
		b.eventually("the filter has what is stored", func() bool {
			return b.lacks(screening("new")) && !b.lacks(screening("b1"))
		})
		if b.lacks(known) {
			t.Error("the filter lacks an event")
		}
	}

	first.deleteStream(bucketStream)
	first.eventually("the filter is of the new bucket", func() bool { return !first.lacks(screening("new")) })
	first.unread("c")
	if first.lacks(known) {
		t.Error("asked before all is indexed again")
	}
	first.indexed()
	first.eventually("the filter has what is stored", func() bool {
		return first.lacks(screening("new")) && !first.lacks(screening("c1"))
	})
	if first.lacks(known) {
		t.Error("the filter of the new bucket lacks an event")
	}
	first.knows(known, id)

	stop()
	second.eventually("what is behind is asked no more", func() bool { return !second.lacks(screening("new")) })
}

func TestFilterThroughANewConsumer(t *testing.T) {
	t.Parallel()
	server := natstest.Server(t)
	b := start(t, external(server))
	natstest.UnknownOnce(t, server, bucketStream)
	b.index()
	b.unread("a")
	if n := b.log.count("following the bucket interrupted: it is read for every event"); n > 0 {
		t.Errorf("interrupted %d times", n)
	}
}

// The bucket is read from its beginning while all in it is written anew: names that were
// not read in their old places are not taken for new before they are in their new ones.
func TestFilterOfABucketThatIsWrittenAnew(t *testing.T) {
	t.Parallel()
	server := natstest.Server(t)
	cfg := external(server)
	b := start(t, cfg)
	b.index()
	names := make([]string, 1500) // more than are read at a time
	for i := range names {
		names[i] = normalize.Digest("test", fmt.Sprint(i))
		if _, err := b.js.PublishMsgAsync(&nats.Msg{Subject: "webhooks.x.y", Header: nats.Header{"Bridge-Key": {names[i]}}}); err != nil {
			t.Fatal(err)
		}
	}
	<-b.js.PublishAsyncComplete()
	b.indexed()
	indexed := b.indexer.Measured()
	b.eventually("that is known", func() bool { return b.indexer.Measured().After(indexed) })

	// Its questions come to the test.
	reader := func() (name string) {
		s, err := b.js.Stream(t.Context(), bucketStream)
		if err != nil {
			t.Fatal(err)
		}
		for name = range s.ConsumerNames(t.Context()).Name() {
		}
		return name
	}
	before := reader()
	nc := natstest.Connect(t, server.ClientURL())
	questions, err := nc.SubscribeSync("question.*")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	const next = "$JS.API.CONSUMER.MSG.NEXT." + bucketStream + ".*"
	if err := server.GlobalAccount().AddMapping(next, "question.$1"); err != nil {
		t.Fatal(err)
	}
	question := func(from func(reader string) bool) *nats.Msg {
		t.Helper()
		for {
			msg, err := questions.NextMsg(within)
			if err != nil {
				t.Fatal(err)
			}
			if from(strings.TrimPrefix(msg.Subject, "question.")) {
				return msg
			}
			nothing(t, nc, msg)
		}
	}

	cfg.DuplicateWindow += time.Minute // something changes, and the bucket is read anew
	s, err := b.js.Stream(t.Context(), b.bus.Stream())
	if err != nil {
		t.Fatal(err)
	}
	c := s.CachedInfo().Config
	c.Duplicates = cfg.DuplicateWindow
	if _, err := b.js.UpdateStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	b.bus.Wake()
	another := func(reader string) bool { return reader != before }
	nothing(t, nc, question(another)) // what the bucket holds is asked behind it
	held := question(another)
	if err := b.js.DeleteConsumer(t.Context(), b.bus.Stream(), dedupe.IndexerName); err != nil {
		t.Fatal(err)
	}
	b.indexed()
	server.GlobalAccount().RemoveMapping(next)
	nothing(t, nc, held)
	b.eventually("the filter is asked", func() bool { return b.lacks(screening("new")) })
	for i, name := range names {
		if b.dedupe.Lacks([]string{name}) {
			t.Fatalf("the filter lacks name %d", i)
		}
	}
}

// nothing answers a reader's question for what is next.
func nothing(t *testing.T, nc *nats.Conn, question *nats.Msg) {
	t.Helper()
	if err := nc.PublishMsg(&nats.Msg{Subject: question.Reply, Header: nats.Header{"Status": {"404"}, "Description": {"No Messages"}}}); err != nil {
		t.Fatal(err)
	}
}

// Without the indexer nobody says what the bucket lacks: it is read.
func TestFilterIsNotAskedInTheDark(t *testing.T) {
	t.Parallel()
	b := start(t, external(natstest.Server(t)))
	b.stores(screening("1"))
	if b.lacks(screening("2")) || b.metric("bridge_dedupe_unread_total") != 0 {
		t.Error("the filter was asked")
	}
}

// A name under which an event may come that the duplicate window does not know
// it by is always looked for.
func TestAliasesAreRead(t *testing.T) {
	t.Parallel()
	b := start(t, external(natstest.Server(t)))
	b.index()
	b.unread("a")
	before := b.metric("bridge_dedupe_unread_total")
	id := b.stores(transfer("we-1", "2026-07-01T10:00:00.000Z", "", "t-1"))
	b.indexed()
	b.knows(transfer("we-2", "2026-07-01T10:00:09.000Z", "we-1", "t-1"), id)
	if n := b.metric("bridge_dedupe_unread_total"); n != before {
		t.Errorf("%v were not read", n-before)
	}
}

// A server that comes back from a crash without what it had not synced has the
// bucket that it had, less its end: what takes those places is followed too.
func TestFilterAfterTheBucketLostItsEnd(t *testing.T) {
	t.Parallel()
	port, dir, earlier := natstest.FreePort(t), t.TempDir(), filepath.Join(t.TempDir(), "earlier")
	run := func(dir string) (stop func()) {
		s := natstest.Server(t, func(o *server.Options) { o.Port, o.StoreDir = port, dir })
		return func() { s.Shutdown(); s.WaitForShutdown() }
	}
	stop := run(dir)
	cfg := defaults()
	cfg.URL = fmt.Sprintf("nats://127.0.0.1:%d", port)
	cfg.DuplicateWindow = 4 * time.Second
	b := start(t, cfg)
	b.index()
	b.stores(screening("1"))
	b.indexed()
	stop()
	if err := os.CopyFS(earlier, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	stop = run(dir)
	b.eventually("it is back", func() bool { return b.bus.State().Ready() && b.bus.Connected() })
	for i := range 20 {
		b.stores(screening(fmt.Sprint("lost", i)))
	}
	b.indexed()
	b.eventually("the filter has them", func() bool { return b.lacks(screening("new")) && !b.lacks(screening("lost19")) })
	stop()
	run(earlier)
	b.eventually("it is back", func() bool { return b.bus.State().Ready() && b.bus.Connected() })
	kept := screening("kept")
	id := b.stores(kept)
	b.indexed()
	b.eventually("the filter has what took their place", func() bool { return b.lacks(screening("new")) && !b.lacks(kept) })
	b.knows(kept, id)
}

// Where the server that comes back has lost the end of the bucket, and not of the
// consumer that has filled it, the names are indexed again.
func TestIndexAfterTheBucketLostItsEnd(t *testing.T) {
	t.Parallel()
	t.Run("nothing comes meanwhile", func(t *testing.T) { testBucketLostItsEnd(t, 0) })
	t.Run("more comes than was lost", func(t *testing.T) { testBucketLostItsEnd(t, 6) })
}

func testBucketLostItsEnd(t *testing.T, meanwhile int) {
	t.Parallel()
	port, dir, earlier := natstest.FreePort(t), t.TempDir(), filepath.Join(t.TempDir(), "earlier")
	run := func() (stop func()) {
		s := natstest.Server(t, func(o *server.Options) { o.Port, o.StoreDir = port, dir })
		return func() { s.Shutdown(); s.WaitForShutdown() }
	}
	bucket := filepath.Join(dir, "jetstream", "$G", "streams", bucketStream)
	stop := run()
	cfg := defaults()
	cfg.URL = fmt.Sprintf("nats://127.0.0.1:%d", port)
	cfg.DuplicateWindow = 4 * time.Second
	b := start(t, cfg)
	b.index()
	b.stores(session("s-1", "WAITING_FOR_MANUAL_APPROVE"))
	b.indexed()
	stop()
	if err := os.CopyFS(earlier, os.DirFS(bucket)); err != nil {
		t.Fatal(err)
	}
	stop = run()
	b.eventually("it is back", func() bool { return b.bus.State().Ready() && b.bus.Connected() })
	id := b.stores(screening("lost"))
	b.stores(session("s-1", "MANUAL_APPROVED"))
	b.indexed()
	now := time.Now()
	b.eventually("the bucket was looked at", func() bool { return b.indexer.Measured().After(now) })
	stop()
	if err := errors.Join(os.RemoveAll(bucket), os.CopyFS(bucket, os.DirFS(earlier))); err != nil {
		t.Fatal(err)
	}
	run()
	b.eventually("it is back", func() bool { return b.bus.State().Ready() && b.bus.Connected() })
	for i := range meanwhile {
		b.stores(screening(fmt.Sprint("meanwhile", i)))
	}
	b.eventually("the names are back", func() bool { return b.entry(b.event(screening("lost")).Identity.Key).ID == id })
	b.indexed()
	b.stores(session("s-1", "WAITING_FOR_MANUAL_APPROVE"))
	b.knows(screening("lost"), id)
}

// Where somebody makes the duplicate window too short for it, the filter is not
// asked any more.
func TestFilterOfAShortWindow(t *testing.T) {
	t.Parallel()
	b := start(t, external(natstest.Server(t)))
	b.index()
	b.unread("a")
	s, err := b.js.Stream(t.Context(), b.bus.Stream())
	if err != nil {
		t.Fatal(err)
	}
	c := s.CachedInfo().Config
	c.Duplicates = shortly
	if _, err := b.js.UpdateStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	b.eventually("the filter is not asked", func() bool { return !b.lacks(screening("new")) })
}
