package monitoring_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v3"

	"github.com/hookbus/bridge/internal/natstest"
)

const guideFile = "../../../../docs/operations.md"

const runbook = "https://github.com/hookbus/bridge/blob/main/docs/operations.md#"

type rule struct {
	Alert, Expr, For    string
	Labels, Annotations map[string]string
}

// readYAML reads a manifest.
func readYAML(t *testing.T, name string, into any) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// rules returns the alerts, and writes them as Prometheus itself reads them.
func rules(t *testing.T) (alerts []rule, file string) {
	t.Helper()
	var manifest struct {
		Spec yaml.Node
	}
	readYAML(t, "prometheusrule.yaml", &manifest)
	var spec struct {
		Groups []struct{ Rules []rule }
	}
	if err := manifest.Spec.Decode(&spec); err != nil {
		t.Fatal(err)
	}
	for _, g := range spec.Groups {
		alerts = append(alerts, g.Rules...)
	}
	text, err := yaml.Marshal(&manifest.Spec)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return alerts, file
}

type query struct{ where, expr string }

type panel struct {
	ID          int
	Type, Title string
	GridPos     struct{ X, Y, W, H int }
	Datasource  struct{ UID string }
	Targets     []struct {
		RefID, Expr string
		Datasource  struct{ UID string }
	}
}

type dashboard struct {
	Title, UID    string
	SchemaVersion int
	Panels        []panel
	Templating    struct {
		List []struct{ Name, Type, Definition string }
	}
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	text, err := os.ReadFile("dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// queries returns all of the dashboard, with the variables' values.
func (d dashboard) queries() (all []query) {
	values := strings.NewReplacer("$__rate_interval", "1m", "$namespace", namespace, "$pod", ".*")
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			all = append(all, query{p.Title + " " + target.RefID, values.Replace(target.Expr)})
		}
	}
	return all
}

// Every alert says how urgent it is and where to read on, is tested, and is
// explained there.
func TestAlerts(t *testing.T) {
	alerts, _ := rules(t)
	guide, err := os.ReadFile(guideFile)
	if err != nil {
		t.Fatal(err)
	}
	fires, silent := tested(t)
	names := make(map[string]bool)
	for _, a := range alerts {
		names[a.Alert] = true
		name := a.Alert + " " + a.Labels["severity"]
		if s := a.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s: severity %q", name, s)
		}
		for _, text := range []string{"summary", "description"} {
			if a.Annotations[text] == "" {
				t.Errorf("%s: no %s", name, text)
			}
			// A label that the expression does not keep would be empty.
			for _, label := range regexp.MustCompile(`\$labels\.(\w+)`).FindAllStringSubmatch(a.Annotations[text], -1) {
				if by := regexp.MustCompile(`^[\s(]*\w+(\(0\.99, sum)? by \(([^)]*)\)`).FindStringSubmatch(a.Expr); by == nil || !slices.Contains(strings.Split(by[2], ", "), label[1]) {
					t.Errorf("%s: the expression has no label %s", name, label[1])
				}
			}
		}
		if got, want := a.Annotations["runbook_url"], runbook+strings.ToLower(a.Alert); got != want {
			t.Errorf("%s: runbook_url %q, want %q", name, got, want)
		}
		if !strings.Contains(string(guide), "\n### "+a.Alert+"\n") {
			t.Errorf("%s: docs/operations.md has no such section", name)
		}
		if !fires[name] {
			t.Errorf("%s: no test in which it fires", name)
		}
		if !silent[a.Alert] {
			t.Errorf("%s: no test in which it stays silent", name)
		}
	}
	for _, heading := range regexp.MustCompile(`(?m)^### (Bridge\w+)$`).FindAllStringSubmatch(string(guide), -1) {
		if !names[heading[1]] {
			t.Errorf("docs/operations.md explains %s, which is no alert", heading[1])
		}
	}
}

