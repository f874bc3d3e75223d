//go:build faults

package faults

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// stored is a message that was found.
type stored struct {
	stream   string
	sequence uint64
	id       string
	subject  string
}

func (s stored) String() string { return fmt.Sprintf("%s %d, id %.12s", s.stream, s.sequence, s.id) }

// verdict is what the oracle says of a run.
type verdict struct {
	lost        int // answered 200 and not stored
	twice       int // stored more often than it happened
	limit       int // the same, where the README says that it may be
	never       int // stored and never sent
	altered     int // stored with another body, or in the wrong stream
	wrongID     int // answered with an id under which it is not stored
	refused     int // not answered 200 even at the end
	order       int // sequences of reports that are stored in another order
	unindexed   int // names that the bucket has not, or with another message
	divided     int // streams of which the servers do not hold the same
	inStream    int
	quarantined int
	offenders   []string
	faults      []event
}

func (v *verdict) bad() bool {
	return v.lost+v.twice+v.never+v.altered+v.wrongID+v.refused+v.unindexed+v.divided > 0
}

func (v *verdict) offend(format string, args ...any) {
	const most = 20
	if len(v.offenders) < most {
		v.offenders = append(v.offenders, fmt.Sprintf(format, args...))
	}
}

// judge reads all that is stored and compares it with all that was sent. It
// begins when all is well and indexed.
func judge(ctx context.Context, c *cluster, s *sender, faults []event) (*verdict, error) {
	v := &verdict{faults: faults}
	var differences []string
	until(30*time.Second, func() bool {
		differences = c.differences()
		return len(differences) == 0
	})
	v.divided = len(differences)
	for _, d := range differences {
		v.offend("the servers hold different messages of %s", d)
	}
	_, err := s.bridges[0].spooled()
	spool := err == nil
	// What was sent, by what is counted.
	units := make(map[string][]*occurrence)
	reports := make(map[string]bool)
	digests := make(map[string]string)
	for _, o := range s.all {
		units[o.unit] = append(units[o.unit], o)
		reports[o.marker] = o.report
		if o.digest != "" {
			digests[o.digest] = o.unit
		}
	}
	found := make(map[string][]stored)
	states := make(map[string][]string) // of a sequence, as they are stored
	names := make(map[string]uint64)    // that are to be in the bucket
	keep := func(unit string, m stored, body []byte) {
		sent, known := units[unit]
		if !known {
			v.never++
			v.offend("never sent: %v: %.200q", m, body)
			return
		}
		found[unit] = append(found[unit], m)
		o := sent[0]
		if o.unreadable != (m.stream == quarantineStream) && (o.digest == "" || o.unreadable) {
			v.altered++
			v.offend("in the wrong stream: %v\n%s", m, v.history(o, nil))
		}
		if body != nil && !slices.ContainsFunc(sent, func(o *occurrence) bool { return o.sent(sha256.Sum256(body)) }) {
			v.altered++
			v.offend("stored with another body: %v: %.200q\n%s", m, body, v.history(o, nil))
		}
	}
	err = c.read(ctx, eventStream, func(sequence uint64, msg jetstream.Msg) {
		h, body := msg.Headers(), msg.Data()
		v.inStream++
		for _, name := range namesOf(h) {
			names[name] = sequence // of a thing with several reports the last
		}
		m := stored{eventStream, sequence, h.Get("ce-id"), h.Get("ce-subject")}
		if ref := h.Get("ce-dataref"); ref != "" && len(body) == 0 {
			var err error
			if body, err = c.object(ctx, ref); err != nil {
				v.altered++
				v.offend("no object of %v at %s: %v", m, ref, err)
			}
		}
		if id := h.Get("Nats-Msg-Id"); id != m.id {
			v.wrongID++
			v.offend("ce-id and Nats-Msg-Id %.12s differ: %v", id, m)
		}
		unit := unitOf(m.subject, reports[m.subject], body)
		if reports[m.subject] {
			states[m.subject] = append(states[m.subject], unit)
		}
		keep(unit, m, body)
	})
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", eventStream, err)
	}
	err = c.read(ctx, quarantineStream, func(sequence uint64, msg jetstream.Msg) {
		h, body := msg.Headers(), msg.Data()
		v.quarantined++
		m := stored{quarantineStream, sequence, h.Get("Nats-Msg-Id"), ""}
		if len(body) == 0 {
			body = nil // only its digest is kept
		} else if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != h.Get("Bridge-Body-Sha256") {
			v.altered++
			v.offend("not the body of its digest: %v", m)
		}
		keep(digests[h.Get("Bridge-Body-Sha256")], m, body)
	})
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", quarantineStream, err)
	}
	indexed := make(map[string]uint64) // messages by name
	err = c.read(ctx, "KV_"+bucket, func(_ uint64, msg jetstream.Msg) {
		var e struct{ Seq uint64 }
		if json.Unmarshal(msg.Data(), &e) == nil {
			indexed[strings.TrimPrefix(msg.Subject(), "$KV."+bucket+".")] = e.Seq
		}
	})
	if err != nil {
		return nil, fmt.Errorf("reading the bucket: %w", err)
	}
	for name, sequence := range names {
		if indexed[name] != sequence {
			v.unindexed++
			v.offend("not in the bucket: message %d under %s, but %d", sequence, name, indexed[name])
		}
	}
	limited := make(map[string]bool) // what is stored late of one report concerns the next of its sequence
	for marker, q := range s.sequences {
		limited[marker] = slices.ContainsFunc(q.reports, func(o *occurrence) bool { return o.limit(spool, faults) > 0 })
	}
	for _, o := range s.all { // in the order of sending
		if sent := units[o.unit]; sent[0] == o {
			v.count(sent, found[o.unit], spool, limited[o.marker])
		}
	}
	for marker, q := range s.sequences {
		v.inOrder(q, states[marker])
	}
	return v, nil
}

