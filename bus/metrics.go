package bus

import (
	"errors"
	"maps"
	"net"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
)

// What a stream holds, the label of the metrics of streams: names of streams are
// the operator's.
const (
	holdsEvents     = "events"
	holdsQuarantine = "quarantine"
	holdsIndex      = "index"
	holdsBodies     = "bodies"
)

// metrics tells of the connection and the streams.
type metrics struct {
	publishSeconds prometheus.Histogram
	denied         prometheus.Counter

	mu      sync.Mutex
	streams map[string]streamFigures // by name
}

type streamFigures struct {
	holds              string
	messages, bytes    uint64
	maxBytes, replicas int64
}

func newMetrics() *metrics {
	return &metrics{
		publishSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "bridge_publish_duration_seconds",
			Help:    "Time from the first attempt to publish an event to its acknowledgement or failure.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}),
		denied: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bridge_nats_permission_violations_total",
			Help: "What NATS did not permit the bridge's user.",
		}),
		streams: make(map[string]streamFigures),
	}
}

func (b *Bus) register(reg prometheus.Registerer) error {
	gauge := func(name, help string, is func() bool) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			if is() {
				return 1
			}
			return 0
		})
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		b.metrics.publishSeconds,
		b.metrics.denied,
		gauge("bridge_nats_connected", "1 while there is a connection to NATS.", b.Connected),
		gauge("bridge_nats_refused", "1 while NATS refuses the bridge's credentials, or TLS between the two fails.", func() bool {
			return !b.nc.IsConnected() && refusal(b.nc.LastError())
		}),
		(*streamCollector)(b),
	} {
		errs = append(errs, reg.Register(c))
	}
	return errors.Join(errs...)
}

// refusal reports whether a connection failed because of credentials or certificates,
// not because of the network.
func refusal(err error) bool {
	if err == nil {
		return false
	}
	text := strings.ToLower(err.Error()) // the client has it from the server
	for _, e := range []string{nats.AUTHORIZATION_ERR, nats.AUTHENTICATION_EXPIRED_ERR, nats.AUTHENTICATION_REVOKED_ERR, nats.ACCOUNT_AUTHENTICATION_EXPIRED_ERR} {
		if strings.Contains(text, e) {
			return true
		}
	}
	// By TLS 1.3 a client learns that its certificate is refused when it reads, and
	// nats.go does not take that for an error of TLS; crypto/tls names it so.
	var alert *net.OpError
	return errors.Is(err, nats.ErrTLS) || errors.As(err, &alert) && alert.Op == "remote error"
}

// sawStream keeps what a look at a stream has shown.
func (m *metrics) sawStream(holds string, info *jetstream.StreamInfo) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.streams[info.Config.Name] = streamFigures{
		holds:    holds,
		messages: info.State.Msgs, bytes: info.State.Bytes,
		maxBytes: info.Config.MaxBytes, replicas: int64(info.Config.Replicas),
	}
}

// lostStream forgets a stream that does not exist.
func (m *metrics) lostStream(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.streams, name)
}

func (m *metrics) figures() map[string]streamFigures {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.streams)
}

// streamCollector gives what is known of the streams. What has no limit has no
// value for it.
type streamCollector Bus

var _ prometheus.Collector = (*streamCollector)(nil)

var (
	descMessages = prometheus.NewDesc("bridge_stream_messages", "Messages in the stream, as seen at most a minute ago.", []string{"stream", "holds"}, nil)
	descBytes    = prometheus.NewDesc("bridge_stream_bytes", "Size of the stream, as seen at most a minute ago.", []string{"stream", "holds"}, nil)
	descMaxBytes = prometheus.NewDesc("bridge_stream_max_bytes", "Size above which the stream takes no more; absent if unlimited.", []string{"stream", "holds"}, nil)
	descReplicas = prometheus.NewDesc("bridge_stream_replicas", "Servers of the NATS cluster that keep the stream; absent with the embedded server.", []string{"stream", "holds"}, nil)
	descWindow   = prometheus.NewDesc("bridge_duplicate_window_seconds", "How long the stream itself refuses a copy; absent while that is not known.", nil, nil)
)

func (c *streamCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descMessages, descBytes, descMaxBytes, descReplicas, descWindow} {
		descs <- d
	}
}

func (c *streamCollector) Collect(values chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		values <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	for name, s := range c.metrics.figures() {
		gauge(descMessages, float64(s.messages), name, s.holds)
		gauge(descBytes, float64(s.bytes), name, s.holds)
		if s.maxBytes > 0 {
			gauge(descMaxBytes, float64(s.maxBytes), name, s.holds)
		}
		if c.server == nil {
			gauge(descReplicas, float64(s.replicas), name, s.holds)
		}
	}
	if window := c.state.Load().DuplicateWindow; window > 0 {
		gauge(descWindow, window.Seconds())
	}
}

// spoolCollector tells how much the spool holds, and nothing while that is not known: 0
// would say that its disk may be deleted.
type spoolCollector struct{ spool *Spool }

var spoolMessages = prometheus.NewDesc("bridge_spool_messages", "Webhooks on this machine's disk that wait for the bus; absent while that is not known.", nil, nil)

func (c spoolCollector) Describe(ch chan<- *prometheus.Desc) { ch <- spoolMessages }

func (c spoolCollector) Collect(ch chan<- prometheus.Metric) {
	if n := c.spool.Len(); n >= 0 {
		ch <- prometheus.MustNewConstMetric(spoolMessages, prometheus.GaugeValue, float64(n))
	}
}
