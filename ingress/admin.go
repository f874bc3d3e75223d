package ingress

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/schemas"
)

// Admin answers probes and metrics on the admin listener.
type Admin struct {
	mux      *http.ServeMux
	state    func() *bus.State
	lag      func() dedupe.Lag
	spool    Spool // nil: none
	level    *slog.LevelVar
	log      *slog.Logger
	draining atomic.Bool
}

// NewAdmin returns the admin handler: /livez says that the process runs,
// /readyz whether events can be stored and what a 200 is worth, /metrics is
// Prometheus's, /schemas/ the JSON Schemas of the events, /asyncapi.json the
// AsyncAPI document, /loglevel the level of the log, which a PUT changes until
// the process ends. An index further behind than the stream's duplicate window is
// reported, since redeliveries may then be stored again. The spool may be nil; with
// a spool that works, an outage of NATS is only a warning. What /readyz says is also
// in two metrics.
func NewAdmin(state func() *bus.State, lag func() dedupe.Lag, spool Spool, asyncapi []byte, reg *prometheus.Registry, level *slog.LevelVar, log *slog.Logger) *Admin {
	a := &Admin{mux: http.NewServeMux(), state: state, lag: lag, spool: spool, level: level, log: log}
	a.mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	a.mux.HandleFunc("GET /readyz", a.readyz)
	a.mux.Handle("GET /schemas/", http.StripPrefix("/schemas/", http.FileServerFS(schemas.FS())))
	a.mux.HandleFunc("GET /asyncapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(asyncapi)
	})
	a.mux.HandleFunc("GET /loglevel", func(w http.ResponseWriter, _ *http.Request) { a.showLevel(w) })
	a.mux.HandleFunc("PUT /loglevel", a.setLevel)
	a.mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "bridge_ready",
			Help: "1 while /readyz is true: events can be stored.",
		}, func() float64 {
			if a.readiness().Ready {
				return 1
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "bridge_readiness_warnings",
			Help: "How many warnings /readyz has: of what is weaker than was asked for.",
		}, func() float64 { return float64(len(a.readiness().Warnings)) }),
	)
	return a
}

func (a *Admin) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

// Drain makes /readyz false: the process is about to stop.
func (a *Admin) Drain() { a.draining.Store(true) }

// Readiness is the answer of /readyz.
type Readiness struct {
	Ready bool `json:"ready"`
	// Problems says why not: what is missing or wrong.
	Problems []string `json:"problems,omitempty"`
	// Warnings says what is weaker than was asked for.
	Warnings []string `json:"warnings,omitempty"`
	// Durability says what a 200 is worth here.
	Durability       string  `json:"durability,omitempty"`
	IndexLagMessages uint64  `json:"index_lag_messages"`
	IndexLagSeconds  float64 `json:"index_lag_seconds"`
	// SpoolMessages is how many webhooks wait on this machine's disk; absent
	// without a spool, and while that is not known.
	SpoolMessages *int `json:"spool_messages,omitempty"`
}

func (a *Admin) readiness() Readiness {
	st, lag := a.state(), a.lag()
	r := Readiness{
		Problems:         append([]string(nil), st.Problems...),
		Warnings:         append([]string(nil), st.Warnings...),
		Durability:       st.Durability,
		IndexLagMessages: lag.Messages,
		IndexLagSeconds:  lag.Oldest.Seconds(),
	}
	if a.spool != nil {
		if waiting := a.spool.Len(); waiting >= 0 {
			r.SpoolMessages = &waiting
		}
		if warning := a.spool.Warning(); warning != "" {
			r.Warnings = append(r.Warnings, warning)
		}
		switch problem := a.spool.Problem(); {
		case problem != "":
			r.Problems = append(r.Problems, problem)
		case (len(r.Problems) > 0 || st.Failing) && !st.Refused():
			r.Warnings, r.Problems = append(r.Problems, r.Warnings...), nil
			r.Durability = "a 200 means written and synced to this machine's disk, one copy, until NATS takes it"
		}
	}
	if a.draining.Load() {
		r.Problems = append(r.Problems, "shutting down")
	}
	if window := st.DuplicateWindow; window > 0 && lag.Oldest > window {
		r.Warnings = append(r.Warnings, fmt.Sprintf("the index is %v behind: a redelivery after more than %v may be stored again", lag.Oldest.Round(time.Second), window))
	}
	r.Ready = len(r.Problems) == 0
	return r
}

func (a *Admin) readyz(w http.ResponseWriter, _ *http.Request) {
	r := a.readiness()
	w.Header().Set("Content-Type", "application/json")
	if !r.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	json.NewEncoder(w).Encode(r)
}

func (a *Admin) showLevel(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]string{"level": strings.ToLower(a.level.Level().String())})
}

var levels = map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}

func (a *Admin) setLevel(w http.ResponseWriter, r *http.Request) {
	var body struct{ Level string }
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10))
	err := d.Decode(&body)
	to, known := levels[body.Level]
	if _, more := d.Token(); err != nil || !known || more != io.EOF {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusBadRequest)
		json.NewEncoder(w).Encode(map[string]any{"status": http.StatusBadRequest, "title": `The body must be {"level":"debug"}, with debug, info, warn or error.`})
		return
	}
	from := a.level.Level()
	a.level.Set(min(from, to, slog.LevelWarn)) // so that it is logged in any case
	a.log.Warn("log level changed", "from", from, "to", to)
	a.level.Set(to)
	a.showLevel(w)
}
