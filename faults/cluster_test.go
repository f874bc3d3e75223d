//go:build faults

package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/internal/natstest"
)

// server is a NATS server in a process of its own.
type server struct {
	process
	client, monitor int // ports
	store           string
	small           bool // the store is a small file system
}

// cluster is some servers, the ways between them, and a connection to them
// that no fault touches.
type cluster struct {
	servers []*server
	routes  map[[2]int]*proxy // by from and to
	nc      *nats.Conn
	js      jetstream.JetStream
}

const storeConfig = `
server_name: s%d
listen: "127.0.0.1:%d"
http: "127.0.0.1:%d"
jetstream { store_dir: %q, max_file_store: 16GB, max_memory_store: 64MB }
`

// A server tells the others where it can be reached, and they would go there
// past the proxies: so it names a port that nobody listens on. Clients are told
// nothing.
const clusterConfig = `
cluster {
  name: faults
  listen: "127.0.0.1:%d"
  advertise: "127.0.0.1:%d"
  no_advertise: true
  routes: [ %s ]
}
`

// startServer starts one server that is on its own.
func startServer(t *testing.T) *cluster { return startCluster(t, 1, "") }

// startCluster starts n servers. If small is not empty, the last one's store is
// a file system of that size, if it can be mounted.
func startCluster(t *testing.T, n int, small string) *cluster {
	t.Helper()
	dir := workspace(t)
	c := &cluster{routes: make(map[[2]int]*proxy)}
	routePort := make([]int, n)
	for i := range n {
		routePort[i] = natstest.FreePort(t)
	}
	nowhere := natstest.FreePort(t)
	var urls []string
	for i := range n {
		s := &server{client: natstest.FreePort(t), monitor: natstest.FreePort(t), store: filepath.Join(dir, fmt.Sprintf("s%d", i))}
		config := fmt.Sprintf(storeConfig, i, s.client, s.monitor, s.store)
		if n > 1 {
			var routes []string
			for j := range n {
				if j != i {
					p := newProxy(t, natstest.FreePort(t), address(routePort[j]))
					c.routes[[2]int{i, j}] = p
					routes = append(routes, fmt.Sprintf("%q", "nats://"+address(p.port)))
				}
			}
			config += fmt.Sprintf(clusterConfig, routePort[i], nowhere, strings.Join(routes, ", "))
		}
		file := s.store + ".conf"
		if err := errors.Join(os.Mkdir(s.store, 0o700), os.WriteFile(file, []byte(config), 0o600)); err != nil {
			t.Fatal(err)
		}
		s.process = process{name: fmt.Sprintf("server %d", i), path: binaries.server, args: []string{"-c", file}, log: s.store + ".log"}
		if small != "" && i == n-1 {
			if err := mountSmall(s.store, small); err != nil {
				t.Logf("no full disk in this run: a small file system cannot be mounted: %v", err)
			} else {
				s.small = true
				t.Cleanup(func() { unmount(s.store) })
			}
		}
		c.servers = append(c.servers, s)
		urls = append(urls, "nats://"+address(s.client))
		t.Cleanup(s.kill)
	}
	for _, s := range c.servers {
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 30*time.Second, "the servers are healthy", c.healthy)
	c.nc = natstest.Connect(t, strings.Join(urls, ","), nats.PingInterval(time.Second), nats.MaxPingsOutstanding(2))
	var err error
	if c.js, err = jetstream.New(c.nc); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *cluster) healthy() bool {
	for _, s := range c.servers {
		if !s.healthy() {
			return false
		}
	}
	return true
}

// healthy reports whether the server is a current member of the cluster, with
// all that it stores.
func (s *server) healthy() bool {
	status, _, err := get(s.healthURL())
	return err == nil && status == http.StatusOK
}

func (s *server) healthURL() string { return fmt.Sprintf("http://%s/healthz", address(s.monitor)) }

// index returns the server of that name, -1 if there is none.
func (c *cluster) index(name string) int {
	for i := range c.servers {
		if name == fmt.Sprintf("s%d", i) {
			return i
		}
	}
	return -1
}

