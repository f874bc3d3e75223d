package bus_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
)

// startPatientLoad is startLoad by senders that try again until their event is
// acknowledged, as a provider does.
func startPatientLoad(t *testing.T, b *bus.Bus, name string) *load {
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
				l.insist(t, b, fmt.Sprintf("%s-%d-%d", name, w, i))
			}
		})
	}
	return l
}

func (l *load) insist(t *testing.T, b *bus.Bus, name string) {
	e := newEvent(t, name)
	ack, ok := insist(t, b, e)
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if other := l.stored[ack.Sequence]; other != "" {
		t.Errorf("%s and %s have sequence %d", e.CloudEvent.ID(), other, ack.Sequence)
	}
	l.stored[ack.Sequence] = e.CloudEvent.ID()
}

// insist publishes again and again until the event is acknowledged.
func insist(t *testing.T, b *bus.Bus, e *normalize.Event) (ack bus.Ack, ok bool) {
	for begun := time.Now(); time.Since(begun) < within; <-time.After(5 * time.Millisecond) {
		ack, err := b.Publish(context.Background(), e)
		if err == nil {
			return ack, true
		}
		if !errors.Is(err, bus.ErrUnavailable) {
			t.Errorf("Publish: %v", err)
			return bus.Ack{}, false
		}
	}
	t.Errorf("%s is not stored within %v", e.CloudEvent.ID(), within)
	return bus.Ack{}, false
}

// The server is lost again and again under load: every event that was
// acknowledged is stored, once, and nothing of a lost connection is left.
func TestReconnectStorm(t *testing.T) {
	port, dir := natstest.FreePort(t), t.TempDir()
	run := func() *server.Server {
		return natstest.Server(t, func(o *server.Options) { o.Port, o.StoreDir = port, dir })
	}
	s := run()
	b := openReady(t, external(s))
	mustPublish(t, b, newEvent(t, "first"))
	goroutines := runtime.NumGoroutine()
	load := startPatientLoad(t, b, "storm")
	for range 5 {
		load.more(t, 50)
		s.Shutdown()
		s.WaitForShutdown()
		waitProblem(t, b, "not connected to NATS")
		s = run()
	}
	load.more(t, 50)
	load.stop(t, b)
	waitReady(t, b)
	natstest.Eventually(t, within, fmt.Sprintf("%d goroutines, as before", goroutines), func() bool { return runtime.NumGoroutine() <= goroutines })
}

