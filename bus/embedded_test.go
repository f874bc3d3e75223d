package bus_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/natstest"
)

// embedded returns the configuration for a server in the bus's own process.
func embedded(t *testing.T) bus.Config {
	t.Helper()
	cfg := testConfig()
	cfg.DataDir = filepath.Join(t.TempDir(), "data")
	cfg.EmbeddedListen = net.JoinHostPort("127.0.0.1", strconv.Itoa(natstest.FreePort(t)))
	return cfg
}

func TestEmbedded(t *testing.T) {
	cfg := embedded(t)
	b := openReady(t, cfg)
	if !b.SyncAlways() {
		t.Error("the server does not sync every write")
	}
	if got, want := b.State().Durability, "a 200 means written and synced to this machine's disk, one copy"; got != want {
		t.Errorf("Durability: got %q, want %q", got, want)
	}
	if got := b.State().Warnings; len(got) != 0 {
		t.Errorf("warnings: %q", got)
	}

	// Others reach it where it listens.
	nc := natstest.Connect(t, "nats://"+cfg.EmbeddedListen)
	sub, err := nc.SubscribeSync("webhooks.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	e := newEvent(t, 1)
	mustPublish(t, b, e)
	m, err := sub.NextMsg(within)
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Header.Get("ce-id"); got != e.CloudEvent.ID() {
		t.Errorf("the subscriber has event %q, want %q", got, e.CloudEvent.ID())
	}
}

func TestEmbeddedOnAnyPort(t *testing.T) {
	cfg := embedded(t)
	cfg.EmbeddedListen = "127.0.0.1:0"
	mustPublish(t, openReady(t, cfg), newEvent(t, 1))
}

func TestEmbeddedKeepsEvents(t *testing.T) {
	cfg := embedded(t)
	var created time.Time
	t.Run("before the restart", func(t *testing.T) {
		b := openReady(t, cfg)
		mustPublish(t, b, newEvent(t, 1))
		mustPublish(t, b, newEvent(t, 2))
		created = b.State().StreamCreated
	})
	b := openReady(t, cfg)
	if got := b.State().StreamCreated; !got.Equal(created) {
		t.Errorf("the stream was created %v, before the restart %v", got, created)
	}
	ack, err := b.Publish(t.Context(), newEvent(t, 2))
	if want := (bus.Ack{Sequence: 2, Duplicate: true}); err != nil || ack != want {
		t.Errorf("event 2 again: got %+v, %v; want %+v", ack, err, want)
	}
	if got := string(message(t, b.JetStream(), b.Stream(), 1).Data); got != string(newEvent(t, 1).CloudEvent.Data()) {
		t.Errorf("event 1 is now %q", got)
	}
}

// Two servers on one store destroy acknowledged messages.
func TestDataDirOfAnotherProcess(t *testing.T) {
	cfg := embedded(t)
	openReady(t, cfg)

	cfg.EmbeddedListen = "127.0.0.1:0"
	cfg.LockWait = 300 * time.Millisecond
	start := time.Now()
	b, err := tryOpen(t, cfg)
	took := time.Since(start)
	if err == nil {
		closeBus(t, b)
		t.Fatal("a second server opens the directory")
	}
	for _, want := range []string{"BRIDGE_DATA_DIR", cfg.DataDir, "another process"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error %q does not name %q", err, want)
		}
	}
	if took < cfg.LockWait {
		t.Errorf("it waited %v only, want %v", took, cfg.LockWait)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := bus.Open(ctx, cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: got the error %v", err)
	}
}

func TestDataDirIsHandedOver(t *testing.T) {
	cfg := embedded(t)
	first, err := tryOpen(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	cfg.LockWait = within
	type result struct {
		b   *bus.Bus
		err error
	}
	second := make(chan result, 1)
	go func() {
		b, err := tryOpen(t, cfg)
		second <- result{b, err}
	}()
	closeBus(t, first)
	r := <-second
	if r.err != nil {
		t.Fatal(r.err)
	}
	waitReady(t, run(t, r.b))
}

func TestNoWaitForTheLock(t *testing.T) {
	cfg := embedded(t)
	cfg.LockWait = 0
	b, err := tryOpen(t, cfg)
	if err != nil {
		t.Fatalf("nobody holds the directory, but Open says: %v", err)
	}
	closeBus(t, b)
}

func TestEmbeddedPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := embedded(t)
	free := cfg.EmbeddedListen
	cfg.EmbeddedListen = l.Addr().String()
	b, err := tryOpen(t, cfg)
	if err == nil {
		closeBus(t, b)
		t.Fatal("Open returns no error")
	}
	for _, want := range []string{"BRIDGE_EMBEDDED_LISTEN", cfg.EmbeddedListen, "in use"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error %q does not name %q", err, want)
		}
	}
	if _, err := os.Stat(filepath.Join(cfg.DataDir, "jetstream")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the store was opened: %v", err)
	}

	cfg.EmbeddedListen, cfg.LockWait = free, 100*time.Millisecond
	waitReady(t, open(t, cfg))
}

