//go:build faults

package faults

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"testing"
	"time"
)

// fault is something that goes wrong for a while. begin does it, and returns
// what undoes it.
type fault struct {
	kind  string
	begin func(*injector) (what string, end func() error, err error)
	// always: also in a short run.
	always bool
	// lasts is how long, by default one to five seconds.
	lasts func(*injector) time.Duration
}

// event is a fault that was injected.
type event struct {
	kind, what string
	from, to   time.Time
	inFlight   int64
	err        error
}

func (e event) String() string {
	s := fmt.Sprintf("%s to %s  %-32s %s, %d in flight", e.from.Format("15:04:05.000"), e.to.Format("05.000"), e.kind, e.what, e.inFlight)
	if e.err != nil {
		s += ": " + e.err.Error()
	}
	return s
}

// injector breaks things, one at a time.
type injector struct {
	t       *testing.T
	cluster *cluster
	bridges []*bridge
	random  *rand.Rand
	flight  func() int64
	events  []event
	most    float64 // ever in the spools
}

func (x *injector) server() int { return x.random.IntN(len(x.cluster.servers)) }

// leads returns the server that leads the stream, or any while none does.
func (x *injector) leads(stream string) int {
	if i := x.cluster.leader(stream); i >= 0 {
		return i
	}
	return x.server()
}

// somebody returns one of the replicas or, one time in three, all of them.
func (x *injector) somebody() []*bridge {
	if x.random.IntN(3) == 0 {
		return x.bridges
	}
	return []*bridge{x.bridges[x.random.IntN(len(x.bridges))]}
}

func names(bridges []*bridge) (s string) {
	for _, b := range bridges {
		s += b.name + " "
	}
	return s[:len(s)-1]
}

func (x *injector) killServer(i int) (string, func() error, error) {
	s := x.cluster.servers[i]
	s.kill()
	return s.name, s.start, nil
}

func (x *injector) freezeServer(i int) (string, func() error, error) {
	s := x.cluster.servers[i]
	s.signal(syscall.SIGSTOP)
	return s.name, func() error { s.signal(syscall.SIGCONT); return nil }, nil
}

func (x *injector) cutBridges(state link) (string, func() error, error) {
	var errs, healed []error
	some := x.somebody()
	for _, b := range some {
		errs = append(errs, b.cut(state))
	}
	return names(some), func() error {
		for _, b := range some {
			healed = append(healed, b.cut(open))
		}
		return errors.Join(healed...)
	}, errors.Join(errs...)
}

func (x *injector) cutServer(state link) (string, func() error, error) {
	i := x.server()
	return x.cluster.servers[i].name, func() error { return x.cluster.cut(i, open) }, x.cluster.cut(i, state)
}

func (x *injector) killAll() func() error {
	for _, s := range x.cluster.servers {
		s.signal(syscall.SIGKILL)
	}
	for _, s := range x.cluster.servers {
		s.kill()
	}
	return func() error {
		var errs []error
		for _, s := range x.cluster.servers {
			errs = append(errs, s.start())
		}
		return errors.Join(errs...)
	}
}

// stepDown is over when it has begun.
func stepDown(kind string, names ...string) func(*injector) (string, func() error, error) {
	return func(x *injector) (string, func() error, error) {
		return names[len(names)-1], func() error { return nil }, x.cluster.stepDown(kind, names...)
	}
}

func atOnceOver(*injector) time.Duration { return 0 }

// outage is the name of the fault in which no server runs.
const outage = "whole cluster down"

var everyFault = []fault{
	{kind: "kill a server", begin: func(x *injector) (string, func() error, error) { return x.killServer(x.server()) }},
	{kind: "kill the events' leader", begin: func(x *injector) (string, func() error, error) { return x.killServer(x.leads(eventStream)) }},
	{kind: "freeze a server", begin: func(x *injector) (string, func() error, error) { return x.freezeServer(x.server()) }},
	{kind: "freeze the events' leader", begin: func(x *injector) (string, func() error, error) { return x.freezeServer(x.leads(eventStream)) }},
	{kind: "kill a bridge", always: true, begin: func(x *injector) (string, func() error, error) {
		b := x.bridges[x.random.IntN(len(x.bridges))]
		b.kill()
		return b.name, b.start, nil
	}},
	{kind: "freeze a bridge", begin: func(x *injector) (string, func() error, error) {
		b := x.bridges[x.random.IntN(len(x.bridges))]
		b.signal(syscall.SIGSTOP)
		return b.name, func() error { b.signal(syscall.SIGCONT); return nil }, nil
	}},
	{kind: "cut bridges off, silently", begin: func(x *injector) (string, func() error, error) { return x.cutBridges(silent) }},
	{kind: "cut bridges off, refusing", begin: func(x *injector) (string, func() error, error) { return x.cutBridges(refused) }},
	{kind: "hold answers back", begin: func(x *injector) (string, func() error, error) { return x.cutBridges(deaf) }},
	{kind: "cut a server off, silently", begin: func(x *injector) (string, func() error, error) { return x.cutServer(silent) }},
	{kind: "cut a server off, refusing", begin: func(x *injector) (string, func() error, error) { return x.cutServer(refused) }},
	{kind: outage, always: true, lasts: longer, begin: func(x *injector) (string, func() error, error) {
		return "SIGKILL to all", x.killAll(), nil
	}},
	{kind: outage + ", and a bridge dies", lasts: longer, begin: func(x *injector) (string, func() error, error) {
		end := x.killAll()
		b := x.bridges[x.random.IntN(len(x.bridges))]
		time.Sleep(time.Duration(500+x.random.IntN(1500)) * time.Millisecond) // webhooks come in meanwhile
		b.kill()
		return b.name, end, b.start()
	}},
	{kind: "events' leader steps down", lasts: atOnceOver, begin: stepDown("STREAM", eventStream)},
	{kind: "bucket's leader steps down", lasts: atOnceOver, begin: stepDown("STREAM", "KV_"+bucket)},
	{kind: "indexer's leader steps down", lasts: atOnceOver, begin: stepDown("CONSUMER", eventStream, indexer)},
	{kind: rolling, lasts: atOnceOver, begin: (*injector).rollingRestart},
	{kind: fullDisk, begin: (*injector).fillDisk},
	{kind: fullSpool, begin: (*injector).fillSpool},
}

