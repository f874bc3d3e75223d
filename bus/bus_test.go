package bus_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
)

func TestMain(m *testing.M) { natstest.Main(m) }

// within bounds every wait for a condition. A test that passes needs a small
// part of it.
const within = time.Minute

// testConfig has the program's defaults and no server: a test sets URL, or
// DataDir and EmbeddedListen.
func testConfig() bus.Config {
	return bus.Config{
		LockWait: 5 * time.Second,

		Stream:        "WEBHOOKS",
		SubjectPrefix: "webhooks",
		Replicas:      1,
		StreamMaxAge:  720 * time.Hour,

		Bucket:          "webhooks-dedupe",
		DedupeWindow:    168 * time.Hour,
		DuplicateWindow: 10 * time.Minute,

		QuarantineStream:   "WEBHOOKS_QUARANTINE",
		QuarantinePrefix:   "quarantine",
		QuarantineMaxAge:   720 * time.Hour,
		QuarantineMaxBytes: 64 << 20,

		MaxBody:        1 << 20,
		PublishTimeout: 3 * time.Second,
		Manage:         true,
	}
}

// external returns the configuration for a server that runs already.
func external(s *server.Server) bus.Config {
	cfg := testConfig()
	cfg.URL = s.ClientURL()
	return cfg
}

// open opens a bus, runs it, and stops it at the end of the test.
func open(t *testing.T, cfg bus.Config) *bus.Bus {
	t.Helper()
	b, err := tryOpen(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return run(t, b)
}

// openReady does the same and returns when events can be stored.
func openReady(t *testing.T, cfg bus.Config) *bus.Bus {
	t.Helper()
	b := open(t, cfg)
	waitReady(t, b)
	return b
}

func tryOpen(t *testing.T, cfg bus.Config) (*bus.Bus, error) {
	return bus.Open(t.Context(), cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
}

// run runs b until the end of the test, and closes it.
func run(t *testing.T, b *bus.Bus) *bus.Bus {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		closeBus(t, b)
	})
	return b
}

func closeBus(t *testing.T, b *bus.Bus) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within) // t.Context has ended in a cleanup
	defer cancel()
	if err := b.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func waitReady(t *testing.T, b *bus.Bus) {
	t.Helper()
	waitState(t, b, "ready", (*bus.State).Ready)
}

// waitProblem waits for a problem that holds text.
func waitProblem(t *testing.T, b *bus.Bus, text string) {
	t.Helper()
	waitState(t, b, "a problem: "+text, func(st *bus.State) bool {
		return strings.Contains(strings.Join(st.Problems, "\n"), text)
	})
}

// waitState waits for a state of which cond is true.
func waitState(t *testing.T, b *bus.Bus, what string, cond func(*bus.State) bool) {
	t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond) // being disconnected shows before it is a state of its own
	defer tick.Stop()
	for {
		st := b.State()
		if cond(st) {
			return
		}
		select {
		case <-st.Changed():
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not within %v: %s\nproblems: %q\nwarnings: %q", within, what, st.Problems, st.Warnings)
		}
	}
}

// newEvent returns an event that n alone tells from others.
func newEvent(t testing.TB, n any) *normalize.Event {
	t.Helper()
	return eventOf(t, "dataspike", fmt.Sprintf(`{"event_type":"AML_SCREENING","id":"%v","timestamp":"2026-07-01T10:00:00Z","payload":{"applicant_id":"a-1"}}`, n))
}

// received is when all test events were received.
var received = time.Date(2026, 7, 1, 10, 0, 1, 250_000_000, time.UTC)

func eventOf(t testing.TB, provider, body string) *normalize.Event {
	t.Helper()
	p, ok := normalize.ByName(provider)
	if !ok {
		t.Fatalf("no provider %q", provider)
	}
	e, err := p.Event([]byte(body), received)
	if err != nil {
		t.Fatal(err)
	}
	if e.Identity.StateKey != "" {
		e.SetToken("TOKEN")
	}
	return e
}

