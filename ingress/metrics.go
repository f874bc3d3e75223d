package ingress

import (
	"errors"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Results of a request, also the labels of bridge_webhooks_total.
const (
	accepted    = "accepted"
	duplicate   = "duplicate"
	quarantined = "quarantined"
	spooled     = "spooled"
	rejected    = "rejected" // the sender's fault
	failed      = "failed"   // ours
)

// unknown stands for every provider that is not configured: what a stranger
// writes is no label.
const unknown = "unknown"

type metrics struct {
	webhooks      *prometheus.CounterVec
	rejections    *prometheus.CounterVec
	quarantined   *prometheus.CounterVec
	secretMatches *prometheus.CounterVec
	seconds       *prometheus.HistogramVec
}

func newMetrics(providers []string, reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		webhooks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bridge_webhooks_total",
			Help: "Requests by result: accepted, duplicate, quarantined, spooled, rejected (4xx), failed (503).",
		}, []string{"provider", "result"}),
		rejections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bridge_rejections_total",
			Help: "Requests not answered 200, by reason.",
		}, []string{"provider", "reason"}),
		quarantined: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bridge_quarantined_total",
			Help: "Verified bodies put into quarantine, by reason.",
		}, []string{"provider", "reason"}),
		secretMatches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bridge_secret_matches_total",
			Help: "Verified requests by the secret that matched; an old secret whose count stands still can go.",
		}, []string{"provider", "slot"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "bridge_request_duration_seconds",
			Help:    "Time from the request's headers to its answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 8},
		}, []string{"provider"}),
	}
	for _, p := range append(providers, unknown) { // so that rates start from zero
		m.seconds.WithLabelValues(p)
		for _, r := range []string{accepted, duplicate, quarantined, spooled, rejected, failed} {
			if p != unknown || r == rejected {
				m.webhooks.WithLabelValues(p, r)
			}
		}
		for r := range refusals {
			if (p == unknown) == (r == UnknownProvider) {
				m.rejections.WithLabelValues(p, string(r))
			}
		}
		for _, r := range QuarantineReasons {
			if p != unknown {
				m.quarantined.WithLabelValues(p, string(r))
			}
		}
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.webhooks, m.rejections, m.quarantined, m.secretMatches, m.seconds} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}

func (m *metrics) count(provider string, a answer, took time.Duration) {
	m.webhooks.WithLabelValues(provider, a.result).Inc()
	m.seconds.WithLabelValues(provider).Observe(took.Seconds())
	switch a.result {
	case rejected, failed:
		m.rejections.WithLabelValues(provider, string(a.reason)).Inc()
	case quarantined:
		m.quarantined.WithLabelValues(provider, string(a.reason)).Inc()
	}
}

func (m *metrics) matched(provider string, slot int) {
	m.secretMatches.WithLabelValues(provider, strconv.Itoa(slot)).Inc()
}
