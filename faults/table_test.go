//go:build faults

package faults

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// reader is a service that consumes the events while they come in.
type reader struct {
	mu   sync.Mutex
	seen map[string]time.Time // by id, the first time
	stop func()
}

func startReader(t *testing.T, c *cluster) *reader {
	t.Helper()
	r := &reader{seen: make(map[string]time.Time)}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	consumer, err := c.js.CreateOrUpdateConsumer(ctx, eventStream, jetstream.ConsumerConfig{
		Durable: "faults-reader", AckPolicy: jetstream.AckExplicitPolicy, AckWait: 5 * time.Second, MaxAckPending: 5000,
	})
	if err != nil {
		t.Fatal(err)
	}
	subscription, err := consumer.Consume(func(msg jetstream.Msg) {
		now := time.Now()
		id := msg.Headers().Get("ce-id")
		r.mu.Lock()
		if _, known := r.seen[id]; !known {
			r.seen[id] = now
		}
		r.mu.Unlock()
		msg.Ack()
	}, jetstream.PullHeartbeat(time.Second), jetstream.PullExpiry(5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	r.stop = func() { once.Do(subscription.Stop) }
	t.Cleanup(r.stop)
	return r
}

// spread is how a number of times are spread.
type spread []time.Duration

func (s spread) String() string {
	if len(s) == 0 {
		return "none"
	}
	slices.Sort(s)
	at := func(q float64) time.Duration { return s[min(int(q*float64(len(s))), len(s)-1)] }
	return fmt.Sprintf("p50 %v, p99 %v, max %v", round(at(0.5)), round(at(0.99)), round(s[len(s)-1]))
}

func round(d time.Duration) time.Duration {
	if d < 100*time.Millisecond {
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(time.Millisecond)
}

// summary is what a run came to.
type summary struct {
	occurrences, requests int
	rate                  float64
	why, answers          map[string]int
	latency, delivery     spread
	gap                   time.Duration // the longest time without a 200
	hit                   int           // faults that found requests in flight
	unspooled             []*occurrence // 503 to a provider that does not retry
	spool                 spool
}

// spool is what was in the replicas' spools together.
type spool struct {
	most    float64
	emptied time.Duration // after the end
}

// watchSpools looks at the spools until stop is closed.
func watchSpools(bridges []*bridge, stop <-chan struct{}) (most float64) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return most
		case <-tick.C:
		}
		sum := 0.0
		for _, b := range bridges {
			n, _ := b.spooled() // nothing of one that does not run
			sum += n
		}
		most = max(most, sum)
	}
}

func summarize(s *sender, x *injector, r *reader) summary {
	m := summary{occurrences: len(s.all), rate: float64(len(s.all)) / s.took.Seconds(), why: make(map[string]int), answers: make(map[string]int)}
	var accepted []time.Time
	first := make(map[string]time.Time) // answer with an id
	end := s.started.Add(s.took)
	for _, o := range s.all {
		for _, d := range o.deliveries {
			m.requests++
			m.why[d.why]++
			m.answers[answerOf(d)]++
			if d.status == 503 && !retries[o.provider.Name] && d.why == original && !x.spoolIsFull(d) {
				m.unspooled = append(m.unspooled, o)
			}
			if !d.ok() || d.why == again {
				continue
			}
			m.latency = append(m.latency, d.took)
			at := d.at.Add(d.took)
			if at.Before(end) {
				accepted = append(accepted, at)
			}
			if t, known := first[d.id]; !known || at.Before(t) {
				first[d.id] = at
			}
		}
	}
	accepted = append(accepted, s.started, end)
	slices.SortFunc(accepted, time.Time.Compare)
	for i := range accepted[1:] {
		m.gap = max(m.gap, accepted[i+1].Sub(accepted[i]))
	}
	if r != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		for id, at := range first {
			if seen, known := r.seen[id]; known {
				m.delivery = append(m.delivery, max(0, seen.Sub(at)))
			}
		}
	}
	for _, e := range x.events {
		if e.inFlight > 0 {
			m.hit++
		}
	}
	return m
}

// spoolIsFull reports whether the delivery came when its replica's spool had no
// room, or hardly any again.
func (x *injector) spoolIsFull(d delivery) bool {
	return slices.ContainsFunc(x.events, func(e event) bool {
		return e.kind == fullSpool && d.at.Before(e.to.Add(2*time.Second)) && d.at.Add(d.took).After(e.from)
	})
}

func answerOf(d delivery) string {
	switch {
	case d.ok():
		return "200 " + d.result
	case d.status != 0:
		return fmt.Sprintf("%d %s", d.status, d.reason)
	case d.err == refusedConnection, d.err == "timed out":
		return d.err
	}
	return "connection lost"
}

// table shows a run.
func table(s *sender, x *injector, m summary, v *verdict) string {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "| %-26s | %s\n", name, fmt.Sprintf(format, args...))
	}
	ok := 0
	for answer, n := range m.answers {
		if strings.HasPrefix(answer, "200 ") {
			ok += n
		}
	}
	b.WriteString("\n")
	row("seed", "%d", seed)
	row("time", "%v", s.took.Round(time.Second))
	kinds := make(map[string]int)
	for _, e := range x.events {
		kinds[e.kind]++
	}
	row("faults", "%d, of which %d found requests in flight", len(x.events), m.hit)
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		row("  "+kind, "%d", kinds[kind])
	}
	row("occurrences sent", "%d, %.0f a second (%d reports of a state, in %d sequences)", m.occurrences, m.rate, reportsIn(s), len(s.sequences))
	row("requests", "%d: %s", m.requests, counts(m.why))
	row("answered 200", "%d", ok)
	row("answers", "%s", counts(m.answers))
	row("503 where none retries", "%d", len(m.unspooled))
	row("stored", "%d, and %d in the quarantine", v.inStream, v.quarantined)
	row("lost", "%d", v.lost)
	row("twice", "%d", v.twice)
	row("twice, documented limit", "%d", v.limit)
	row("never sent", "%d", v.never)
	row("altered", "%d", v.altered)
	row("answered with another id", "%d", v.wrongID)
	row("not taken at the end", "%d", v.refused)
	row("not in the bucket", "%d", v.unindexed)
	row("replicas that differ", "%d", v.divided)
	row("sequences out of order", "%d", v.order)
	row("in the spools", "%.0f at most, empty %v after the end", m.spool.most, round(m.spool.emptied))
	row("longest without a 200", "%v", round(m.gap))
	row("time to a 200", "%v", m.latency)
	row("from the 200 to delivery", "%v", m.delivery)
	return b.String()
}

func reportsIn(s *sender) (n int) {
	for _, o := range s.all {
		if o.report {
			n++
		}
	}
	return n
}

// counts writes the numbers, the greatest first.
func counts(m map[string]int) string {
	keys := slices.Collect(maps.Keys(m))
	slices.SortFunc(keys, func(a, b string) int { return cmp.Or(m[b]-m[a], strings.Compare(a, b)) })
	var parts []string
	for _, k := range keys {
		parts = append(parts, fmt.Sprintf("%d %s", m[k], k))
	}
	return strings.Join(parts, ", ")
}
