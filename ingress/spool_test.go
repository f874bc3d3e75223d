package ingress_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/ingress"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
)

// outage is a rig with a spool whose NATS server is not there yet.
func outage(t testing.TB, spool bus.SpoolConfig, options ...rigOption) (r *rig, begin func() *server.Server) {
	t.Helper()
	port, dir := natstest.FreePort(t), t.TempDir()
	spool.Dir = t.TempDir()
	if spool.MaxBytes == 0 {
		spool.MaxBytes = 64 << 20
	}
	r = newSpoolRig(t, fmt.Sprintf("nats://127.0.0.1:%d", port), spool, options...)
	return r, func() *server.Server {
		t.Helper()
		return natstest.Server(t, func(o *server.Options) { o.Port, o.StoreDir = port, dir })
	}
}

// drained waits until all that was in the spool is stored and indexed.
func (r *rig) drained() {
	r.t.Helper()
	natstest.Eventually(r.t, 20*time.Second, "the spool is empty", func() bool { return r.spool.Len() == 0 && r.bus.State().Ready() })
	natstest.Eventually(r.t, 20*time.Second, "all is indexed", func() bool {
		return natstest.CaughtUp(r.t.Context(), r.js, "WEBHOOKS", dedupe.IndexerName)
	})
}

func (r *rig) readiness() (int, ingress.Readiness) {
	r.t.Helper()
	w := httptest.NewRecorder()
	r.admin.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
	var answer ingress.Readiness
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		r.t.Fatal(err)
	}
	return w.Code, answer
}

// bodies returns the bodies in the stream in their order.
func (r *rig) bodies(subject string) (bodies []string) {
	r.t.Helper()
	s, err := r.js.Stream(r.t.Context(), "WEBHOOKS")
	if err != nil {
		r.t.Fatal(err)
	}
	for next := uint64(1); ; {
		m, err := s.GetMsg(r.t.Context(), next, jetstream.WithGetMsgSubject(subject))
		if err != nil {
			return bodies
		}
		bodies, next = append(bodies, string(m.Data)), m.Sequence+1
	}
}

// Without NATS everything is taken, at once, and is in the stream once when NATS
// is back, under the id that was answered.
func TestSpoolDuringAnOutage(t *testing.T) {
	r, begin := outage(t, bus.SpoolConfig{})
	ids := make(map[string][]byte)
	start := time.Now()
	for _, p := range normalize.Providers() {
		for _, sample := range p.Samples() {
			body := p.Stamp(sample.Body, *r.now.Load())
			a := r.send(r.signed(p, body))
			a.expect(t, http.StatusOK, "spooled")
			if ids[a.ID] != nil {
				t.Errorf("%s: id %s twice", sample.Name, a.ID)
			}
			ids[a.ID] = body
		}
	}
	// A publish timeout each would be a minute.
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
	waldo := provider(t, "waldo")
	rejected := r.send(r.signed(waldo, []byte("not JSON")))
	rejected.expect(t, http.StatusOK, "spooled")
	status, ready := r.readiness()
	if status != http.StatusOK || !ready.Ready || ready.SpoolMessages == nil || *ready.SpoolMessages != len(ids)+1 ||
		!strings.Contains(strings.Join(ready.Warnings, " "), "not connected to NATS") || !strings.Contains(ready.Durability, "disk") {
		t.Errorf("readyz %d: %+v", status, ready)
	}
	if n := r.metric("bridge_spool_messages", nil); n != float64(len(ids)+1) {
		t.Errorf("bridge_spool_messages is %v", n)
	}

	begin()
	r.drained()
	if n := r.stored("WEBHOOKS"); n != uint64(len(ids)) {
		t.Errorf("%d stored, want %d", n, len(ids))
	}
	for id, body := range ids {
		if m := r.message("WEBHOOKS", id); string(m.Data) != string(body) {
			t.Errorf("%s: body %q", id, m.Data)
		}
	}
	if m := r.message("WEBHOOKS_QUARANTINE", rejected.ID); string(m.Data) != "not JSON" {
		t.Errorf("quarantined %q", m.Data)
	}
	if n := r.metric("bridge_quarantined_total", map[string]string{"provider": "waldo", "reason": "body_not_json"}); n != 1 {
		t.Errorf("%v quarantined", n)
	}
	for _, p := range normalize.Providers() {
		for _, sample := range p.Samples() {
			r.send(r.signed(p, p.Stamp(sample.Body, *r.now.Load()))).expect(t, http.StatusOK, "duplicate")
		}
	}
	if status, ready = r.readiness(); status != http.StatusOK || *ready.SpoolMessages != 0 || len(ready.Problems) > 0 {
		t.Errorf("readyz %d: %+v", status, ready)
	}
}