// tested returns what fires in a test, with its severity, and what a test about
// it expects not to fire at some time.
func tested(t *testing.T) (fires, silent map[string]bool) {
	t.Helper()
	fires, silent = make(map[string]bool), make(map[string]bool)
	for _, name := range []string{"testdata/alerts.yaml", "testdata/rhythm.yaml"} {
		var file struct {
			Tests []struct {
				Name        string
				Expressions []struct {
					Samples []struct{ Labels string } `yaml:"exp_samples"`
				} `yaml:"promql_expr_test"`
			}
		}
		readYAML(t, name, &file)
		for _, test := range file.Tests {
			for _, e := range test.Expressions {
				for _, s := range e.Samples {
					m := regexp.MustCompile(`alertname="(\w+)",severity="(\w+)"`).FindStringSubmatch(s.Labels)
					if m == nil {
						t.Fatalf("%s, %s: %s", name, test.Name, s.Labels)
					}
					fires[m[1]+" "+m[2]] = true
				}
				if len(e.Samples) == 0 {
					for _, alert := range regexp.MustCompile(`Bridge\w+`).FindAllString(test.Name, -1) {
						silent[alert] = true
					}
				}
			}
		}
	}
	return fires, silent
}

// The rules do what their tests say.
func TestRules(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool, which comes with Prometheus, is not in the PATH")
	}
	_, file := rules(t)
	for _, name := range []string{"alerts.yaml", "rhythm.yaml"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(filepath.Dir(file), name), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"check", "rules", "rules.yaml"}, {"test", "rules", "alerts.yaml"}, {"test", "rules", "rhythm.yaml"}} {
		command := exec.CommandContext(t.Context(), promtool, args...)
		command.Dir = filepath.Dir(file)
		if out, err := command.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// Panels have an id, a place and queries of their own, and no variable is
// unknown.
func TestDashboard(t *testing.T) {
	d := readDashboard(t)
	if d.Title == "" || d.UID == "" || d.SchemaVersion < 36 {
		t.Errorf("title %q, uid %q, schemaVersion %d", d.Title, d.UID, d.SchemaVersion)
	}
	known := map[string]bool{"__rate_interval": true}
	for _, v := range d.Templating.List {
		known[v.Name] = true
	}
	ids, titles, taken := make(map[int]bool), make(map[string]bool), make(map[[2]int]string)
	for _, p := range d.Panels {
		if p.ID == 0 || ids[p.ID] || p.Title == "" || titles[p.Title] {
			t.Errorf("panel %d %q: id or title", p.ID, p.Title)
		}
		ids[p.ID], titles[p.Title] = true, true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%q lies over %q or beside the grid", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if len(p.Targets) == 0 || p.Datasource.UID != "${datasource}" {
			t.Errorf("%q: no query or another source", p.Title)
		}
		for _, target := range p.Targets {
			if target.Datasource.UID != "${datasource}" {
				t.Errorf("%q: source %q", p.Title, target.Datasource.UID)
			}
			for _, v := range regexp.MustCompile(`\$\{?(\w+)`).FindAllStringSubmatch(target.Expr, -1) {
				if !known[v[1]] {
					t.Errorf("%q: variable %s", p.Title, v[0])
				}
			}
		}
	}
}

// The ServiceMonitor finds the Service of the admin port, and its metrics have
// the job that alerts and dashboard ask for.
func TestServiceMonitor(t *testing.T) {
	var monitor struct {
		Spec struct {
			JobLabel string `yaml:"jobLabel"`
			Selector struct {
				MatchLabels map[string]string `yaml:"matchLabels"`
			}
			Endpoints []struct{ Port, Path string }
		}
	}
	readYAML(t, "servicemonitor.yaml", &monitor)
	var base struct {
		Labels []struct{ Pairs map[string]string }
	}
	readYAML(t, "../../base/kustomization.yaml", &base)
	selects := func(file string) (selected bool, ports []string) {
		var service struct {
			Metadata struct{ Labels map[string]string }
			Spec     struct{ Ports []struct{ Name string } }
		}
		readYAML(t, file, &service)
		labels := maps.Clone(base.Labels[0].Pairs)
		maps.Copy(labels, service.Metadata.Labels)
		selected = true
		for name, value := range monitor.Spec.Selector.MatchLabels {
			selected = selected && labels[name] == value
		}
		if selected && labels[monitor.Spec.JobLabel] != job {
			t.Errorf("the job would be %q", labels[monitor.Spec.JobLabel])
		}
		for _, p := range service.Spec.Ports {
			ports = append(ports, p.Name)
		}
		return selected, ports
	}
	if selected, ports := selects("../../base/service-admin.yaml"); !selected || !slices.Contains(ports, monitor.Spec.Endpoints[0].Port) {
		t.Errorf("the admin Service: selected %v, ports %v", selected, ports)
	}
	if selected, _ := selects("../../base/service.yaml"); selected {
		t.Error("the Service of webhooks is selected")
	}
}

