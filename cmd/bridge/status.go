package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/ingress"
	"github.com/hookbus/bridge/normalize"
)

type statusCmd struct {
	Admin []string `help:"Admin addresses of the bridges to ask, repeatable (BRIDGE_ADMIN_ADDR by default)." placeholder:"URL"`
	JSON  bool     `help:"Print JSON."`
}

// overview is what `bridge status` knows.
type overview struct {
	NATS       string            `json:"nats"`
	Problem    string            `json:"problem,omitempty"` // why what follows is incomplete
	Streams    []streamStatus    `json:"streams"`
	Providers  []providerStatus  `json:"providers"`
	Quarantine map[string]uint64 `json:"quarantine"` // by provider and reason
	Consumers  []consumerStatus  `json:"consumers"`
	Bridges    []bridgeStatus    `json:"bridges"`
}

type streamStatus struct {
	Name     string    `json:"name"`
	Messages uint64    `json:"messages"`
	Bytes    uint64    `json:"bytes"`
	Replicas int       `json:"replicas"`
	Leader   string    `json:"leader,omitempty"`
	First    time.Time `json:"first,omitzero"`
	Last     time.Time `json:"last,omitzero"`
	// Problem says why nothing is known of it.
	Problem string `json:"problem,omitempty"`
}

type providerStatus struct {
	Name   string    `json:"name"`
	Events uint64    `json:"events"`
	First  time.Time `json:"first,omitzero"`
	Last   time.Time `json:"last,omitzero"`
}

type consumerStatus struct {
	Name        string    `json:"name"`
	Pending     uint64    `json:"pending"`     // not delivered yet
	Unacked     int       `json:"unacked"`     // delivered, not acknowledged
	Redelivered int       `json:"redelivered"` // of those
	LastActive  time.Time `json:"last_active,omitzero"`
}

type bridgeStatus struct {
	Address  string            `json:"address"`
	Problem  string            `json:"problem,omitempty"` // why it did not answer
	Ready    ingress.Readiness `json:"readiness"`
	Webhooks map[string]uint64 `json:"webhooks,omitempty"` // since its start, by result
}

// statusPatience bounds all that is asked.
const statusPatience = 10 * time.Second

func (s *statusCmd) Run(c *cli) error {
	cfg, err := loadConfig(c.environ)
	if err != nil {
		return err
	}
	// Not c.ctx: it ends when NATS does not permit something, and the bridges are
	// asked all the same.
	ctx, stop := signal.NotifyContext(context.WithoutCancel(c.ctx), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	addresses := s.Admin
	if len(addresses) == 0 {
		addresses = []string{cfg.AdminAddr}
	}
	st := &overview{Bridges: make([]bridgeStatus, len(addresses))}
	var wg sync.WaitGroup
	for i, a := range addresses {
		wg.Go(func() { st.Bridges[i] = askBridge(ctx, a) })
	}
	failed := st.ask(ctx, c, cfg)
	wg.Wait()
	if failed != nil {
		st.Problem = failed.Error()
	}
	print := st.print
	if s.JSON {
		print = func(w io.Writer) error { return printJSON(w, st) }
	}
	return cmp.Or(print(c.stdout), failed)
}

// ask connects to NATS and reads, until that is not permitted.
func (st *overview) ask(ctx context.Context, c *cli, cfg *config) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	nc, err := c.connect(cfg)
	if err != nil {
		return err
	}
	defer nc.Close()
	err = st.read(ctx, cfg, nc)
	if cause := context.Cause(c.ctx); cause != nil {
		return cause
	}
	return err
}