// What comes while the spool is being emptied goes behind what is in it.
func TestSpoolKeepsTheOrder(t *testing.T) {
	r, begin := outage(t, bus.SpoolConfig{})
	dataspike := provider(t, "dataspike")
	var want []string
	send := func() string {
		body := fmt.Sprintf(`{"id":"%d","event_type":"DOCVER","payload":{"applicant_id":"one"}}`, len(want))
		want = append(want, body)
		a := r.send(r.signed(dataspike, []byte(body)))
		if a.Status != http.StatusOK {
			t.Fatalf("%d %s", a.Status, a.text)
		}
		return a.Result
	}
	for range 100 {
		send()
	}
	begin()
	for deadline := time.Now().Add(20 * time.Second); send() == "spooled"; {
		if time.Now().After(deadline) {
			t.Fatal("the spool is never empty")
		}
		// One sender is faster than one entity's events leave.
		natstest.Eventually(t, 20*time.Second, "the spool is emptied", func() bool { return r.spool.Len() < 20 })
	}
	if len(want) == 101 {
		t.Log("the spool was empty before anything could go behind")
	}
	r.drained()
	if got := r.bodies("webhooks.dataspike.docver"); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%d in the stream, want %d in their order", len(got), len(want))
	}
}

// The rule of state reports holds for what waited: a report is a copy only of
// the one before it, by the time of its receipt.
func TestStateReportsFromTheSpool(t *testing.T) {
	r, begin := outage(t, bus.SpoolConfig{})
	waldo := provider(t, "waldo")
	at := *r.now.Load()
	send := func(flag bool, after time.Duration) {
		r.setNow(at.Add(after))
		body := fmt.Sprintf(`{"customerId":"c-1","event":"flag","evaluation":{"type":"fraud"},"flagged":%v}`, flag)
		r.send(r.signed(waldo, []byte(body))).expect(t, http.StatusOK, "spooled")
	}
	send(true, 0)
	send(true, time.Second) // again
	send(false, 2*time.Second)
	send(true, 3*time.Second)
	send(true, 4*time.Second)                // again
	send(true, 4*time.Second+10*time.Minute) // long after: for real
	r.setNow(at.Add(3 * time.Hour))
	begin()
	r.drained()
	var flags []string
	for _, body := range r.bodies("webhooks.waldo.>") {
		_, flag, _ := strings.Cut(body, `"flagged":`)
		flags = append(flags, strings.TrimSuffix(flag, "}"))
	}
	if got := strings.Join(flags, " "); got != "true false true true" {
		t.Errorf("stored: %s", got)
	}
}

// A full stream refuses events; the spool keeps them until it has room.
func TestFullStreamGoesToTheSpool(t *testing.T) {
	r := newSpoolRig(t, natsURL(t), bus.SpoolConfig{Dir: t.TempDir(), MaxBytes: 64 << 20}, func(c *bus.Config, _ *ingress.Limits) { c.StreamMaxBytes = 32 << 10 }).ready()
	dataspike := provider(t, "dataspike")
	accepted, spooled := 0, 0
	for range 200 {
		switch a := r.send(r.signed(dataspike, r.fresh(dataspike))); a.Result {
		case "accepted":
			accepted++
		case "spooled":
			spooled++
		default:
			t.Fatalf("%d %s", a.Status, a.text)
		}
	}
	if accepted == 0 || spooled == 0 {
		t.Fatalf("%d accepted, %d spooled", accepted, spooled)
	}
	s, err := r.js.Stream(t.Context(), "WEBHOOKS")
	if err != nil {
		t.Fatal(err)
	}
	c := s.CachedInfo().Config
	c.MaxBytes = -1
	if _, err := r.js.UpdateStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	r.drained()
	if n := r.stored("WEBHOOKS"); n != 200 {
		t.Errorf("%d stored", n)
	}
}

