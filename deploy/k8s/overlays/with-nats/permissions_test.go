package deploy_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/events"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
	"github.com/hookbus/bridge/replay"
)

const within = time.Minute

// startServer runs one server with the users of nats.conf.
func startServer(t *testing.T, file string) *server.Server {
	t.Helper()
	for _, name := range []string{"NATS_ROUTE_PASSWORD", "NATS_BRIDGE_PASSWORD", "NATS_CONSUMER_PASSWORD", "NATS_OPERATOR_PASSWORD", "NATS_SYS_PASSWORD"} {
		t.Setenv(name, strings.ToLower(name))
	}
	t.Setenv("POD_NAME", "nats-0")
	for i := range 3 { // as nats.yaml has them
		t.Setenv(fmt.Sprintf("NATS_ROUTE_%d", i), fmt.Sprintf(`"nats://route:nats_route_password@nats-%d.nats-cluster:6222"`, i))
	}
	o, err := server.ProcessConfigFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !o.JetStream || !o.SyncAlways || o.LameDuckDuration == 0 {
		t.Error("JetStream, its sync or the lame duck mode is not as the manifests promise")
	}
	if len(o.Routes) != 3 {
		t.Errorf("%d routes", len(o.Routes))
	}
	for _, route := range o.Routes { // without it the servers refuse each other
		if password, _ := route.User.Password(); route.User.Username() != o.Cluster.Username || password != o.Cluster.Password {
			t.Errorf("a route that does not know the password of the others: %s", route.Redacted())
		}
	}
	if secure := file != "nats.conf"; (o.Cluster.TLSConfig != nil && o.Cluster.TLSConfig.ClientAuth == tls.RequireAndVerifyClientCert) != secure || (o.TLSConfig != nil) != secure {
		t.Errorf("%s: TLS is not as the manifests promise", file)
	}
	o.Cluster, o.Routes = server.ClusterOpts{}, nil
	o.Host, o.Port, o.HTTPPort, o.PidFile, o.StoreDir = "127.0.0.1", server.RANDOM_PORT, 0, "", t.TempDir()
	o.NoSigs, o.NoLog = true, true
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(within) {
		t.Fatal("the server does not start")
	}
	return s
}

// client connects as a user, and keeps what that was not permitted.
type client struct {
	*nats.Conn
	js jetstream.JetStream

	mu      sync.Mutex
	refused []string
}

