// Command bench measures the bridge beside three references, in one run: a handler
// that only reads, verifies and answers; the least one that also publishes with a
// message id and waits for the acknowledgement; and that one with a read of a
// bucket before, and a write after that. All of them, the NATS
// server and the load generator share this machine, which others may use too: the
// rounds are interleaved, and what counts is the ratio of the medians.
//
//	go run ./bench -setup=default -connections=64,256
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

var (
	setups      = flag.String("setup", "default", "of NATS, comma-separated: default, always (synced), embedded, cluster (three replicas)")
	connections = flag.String("connections", "1,16,64,256", "at the same time, comma-separated")
	rounds      = flag.Int("rounds", 5, "of each; the medians are shown")
	requests    = flag.Int("requests", 20_000, "of a round with 64 connections and more; with fewer it has fewer")
	only        = flag.String("only", "", "only the systems whose names match this regular expression, and the references")
	steady      = flag.Float64("steady", 500, "requests a second of the open loop; 0: none")
	slow        = flag.Int("slow", 0, "make every system call about 3 µs slower, so many times (at most 8)")
	output      = flag.String("json", "", "file for the results")
	serveMode   = flag.String("reference", "", "serve as a reference on this address; for the program itself")
	serveNATS   = flag.String("nats", "", "NATS server of the reference")
	serveBucket = flag.Bool("bucket", false, "the reference reads and writes a bucket, too")
)