// Nobody responds to a publish, since its stream is away: it waits for the
// stream, which here is somebody else's to make.
func TestPublishWaitsForResponders(t *testing.T) {
	t.Parallel()
	s := natstest.Server(t)
	all := somebodyElses()
	js := jetStream(t, s.ClientURL())
	create(t, js, all)
	cfg := external(s)
	cfg.Manage = false
	cfg.PublishTimeout = within
	b := openReady(t, cfg)
	deleteStream(t, b)
	acks := make(chan bus.Ack, 1)
	go func() {
		ack, err := b.Publish(t.Context(), newEvent(t, 1))
		if err != nil {
			t.Errorf("Publish: %v", err)
		}
		acks <- ack
	}()
	waitProblem(t, b, "stream WEBHOOKS: it does not exist") // the publish has woken the bus
	select {
	case ack := <-acks:
		t.Fatalf("Publish returned %+v without a stream", ack)
	default:
	}
	create(t, js, map[string]jetstream.StreamConfig{"": all["WEBHOOKS"]})
	if got, want := <-acks, (bus.Ack{Sequence: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	waitReady(t, b)
}

// A JetStream API that is silent has no error to tell; a deadline is none.
func TestSilentAPIIsNamed(t *testing.T) {
	t.Parallel()
	s := natstest.Server(t)
	b := openReady(t, external(s))
	nc := natstest.Connect(t, s.ClientURL())
	if _, err := nc.SubscribeSync("silence"); err != nil { // else there is an answer: no responders
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := s.GlobalAccount().AddMapping("$JS.API.STREAM.INFO.WEBHOOKS", "silence"); err != nil {
		t.Fatal(err)
	}
	b.Wake()
	waitProblem(t, b, "stream WEBHOOKS: JetStream does not answer")
	mustPublish(t, b, newEvent(t, 1))
}

// guarded runs a server with users, and returns what gives it others.
func guarded(t *testing.T, users ...*server.User) (s *server.Server, reload func(...*server.User)) {
	t.Helper()
	var options *server.Options
	s = natstest.Server(t, func(o *server.Options) {
		o.Port, o.Users = natstest.FreePort(t), users
		options = o
	})
	return s, func(users ...*server.User) {
		t.Helper()
		o := options.Clone()
		o.Users = users
		if err := s.ReloadOptions(o); err != nil {
			t.Fatal(err)
		}
	}
}

// An operator takes the bridge's user away and gives it back.
func TestRevokedUser(t *testing.T) {
	t.Parallel()
	bridge, other := &server.User{Username: "bridge", Password: "secret"}, &server.User{Username: "other", Password: "secret"}
	s, reload := guarded(t, bridge, other)
	cfg := external(s)
	cfg.User, cfg.Password = "bridge", "secret"
	b := openReady(t, cfg)
	mustPublish(t, b, newEvent(t, 1))
	for i := range 2 { // nats.go gives up after two refusals if it is not told otherwise
		reload(other)
		waitProblem(t, b, "Authorization Violation")
		begun := time.Now()
		wantError(t, b, newEvent(t, "refused"), bus.ErrUnavailable)
		if took := time.Since(begun); took > cfg.PublishTimeout/3 {
			t.Errorf("it took %v to fail", took)
		}
		reload(bridge, other)
		waitReady(t, b)
		if got, want := mustPublish(t, b, newEvent(t, fmt.Sprint("back ", i))), uint64(i+2); got != want {
			t.Errorf("sequence %d, want %d: nothing between", got, want)
		}
	}
}

// The user may no longer publish events: none is taken for stored, and all is
// well when the permission is back.
func TestRevokedPermission(t *testing.T) {
	t.Parallel()
	bridge := &server.User{Username: "bridge", Password: "secret"}
	s, reload := guarded(t, bridge)
	cfg := external(s)
	cfg.User, cfg.Password = "bridge", "secret"
	cfg.PublishTimeout = 600 * time.Millisecond
	b := openReady(t, cfg)
	restricted := *bridge
	restricted.Permissions = &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"webhooks.>"}}}
	reload(&restricted)
	natstest.Eventually(t, within, "an event is refused", func() bool {
		_, err := b.Publish(t.Context(), newEvent(t, "refused"))
		if err != nil && !errors.Is(err, bus.ErrUnavailable) {
			t.Fatal(err)
		}
		return err != nil
	})
	before := streamInfo(t, b.JetStream(), b.Stream()).State.Msgs
	wantError(t, b, newEvent(t, "refused too"), bus.ErrUnavailable)
	reload(bridge)
	waitReady(t, b)
	natstest.Eventually(t, within, "an event is stored", func() bool {
		_, err := b.Publish(t.Context(), newEvent(t, "back"))
		return err == nil
	})
	if got := streamInfo(t, b.JetStream(), b.Stream()).State.Msgs; got != before+1 {
		t.Errorf("the stream holds %d messages, want %d: none that was refused", got, before+1)
	}
}

// Three servers take seconds to start: all that needs them is one test.
func TestTroubledCluster(t *testing.T) {
	c := natstest.Cluster(t, 3)
	cfg := testConfig()
	cfg.URL = c.URL()
	cfg.PublishTimeout = 6 * time.Second // elections on a busy machine

	t.Run("fewer replicas than the stream has", func(t *testing.T) {
		create(t, jetStream(t, cfg.URL), map[string]jetstream.StreamConfig{"": events(func(c *jetstream.StreamConfig) { c.Replicas = 3 })})
		b := openReady(t, cfg)
		wantWarning(t, b, "bucket webhooks-dedupe: it has fewer replicas (1) than WEBHOOKS (3)")
		wantWarning(t, b, "stream WEBHOOKS_QUARANTINE: it has fewer replicas (1) than WEBHOOKS (3)")
	})

	cfg.Replicas, cfg.Explicit = 3, map[string]bool{"STREAM_REPLICAS": true} // as the warnings say
	b := openReady(t, cfg)
	if got := b.State().Warnings; len(got) != 0 {
		t.Errorf("warnings: %q", got)
	}

	// Copies of events race, and are told that another is on its way (10158),
	// while the leader that has it on its way goes.
	t.Run("copies race while the leader goes", func(t *testing.T) {
		const copies = 16
		inProcess := countAnswers(t, c.URL(), `"err_code":10158`)
		before := streamInfo(t, b.JetStream(), b.Stream()).State.Msgs
		ctx, cancel := context.WithCancel(t.Context())
		var events atomic.Int64
		var workers sync.WaitGroup
		defer workers.Wait()
		defer cancel()
		for w := range 2 {
			workers.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					acks := make([]bus.Ack, copies)
					var senders sync.WaitGroup
					for j := range acks {
						e := newEvent(t, fmt.Sprintf("race-%d-%d", w, i))
						senders.Go(func() { acks[j], _ = insist(t, b, e) })
					}
					senders.Wait()
					first := 0
					for _, ack := range acks {
						if !ack.Duplicate {
							first++
						}
						if ack.Sequence != acks[0].Sequence {
							t.Errorf("copies are at %d and %d", ack.Sequence, acks[0].Sequence)
						}
					}
					if first > 1 { // none: its acknowledgement went with the leader
						t.Errorf("%d copies of %d are no duplicate", first, copies)
					}
					events.Add(1)
				}
			})
		}
		more := func() {
			start := events.Load()
			natstest.Eventually(t, 3*within, "more events", func() bool { return events.Load() >= start+20 })
		}
		more()
		natstest.Eventually(t, within, "a copy is told that another is on its way", func() bool { return inProcess.Load() > 0 })
		for range 2 {
			down := leader(t, c, b.Stream())
			c.Stop(down)
			more()
			c.Restart(down)
			more()
		}
		cancel()
		workers.Wait()
		if got, want := streamInfo(t, b.JetStream(), b.Stream()).State.Msgs-before, uint64(events.Load()); got != want {
			t.Errorf("%d messages of %d events", got, want)
		}
		t.Logf("%d events of %d copies, %d times another was on its way", events.Load(), copies, inProcess.Load())
	})
}