// leader returns the server that leads the stream, -1 if none does.
func (c *cluster) leader(stream string) int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s, err := c.js.Stream(ctx, stream)
	if err != nil || s.CachedInfo().Cluster == nil {
		return -1
	}
	return c.index(s.CachedInfo().Cluster.Leader)
}

// stepDown has the leader of a stream or consumer ("STREAM", "WEBHOOKS") hand
// over to another. It waits some seconds for one that can.
func (c *cluster) stepDown(kind string, names ...string) (err error) {
	until(8*time.Second, func() bool {
		err = c.tryStepDown(kind, names)
		return err == nil
	})
	return err
}

func (c *cluster) tryStepDown(kind string, names []string) error {
	subject := "$JS.API." + kind + ".LEADER.STEPDOWN." + strings.Join(names, ".")
	msg, err := c.nc.Request(subject, nil, time.Second)
	if err != nil {
		return err
	}
	var answer struct {
		Success bool                `json:"success"`
		Error   *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(msg.Data, &answer); err != nil {
		return err
	}
	if answer.Error != nil {
		return answer.Error
	}
	if !answer.Success {
		return errors.New("no success")
	}
	return nil
}

// cut sets all ways between the server and the others.
func (c *cluster) cut(i int, state link) error {
	var errs []error
	for pair, p := range c.routes {
		if pair[0] == i || pair[1] == i {
			errs = append(errs, p.set(state))
		}
	}
	return errors.Join(errs...)
}

// heal undoes whatever was done to the servers.
func (c *cluster) heal() error {
	var errs []error
	for _, p := range c.routes {
		errs = append(errs, p.set(open))
	}
	for _, s := range c.servers {
		s.signal(syscall.SIGCONT)
		errs = append(errs, s.start())
	}
	return errors.Join(errs...)
}

// read hands every message of a stream to the function, in order. Without such
// a stream there are none.
func (c *cluster) read(ctx context.Context, stream string, each func(sequence uint64, msg jetstream.Msg)) error {
	s, err := c.js.Stream(ctx, stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	last := s.CachedInfo().State.LastSeq
	if s.CachedInfo().State.Msgs == 0 {
		return nil
	}
	consumer, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return err
	}
	messages, err := consumer.Messages(jetstream.PullHeartbeat(time.Second))
	if err != nil {
		return err
	}
	defer messages.Stop()
	for {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		each(meta.Sequence.Stream, msg)
		if meta.Sequence.Stream >= last {
			return nil
		}
	}
}

// differences says of each stream of which the servers do not all hold the same what
// each of them holds, or why it is not known.
func (c *cluster) differences() (found []string) {
	type held struct {
		Msgs, Bytes, FirstSeq, LastSeq uint64
		NumDeleted                     int
	}
	streams := make(map[string][]held)
	for _, s := range c.servers {
		status, body, err := get(fmt.Sprintf("http://%s/jsz?streams=true", address(s.monitor)))
		var info natsserver.JSInfo
		if err == nil {
			err = json.Unmarshal([]byte(body), &info)
		}
		if err != nil || status != http.StatusOK {
			return []string{fmt.Sprintf("%s: %d %v", s.name, status, err)}
		}
		for _, account := range info.AccountDetails {
			for _, d := range account.Streams {
				streams[d.Name] = append(streams[d.Name], held{d.State.Msgs, d.State.Bytes, d.State.FirstSeq, d.State.LastSeq, d.State.NumDeleted})
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(streams)) {
		if h := streams[name]; len(h) != len(c.servers) || len(slices.Compact(slices.Clone(h))) > 1 {
			found = append(found, fmt.Sprintf("%s: %+v", name, h))
		}
	}
	return found
}

// indexed reports whether every stored event is in the bucket.
func (c *cluster) indexed() bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return natstest.CaughtUp(ctx, c.js, eventStream, indexer)
}

// What the bridge calls what it keeps in NATS, by default.
const (
	eventStream      = "WEBHOOKS"
	quarantineStream = "WEBHOOKS_QUARANTINE"
	bucket           = "webhooks-dedupe"
	indexer          = "bridge-indexer"
)

var probes = &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// get asks a process about itself.
func get(url string) (status int, body string, err error) {
	r, err := probes.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	return r.StatusCode, string(text), err
}