// mustPublish returns the sequence at which e was stored, just now.
func mustPublish(t *testing.T, b *bus.Bus, e *normalize.Event) uint64 {
	t.Helper()
	ack, err := b.Publish(t.Context(), e)
	if err != nil {
		t.Fatalf("Publish: %v", err)
	}
	if ack.Duplicate {
		t.Fatalf("Publish: %s is a duplicate of %d", e.CloudEvent.ID(), ack.Sequence)
	}
	return ack.Sequence
}

// wantError publishes e and checks the kind of the error.
func wantError(t *testing.T, b *bus.Bus, e *normalize.Event, want error) {
	t.Helper()
	ack, err := b.Publish(t.Context(), e)
	if !errors.Is(err, want) {
		t.Errorf("Publish: got %+v, %v; want the error %q", ack, err, want)
	}
}

// message returns a stored message as it is delivered to consumers.
func message(t *testing.T, js jetstream.JetStream, stream string, sequence uint64) *jetstream.RawStreamMsg {
	t.Helper()
	s, err := js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	var m *jetstream.RawStreamMsg
	natstest.Eventually(t, within, fmt.Sprintf("message %d of %s is read", sequence, stream), func() bool {
		m, err = s.GetMsg(t.Context(), sequence) // from a replica that may be behind
		return err == nil
	})
	for _, added := range []string{"Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp"} { // by a direct get
		m.Header.Del(added)
	}
	return m
}

func streamInfo(t *testing.T, js jetstream.JetStream, name string) *jetstream.StreamInfo {
	t.Helper()
	s, err := js.Stream(t.Context(), name)
	if err != nil {
		t.Fatalf("stream %s: %v", name, err)
	}
	return s.CachedInfo()
}

// jetStream returns a JetStream context on a connection of its own.
func jetStream(t *testing.T, url string) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(natstest.Connect(t, url))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func TestOpenWithoutAServer(t *testing.T) {
	port := natstest.FreePort(t)
	cfg := testConfig()
	cfg.URL = "nats://127.0.0.1:" + strconv.Itoa(port)
	cfg.PublishTimeout = 30 * time.Second
	b := open(t, cfg)
	waitProblem(t, b, "not connected to NATS")

	start := time.Now()
	wantError(t, b, newEvent(t, 1), bus.ErrUnavailable)
	if err := b.Quarantine(t.Context(), bus.Rejected{Provider: "waldo", Reason: "type_missing", Body: []byte("{}")}); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("Quarantine: got %v, want %q", err, bus.ErrUnavailable)
	}
	if took := time.Since(start); took > cfg.PublishTimeout/10 {
		t.Errorf("it took %v to fail; the publish timeout is %v", took, cfg.PublishTimeout)
	}

	natstest.Server(t, func(o *server.Options) { o.Port = port })
	waitReady(t, b)
	mustPublish(t, b, newEvent(t, 2))
	if got := streamInfo(t, b.JetStream(), cfg.Stream).State.Msgs; got != 1 {
		t.Errorf("the stream holds %d messages, want only the one acknowledged", got)
	}
}

func TestNothingIsBufferedWhileDisconnected(t *testing.T) {
	port, dir := natstest.FreePort(t), t.TempDir()
	sameServer := func(o *server.Options) { o.Port, o.StoreDir = port, dir }
	s := natstest.Server(t, sameServer)
	cfg := external(s)
	b := openReady(t, cfg)
	mustPublish(t, b, newEvent(t, 1))

	s.Shutdown()
	s.WaitForShutdown()
	waitProblem(t, b, "not connected to NATS")
	wantError(t, b, newEvent(t, 2), bus.ErrUnavailable)
	// The connection itself must refuse too: a publish may lose it half-way.
	if err := b.JetStream().Conn().Publish("webhooks.dataspike.late", nil); err == nil {
		t.Error("the connection takes messages while it is disconnected")
	}

	natstest.Server(t, sameServer)
	waitReady(t, b)
	if got := mustPublish(t, b, newEvent(t, 3)); got != 2 {
		t.Errorf("the first event after the reconnect has sequence %d, want 2: nothing between", got)
	}
}