// An event that the stream will never take goes to the quarantine and does not
// hold up the others.
func TestSpooledEventThatCannotBePublished(t *testing.T) {
	r, begin := outage(t, bus.SpoolConfig{})
	dataspike := provider(t, "dataspike")
	const n = 5
	for range n {
		request := r.signed(dataspike, r.fresh(dataspike))
		request.Header.Set("User-Agent", "dataspike/1")
		r.send(request).expect(t, http.StatusOK, "spooled")
	}
	s := begin()
	js, err := jetstream.New(natstest.Connect(t, s.ClientURL()))
	if err != nil {
		t.Fatal(err)
	}
	_, err = js.CreateOrUpdateStream(t.Context(), jetstream.StreamConfig{
		Name: "WEBHOOKS", Subjects: []string{"webhooks.>"}, Discard: jetstream.DiscardNew, Duplicates: 10 * time.Minute, MaxMsgSize: 100,
	})
	if err != nil {
		t.Fatal(err)
	}
	r.drained()
	q, err := r.js.Stream(t.Context(), "WEBHOOKS_QUARANTINE")
	if err != nil {
		t.Fatal(err)
	}
	if got := q.CachedInfo().State.Msgs + r.stored("WEBHOOKS"); got != n {
		t.Errorf("%d kept, want %d", got, n)
	}
	m, err := q.GetMsg(t.Context(), q.CachedInfo().State.LastSeq)
	if err != nil {
		t.Fatal(err)
	}
	if m.Subject != "quarantine.dataspike.not_publishable" || m.Header.Get("Bridge-Header-User-Agent") != "dataspike/1" {
		t.Errorf("%s %v", m.Subject, m.Header)
	}
}

func TestFullSpoolIsAnswered(t *testing.T) {
	r, begin := outage(t, bus.SpoolConfig{MaxBytes: 32 << 10})
	osapher := provider(t, "osapher")
	taken := 0
	var a answer
	for taken < 1000 {
		if a = r.send(r.signed(osapher, r.fresh(osapher))); a.Status != http.StatusOK {
			break
		}
		taken++
	}
	a.expect(t, http.StatusServiceUnavailable, "bus_unavailable")
	if a.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	status, ready := r.readiness()
	if status != http.StatusServiceUnavailable || !strings.Contains(strings.Join(ready.Problems, " "), "spool: full") {
		t.Errorf("readyz %d: %+v", status, ready)
	}
	begin()
	r.drained()
	if n := r.stored("WEBHOOKS"); n != uint64(taken) {
		t.Errorf("%d stored, want %d", n, taken)
	}
	r.send(r.signed(osapher, r.fresh(osapher))).expect(t, http.StatusOK, "accepted")
	if status, _ := r.readiness(); status != http.StatusOK {
		t.Errorf("readyz %d", status)
	}
}

// A stream whose settings lose what it acknowledges is no outage: the spool
// takes what comes, and the bridge is not ready.
func TestRefusedStreamIsNotReadyWithASpool(t *testing.T) {
	url := natsURL(t)
	js, err := jetstream.New(natstest.Connect(t, url))
	if err != nil {
		t.Fatal(err)
	}
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "WEBHOOKS", Subjects: []string{"webhooks.>"}, Storage: jetstream.MemoryStorage})
	if err != nil {
		t.Fatal(err)
	}
	r := newSpoolRig(t, url, bus.SpoolConfig{Dir: t.TempDir(), MaxBytes: 1 << 20})
	natstest.Eventually(t, 20*time.Second, "the stream is refused", func() bool { return r.bus.State().Refused() })
	waldo := provider(t, "waldo")
	r.send(r.signed(waldo, r.fresh(waldo))).expect(t, http.StatusOK, "spooled")
	if status, ready := r.readiness(); status != http.StatusServiceUnavailable || !strings.Contains(strings.Join(ready.Problems, " "), "memory") {
		t.Errorf("readyz %d: %+v", status, ready)
	}
}

