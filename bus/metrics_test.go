package bus_test

import (
	"crypto/tls"
	"log/slog"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/natstest"
)

// openWith opens and runs a bus with metrics in reg.
func openWith(t *testing.T, cfg bus.Config, reg *prometheus.Registry) *bus.Bus {
	t.Helper()
	b, err := bus.Open(t.Context(), cfg, slog.New(slog.DiscardHandler), reg)
	if err != nil {
		t.Fatal(err)
	}
	return run(t, b)
}

// metric returns a metric's value, of the stream that holds so if it has that
// label, and whether there is one. A histogram's is its count.
func metric(t *testing.T, reg *prometheus.Registry, name, holds string) (value float64, ok bool) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			has := ""
			for _, l := range m.GetLabel() {
				if l.GetName() == "holds" {
					has = l.GetValue()
				}
			}
			if family.GetName() == name && has == holds {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount()), true
			}
		}
	}
	return 0, false
}

func TestStreamMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	s := natstest.Server(t)
	cfg := external(s)
	cfg.StreamMaxBytes = 32 << 20
	b := openWith(t, cfg, reg)
	is := func(name, holds string, want func(float64) bool) bool {
		v, ok := metric(t, reg, name, holds)
		return ok && want(v)
	}
	equals := func(n float64) func(float64) bool { return func(v float64) bool { return v == n } }
	if _, ok := metric(t, reg, "bridge_duplicate_window_seconds", ""); ok {
		t.Error("a duplicate window before the stream was looked at")
	}
	waitReady(t, b)
	mustPublish(t, b, newEvent(t, 1))
	b.Wake()
	natstest.Eventually(t, within, "the stream's message is counted", func() bool {
		return is("bridge_stream_messages", "events", equals(1))
	})
	for _, holds := range []string{"events", "quarantine", "index", "bodies"} {
		if !is("bridge_stream_replicas", holds, equals(1)) {
			t.Errorf("no replicas of %s", holds)
		}
	}
	if !is("bridge_stream_bytes", "events", func(v float64) bool { return v > 100 && v < 10_000 }) {
		t.Error("the stream has no size")
	}
	if !is("bridge_stream_max_bytes", "events", equals(32<<20)) || !is("bridge_stream_max_bytes", "quarantine", equals(64<<20)) {
		t.Error("the limits are not those of the streams")
	}
	if _, ok := metric(t, reg, "bridge_stream_max_bytes", "index"); ok {
		t.Error("the index has a limit")
	}
	if !is("bridge_duplicate_window_seconds", "", equals(600)) || !is("bridge_nats_connected", "", equals(1)) || !is("bridge_nats_refused", "", equals(0)) {
		t.Error("window or connection are wrong")
	}

	// What was deleted has no size.
	if err := b.JetStream().DeleteStream(t.Context(), cfg.Stream); err != nil {
		t.Fatal(err)
	}
	b.Wake()
	natstest.Eventually(t, within, "the new stream is empty", func() bool { return is("bridge_stream_messages", "events", equals(0)) })

	s.Shutdown()
	natstest.Eventually(t, within, "not connected", func() bool { return is("bridge_nats_connected", "", equals(0)) })
	if !is("bridge_nats_refused", "", equals(0)) {
		t.Error("a server that is down refuses nothing")
	}
}

// A stream that is missing and not the bridge's to make has no metrics.
func TestMetricsOfAMissingStream(t *testing.T) {
	reg := prometheus.NewRegistry()
	s := natstest.Server(t)
	cfg := external(s)
	openReady(t, cfg)
	cfg.Manage = false
	b := openWith(t, cfg, reg)
	waitReady(t, b)
	if _, ok := metric(t, reg, "bridge_stream_bytes", "quarantine"); !ok {
		t.Fatal("no metrics of the quarantine")
	}
	if _, err := jetStream(t, s.ClientURL()).UpdateStream(t.Context(), jetstream.StreamConfig{Name: "WEBHOOKS_QUARANTINE", Subjects: []string{"elsewhere.>"}}); err != nil {
		t.Fatal(err)
	}
	cfg.QuarantineStream = "ANOTHER"
	reg = prometheus.NewRegistry()
	waitProblem(t, openWith(t, cfg, reg), "ANOTHER")
	if _, ok := metric(t, reg, "bridge_stream_bytes", "quarantine"); ok {
		t.Error("metrics of a stream that is not there")
	}
}

func TestEmbeddedServerHasNoReplicas(t *testing.T) {
	reg := prometheus.NewRegistry()
	cfg := embedded(t)
	waitReady(t, openWith(t, cfg, reg))
	if _, ok := metric(t, reg, "bridge_stream_bytes", "events"); !ok {
		t.Error("no size")
	}
	if _, ok := metric(t, reg, "bridge_stream_replicas", "events"); ok {
		t.Error("replicas without a cluster")
	}
}

// Who is refused is told from who does not get through.
func TestRefused(t *testing.T) {
	cert, _, certFile, _ := newCertificate(t)
	_, _, otherFile, _ := newCertificate(t)
	for _, test := range []struct {
		name   string
		server func(*server.Options)
		client func(*bus.Config)
	}{
		{
			"password",
			func(o *server.Options) { o.Username, o.Password = "bridge", "right" },
			func(c *bus.Config) { c.User, c.Password = "bridge", "wrong" },
		},
		{
			"an authority that is not the server's",
			func(o *server.Options) { o.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}} },
			func(c *bus.Config) { c.TLSCA = otherFile },
		},
		{
			"no client certificate",
			func(o *server.Options) {
				o.TLSVerify = true
				o.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert}
			},
			func(c *bus.Config) { c.TLSCA = certFile },
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			reg := prometheus.NewRegistry()
			cfg := external(natstest.Server(t, test.server))
			test.client(&cfg)
			openWith(t, cfg, reg)
			natstest.Eventually(t, within, "refused", func() bool {
				refused, _ := metric(t, reg, "bridge_nats_refused", "")
				connected, _ := metric(t, reg, "bridge_nats_connected", "")
				return refused == 1 && connected == 0
			})
		})
	}
}

func TestPermissionViolationsAreCounted(t *testing.T) {
	reg := prometheus.NewRegistry()
	cfg := external(natstest.Server(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "bridge", Password: "p", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.CREATE.>"}},
		}}}
	}))
	cfg.User, cfg.Password = "bridge", "p"
	openWith(t, cfg, reg)
	natstest.Eventually(t, within, "counted", func() bool {
		n, _ := metric(t, reg, "bridge_nats_permission_violations_total", "")
		return n > 0
	})
}