// Between two looks at the streams the state knows of a lost connection.
func TestStateKnowsTheConnection(t *testing.T) {
	s := natstest.Server(t)
	b, err := tryOpen(t, external(s))
	if err != nil {
		t.Fatal(err)
	}
	defer closeBus(t, b)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.Run(ctx)
	}()
	waitReady(t, b)
	durability := b.State().Durability
	cancel()
	<-ended

	s.Shutdown()
	s.WaitForShutdown()
	waitProblem(t, b, "not connected to NATS")
	if got := b.State().Durability; got != durability {
		t.Errorf("Durability: got %q, want %q", got, durability)
	}
	wantError(t, b, newEvent(t, 1), bus.ErrUnavailable)
}

// A server that is being set up may refuse at first what it takes later.
func TestWrongPasswordIsTriedAgain(t *testing.T) {
	port := natstest.FreePort(t)
	s := natstest.Server(t, func(o *server.Options) { o.Port, o.Username, o.Password = port, "bridge", "right" })
	cfg := external(s)
	cfg.User, cfg.Password = "bridge", "wrong"
	b := open(t, cfg)
	waitProblem(t, b, "Authorization Violation")

	s.Shutdown()
	s.WaitForShutdown()
	natstest.Server(t, func(o *server.Options) { o.Port = port })
	waitReady(t, b)
	mustPublish(t, b, newEvent(t, 1))
}

// What is wrong with the configuration itself is said at once.
func TestOpenRefusesConfiguration(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	garbage := writeFile(t, "garbage", []byte("garbage"))
	url := natstest.Server(t).ClientURL()
	for _, test := range []struct {
		name, want string
		change     func(*bus.Config)
	}{
		{"URL that does not parse", "BRIDGE_NATS_URL", func(c *bus.Config) { c.URL = "nats://127.0.0.1:port" }},
		{"nkey file missing", "BRIDGE_NATS_NKEY_FILE", func(c *bus.Config) { c.NKeyFile = missing }},
		{"nkey file without a seed", "BRIDGE_NATS_NKEY_FILE", func(c *bus.Config) { c.NKeyFile = garbage }},
		{"credentials file missing", "BRIDGE_NATS_CREDS_FILE", func(c *bus.Config) { c.CredsFile = missing }},
		{"CA file missing", "BRIDGE_NATS_TLS_CA_FILE", func(c *bus.Config) { c.TLSCA = missing }},
		{"CA file without a certificate", "BRIDGE_NATS_TLS_CA_FILE", func(c *bus.Config) { c.TLSCA = garbage }},
		{"client certificate missing", "BRIDGE_NATS_TLS_CERT_FILE", func(c *bus.Config) { c.TLSCertFile, c.TLSKeyFile = missing, missing }},
		{"client certificate without a key", "BRIDGE_NATS_TLS_CERT_FILE", func(c *bus.Config) { c.TLSCertFile, c.TLSKeyFile = garbage, garbage }},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := testConfig()
			cfg.URL = url
			test.change(&cfg)
			b, err := tryOpen(t, cfg)
			if err == nil {
				closeBus(t, b)
				t.Fatal("Open returns no error")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("the error %q does not name %s", err, test.want)
			}
		})
	}
}

func TestOpenErrorHidesThePassword(t *testing.T) {
	cfg := testConfig()
	cfg.URL = "nats://bridge:secret%zz@127.0.0.1:4222"
	b, err := tryOpen(t, cfg)
	if err == nil {
		closeBus(t, b)
		t.Fatal("Open returns no error")
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("the error shows the password: %v", err)
	}
}

func TestCloseTwice(t *testing.T) {
	b, err := tryOpen(t, external(natstest.Server(t)))
	if err != nil {
		t.Fatal(err)
	}
	closeBus(t, b)
	closeBus(t, b)
	wantError(t, b, newEvent(t, 1), bus.ErrUnavailable)
}

// A bridge that waits for NATS at its start says so once, not nothing.
func TestLogsThatNATSIsAway(t *testing.T) {
	cfg := testConfig()
	cfg.URL = "nats://127.0.0.1:" + strconv.Itoa(natstest.FreePort(t))
	var log natstest.Output
	b, err := bus.Open(t.Context(), cfg, slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	run(t, b)
	waitProblem(t, b, "not connected to NATS")
	natstest.Eventually(t, within, "it is logged", func() bool {
		return strings.Contains(log.String(), `level=ERROR msg="not ready" problem="not connected to NATS`)
	})
}