const (
	rolling   = "rolling restart"
	fullDisk  = "full disk of a server"
	fullSpool = "full disk of a spool"
)

func longer(x *injector) time.Duration {
	return 3*time.Second + time.Duration(x.random.Int64N(int64(3*time.Second)))
}

// rollingRestart restarts one process after the other, each when the one before
// is back.
func (x *injector) rollingRestart() (string, func() error, error) {
	var errs []error
	for _, s := range x.cluster.servers {
		errs = append(errs, s.stop(syscall.SIGTERM, 20*time.Second), s.start())
		if !until(20*time.Second, s.healthy) {
			errs = append(errs, fmt.Errorf("%s is not healthy 20s after its start", s.name))
		}
	}
	for _, b := range x.bridges {
		errs = append(errs, b.stop(syscall.SIGTERM, 30*time.Second), b.start())
		if !until(20*time.Second, b.ready) {
			errs = append(errs, fmt.Errorf("%s is not ready 20s after its start", b.name))
		}
	}
	return "everything", func() error { return nil }, errors.Join(errs...)
}

func (x *injector) fillDisk() (string, func() error, error) {
	for _, s := range x.cluster.servers {
		if s.small {
			file := filepath.Join(s.store, "filler")
			return s.name, func() error {
				err := os.Remove(file)
				s.kill() // a server that could not write does not write again
				return errors.Join(err, s.start())
			}, fill(file)
		}
	}
	panic("no server has a small disk")
}

// fillSpool leaves a replica's spool no room while there is something in it.
func (x *injector) fillSpool() (string, func() error, error) {
	for _, b := range x.bridges {
		if b.spoolDir != "" {
			if err := b.cut(refused); err != nil {
				return b.name, func() error { return nil }, err
			}
			waits := until(5*time.Second, func() bool { n, err := b.spooled(); return err == nil && n > 100 })
			err := fill(filepath.Join(b.spoolDir, "filler"))
			if !waits {
				err = errors.Join(err, errors.New("nothing was in the spool"))
			}
			return b.name, func() error { return os.Remove(filepath.Join(b.spoolDir, "filler")) }, errors.Join(err, b.cut(open))
		}
	}
	panic("no spool has a small disk")
}

// possible reports whether the fault can be injected in this run.
func (x *injector) possible(f fault) bool {
	switch f.kind {
	case fullDisk:
		return slices.ContainsFunc(x.cluster.servers, func(s *server) bool { return s.small })
	case fullSpool:
		return slices.ContainsFunc(x.bridges, func(b *bridge) bool { return b.spoolDir != "" })
	}
	return true
}

// deck returns the faults that there are, in random order; for a run with room
// for only n of them, those that are always to be come first.
func (x *injector) deck(n int) []fault {
	wanted := regexp.MustCompile(*only)
	var must, rest []fault
	for _, f := range everyFault {
		if !x.possible(f) || !wanted.MatchString(f.kind) {
			continue
		}
		if f.always {
			must = append(must, f)
		} else {
			rest = append(rest, f)
		}
	}
	x.random.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	short := min(max(n/2-len(must), 0), len(rest))
	first := append(must, rest[:short]...)
	x.random.Shuffle(len(first), func(i, j int) { first[i], first[j] = first[j], first[i] })
	return append(first, rest[short:]...)
}

// run injects one fault after the other until the time is over, and heals all.
func (x *injector) run(d time.Duration, faults func(n int) []fault) {
	const each = 6 * time.Second // a fault and the quiet after it, about
	end := time.Now().Add(d)
	var deck []fault
	for time.Until(end) > each && (*atMost == 0 || len(x.events) < *atMost) {
		if len(deck) == 0 {
			deck = faults(int(time.Until(end) / each))
		}
		f := deck[0]
		deck = deck[1:]
		x.inject(f)
		time.Sleep(2*time.Second + time.Duration(x.random.Int64N(int64(2*time.Second))))
	}
	x.heal()
}

func (x *injector) inject(f fault) {
	lasts := time.Second + time.Duration(x.random.Int64N(int64(4*time.Second)))
	if f.lasts != nil {
		lasts = f.lasts(x)
	}
	// Most answers take a millisecond: strike while one is being waited for.
	for begun := time.Now(); x.flight() == 0 && time.Since(begun) < time.Second; {
		time.Sleep(100 * time.Microsecond)
	}
	e := event{kind: f.kind, from: time.Now(), inFlight: x.flight()}
	what, undo, err := f.begin(x)
	time.Sleep(lasts)
	e.what, e.err = what, errors.Join(err, undo())
	e.to = time.Now()
	x.events = append(x.events, e)
	x.t.Log(e)
}

func (x *injector) heal() {
	if err := x.cluster.heal(); err != nil {
		x.t.Error(err)
	}
	for _, b := range x.bridges {
		if err := b.heal(); err != nil {
			x.t.Error(err)
		}
	}
}