func connect(t *testing.T, s *server.Server, user string) *client {
	t.Helper()
	c := &client{}
	var err error
	c.Conn, err = nats.Connect(s.ClientURL(), nats.UserInfo(user, "nats_"+user+"_password"), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if errors.Is(err, nats.ErrPermissionViolation) {
			c.refused = append(c.refused, err.Error())
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if c.js, err = jetstream.New(c.Conn); err != nil {
		t.Fatal(err)
	}
	return c
}

// denied waits until so much was refused, and forgets it.
func (c *client) denied(t *testing.T, n int) (refused []string) {
	t.Helper()
	natstest.Eventually(t, within, fmt.Sprintf("%d refusals", n), func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		refused = c.refused
		return len(refused) >= n
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused = nil
	return refused
}

// mayNot publishes requests, of which each is to be refused, and nothing was
// before.
func (c *client) mayNot(t *testing.T, subjects ...string) {
	t.Helper()
	for _, subject := range subjects {
		if err := c.Publish(subject, nil); err != nil {
			t.Fatal(err)
		}
	}
	for i, refused := range c.denied(t, len(subjects)) { // they come in order
		if i >= len(subjects) || !strings.Contains(refused, subjects[i]) {
			t.Fatalf("refused: %s; want %s", refused, subjects[min(i, len(subjects)-1)])
		}
	}
}

// The bridge can do all that it does as the user bridge, and a service reads what
// it publishes as the user consumer; neither can do more. A person has the user
// operator.
func TestPermissions(t *testing.T) {
	s := startServer(t, "nats.conf")
	l := &natstest.Output{}
	logger := slog.New(slog.NewTextHandler(l, nil))
	b, err := bus.Open(t.Context(), bus.Config{
		URL: s.ClientURL(), User: "bridge", Password: "nats_bridge_password",
		Stream: "WEBHOOKS", SubjectPrefix: "webhooks", Replicas: 1, StreamMaxAge: 720 * time.Hour,
		Bucket: "webhooks-dedupe", DedupeWindow: 168 * time.Hour, DuplicateWindow: 10 * time.Minute,
		QuarantineStream: "WEBHOOKS_QUARANTINE", QuarantinePrefix: "quarantine", QuarantineMaxAge: 720 * time.Hour, QuarantineMaxBytes: 1 << 30,
		MaxBody: 8 << 20, PublishTimeout: 3 * time.Second, Manage: true, Explicit: map[string]bool{"STREAM_MAX_AGE": true},
	}, logger, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	d, err := dedupe.New(b, dedupe.Windows{State: 2 * time.Minute, Dedupe: 168 * time.Hour}, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	x, err := dedupe.NewIndexer(b, d, logger, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { b.Run(ctx) })
	wg.Go(func() { x.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait(); b.Close(context.Background()) })
	natstest.Eventually(t, within, "the bridge is ready", func() bool { return b.State().Ready() })

	// Events of every provider, one too large for a message, each twice, and a
	// body that is none.
	var sent []*normalize.Event
	for _, p := range normalize.Providers() {
		for _, sample := range p.Samples() {
			sent = append(sent, event(t, p, sample.Body))
		}
	}
	dataspike, _ := normalize.ByName("dataspike")
	sent = append(sent, event(t, dataspike, []byte(fmt.Sprintf(`{"id":"large","event_type":"DOCVER","payload":{"text":%q}}`, strings.Repeat("x", 2<<20)))))
	for _, e := range sent {
		if _, err := d.Once(t.Context(), e, b.Publish); err != nil {
			t.Fatalf("%s: %v\n%s", e.Kind, err, l)
		}
	}
	natstest.Eventually(t, within, "all is indexed", func() bool {
		return natstest.CaughtUp(t.Context(), b.JetStream(), "WEBHOOKS", dedupe.IndexerName)
	})
	again := event(t, dataspike, dataspike.Samples()[0].Body)
	if r, err := d.Once(t.Context(), again, b.Publish); err != nil || !r.Duplicate {
		t.Errorf("a redelivery: %+v, %v", r, err)
	}
	if err := b.Quarantine(t.Context(), bus.Rejected{Provider: "waldo", Reason: "body_not_json", Body: []byte("no"), Received: time.Now()}); err != nil {
		t.Error(err)
	}
	if text := l.String(); strings.Contains(text, "does not permit") || strings.Contains(strings.ToLower(text), "violation") {
		t.Errorf("the bridge was refused something:\n%s", text)
	}

	bridge := connect(t, s, "bridge")
	stream, err := bridge.js.Stream(t.Context(), "WEBHOOKS")
	if err != nil {
		t.Fatal(err)
	}
	all := stream.ListConsumers(t.Context()) // bridge status
	for range all.Info() {
	}
	if all.Err() != nil {
		t.Error(all.Err())
	}
	bridge.mayNot(t, "orders.new", "$JS.API.STREAM.CREATE.ORDERS", "$JS.API.STREAM.NAMES", "$JS.API.CONSUMER.CREATE.ORDERS.x", "$SYS.REQ.SERVER.PING")

	operator := connect(t, s, "operator")
	result, err := replay.Run(t.Context(), operator.Conn, "again", replay.Selection{FromSeq: 1}, replay.Options{Stream: "WEBHOOKS", Keep: time.Hour})
	if err != nil || result.Copied == 0 || result.Copied != stream.CachedInfo().State.Msgs {
		t.Errorf("replay: %+v, %v", result, err)
	}
	q, err := bus.OpenQuarantine(t.Context(), operator.js, "WEBHOOKS_QUARANTINE", "quarantine")
	if err != nil {
		t.Fatal(err)
	}
	removed := 0
	for item, err := range q.All(t.Context()) {
		if err == nil {
			err = q.Remove(t.Context(), item)
		}
		if err != nil {
			t.Error(err)
		}
		removed++
	}
	if removed != 1 {
		t.Errorf("%d in the quarantine, want 1", removed)
	}

	c := connect(t, s, "consumer")
	consumer, err := c.js.CreateOrUpdateConsumer(t.Context(), "WEBHOOKS", jetstream.ConsumerConfig{Durable: "onboarding", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	batch, err := consumer.Fetch(len(sent), jetstream.FetchMaxWait(within))
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for msg := range batch.Messages() {
		if _, err := events.Decode(t.Context(), c.js, msg); err != nil {
			t.Error(err)
		}
		if err := msg.DoubleAck(t.Context()); err != nil {
			t.Error(err)
		}
		read++
	}
	if read == 0 || batch.Error() != nil {
		t.Errorf("%d events read, %v", read, batch.Error())
	}
	ordered, err := c.js.OrderedConsumer(t.Context(), "WEBHOOKS", jetstream.OrderedConsumerConfig{FilterSubjects: []string{"webhooks.dataspike.>"}})
	if err == nil {
		_, err = ordered.Next(jetstream.FetchMaxWait(within))
	}
	if err != nil {
		t.Error(err)
	}
	if stream, err = c.js.Stream(t.Context(), "WEBHOOKS"); err != nil {
		t.Fatal(err)
	}
	consumers, names := stream.ListConsumers(t.Context()), stream.ConsumerNames(t.Context())
	for range consumers.Info() {
	}
	for range names.Name() {
	}
	if err := errors.Join(consumers.Err(), names.Err()); err != nil {
		t.Error(err)
	}
	c.mayNot(t,
		"webhooks.dfns.wallet.transfer.confirmed", "quarantine.x.y", "$KV.webhooks-dedupe.x", "$O.WEBHOOKS_BODIES.C.x",
		"$JS.API.STREAM.PURGE.WEBHOOKS", "$JS.API.STREAM.DELETE.WEBHOOKS", "$JS.API.STREAM.MSG.DELETE.WEBHOOKS", "$JS.API.STREAM.UPDATE.WEBHOOKS",
		// To make a consumer that is there is to change it.
		"$JS.API.CONSUMER.CREATE.WEBHOOKS", "$JS.API.CONSUMER.CREATE.WEBHOOKS.bridge-indexer", "$JS.API.CONSUMER.CREATE.WEBHOOKS.bridge-indexer.webhooks.none",
		"$JS.API.CONSUMER.DURABLE.CREATE.WEBHOOKS.bridge-indexer", "$JS.API.CONSUMER.CREATE.OBJ_WEBHOOKS_BODIES",
		"$JS.API.CONSUMER.DELETE.WEBHOOKS.bridge-indexer", "$JS.API.CONSUMER.MSG.NEXT.WEBHOOKS.bridge-indexer", "$JS.ACK.WEBHOOKS.bridge-indexer.1.1.1.1.1",
		"$JS.API.STREAM.MSG.GET.WEBHOOKS_QUARANTINE")
}

// With components/nats-tls the bridge speaks TLS with the servers.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	cert, key := natstest.WriteCertificate(t, dir, 1)
	files := strings.NewReplacer("/etc/nats-tls/tls.crt", cert, "/etc/nats-tls/tls.key", key, "/etc/nats-tls/ca.crt", cert)
	for _, file := range []string{"nats.conf", "../../components/nats-tls/tls.conf", "../../components/nats-tls/cluster-tls.conf"} {
		text, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(file)), []byte(files.Replace(string(text))), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s := startServer(t, filepath.Join(dir, "nats.conf"))
	b, err := bus.Open(t.Context(), bus.Config{
		URL: "nats://" + s.Addr().String(), User: "bridge", Password: "nats_bridge_password", TLSCA: cert,
		Stream: "WEBHOOKS", SubjectPrefix: "webhooks", Replicas: 1, StreamMaxAge: 720 * time.Hour,
		Bucket: "webhooks-dedupe", DedupeWindow: 168 * time.Hour, DuplicateWindow: 10 * time.Minute,
		QuarantineStream: "WEBHOOKS_QUARANTINE", QuarantinePrefix: "quarantine", QuarantineMaxAge: 720 * time.Hour, QuarantineMaxBytes: 1 << 30,
		MaxBody: 8 << 20, PublishTimeout: 3 * time.Second, Manage: true,
	}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { b.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait(); b.Close(context.Background()) })
	natstest.Eventually(t, within, "the bridge is ready", func() bool { return b.State().Ready() })
}

func event(t *testing.T, p normalize.Provider, body []byte) *normalize.Event {
	t.Helper()
	e, err := p.Event(body, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return e
}
