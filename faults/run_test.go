//go:build faults

package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"
)

// leastRate is the load, in occurrences a second, that a run has to offer.
const leastRate = 150

// TestFaults sends webhooks to two replicas in front of three servers while one
// thing after the other goes wrong, and then looks at all that is stored.
func TestFaults(t *testing.T) {
	t.Logf("seed %d: make faults FAULTS_SEED=%[1]d FAULTS_TIME=%v", seed, *runTime)
	c := startCluster(t, 3, fmt.Sprintf("%dm", 192+int(runTime.Seconds())*2))
	small, mounted := smallSpool(t)
	bridges := []*bridge{
		startBridge(t, c, "a", "BRIDGE_SPOOL_DIR="+workspace(t)),
		startBridge(t, c, "b", "BRIDGE_SPOOL_DIR="+small, "BRIDGE_SPOOL_MAX_BYTES=64MiB"),
	}
	_, err := bridges[0].spooled()
	hasSpool := err == nil
	if !hasSpool {
		t.Log("this bridge has no spool: what comes in an outage is refused")
	} else if mounted {
		bridges[1].spoolDir = small
	}
	r := startReader(t, c)
	s := newSender(usual, seed, bridges...)
	x := &injector{t: t, cluster: c, bridges: bridges, random: rand.New(rand.NewPCG(seed, 1)), flight: s.inFlight.Load}

	done := make(chan struct{})
	go func() { defer close(done); s.run(*runTime) }()
	most := make(chan float64, 1)
	go func() { most <- watchSpools(bridges, done) }()
	x.run(*runTime, x.deck)
	<-done
	x.most = <-most
	m, v := finish(t, c, s, x, r, 20)

	if m.rate < leastRate {
		t.Errorf("%.1f occurrences were sent a second, %d are to be; %d were not sent since too many were in flight", m.rate, leastRate, s.skipped)
	}
	if m.hit == 0 && *only == "" && *atMost == 0 {
		t.Error("no fault found a request in flight")
	}
	if v.bad() {
		t.Error("not everything that was answered 200 is stored exactly once")
	}
	if n := len(m.unspooled); hasSpool && n > 0 {
		t.Errorf("%d webhooks of providers that do not retry were answered 503\n%s", n, v.histories(m.unspooled[:min(n, 20)], nil))
	}
	kinds := make(map[string]bool)
	for _, e := range x.events {
		kinds[e.kind] = true
	}
	for _, f := range x.deck(0) {
		if !kinds[f.kind] && (f.always || *runTime >= 5*time.Minute) {
			t.Errorf("there was no fault %q", f.kind)
		}
	}
}

// smallSpool returns a folder with a small disk, if it can be had.
func smallSpool(t *testing.T) (dir string, mounted bool) {
	t.Helper()
	dir = workspace(t)
	if mountSmall(dir, "160m") != nil {
		return dir, false // said of the server's already
	}
	t.Cleanup(func() { unmount(dir) })
	return dir, true
}

// TestClaimFirstLoses is the control: it runs a bridge that writes an event's
// names into the bucket before it publishes, as is obvious and wrong. If the
// suite finds no loss in that, it would find none in the other one either.
func TestClaimFirstLoses(t *testing.T) {
	c := startCluster(t, 3, "")
	bridges := []*bridge{
		startBridge(t, c, "a", "FAILPOINT_CLAIM_FIRST=1"),
		startBridge(t, c, "b", "FAILPOINT_CLAIM_FIRST=1"),
	}
	s := newSender(mix{rate: 60, copies: usual.copies}, seed, bridges...)
	x := &injector{t: t, cluster: c, bridges: bridges, random: rand.New(rand.NewPCG(seed, 1)), flight: s.inFlight.Load}
	// Nobody leads the events for some seconds, and somebody the bucket.
	claimed := fault{kind: "kill the events' leader", lasts: longer, begin: func(x *injector) (string, func() error, error) {
		apart := until(5*time.Second, func() bool {
			events, names := c.leader(eventStream), c.leader("KV_"+bucket)
			if events >= 0 && events == names {
				c.stepDown("STREAM", "KV_"+bucket)
			}
			return events >= 0 && names >= 0 && events != names
		})
		if !apart {
			x.t.Log("one server leads both events and bucket")
		}
		return x.killServer(x.leads(eventStream))
	}}
	const lasts = 22 * time.Second
	done := make(chan struct{})
	go func() { defer close(done); s.run(lasts) }()
	x.run(lasts-4*time.Second, func(int) []fault { return []fault{claimed} })
	<-done
	_, v := finish(t, c, s, x, nil, 2)
	if v.lost == 0 {
		t.Error("a bridge that claims an event before it publishes it loses some, and the suite has found none")
	}
}

// finish waits until all is well again, sends again what was not answered 200,
// and judges and shows the run, with so many of the offending occurrences.
func finish(t *testing.T, c *cluster, s *sender, x *injector, r *reader, show int) (summary, *verdict) {
	t.Helper()
	end := time.Now()
	recovered(t, c, x.bridges)
	emptied := time.Since(end)
	s.sendAgain()
	recovered(t, c, x.bridges)
	if r != nil {
		r.stop()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	v, err := judge(ctx, c, s, x.events)
	if err != nil {
		t.Fatal(err)
	}
	m := summarize(s, x, r)
	m.spool = spool{x.most, emptied}
	t.Log(table(s, x, m, v))
	for _, o := range v.offenders[:min(show, len(v.offenders))] {
		t.Log(o)
	}
	return m, v
}

// recovered returns when all servers and replicas are as they should be, with
// nothing left to do.
func recovered(t *testing.T, c *cluster, bridges []*bridge) {
	t.Helper()
	// A server that stays behind is restarted, as a liveness probe would do.
	if !until(time.Minute, c.healthy) {
		for _, s := range c.servers {
			if !s.healthy() {
				_, text, err := get(s.healthURL())
				t.Logf("%s is restarted after a minute, since it says: %s %v", s.name, text, err)
				if err := errors.Join(s.stop(syscall.SIGTERM, 20*time.Second), s.start()); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	eventually(t, time.Minute, "the servers are healthy", c.healthy)
	for _, b := range bridges {
		if !until(time.Minute, b.ready) {
			_, text, err := get(b.adminURL("/readyz"))
			t.Fatalf("%s is not ready: %s %v\n%s", b.name, text, err, b.tail(t))
		}
	}
	for _, b := range bridges {
		var n float64
		var err error
		empty := func() bool {
			n, err = b.spooled()
			return err == nil && n == 0 || errors.Is(err, errNoMetric)
		}
		if !until(time.Minute, empty) {
			_, text, _ := get(b.adminURL("/readyz"))
			t.Fatalf("after a minute %v messages are in the spool of %s: %v %s\n%s", n, b.name, err, text, b.tail(t))
		}
	}
	eventually(t, time.Minute, "all events are indexed", c.indexed)
}
