//go:build faults

package faults

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
	"github.com/hookbus/bridge/signature"
)

// bridge is a replica in a process of its own.
type bridge struct {
	process
	public, admin int // ports
	links         []*proxy
	spoolDir      string   // a small file system of its own, if not empty
	base          []string // environment without what one start adds
}

// startBridge starts a replica in front of the servers, with a proxy to each,
// and returns when it is ready. The environment is added to what it needs.
func startBridge(t *testing.T, c *cluster, name string, environ ...string) *bridge {
	t.Helper()
	dir := workspace(t)
	b := &bridge{public: natstest.FreePort(t), admin: natstest.FreePort(t)}
	var urls []string
	for _, s := range c.servers {
		p := newProxy(t, natstest.FreePort(t), address(s.client))
		b.links = append(b.links, p)
		urls = append(urls, "nats://"+address(p.port))
	}
	b.base = []string{
		"PATH=" + os.Getenv("PATH"),
		"BRIDGE_NATS_URL=" + strings.Join(urls, ","),
		"BRIDGE_STREAM_REPLICAS=" + strconv.Itoa(len(c.servers)),
		"BRIDGE_LISTEN_ADDR=" + address(b.public),
		"BRIDGE_ADMIN_ADDR=" + address(b.admin),
		"BRIDGE_DATA_DIR=" + filepath.Join(dir, "data"),
	}
	for _, p := range normalize.Providers() {
		b.base = append(b.base, fmt.Sprintf("BRIDGE_%s_SECRETS=%s", strings.ToUpper(p.Name), secret(p)))
	}
	b.base = append(b.base, environ...)
	b.process = process{name: "bridge " + name, path: binaries.bridge, args: []string{"serve"}, env: b.base, log: filepath.Join(dir, "bridge.log")}
	t.Cleanup(b.kill)
	if err := b.start(); err != nil {
		t.Fatal(err)
	}
	if !until(30*time.Second, b.ready) {
		_, text, err := get(b.adminURL("/readyz"))
		t.Fatalf("%s is not ready: %s %v\n%s", b.name, text, err, b.tail(t))
	}
	return b
}

// secret is what the provider signs with.
func secret(p normalize.Provider) string {
	if p.Scheme.Key == signature.HexAfterWhsec {
		return "whsec_000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e"
	}
	return "faults-" + p.Name
}

func (b *bridge) url(p normalize.Provider) string {
	return "http://" + address(b.public) + "/webhooks/" + p.Name
}

func (b *bridge) adminURL(path string) string { return "http://" + address(b.admin) + path }

// ready reports whether the replica reaches the servers and finds there what it
// needs. With a spool it says that it is ready also without.
func (b *bridge) ready() bool {
	status, text, err := get(b.adminURL("/readyz"))
	var answer struct{ Durability string }
	return err == nil && status == http.StatusOK &&
		json.Unmarshal([]byte(text), &answer) == nil && !strings.Contains(answer.Durability, "until NATS takes it")
}

// errNoMetric: the process has no metric of that name.
var errNoMetric = errors.New("no such metric")

// metric returns the value of a metric without labels.
func (b *bridge) metric(name string) (float64, error) {
	_, text, err := get(b.adminURL("/metrics"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, errNoMetric
}

// spooled returns how many events wait in the replica's spool.
func (b *bridge) spooled() (float64, error) { return b.metric("bridge_spool_messages") }

// cut sets all links to the servers.
func (b *bridge) cut(state link) error {
	var errs []error
	for _, p := range b.links {
		errs = append(errs, p.set(state))
	}
	return errors.Join(errs...)
}

// heal undoes whatever was done to the replica.
func (b *bridge) heal() error {
	b.signal(syscall.SIGCONT)
	return errors.Join(b.cut(open), b.start())
}