func main() {
	flag.Parse()
	if *serveMode != "" {
		fmt.Fprintln(os.Stderr, reference(*serveMode, *serveNATS, *serveBucket))
		os.Exit(1)
	}
	var err error
	if *slow > 0 {
		err = slowDown(*slow)
	} else {
		err = run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	dir, err := os.MkdirTemp("", "bridge-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	binaries := map[string]string{"bridge": "./cmd/bridge", "nats-server": "github.com/nats-io/nats-server/v2"}
	for name, path := range binaries {
		binaries[name] = filepath.Join(dir, name)
		if out, err := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binaries[name], path).CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w\n%s", path, err, out)
		}
	}
	var all []row
	for _, setup := range strings.Split(*setups, ",") {
		rows, err := measure(setup, dir, binaries["bridge"], binaries["nats-server"])
		if err != nil {
			return fmt.Errorf("%s: %w", setup, err)
		}
		all = append(all, rows...)
	}
	if *output == "" {
		return nil
	}
	text, err := json.MarshalIndent(all, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(*output, append(text, '\n'), 0o644)
}

// system is what is measured: a program and what is sent to it.
type system struct {
	name string
	addr string
	*process
	traffic traffic
	bridge  bool
}

func measure(setup, dir, bridge, natsServer string) ([]row, error) {
	dir, err := os.MkdirTemp(dir, setup)
	if err != nil {
		return nil, err
	}
	n, embedded := 1, setup == "embedded"
	switch setup {
	case "cluster":
		n = 3
	case "default", "always", "embedded":
	default:
		return nil, errors.New("no such setup")
	}
	var servers []*process
	defer func() {
		for _, p := range servers {
			p.stop()
		}
	}()
	// Embedded, the references have a server that syncs every write, as the
	// bridge's own does.
	urls, servers, err := natsServers(natsServer, dir, n, setup == "always" || embedded)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	nc, err := nats.Connect(strings.Join(urls, ","), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	err = eventually("the reference's stream", func() error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if _, err := js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: referenceStream, Replicas: n}); err != nil {
			return err
		}
		_, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: referenceStream, Subjects: []string{referenceStream + ".>"}, Replicas: n, Duplicates: 10 * time.Minute, AllowDirect: true})
		return err
	})
	if err != nil {
		return nil, err
	}

	const secret = "whsec_00112233445566778899aabbccddeeff"
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var programs []*process
	defer func() {
		for _, p := range programs {
			p.stop()
		}
	}()
	program := func(path string, environ []string, args ...string) (*process, error) {
		p, err := start(path, append(os.Environ(), environ...), args...)
		if err == nil {
			programs = append(programs, p)
		}
		return p, err
	}
	var addrs [6]string
	for i := range addrs {
		if addrs[i], err = freeAddr(); err != nil {
			return nil, err
		}
	}
	verify, err := program(self, []string{"SECRET=" + secret}, "-reference", addrs[0])
	if err != nil {
		return nil, err
	}
	publish, err := program(self, []string{"SECRET=" + secret}, "-reference", addrs[1], "-nats", strings.Join(urls, ","))
	if err != nil {
		return nil, err
	}
	recognise, err := program(self, []string{"SECRET=" + secret}, "-reference", addrs[5], "-nats", strings.Join(urls, ","), "-bucket")
	if err != nil {
		return nil, err
	}
	environ := []string{
		"BRIDGE_LISTEN_ADDR=" + addrs[2], "BRIDGE_ADMIN_ADDR=" + addrs[3], "BRIDGE_LOG_LEVEL=warn",
		"BRIDGE_STREAM_REPLICAS=" + strconv.Itoa(n), "BRIDGE_DATASPIKE_SECRETS=" + secret, "BRIDGE_TRUSTHUB_SECRETS=" + secret,
	}
	if embedded {
		environ = append(environ, "BRIDGE_DATA_DIR="+filepath.Join(dir, "data"), "BRIDGE_EMBEDDED_LISTEN="+addrs[4])
	} else {
		environ = append(environ, "BRIDGE_NATS_URL="+strings.Join(urls, ","))
	}
	b, err := program(bridge, environ, "serve")
	if err != nil {
		return nil, err
	}
	err = eventually("the bridge is ready", func() error { return ready(addrs[3]) })
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, b.log)
	}
	if embedded {
		nc, err := nats.Connect("nats://" + addrs[4])
		if err != nil {
			return nil, err
		}
		defer nc.Close()
		if js, err = jetstream.New(nc); err != nil {
			return nil, err
		}
	}

	systems := []system{
		{name: "verify only", addr: addrs[0], process: verify, traffic: named},
		{name: "publish only", addr: addrs[1], process: publish, traffic: named},
		{name: "publish, read and mark", addr: addrs[5], process: recognise, traffic: named},
		{name: "bridge, " + named.name, addr: addrs[2], process: b, traffic: named, bridge: true},
		{name: "bridge, " + copies10.name, addr: addrs[2], process: b, traffic: copies10, bridge: true},
		{name: "bridge, " + copies50.name, addr: addrs[2], process: b, traffic: copies50, bridge: true},
		{name: "bridge, " + reports.name, addr: addrs[2], process: b, traffic: reports, bridge: true},
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		return nil, err
	}
	systems = slices.DeleteFunc(systems, func(s system) bool { return s.bridge && !match.MatchString(s.name) })
	m := &meter{servers: servers, js: js, secret: secret, systems: systems}
	var rows []row
	for _, c := range strings.Split(*connections, ",") {
		n, err := strconv.Atoi(c)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("-connections: %q", c)
		}
		r, err := m.rows(setup, n, 0)
		if err != nil {
			return nil, err
		}
		show(os.Stdout, r)
		rows = append(rows, r...)
	}
	if *steady > 0 {
		r, err := m.rows(setup, 64, *steady)
		if err != nil {
			return nil, err
		}
		show(os.Stdout, r)
		rows = append(rows, r...)
	}
	return rows, nil
}

// eventually tries until it works, for half a minute.
func eventually(what string, try func() error) error {
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = try(); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s: %w", what, err)
}