// countAnswers counts the answers with that text that any client gets.
func countAnswers(t *testing.T, url, text string) *atomic.Int64 {
	t.Helper()
	var n atomic.Int64
	nc := natstest.Connect(t, url)
	if _, err := nc.Subscribe("_INBOX.>", func(m *nats.Msg) {
		if bytes.Contains(m.Data, []byte(text)) {
			n.Add(1)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return &n
}

// A server that hangs takes what the socket holds and then nothing: whoever
// publishes must not wait for it for longer than the timeouts say.
func TestServerHangs(t *testing.T) {
	t.Parallel()
	s := natstest.Server(t)
	p := newValve(t, s.Addr().String())
	cfg := testConfig()
	cfg.URL = p.url
	b := openReady(t, cfg)
	mustPublish(t, b, newEvent(t, "before"))

	p.shut()
	const events, size = 400, 60_000 // more than sockets hold
	failed := make(chan error, events)
	begun := time.Now()
	for i := range events {
		e := eventOf(t, "dataspike", fmt.Sprintf(`{"event_type":"DOCVER","id":"%d","timestamp":"2026-07-01T10:00:00Z","payload":{"text":"%s"}}`, i, strings.Repeat("x", size)))
		go func() {
			_, err := b.Publish(t.Context(), e)
			failed <- err
		}()
	}
	for range events {
		if err := <-failed; !errors.Is(err, bus.ErrUnavailable) {
			t.Errorf("Publish: got %v, want %q", err, bus.ErrUnavailable)
		}
	}
	if took := time.Since(begun); took > 5*cfg.PublishTimeout { // on a busy machine
		t.Errorf("it took %v to fail; the publish timeout is %v", took, cfg.PublishTimeout)
	}
	p.open()
	waitReady(t, b)
	if _, ok := insist(t, b, newEvent(t, "after")); !ok {
		t.Error("nothing is stored after the server is back")
	}
}

// valve is a connection to a server that can be shut: it stays, and nothing
// passes.
type valve struct {
	url string
	mu  sync.RWMutex // held for writing while shut
}

func (v *valve) shut() { v.mu.Lock() }
func (v *valve) open() { v.mu.Unlock() }

func newValve(t *testing.T, server string) *valve {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	v := &valve{url: "nats://" + l.Addr().String()}
	var workers sync.WaitGroup
	ended := make(chan struct{})
	pass := func(to, from net.Conn) {
		defer to.Close()
		defer from.Close()
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			v.mu.RLock()
			v.mu.RUnlock() //lint:ignore SA2001 waits until it is open
			if _, failed := to.Write(buf[:n]); err != nil || failed != nil {
				return
			}
		}
	}
	workers.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			upstream, err := net.Dial("tcp", server)
			if err != nil {
				client.Close()
				continue
			}
			workers.Go(func() { pass(upstream, client) })
			workers.Go(func() { pass(client, upstream) })
			workers.Go(func() { // nats.go forgets a connection on which no INFO came
				<-ended
				client.Close()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		close(ended)
		workers.Wait()
	})
	return v
}

// A server that has too much to do refuses a message for the moment (10167):
// that is no reason to have the provider come again, which it may not.
func TestServerHasTooMuchToDo(t *testing.T) {
	t.Parallel()
	s := natstest.Server(t, func(o *server.Options) { o.StreamMaxBufferedMsgs, o.SyncAlways = 20, true })
	refused := countAnswers(t, s.ClientURL(), `"err_code":10167`)
	b := openReady(t, external(s))
	natstest.Eventually(t, within, "a message is refused", func() bool {
		var senders sync.WaitGroup
		for range 100 {
			e := newEvent(t, rand.Text())
			senders.Go(func() {
				if _, err := b.Publish(t.Context(), e); err != nil {
					t.Errorf("Publish: %v", err)
				}
			})
		}
		senders.Wait()
		return refused.Load() > 0 || t.Failed()
	})
}