// count compares what was sent of one unit with what is stored of it. There is
// more than one occurrence only of a report that was made again.
func (v *verdict) count(sent []*occurrence, found []stored, spool, limited bool) {
	want, limit := 0, 0
	for _, o := range sent {
		if o.answered() {
			want++
		} else {
			v.refused++
			v.offend("not answered 200 at the end\n%s", v.history(o, found))
		}
		if limited {
			limit += max(0, len(o.deliveries)-1)
		}
	}
	unanswered := len(sent) - want
	switch n := len(found); {
	case n < want:
		v.lost += want - n
		v.offend("LOST: %d of %d stored\n%s", n, want, v.histories(sent, found))
	case n > want+unanswered:
		// Within the documented limit as far as it goes, no further.
		over := n - want - unanswered
		v.limit += min(over, limit)
		if over > limit {
			v.twice += over - limit
			v.offend("TWICE: %d stored, %d happened\n%s", n, want, v.histories(sent, found))
		}
	}
	for _, o := range sent {
		for _, d := range o.deliveries {
			if o.report && d.result == "spooled" {
				continue // it may turn out to be a copy, which has another's id
			}
			if d.ok() && !slices.ContainsFunc(found, func(m stored) bool { return m.id == d.id }) && len(found) > 0 {
				v.wrongID++
				v.offend("answered with an id that is not stored: %v\n%s", d, v.history(o, found))
			}
		}
	}
}

// limit is how often a report may be stored too often by the limits that the
// README states: once for each other delivery, if one of them waited in the
// spool of another replica, if its outcome is not known, or if it came after the
// window, or while a spool that holds something takes nothing more. Without a
// spool the bridge stores a copy also when it cannot find out in time whether it
// is one.
func (o *occurrence) limit(spool bool, faults []event) int {
	if !o.report || len(o.deliveries) < 2 {
		return 0
	}
	const window = 110 * time.Second // a little less than the bridge's
	first := o.deliveries[max(0, slices.IndexFunc(o.deliveries, func(d delivery) bool { return d.err != refusedConnection }))]
	for _, d := range o.deliveries {
		if d.err == refusedConnection {
			continue // it has come nowhere
		}
		during := func(e event) bool {
			return e.kind == fullSpool && d.at.Add(d.took).After(e.from) && d.at.Before(e.to.Add(15*time.Second))
		}
		if !spool || slices.ContainsFunc(faults, during) || d.status != 200 || d.result == "spooled" && d.bridge != first.bridge || first.result == "spooled" && d.bridge != first.bridge || d.at.Sub(first.at) > window {
			return len(o.deliveries) - 1
		}
	}
	return 0
}

// namesOf returns the names under which a stored event is to be in the bucket.
func namesOf(h nats.Header) []string {
	names := append(strings.Split(h.Get("Bridge-Aliases"), ","), h.Get("Bridge-Key"), h.Get("Bridge-State-Key"))
	return slices.DeleteFunc(names, func(name string) bool { return name == "" })
}

// inOrder looks whether the reports that were answered 200 are stored in the
// order in which they were sent; each was sent after the answer to the one
// before. What was sent again at the end comes later by nature.
func (v *verdict) inOrder(q *sequence, found []string) {
	at := 0
	for _, o := range q.reports {
		if len(o.deliveries) == 0 || !o.deliveries[0].ok() {
			break
		}
		i := slices.Index(found[at:], o.unit)
		if i < 0 {
			v.order++
			v.offend("OUT OF ORDER: stored as %s\n%s", strings.Join(found, ", "), v.histories(q.reports, nil))
			return
		}
		at += i + 1
	}
}

// sent reports whether a body with that digest was sent.
func (o *occurrence) sent(sum [sha256.Size]byte) bool {
	return slices.ContainsFunc(o.deliveries, func(d delivery) bool { return d.body == sum })
}

func (v *verdict) histories(sent []*occurrence, found []stored) string {
	var b strings.Builder
	for _, o := range sent {
		b.WriteString(v.history(o, nil))
	}
	for _, m := range found {
		fmt.Fprintf(&b, "    stored: %v\n", m)
	}
	return b.String()
}

// history tells all that is known of an occurrence.
func (v *verdict) history(o *occurrence, found []stored) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "  %s %s\n", o.provider.Name, o.unit)
	for _, d := range o.deliveries {
		fmt.Fprintf(&b, "    %v", d)
		for _, e := range v.faults {
			const after = 5 * time.Second // an election may take as long
			if d.at.Before(e.to.Add(after)) && d.at.Add(d.took).After(e.from) {
				fmt.Fprintf(&b, " [%s, %s from %s]", e.kind, e.what, e.from.Format("05.000"))
			}
		}
		b.WriteString("\n")
	}
	for _, m := range found {
		fmt.Fprintf(&b, "    stored: %v\n", m)
	}
	return b.String()
}

// object reads a body that was too large for a message. The client's read may not end.
func (c *cluster) object(ctx context.Context, ref string) ([]byte, error) {
	bucket, name, ok := strings.Cut(strings.TrimPrefix(ref, "nats-object:"), "/")
	if !ok {
		return nil, fmt.Errorf("%q is no reference", ref)
	}
	store, err := c.js.ObjectStore(ctx, bucket)
	if err != nil {
		return nil, err
	}
	var body []byte
	for range 3 {
		once, cancel := context.WithTimeout(ctx, 10*time.Second)
		body, err = store.GetBytes(once, name)
		cancel()
		if err == nil {
			break
		}
	}
	return body, err
}