// read asks NATS and notes what is missing. After an error, what was found until
// then stays.
func (st *overview) read(ctx context.Context, cfg *config, nc *nats.Conn) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	st.NATS = fmt.Sprintf("%s, server %s", bus.ServerURL(nc), nc.ConnectedServerVersion())
	stream, err := js.Stream(ctx, cfg.Stream)
	if err != nil {
		return streamError(cfg.Stream, "STREAM", err)
	}
	for _, name := range []string{cfg.Stream, cfg.QuarantineStream, "KV_" + cfg.DedupeBucket, "OBJ_" + bus.ObjectBucket(cfg.Stream)} {
		st.Streams = append(st.Streams, readStream(ctx, js, name))
	}
	for _, p := range normalize.Providers() {
		ps, err := readProvider(ctx, stream, cfg.SubjectPrefix, p.Name)
		if err != nil {
			return streamError(cfg.Stream, "STREAM", err)
		}
		st.Providers = append(st.Providers, ps)
	}
	if st.Quarantine, err = countQuarantined(ctx, js, cfg); err != nil {
		return streamError(cfg.QuarantineStream, "QUARANTINE_STREAM", err)
	}
	consumers := stream.ListConsumers(ctx)
	for info := range consumers.Info() {
		cs := consumerStatus{Name: info.Name, Pending: info.NumPending, Unacked: info.NumAckPending, Redelivered: info.NumRedelivered}
		if info.Delivered.Last != nil {
			cs.LastActive = *info.Delivered.Last
		}
		st.Consumers = append(st.Consumers, cs)
	}
	if err := consumers.Err(); err != nil {
		return streamError(cfg.Stream, "STREAM", err)
	}
	slices.SortFunc(st.Consumers, func(a, b consumerStatus) int { return cmp.Compare(a.Name, b.Name) })
	return nil
}

func readStream(ctx context.Context, js jetstream.JetStream, name string) streamStatus {
	st := streamStatus{Name: name}
	stream, err := js.Stream(ctx, name)
	if err != nil {
		st.Problem = err.Error()
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			st.Problem = "missing"
		}
		return st
	}
	info := stream.CachedInfo()
	st.Messages, st.Bytes, st.Replicas = info.State.Msgs, info.State.Bytes, info.Config.Replicas
	if info.Cluster != nil {
		st.Leader = info.Cluster.Leader
	}
	if st.Messages > 0 {
		st.First, st.Last = info.State.FirstTime, info.State.LastTime
	}
	return st
}

func readProvider(ctx context.Context, stream jetstream.Stream, prefix, name string) (providerStatus, error) {
	ps := providerStatus{Name: name}
	subject := prefix + "." + name + ".>"
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(subject))
	if err != nil {
		return ps, err
	}
	for _, n := range info.State.Subjects {
		ps.Events += n
	}
	if ps.Events == 0 {
		return ps, nil
	}
	first, err := stream.GetMsg(ctx, 1, jetstream.WithGetMsgSubject(subject))
	if err == nil {
		ps.First = first.Time
		if last, lastErr := stream.GetLastMsgForSubject(ctx, subject); lastErr == nil {
			ps.Last = last.Time
		} else {
			err = lastErr
		}
	}
	if errors.Is(err, jetstream.ErrMsgNotFound) { // expired meanwhile
		err = nil
	}
	return ps, err
}

func countQuarantined(ctx context.Context, js jetstream.JetStream, cfg *config) (map[string]uint64, error) {
	counts := make(map[string]uint64)
	stream, err := js.Stream(ctx, cfg.QuarantineStream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return counts, nil
	}
	if err != nil {
		return nil, err
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(cfg.QuarantinePrefix+".>"))
	if err != nil {
		return nil, err
	}
	for subject, n := range info.State.Subjects {
		counts[strings.ReplaceAll(strings.TrimPrefix(subject, cfg.QuarantinePrefix+"."), ".", " ")] = n
	}
	return counts, nil
}