// A quarantine that is full holds up what is for it, and no event.
func TestFullQuarantineHoldsUpNoEvent(t *testing.T) {
	r, begin := outage(t, bus.SpoolConfig{}, func(c *bus.Config, _ *ingress.Limits) { c.QuarantineMaxBytes = 4 << 10 })
	waldo, dfns := provider(t, "waldo"), provider(t, "dfns")
	const rejected, events = 50, 20
	for i := range rejected {
		r.send(r.signed(waldo, fmt.Appendf(nil, "%d %s", i, strings.Repeat("x", 200)))).expect(t, http.StatusOK, "spooled")
	}
	for range events {
		r.send(r.signed(dfns, r.fresh(dfns))).expect(t, http.StatusOK, "spooled")
	}
	begin()
	natstest.Eventually(t, 20*time.Second, "the events are stored", func() bool { return r.spool.Events() == 0 })
	if n := r.stored("WEBHOOKS"); n != events {
		t.Errorf("%d stored", n)
	}
	natstest.Eventually(t, 20*time.Second, "the quarantine is full", func() bool { return r.stored("WEBHOOKS_QUARANTINE") > 2 })
	if r.spool.Len() == 0 {
		t.Fatal("the quarantine took everything")
	}
	r.send(r.signed(dfns, r.fresh(dfns))).expect(t, http.StatusOK, "accepted")
	r.send(r.signed(waldo, []byte("not JSON"))).expect(t, http.StatusOK, "spooled")

	s, err := r.js.Stream(t.Context(), "WEBHOOKS_QUARANTINE")
	if err != nil {
		t.Fatal(err)
	}
	c := s.CachedInfo().Config
	c.MaxBytes = -1
	if _, err := r.js.UpdateStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	r.drained()
	if n := r.stored("WEBHOOKS_QUARANTINE"); n != rejected+1 {
		t.Errorf("%d in the quarantine", n)
	}
}

// Objects that nothing identifies are kept each; what is no object is kept once.
func TestRejectedBodiesFromTheSpool(t *testing.T) {
	r, begin := outage(t, bus.SpoolConfig{})
	waldo := provider(t, "waldo")
	for i, body := range []string{`{"event":"flag","flag":true}`, `{"event":"flag","flag":false}`, `{"event":"flag","flag":true}`, "not JSON", "not JSON"} {
		r.setNow(start.Add(time.Duration(i) * time.Second))
		r.send(r.signed(waldo, []byte(body))).expect(t, http.StatusOK, "spooled")
	}
	begin()
	r.drained()
	if n := r.stored("WEBHOOKS_QUARANTINE"); n != 4 {
		t.Errorf("%d in the quarantine, want 4", n)
	}
}

// Nor does an event that cannot be stored now hold up those about others.
func TestLargeEventHoldsUpNoOther(t *testing.T) {
	port := natstest.FreePort(t)
	r := newSpoolRig(t, fmt.Sprintf("nats://127.0.0.1:%d", port), bus.SpoolConfig{Dir: t.TempDir(), MaxBytes: 64 << 20}, func(c *bus.Config, _ *ingress.Limits) { c.Manage = false })
	dataspike, dfns := provider(t, "dataspike"), provider(t, "dfns")
	large := r.send(r.signed(dataspike, r.padded(dataspike, 40_000)))
	large.expect(t, http.StatusOK, "spooled")
	const events = 20
	for range events {
		r.send(r.signed(dfns, r.fresh(dfns))).expect(t, http.StatusOK, "spooled")
	}
	s := natstest.Server(t, func(o *server.Options) { o.Port, o.MaxPayload = port, 16<<10 })
	js, err := jetstream.New(natstest.Connect(t, s.ClientURL()))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []jetstream.StreamConfig{ // and no object store
		{Name: "WEBHOOKS", Subjects: []string{"webhooks.>"}, Duplicates: 10 * time.Minute},
		{Name: "WEBHOOKS_QUARANTINE", Subjects: []string{"quarantine.>"}},
	} {
		if _, err := js.CreateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "webhooks-dedupe"}); err != nil {
		t.Fatal(err)
	}
	natstest.Eventually(t, 20*time.Second, "the others are stored", func() bool { return r.spool.Len() == 1 })
	if n := r.stored("WEBHOOKS"); n != events {
		t.Errorf("%d stored", n)
	}
	if _, err := js.CreateObjectStore(t.Context(), jetstream.ObjectStoreConfig{Bucket: bus.ObjectBucket("WEBHOOKS")}); err != nil {
		t.Fatal(err)
	}
	r.drained()
	r.message("WEBHOOKS", large.ID)
}