const (
	job       = "bridge"
	namespace = "webhooks"
	pod       = "bridge-0"
)

// Alerts and dashboard are asked of a Prometheus that scrapes a bridge to which
// everything has happened that is counted. Without Prometheus their metrics and
// labels are compared with those of the bridge.
func TestQueries(t *testing.T) {
	b := startBridge(t)
	alerts, file := rules(t)
	d := readDashboard(t)
	all := d.queries()
	for _, v := range d.Templating.List {
		if v.Definition != "" {
			inner := strings.TrimSuffix(strings.TrimPrefix(strings.ReplaceAll(v.Definition, "$namespace", namespace), "label_values("), ")")
			metric, label, _ := cutLast(inner, ", ")
			all = append(all, query{"variable " + v.Name, "count by (" + label + ") (" + metric + ")"})
		}
	}
	var conditions []query
	for _, a := range alerts {
		conditions = append(conditions, query{a.Alert + " " + a.Labels["severity"], a.Expr})
	}

	var p *prometheus
	path, missing := exec.LookPath("prometheus")
	if missing == nil {
		p = startPrometheus(t, path, b.admin, file)
		natstest.Eventually(t, within, "Prometheus scrapes the bridge", func() bool {
			return p.value(t, `bridge_ready`) == 1 && p.value(t, `sum(bridge_webhooks_total)`) == 0
		})
	}
	sent := b.sendAll(t)
	if p != nil { // while NATS is there: how big the streams are is seen once a minute
		natstest.Eventually(t, within, "Prometheus has seen what was sent", func() bool {
			return p.value(t, `sum(bridge_webhooks_total)`) == float64(sent.requests) && p.value(t, `sum(bridge_index_lag_messages)`) == 0
		})
	}
	b.stopNATS(t)

	t.Run("metrics", func(t *testing.T) {
		exported := b.scrape(t)
		guide, err := os.ReadFile(guideFile)
		if err != nil {
			t.Fatal(err)
		}
		for name := range exported {
			name = regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")
			if strings.HasPrefix(name, "bridge_") && !strings.Contains(string(guide), "| `"+name) {
				t.Errorf("docs/operations.md has no line about %s", name)
			}
		}
		for _, q := range append(slices.Clone(all), conditions...) {
			exported.check(t, q)
		}
	})
	if p == nil {
		t.Skip("prometheus is not in the PATH: nothing more than names and labels was tried")
	}
	natstest.Eventually(t, within, "Prometheus has seen the spool", func() bool {
		return p.value(t, `bridge_spool_messages`) == 1 && p.value(t, `bridge_nats_connected`) == 0
	})

	t.Run("dashboard", func(t *testing.T) {
		for _, q := range all {
			values := p.query(t, q.expr)
			t.Logf("%-35s %v", q.where, values)
			if len(values) == 0 {
				t.Errorf("%s has no value: %s", q.where, q.expr)
			}
			want, known := plausible[q.where]
			for labels, v := range values {
				if math.IsNaN(v) || math.IsInf(v, 0) || known && !want(v) || v < 0 {
					t.Errorf("%s: %v %s", q.where, v, labels)
				}
			}
		}
		for where := range plausible {
			if !slices.ContainsFunc(all, func(q query) bool { return q.where == where }) {
				t.Errorf("no query %s", where)
			}
		}
	})
	t.Run("alerts", func(t *testing.T) {
		// Without the comparisons and the times past, there is a value.
		compared := regexp.MustCompile(`(==|>|<) [0-9.]+`)
		past := regexp.MustCompile(` offset \w+| unless on .*`)
		for _, q := range conditions {
			if values := p.query(t, q.expr); len(values) > 0 {
				t.Logf("%-35s true: %v", q.where, values)
			}
			values := p.query(t, past.ReplaceAllString(compared.ReplaceAllString(q.expr, ""), ""))
			t.Logf("%-35s %v", q.where, values)
			if len(values) == 0 {
				t.Errorf("%s has nothing to compare", q.where)
			}
			for labels, v := range values {
				if math.IsInf(v, 0) || math.IsNaN(v) {
					t.Errorf("%s: %v %s", q.where, v, labels)
				}
			}
		}
		want := []string{
			"BridgeDegraded pending",            // one replica
			"BridgeDurabilityWeak pending",      // "
			"BridgeNATSDisconnected pending",    // it was stopped
			"BridgeSpoolNotEmpty pending",       // "
			"BridgeQuarantineGrowing firing",    // bodies that are no JSON
			"BridgeSchemaViolations firing",     // five flags that are none
			"BridgeSignatureRejections pending", // a wrong secret
			"BridgeCertificateExpiring pending", // within the hour
		}
		slices.Sort(want)
		var got []string
		natstest.Eventually(t, within, "the alerts are those to expect", func() bool {
			now := slices.DeleteFunc(p.alerts(t), func(a string) bool {
				return a == "BridgeDedupeErrors pending" // as many as attempts while NATS went away
			})
			if !slices.Equal(now, got) {
				t.Logf("alerts: %s", strings.Join(now, ", "))
				got = now
			}
			return slices.Equal(got, want)
		})
	})
}

