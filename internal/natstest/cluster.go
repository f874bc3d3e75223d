package natstest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// clusterTimeout bounds the wait for a cluster to be ready.
const clusterTimeout = 60 * time.Second

// NATSCluster is a cluster of servers in this process. Its methods are for the
// test's own goroutine.
type NATSCluster struct {
	// Servers holds the servers by index. A stopped one stays until
	// [NATSCluster.Restart] puts its successor in its place.
	Servers []*server.Server

	tb   testing.TB
	opts []*server.Options
}

// Cluster starts n servers, three as a rule, and returns when all are connected,
// have elected a leader for JetStream's metadata and are current. Options may
// be changed by opts, which are called once per server.
func Cluster(tb testing.TB, n int, opts ...func(*server.Options)) *NATSCluster {
	tb.Helper()
	ports := freePorts(tb, 2*n)
	clients, routes := ports[:n], ports[n:]

	var peers []*url.URL
	for _, port := range routes {
		peers = append(peers, &url.URL{Scheme: "nats", Host: address(port)})
	}

	c := &NATSCluster{tb: tb}
	for i := range n {
		o := options(tb)
		o.ServerName = fmt.Sprintf("s%d", i)
		o.Port = clients[i]
		o.Cluster = server.ClusterOpts{
			// The name keeps clusters of other test processes apart.
			Name: fmt.Sprintf("natstest-%d", routes[0]),
			Host: o.Host,
			Port: routes[i],
		}
		o.Routes = peers
		for _, opt := range opts {
			opt(o)
		}
		c.opts = append(c.opts, o)
	}
	tb.Cleanup(func() {
		for _, s := range c.Servers {
			stop(s)
		}
	})
	for _, o := range c.opts {
		c.Servers = append(c.Servers, start(tb, o))
	}
	c.WaitReady()
	return c
}

// URL returns the client URLs of all servers, separated by commas.
func (c *NATSCluster) URL() string {
	urls := make([]string, len(c.opts))
	for i, o := range c.opts {
		urls[i] = "nats://" + address(o.Port)
	}
	return strings.Join(urls, ",")
}

// Stop shuts server i down and returns when it has ended. It is an orderly
// shutdown: the server hands its leaderships over first. The store stays.
func (c *NATSCluster) Stop(i int) {
	c.tb.Helper()
	stop(c.Servers[i])
}

// Restart starts server i again, on the store and the ports it had, and returns
// when all running servers are current.
func (c *NATSCluster) Restart(i int) {
	c.tb.Helper()
	stop(c.Servers[i])
	c.Servers[i] = start(c.tb, c.opts[i])
	c.WaitReady()
}

// WaitReady returns when the running servers see each other, one of them leads
// JetStream's metadata and all are current.
func (c *NATSCluster) WaitReady() {
	c.tb.Helper()
	Eventually(c.tb, clusterTimeout, "the cluster is ready", c.ready)
}

func (c *NATSCluster) ready() bool {
	var running []*server.Server
	for _, s := range c.Servers {
		if s.Running() {
			running = append(running, s)
		}
	}
	online := 0
	for _, s := range running {
		if !s.JetStreamIsCurrent() || routedTo(s) != len(running)-1 {
			return false
		}
		if s.JetStreamIsLeader() {
			online = len(s.JetStreamClusterPeers())
		}
	}
	return online == len(running)
}

// routedTo counts the servers that s has routes to: a pool of them for each.
func routedTo(s *server.Server) int {
	routes, err := s.Routez(nil)
	if err != nil {
		return 0
	}
	remotes := make(map[string]bool)
	for _, r := range routes.Routes {
		remotes[r.RemoteID] = true
	}
	return len(remotes)
}

// givenPorts holds the ports that were given: a server that comes back where it
// was finds its port free of what was started meanwhile.
var givenPorts sync.Map

// freePorts picks ports below the range from which systems take the ports of
// outgoing connections, so that none is lost while its server is stopped.
func freePorts(tb testing.TB, n int) []int {
	tb.Helper()
	const low, high, attempts = 15_000, 32_000, 1000
	ports := make([]int, 0, n)
	for range attempts {
		port := low + rand.IntN(high-low)
		if _, given := givenPorts.LoadOrStore(port, true); given {
			continue
		}
		l, err := net.Listen("tcp", address(port))
		if err != nil {
			continue
		}
		defer l.Close() // all stay open until all are found
		if ports = append(ports, port); len(ports) == n {
			return ports
		}
	}
	tb.Fatalf("natstest: no %d free ports from %d to %d", n, low, high)
	return nil
}

// FreePort returns a port of the loopback interface that nothing listens on, for
// a server that starts later or comes back where it was.
func FreePort(tb testing.TB) int {
	tb.Helper()
	return freePorts(tb, 1)[0]
}

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