// askBridge asks one process for its readiness and its counts.
func askBridge(ctx context.Context, address string) bridgeStatus {
	base := adminURL(address)
	st := bridgeStatus{Address: base}
	if u, err := url.Parse(base); err == nil {
		st.Address = u.Redacted()
	}
	client := &http.Client{Timeout: 3 * time.Second}
	defer client.CloseIdleConnections()
	get := func(path string, read func(io.Reader) error) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK && response.StatusCode != http.StatusServiceUnavailable {
			return fmt.Errorf("no bridge's admin listener: status %d for %s", response.StatusCode, path)
		}
		return read(response.Body)
	}
	err := get("/readyz", func(r io.Reader) error { return json.NewDecoder(r).Decode(&st.Ready) })
	if err == nil {
		err = get("/metrics", func(r io.Reader) error {
			parser := expfmt.NewTextParser(model.UTF8Validation)
			families, err := parser.TextToMetricFamilies(r)
			if err != nil {
				return err
			}
			st.Webhooks = make(map[string]uint64)
			for _, m := range families["bridge_webhooks_total"].GetMetric() {
				for _, label := range m.GetLabel() {
					if label.GetName() == "result" {
						st.Webhooks[label.GetValue()] += uint64(m.GetCounter().GetValue())
					}
				}
			}
			return nil
		})
	}
	if err != nil {
		st.Problem = err.Error()
	}
	return st
}

// adminURL completes an address as BRIDGE_ADMIN_ADDR has it.
func adminURL(address string) string {
	if strings.Contains(address, "://") {
		return strings.TrimSuffix(address, "/")
	}
	return "http://" + reachable(address)
}

func (s *overview) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "NATS\t%s\n", cmp.Or(s.NATS, "no connection"))
	for _, b := range s.Bridges {
		fmt.Fprintf(w, "bridge\t%s\t%s\n", b.Address, b.summary())
		for _, warning := range b.Ready.Warnings {
			fmt.Fprintf(w, "\twarning\t%s\n", warning)
		}
	}
	if len(s.Streams) == 0 {
		return w.Flush()
	}
	fmt.Fprintf(w, "\nSTREAM\tMESSAGES\tSIZE\tREPLICAS\tFIRST\tLAST\n")
	for _, st := range s.Streams {
		if st.Problem != "" {
			fmt.Fprintf(w, "%s\t%s\n", st.Name, st.Problem)
			continue
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%s\t%s\n", st.Name, st.Messages, humanize.IBytes(st.Bytes), st.Replicas, ago(st.First), ago(st.Last))
	}
	fmt.Fprintf(w, "\nPROVIDER\tEVENTS\tFIRST\tLAST\n")
	for _, p := range s.Providers {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", p.Name, p.Events, ago(p.First), ago(p.Last))
	}
	if s.Problem != "" { // which is printed as the error
		return w.Flush()
	}
	fmt.Fprintf(w, "\nCONSUMER\tPENDING\tUNACKED\tREDELIVERED\tLAST ACTIVE\n")
	for _, c := range s.Consumers {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\n", c.Name, c.Pending, c.Unacked, c.Redelivered, ago(c.LastActive))
	}
	if !slices.ContainsFunc(s.Consumers, func(c consumerStatus) bool { return c.Name == dedupe.IndexerName }) {
		fmt.Fprintf(w, "%s\tmissing: no bridge writes the index\n", dedupe.IndexerName)
	}
	if len(s.Quarantine) == 0 {
		fmt.Fprintf(w, "\nquarantine\tempty\n")
	} else {
		fmt.Fprintf(w, "\nQUARANTINE\tBODIES\n")
		for _, what := range slices.Sorted(maps.Keys(s.Quarantine)) {
			fmt.Fprintf(w, "%s\t%d\n", what, s.Quarantine[what])
		}
	}
	return w.Flush()
}

// summary says in one line how a bridge is.
func (b bridgeStatus) summary() string {
	if b.Problem != "" {
		return "does not answer: " + b.Problem
	}
	parts := []string{"ready"}
	if !b.Ready.Ready {
		parts = []string{"not ready: " + strings.Join(b.Ready.Problems, "; ")}
	}
	parts = append(parts, fmt.Sprintf("index %d behind", b.Ready.IndexLagMessages))
	if n := b.Ready.SpoolMessages; n != nil {
		parts = append(parts, fmt.Sprintf("%d in the spool", *n))
	}
	for _, result := range slices.Sorted(maps.Keys(b.Webhooks)) {
		if n := b.Webhooks[result]; n > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", result, n))
		}
	}
	return strings.Join(parts, ", ")
}

// ago says how long ago that was; "-" for the zero time.
func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return age(t) + " ago"
}