// plausible says what some queries are to give.
var plausible = map[string]func(float64) bool{
	"Ready A":                             is(1), // NATS is down, the spool works
	"Connected to NATS A":                 is(0),
	"Taken A":                             between(0.1, 10),
	"Answered 503 A":                      is(0),
	"Index lag A":                         between(0, 5),
	"Spool A":                             is(1),
	"Quarantine A":                        between(0, 5),
	"Warnings A":                          between(1, 10),
	"Requests A":                          between(0.0001, 0.5),
	"Requests B":                          between(0.0001, 2),
	"Publish A":                           between(0.0001, 0.5),
	"Publish B":                           between(0.0001, 2),
	"Index lag and window B":              is(600),
	"Streams, part of the limit A":        between(0, 0.01),
	"Streams, replicas A":                 is(1),
	"Connection to NATS B":                is(0),
	"Files that cannot be used A":         is(0),
	"Certificate A":                       between(3000, 3600),
	"CPU A":                               between(0, 4),
	"Memory A":                            between(10<<20, 1<<30),
	"Builds A":                            is(1),
	"Index errors and foreign messages B": is(0),
}

func is(n float64) func(float64) bool { return func(v float64) bool { return v == n } }

func between(low, high float64) func(float64) bool {
	return func(v float64) bool { return v >= low && v <= high }
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// exported are the metrics of a bridge: name, label, values.
type exported map[string]map[string]map[string]bool

var (
	quoted   = regexp.MustCompile(`"[^"]*"`)
	selector = regexp.MustCompile(`\b((?:bridge|go|process)_\w+|up)\b(?:\{([^}]*)\})?`)
	matcher  = regexp.MustCompile(`(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"`)
	grouping = regexp.MustCompile(`\b(?:by|on|without|ignoring) \(([^)]*)\)`)
	scraped  = []string{"job", "namespace", "pod"} // labels that come from scraping
)

// check compares metrics, labels and the values that are asked for.
func (e exported) check(t *testing.T, q query) {
	t.Helper()
	labels := slices.Clone(scraped)
	found := selector.FindAllStringSubmatch(q.expr, -1)
	if len(found) == 0 {
		t.Errorf("%s: no metric in %s", q.where, q.expr)
	}
	for _, m := range found {
		if m[1] == "up" {
			continue
		}
		has, ok := e[m[1]]
		if !ok {
			t.Errorf("%s: the bridge has no metric %s", q.where, m[1])
			continue
		}
		labels = append(labels, slices.Collect(maps.Keys(has))...)
		for _, c := range matcher.FindAllStringSubmatch(m[2], -1) {
			if slices.Contains(scraped, c[1]) {
				continue
			}
			if has[c[1]] == nil {
				t.Errorf("%s: %s has no label %s", q.where, m[1], c[1])
			}
			for _, value := range strings.Split(c[3], "|") {
				if !has[c[1]][value] {
					t.Errorf("%s: no %s has %s=%q", q.where, m[1], c[1], value)
				}
			}
		}
	}
	for _, g := range grouping.FindAllStringSubmatch(quoted.ReplaceAllString(q.expr, ""), -1) {
		for _, label := range strings.Split(g[1], ", ") {
			if !slices.Contains(labels, label) {
				t.Errorf("%s: groups by %s, which no metric in it has", q.where, label)
			}
		}
	}
}

// scrape reads what a bridge exports.
func (b *bridge) scrape(t *testing.T) exported {
	t.Helper()
	response, err := http.Get("http://" + b.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	e := make(exported)
	for name, family := range families {
		names := []string{name}
		if len(family.GetMetric()) > 0 && family.GetMetric()[0].GetHistogram() != nil {
			names = []string{name + "_bucket", name + "_sum", name + "_count"}
		}
		for _, n := range names {
			e[n] = make(map[string]map[string]bool)
			if strings.HasSuffix(n, "_bucket") {
				e[n]["le"] = make(map[string]bool)
			}
			for _, m := range family.GetMetric() {
				for _, l := range m.GetLabel() {
					if e[n][l.GetName()] == nil {
						e[n][l.GetName()] = make(map[string]bool)
					}
					e[n][l.GetName()][l.GetValue()] = true
				}
			}
		}
	}
	return e
}

// prometheus is a Prometheus that runs.
type prometheus struct{ url string }

func startPrometheus(t *testing.T, path, target, rules string) *prometheus {
	t.Helper()
	dir := t.TempDir()
	config := fmt.Sprintf(`
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs:
  - job_name: %s
    static_configs:
      - targets: [%q]
        labels: {namespace: %s, pod: %s}
`, rules, job, target, namespace, pod)
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", natstest.FreePort(t))
	start(t, "prometheus", nil, path, "--config.file="+filepath.Join(dir, "prometheus.yaml"), "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+address, "--log.level=warn")
	p := &prometheus{url: "http://" + address}
	natstest.Eventually(t, within, "Prometheus is ready", func() bool {
		response, err := http.Get(p.url + "/-/ready")
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	return p
}

// get asks the API.
func (p *prometheus) get(t *testing.T, path string, into any) {
	t.Helper()
	response, err := http.Get(p.url + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", path, text)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

// query returns the values by their labels.
func (p *prometheus) query(t *testing.T, expr string) map[string]float64 {
	t.Helper()
	var answer struct {
		Data struct {
			Result []struct {
				Metric map[string]string
				Value  [2]any
			}
		}
	}
	p.get(t, "/api/v1/query?query="+url.QueryEscape(expr), &answer)
	values := make(map[string]float64)
	for _, r := range answer.Data.Result {
		v, err := strconv.ParseFloat(r.Value[1].(string), 64)
		if err != nil {
			t.Fatal(err)
		}
		values[fmt.Sprint(r.Metric)] = v
	}
	return values
}

// value returns the only value; -1 where there is none.
func (p *prometheus) value(t *testing.T, expr string) float64 {
	t.Helper()
	for _, v := range p.query(t, expr) {
		return v
	}
	return -1
}

// alerts returns the alerts that there are, with their states. All their rules
// work, and all their texts.
func (p *prometheus) alerts(t *testing.T) (names []string) {
	t.Helper()
	var answer struct {
		Data struct {
			Groups []struct {
				Rules []struct {
					Name, State, Health, LastError string
					Alerts                         []struct {
						State       string
						Annotations map[string]string
					}
				}
			}
		}
	}
	p.get(t, "/api/v1/rules", &answer)
	seen := make(map[string]bool)
	for _, g := range answer.Data.Groups {
		for _, r := range g.Rules {
			if r.Health != "ok" {
				t.Errorf("%s: %s %s", r.Name, r.Health, r.LastError)
			}
			for _, a := range r.Alerts {
				seen[r.Name+" "+a.State] = true
				for _, text := range a.Annotations {
					if strings.Contains(text, "<error") || strings.Contains(text, "<no value>") || strings.Contains(text, "  ") {
						t.Errorf("%s: %s", r.Name, text)
					}
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// within bounds every wait for a condition. A test that passes needs a small
// part of it.
const within = 30 * time.Second

// start runs a program until the end of the test.
func start(t *testing.T, name string, env []string, path string, args ...string) {
	t.Helper()
	var out bytes.Buffer
	ctx, cancel := context.WithCancel(context.Background())
	command := exec.CommandContext(ctx, path, args...)
	command.Env = append(os.Environ(), env...)
	command.Stdout, command.Stderr = &out, &out
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		var killed *exec.ExitError
		if err := command.Wait(); err != nil && !errors.As(err, &killed) && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("%s:\n%s", name, out.String())
		}
	})
}