func TestEmbeddedRefusesConfiguration(t *testing.T) {
	file := writeFile(t, "file", nil)
	for _, test := range []struct {
		name, want string
		change     func(*bus.Config)
	}{
		{"no address", "BRIDGE_EMBEDDED_LISTEN", func(c *bus.Config) { c.EmbeddedListen = "" }},
		{"no port", "BRIDGE_EMBEDDED_LISTEN", func(c *bus.Config) { c.EmbeddedListen = "127.0.0.1" }},
		{"port by name", "BRIDGE_EMBEDDED_LISTEN", func(c *bus.Config) { c.EmbeddedListen = "127.0.0.1:nats" }},
		{"port too high", "BRIDGE_EMBEDDED_LISTEN", func(c *bus.Config) { c.EmbeddedListen = "127.0.0.1:65536" }},
		{"port below zero", "BRIDGE_EMBEDDED_LISTEN", func(c *bus.Config) { c.EmbeddedListen = "127.0.0.1:-1" }},
		{"not this machine's address", "BRIDGE_EMBEDDED_LISTEN", func(c *bus.Config) { c.EmbeddedListen = "192.0.2.1:4222" }},
		{"directory is a file", "BRIDGE_DATA_DIR", func(c *bus.Config) { c.DataDir = file }},
		{"directory below a file", "BRIDGE_DATA_DIR", func(c *bus.Config) { c.DataDir = filepath.Join(file, "data") }},
		{"client options", "BRIDGE_NATS_NKEY_FILE", func(c *bus.Config) { c.NKeyFile = file }},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := embedded(t)
			good := cfg
			test.change(&cfg)
			b, err := tryOpen(t, cfg)
			if err == nil {
				closeBus(t, b)
				t.Fatal("Open returns no error")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("the error %q does not name %q", err, test.want)
			}
			good.LockWait = 100 * time.Millisecond
			open(t, good) // nothing was left behind
		})
	}
}

func TestEmbeddedStoreCannotBeOpened(t *testing.T) {
	cfg := embedded(t)
	cfg.LockWait = 100 * time.Millisecond
	inTheWay := filepath.Join(cfg.DataDir, "jetstream")
	if err := errors.Join(os.MkdirAll(cfg.DataDir, 0o700), os.WriteFile(inTheWay, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	b, err := tryOpen(t, cfg)
	if err == nil {
		closeBus(t, b)
		t.Fatal("Open returns no error")
	}
	if !strings.Contains(err.Error(), "embedded NATS server: ") {
		t.Errorf("got the error %q", err)
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	waitReady(t, open(t, cfg))
}

func TestEmbeddedPassword(t *testing.T) {
	cfg := embedded(t)
	cfg.User, cfg.Password = "bridge", "secret"
	mustPublish(t, openReady(t, cfg), newEvent(t, 1))
	url := "nats://" + cfg.EmbeddedListen
	for _, test := range []struct {
		name    string
		options []nats.Option
		want    error
	}{
		{"none", nil, nats.ErrAuthorization},
		{"wrong", []nats.Option{nats.UserInfo("bridge", "wrong")}, nats.ErrAuthorization},
		{"right", []nats.Option{nats.UserInfo("bridge", "secret")}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			nc, err := nats.Connect(url, test.options...)
			if err == nil {
				nc.Close()
			}
			if !errors.Is(err, test.want) {
				t.Errorf("Connect: got %v, want %v", err, test.want)
			}
		})
	}
}

func TestEmbeddedTakesMaxBody(t *testing.T) {
	for _, size := range []int64{3 << 20, 100} { // the server's own limit is 1 MiB
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			cfg := embedded(t)
			cfg.MaxBody = size
			b := openReady(t, cfg)
			mustPublish(t, b, bigEvent(t, int(size)))
			if err := b.Quarantine(t.Context(), bus.Rejected{Provider: "waldo", Reason: "type_missing", Body: make([]byte, size), Received: received}); err != nil {
				t.Fatal(err)
			}
			if got := len(message(t, b.JetStream(), cfg.QuarantineStream, 1).Data); got != int(size) {
				t.Errorf("%d bytes of the body are in the quarantine, want %d", got, size)
			}
		})
	}
}

// What the server cannot read of its files is said.
func TestDamagedDataDir(t *testing.T) {
	cfg := embedded(t)
	t.Run("before the damage", func(t *testing.T) {
		b := openReady(t, cfg)
		for i := range 20 {
			mustPublish(t, b, newEvent(t, i))
		}
	})
	file := filepath.Join(cfg.DataDir, "jetstream", "$G", "streams", cfg.Stream, "msgs", "1.blk")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := errors.Join(os.WriteFile(file, data, 0o600), os.Remove(filepath.Join(filepath.Dir(file), "index.db"))); err != nil {
		t.Fatal(err)
	}
	s := &spool{log: &strings.Builder{}}
	b, err := bus.Open(t.Context(), cfg, slog.New(slog.NewTextHandler(s, nil)), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	waitReady(t, run(t, b))
	if !s.logged("events may be lost") {
		t.Error(s.log)
	}
}