func ready(admin string) error {
	response, err := http.Get("http://" + admin + "/readyz")
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

// meter measures systems side by side.
type meter struct {
	servers []*process
	js      jetstream.JetStream // of the bridge's server
	secret  string
	systems []system
}

// rows measures every system with so many connections: each round all of them,
// one after the other, each time in another order.
func (m *meter) rows(setup string, connections int, rate float64) ([]row, error) {
	n := min(*requests, max(1000, 312*connections)) // 64 connections and more: all
	if rate > 0 {
		n = int(5 * rate)
	}
	samples := make([][]sample, len(m.systems))
	for round := range *rounds {
		for i := range m.systems {
			at := (i + round) % len(m.systems)
			s, err := m.round(m.systems[at], n, connections, rate)
			if err != nil {
				return nil, fmt.Errorf("%s with %d connections: %w\n%s", m.systems[at].name, connections, err, m.systems[at].log)
			}
			samples[at] = append(samples[at], s)
		}
	}
	var rows []row
	for i, s := range m.systems {
		rows = append(rows, row{Setup: setup, System: s.name, Connections: connections, Steady: rate, sample: medians(samples[i])})
	}
	for i := range rows {
		rows[i].OfVerify, rows[i].OfPublish = rows[i].Rate/rows[0].Rate, rows[i].Rate/rows[1].Rate
		rows[i].CPUOfPublish, rows[i].P99OfPublish = rows[i].CPU/rows[1].CPU, rows[i].P99/rows[1].P99
	}
	return rows, nil
}

// sample is what a round has come to: requests a second, milliseconds, CPU
// seconds for 10,000 requests, MiB, processors.
type sample struct {
	Rate   float64 `json:"requests_per_second"`
	P50    float64 `json:"p50_ms"`
	P99    float64 `json:"p99_ms"`
	P999   float64 `json:"p999_ms"`
	CPU    float64 `json:"cpu_seconds_per_10000"`
	NATS   float64 `json:"nats_cpu_seconds_per_10000"`
	Peak   float64 `json:"peak_mib"`
	Others float64 `json:"other_processors"`
}

func (m *meter) round(s system, n, connections int, rate float64) (sample, error) {
	all, err := s.traffic.requests(n, connections, m.secret)
	if err != nil {
		return sample{}, err
	}
	before, err := m.cpu(s)
	if err != nil {
		return sample{}, err
	}
	var l load
	if rate > 0 {
		l, err = openLoop(s.addr, all, rate)
	} else {
		l, err = closedLoop(s.addr, all)
	}
	if err != nil {
		return sample{}, err
	}
	during, err := m.cpu(s)
	if err != nil {
		return sample{}, err
	}
	if s.bridge { // what indexing takes is the bridge's
		if err := eventually("the index is complete", m.indexed); err != nil {
			return sample{}, err
		}
	}
	after, err := m.cpu(s)
	if err != nil {
		return sample{}, err
	}
	mib, err := peak(s.cmd.Process.Pid)
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	per := 10_000 / float64(n)
	others := during.machine - before.machine - (during.program - before.program) - (during.nats - before.nats) - (during.self - before.self)
	return sample{
		Rate: l.rate(), P50: ms(l.quantile(0.5)), P99: ms(l.quantile(0.99)), P999: ms(l.quantile(0.999)),
		CPU: (after.program - before.program).Seconds() * per, NATS: (after.nats - before.nats).Seconds() * per,
		Peak: mib, Others: max(0, others.Seconds()/l.took.Seconds()),
	}, err
}

// used is CPU time.
type used struct{ program, nats, self, machine time.Duration }

func (m *meter) cpu(s system) (u used, err error) {
	var errs [4]error
	u.program, errs[0] = cpu(s.cmd.Process.Pid)
	for _, server := range m.servers {
		t, err := cpu(server.cmd.Process.Pid)
		u.nats += t
		errs[1] = errors.Join(errs[1], err)
	}
	u.self, errs[2] = cpu(os.Getpid())
	u.machine, errs[3] = cpu(0)
	return u, errors.Join(errs[:]...)
}

// indexed asks the indexer's consumer.
func (m *meter) indexed() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	s, err := m.js.Stream(ctx, "WEBHOOKS")
	if err != nil {
		return err
	}
	c, err := s.Consumer(ctx, "bridge-indexer")
	if err != nil {
		return err
	}
	if last, done := s.CachedInfo().State.LastSeq, c.CachedInfo().AckFloor.Stream; done < last {
		return fmt.Errorf("%d behind", last-done)
	}
	return nil
}

func medians(all []sample) (m sample) {
	median := func(field func(*sample) *float64) {
		values := make([]float64, len(all))
		for i := range all {
			values[i] = *field(&all[i])
		}
		slices.Sort(values)
		*field(&m) = values[len(values)/2]
	}
	for _, field := range []func(*sample) *float64{
		func(s *sample) *float64 { return &s.Rate }, func(s *sample) *float64 { return &s.P50 }, func(s *sample) *float64 { return &s.P99 }, func(s *sample) *float64 { return &s.P999 },
		func(s *sample) *float64 { return &s.CPU }, func(s *sample) *float64 { return &s.NATS }, func(s *sample) *float64 { return &s.Peak }, func(s *sample) *float64 { return &s.Others },
	} {
		median(field)
	}
	return m
}