// stuck is a spool that holds events and takes no more.
type stuck struct {
	refused []string // ids of events
	stalled int
}

func (s *stuck) Put(_ context.Context, item bus.Spooled) error {
	s.refused = append(s.refused, item.Event.CloudEvent.ID())
	return bus.ErrUnavailable
}
func (*stuck) Len() int                                 { return 1 }
func (*stuck) Behind(context.Context, bus.Spooled) bool { return true }
func (s *stuck) Stalled()                               { s.stalled++ }
func (*stuck) Problem() string                          { return "spool: full" }
func (*stuck) Warning() string                          { return "" }

// What a spool holds may come between a report and the one before it in the
// stream. While it takes nothing more, the report passes, and is stored.
func TestReportPastAFullSpool(t *testing.T) {
	r := oneServer(t)
	waldo := provider(t, "waldo")
	report := []byte(`{"customerId":"c-1","event":"flag","evaluation":{"type":"fraud"},"flagged":true}`)
	r.send(r.signed(waldo, report)).expect(t, http.StatusOK, "accepted")

	verifier, err := waldo.Scheme.NewVerifier(secrets(waldo), tolerance)
	if err != nil {
		t.Fatal(err)
	}
	d, err := dedupe.New(r.bus, dedupe.Windows{State: 2 * time.Minute, Dedupe: time.Hour}, newRegistry())
	if err != nil {
		t.Fatal(err)
	}
	s := &stuck{}
	r.handler, err = ingress.New([]ingress.Endpoint{{Provider: waldo, Verifier: verifier}}, d, r.bus, s, nil,
		ingress.Limits{MaxBody: 1 << 20, MaxInFlight: 8, MaxInFlightBytes: 4 << 20, PublishTimeout: 3 * time.Second}, func() time.Time { return *r.now.Load() }, discard(), newRegistry(), nil)
	if err != nil {
		t.Fatal(err)
	}
	a := r.serve(r.signed(waldo, report))
	a.expect(t, http.StatusOK, "accepted")
	named := r.fresh(waldo)
	r.serve(r.signed(waldo, named)).expect(t, http.StatusOK, "accepted")
	r.serve(r.signed(waldo, named)).expect(t, http.StatusOK, "duplicate")
	if len(s.refused) != 3 || s.refused[0] != a.ID || r.message("WEBHOOKS", a.ID) == nil {
		t.Errorf("the spool was asked to take %v, and the first was stored as %s", s.refused, a.ID)
	}
}

// doubting cannot store a report now, and says so after a while.
type doubting struct {
	passThrough
	r   *rig
	err error
}

func (d doubting) OnceCertain(_ context.Context, e *normalize.Event, _ dedupe.Publish) (dedupe.Result, error) {
	d.r.setNow(start.Add(time.Second))
	e.SetToken("token")
	return dedupe.Result{}, d.err
}

// roomy is an empty spool that shows what it is given.
type roomy struct {
	stuck
	got []bus.Spooled
}

func (s *roomy) Put(_ context.Context, item bus.Spooled) error {
	s.got = append(s.got, item)
	return nil
}
func (*roomy) Behind(context.Context, bus.Spooled) bool { return false }

// A report that was under way before it went into the spool is judged by when it
// went there: a copy that came meanwhile may be stored. What follows goes there at once
// if the bus takes nothing, and is tried first if only the report was in doubt.
func TestReportSpooledAfterAnAttempt(t *testing.T) {
	waldo := provider(t, "waldo")
	verifier, err := waldo.Scheme.NewVerifier(secrets(waldo), tolerance)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		err     error
		stalled int
	}{{dedupe.ErrDoubt, 0}, {bus.ErrUnavailable, 1}} {
		r := oneServer(t)
		s := &roomy{}
		r.handler, err = ingress.New([]ingress.Endpoint{{Provider: waldo, Verifier: verifier}}, doubting{r: r, err: test.err}, r.bus, s, nil,
			ingress.Limits{MaxBody: 1 << 20, MaxInFlight: 8, MaxInFlightBytes: 4 << 20, PublishTimeout: 3 * time.Second}, func() time.Time { return *r.now.Load() }, discard(), newRegistry(), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.serve(r.signed(waldo, []byte(`{"customerId":"c-1","event":"flag","flag":true}`))).expect(t, http.StatusOK, "spooled")
		if len(s.got) != 1 || !s.got[0].Event.Received.Equal(start.Add(time.Second)) || s.stalled != test.stalled {
			t.Errorf("%v: in the spool: %+v; stalled %d times", test.err, s.got, s.stalled)
		}
	}
}

// inDoubt cannot tell of a report whether it is stored, and stores nothing about "bad".
type inDoubt struct{ passThrough }

func (inDoubt) OnceCertain(_ context.Context, e *normalize.Event, _ dedupe.Publish) (dedupe.Result, error) {
	switch {
	case strings.Contains(e.CloudEvent.Subject(), "bad"):
		return dedupe.Result{}, bus.ErrUnavailable
	case strings.Contains(e.CloudEvent.Subject(), "doubt"):
		return dedupe.Result{}, dedupe.ErrDoubt
	}
	return dedupe.Result{ID: e.CloudEvent.ID()}, nil
}

// filled is a spool that holds as many as it says.
type filled struct {
	roomy
	count int
}

func (f *filled) Len() int { return f.count }

// A report in doubt waits for a minute, whatever becomes of others meanwhile; the next
// about the same thing does not wait again, until the spool has been empty.
func TestPatienceIsOfEachReport(t *testing.T) {
	waldo := provider(t, "waldo")
	verifier, err := waldo.Scheme.NewVerifier(secrets(waldo), tolerance)
	if err != nil {
		t.Fatal(err)
	}
	r := oneServer(t)
	spool := &filled{count: 3}
	h, err := ingress.New([]ingress.Endpoint{{Provider: waldo, Verifier: verifier}}, inDoubt{}, r.bus, spool, nil,
		ingress.Limits{MaxBody: 1 << 20, MaxInFlight: 8, MaxInFlightBytes: 4 << 20, PublishTimeout: 3 * time.Second}, func() time.Time { return *r.now.Load() }, discard(), newRegistry(), nil)
	if err != nil {
		t.Fatal(err)
	}
	handOver := func(customer string, want error) {
		t.Helper()
		e, err := waldo.Event(fmt.Appendf(nil, `{"event":"flag","customerId":%q,"flag":true}`, customer), start)
		if err != nil {
			t.Fatal(err)
		}
		e.SetToken(customer)
		if err := h.HandOver(t.Context(), bus.Spooled{Event: e}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", customer, err, want)
		}
	}
	for second := range 60 {
		r.setNow(start.Add(time.Duration(second) * time.Second))
		handOver("in doubt", dedupe.ErrDoubt)
		handOver("bad", bus.ErrUnavailable)
		handOver("good", nil)
	}
	handOver("in doubt since then", dedupe.ErrDoubt)
	r.setNow(start.Add(time.Minute + time.Second))
	handOver("in doubt", nil)
	handOver("in doubt", nil)
	handOver("in doubt since then", dedupe.ErrDoubt)
	spool.count = 1
	handOver("good", nil)
	handOver("in doubt", dedupe.ErrDoubt)
}
