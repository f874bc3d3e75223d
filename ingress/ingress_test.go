package ingress_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/ingress"
	"github.com/hookbus/bridge/internal/binding"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
)

func maxBody(n int64) rigOption {
	return func(c *bus.Config, l *ingress.Limits) { c.MaxBody, l.MaxBody = n, n }
}

func replicas(n int) rigOption {
	return func(c *bus.Config, _ *ingress.Limits) { c.Replicas = n }
}

func provider(t testing.TB, name string) normalize.Provider {
	t.Helper()
	p, ok := normalize.ByName(name)
	if !ok {
		t.Fatalf("no provider %s", name)
	}
	return p
}

// metric returns the sum of a metric's values that have the labels.
func (r *rig) metric(name string, labels map[string]string) (sum float64) {
	r.t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
	next:
		for _, m := range family.GetMetric() {
			has := make(map[string]string)
			for _, l := range m.GetLabel() {
				has[l.GetName()] = l.GetValue()
			}
			for k, v := range labels {
				if has[k] != v {
					continue next
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

func TestPaths(t *testing.T) {
	r := oneServer(t)
	dfns := provider(t, "dfns")
	for _, path := range []string{"/", "", "/webhooks", "/webhooks/", "/webhooks/stripe", "/webhooks/Dfns", "/webhooks/dfns/", "//webhooks/dfns", "/webhooks/../webhooks/dfns", "/dfns", "/metrics", "/webhooks/dfns%00", "/webhooks%2fdfns", "/webhooks/%64fns"} {
		request := r.signed(dfns, r.fresh(dfns))
		request.URL.Opaque = "//" + request.URL.Host + path
		a := r.send(request)
		if a.Status != http.StatusNotFound || a.Reason != "unknown_provider" || strings.Contains(a.text, "stripe") {
			t.Errorf("%q: got %d %s", path, a.Status, a.text)
		}
	}
	if strings.Contains(r.log.String(), "stripe") {
		t.Error("a stranger's path is in the log")
	}
	if n := r.metric("bridge_rejections_total", map[string]string{"provider": "unknown", "reason": "unknown_provider"}); n != 14 {
		t.Errorf("%v rejections of unknown providers", n)
	}
}

func TestProviderWithoutSecret(t *testing.T) {
	h, err := ingress.New(nil, nil, nil, nil, nil, ingress.Limits{}, time.Now, discard(), newRegistry(), nil)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/webhooks/dfns", nil))
	if w.Code != http.StatusNotFound || !strings.Contains(w.Body.String(), "unknown_provider") {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}

func TestMetricsOfTwoHandlers(t *testing.T) {
	registry := newRegistry()
	for i, want := range []bool{true, false} {
		if _, err := ingress.New(nil, nil, nil, nil, nil, ingress.Limits{}, time.Now, discard(), registry, nil); (err == nil) != want {
			t.Errorf("handler %d: %v", i, err)
		}
	}
}

// The vendors' formats as they were computed from their documents.
func TestVectors(t *testing.T) {
	file, err := os.ReadFile("../signature/testdata/signatures.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct {
		Provider, Name, Secret, Expect string
		Body                           string `json:"body_b64"`
		Headers                        map[string]string
	}
	if err := json.Unmarshal(file, &vectors); err != nil {
		t.Fatal(err)
	}
	r := oneServer(t)
	for _, v := range vectors {
		t.Run(v.Provider+" "+v.Name, func(t *testing.T) {
			body, err := base64.StdEncoding.DecodeString(v.Body)
			if err != nil {
				t.Fatal(err)
			}
			r.setNow(signedTime(t, v.Headers, body))
			p := provider(t, v.Provider)
			verifier, err := p.Scheme.NewVerifier([]string{v.Secret}, tolerance)
			if err != nil {
				t.Fatal(err)
			}
			h, err := ingress.New([]ingress.Endpoint{{Provider: p, Verifier: verifier}}, passThrough{}, r.bus, nil, nil,
				ingress.Limits{MaxBody: 1 << 20, MaxInFlight: 1, MaxInFlightBytes: 2 << 20, PublishTimeout: 3 * time.Second},
				func() time.Time { return *r.now.Load() }, discard(), newRegistry(), nil)
			if err != nil {
				t.Fatal(err)
			}
			request := httptest.NewRequest(http.MethodPost, "/webhooks/"+v.Provider, bytes.NewReader(body))
			for name, value := range v.Headers {
				request.Header.Set(name, value)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, request)
			want := http.StatusUnauthorized
			if strings.HasPrefix(v.Expect, "valid") {
				want = http.StatusOK
			}
			if w.Code != want {
				t.Errorf("got %d %s, want %d", w.Code, w.Body, want)
			}
		})
	}
	// Three of them are attempts to deliver one event.
	if n := r.stored("WEBHOOKS"); n >= uint64(len(vectors)) || n == 0 {
		t.Errorf("%d messages stored", n)
	}
}

// signedTime returns the time that a vector was signed at.
func signedTime(t *testing.T, headers map[string]string, body []byte) time.Time {
	t.Helper()
	var b struct{ TimestampSent int64 }
	json.Unmarshal(body, &b)
	if v, ok := strings.CutPrefix(headers["X-Webhook-Signature"], "t="); ok {
		v, _, _ = strings.Cut(v, ",")
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return time.Unix(n, 0)
	}
	return time.Unix(b.TimestampSent, 0)
}

// held is a Deduper that keeps every event until it is let go.
type held struct{ come, leave chan struct{} }

func (h held) Once(ctx context.Context, e *normalize.Event, _ dedupe.Publish) (dedupe.Result, error) {
	h.come <- struct{}{}
	<-h.leave
	return dedupe.Result{ID: e.CloudEvent.ID()}, nil
}

func (h held) OnceCertain(ctx context.Context, e *normalize.Event, publish dedupe.Publish) (dedupe.Result, error) {
	return h.Once(ctx, e, publish)
}

func TestOverloadedByRequests(t *testing.T) {
	r := oneServer(t)
	waldo := provider(t, "waldo")
	verifier, err := waldo.Scheme.NewVerifier(secrets(waldo), tolerance)
	if err != nil {
		t.Fatal(err)
	}
	stage := held{make(chan struct{}), make(chan struct{})}
	r.handler, err = ingress.New([]ingress.Endpoint{{Provider: waldo, Verifier: verifier}}, stage, r.bus, nil, nil,
		ingress.Limits{MaxBody: 1 << 20, MaxInFlight: 2, MaxInFlightBytes: 4 << 20, PublishTimeout: 3 * time.Second}, time.Now, discard(), newRegistry(), nil)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan answer)
	for range 2 {
		request := r.signed(waldo, r.fresh(waldo))
		go func() { done <- r.serve(request) }()
		<-stage.come
	}
	a := r.serve(r.signed(waldo, r.fresh(waldo)))
	a.expect(t, http.StatusServiceUnavailable, "overloaded")
	if a.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	close(stage.leave)
	for range 2 {
		(<-done).expect(t, http.StatusOK, "accepted")
	}
	request := r.signed(waldo, r.fresh(waldo))
	go func() { done <- r.serve(request) }()
	<-stage.come
	(<-done).expect(t, http.StatusOK, "accepted")
}

// slow is a request whose body has come in part.
type slow struct {
	body   []byte
	sent   int
	writer *io.PipeWriter
	done   chan answer
}

// slow starts one by send or serve; by serve, what was sent has been read.
func (r *rig) slow(do func(*http.Request) answer, p normalize.Provider, body []byte, sent int) slow {
	r.t.Helper()
	request := r.signed(p, body)
	reader, writer := io.Pipe()
	request.Body, request.ContentLength = reader, int64(len(body))
	s := slow{body, sent, writer, make(chan answer, 1)}
	go func() { s.done <- do(request) }()
	if _, err := writer.Write(body[:sent]); err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (s slow) finish() answer {
	s.writer.Write(s.body[s.sent:])
	s.writer.Close()
	return <-s.done
}

func TestOverloadedByBytes(t *testing.T) {
	r := oneServer(t, func(_ *bus.Config, l *ingress.Limits) { l.MaxInFlightBytes = 3 * l.MaxBody })
	waldo := provider(t, "waldo")
	first := r.slow(r.serve, waldo, r.padded(waldo, 60_000), 50_000)
	second := r.slow(r.serve, waldo, r.padded(waldo, 60_000), 50_000)
	r.send(r.signed(waldo, r.padded(waldo, 60_000))).expect(t, http.StatusServiceUnavailable, "overloaded")
	r.send(r.signed(waldo, r.fresh(waldo))).expect(t, http.StatusOK, "accepted") // a small one fits
	first.finish().expect(t, http.StatusOK, "accepted")
	second.finish().expect(t, http.StatusOK, "accepted")
}

// Who sends slowly holds no place that another needs.
func TestSlowSendersStopNobody(t *testing.T) {
	r := oneServer(t, func(_ *bus.Config, l *ingress.Limits) { l.MaxInFlight = 1 })
	waldo := provider(t, "waldo")
	var senders []slow
	for range 20 {
		senders = append(senders, r.slow(r.send, waldo, r.fresh(waldo), 1))
	}
	r.send(r.signed(waldo, r.fresh(waldo))).expect(t, http.StatusOK, "accepted")
	for _, s := range senders {
		s.finish().expect(t, http.StatusOK, "accepted")
	}
}

// panics is a Deduper with a bug.
type panics struct{}

func (p panics) OnceCertain(ctx context.Context, e *normalize.Event, publish dedupe.Publish) (dedupe.Result, error) {
	return p.Once(ctx, e, publish)
}

func (panics) Once(context.Context, *normalize.Event, dedupe.Publish) (dedupe.Result, error) {
	panic("with a name in it: MUGABE")
}

func TestPanicIsAnswered(t *testing.T) {
	r := oneServer(t)
	waldo := provider(t, "waldo")
	verifier, err := waldo.Scheme.NewVerifier(secrets(waldo), tolerance)
	if err != nil {
		t.Fatal(err)
	}
	var log natstest.Output
	r.handler, err = ingress.New([]ingress.Endpoint{{Provider: waldo, Verifier: verifier}}, panics{}, r.bus, nil, nil,
		ingress.Limits{MaxBody: 1 << 20, MaxInFlight: 1, MaxInFlightBytes: 4 << 20, PublishTimeout: 3 * time.Second}, time.Now, slog.New(slog.NewTextHandler(&log, nil)), newRegistry(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // what the first has taken is given back
		r.serve(r.signed(waldo, r.fresh(waldo))).expect(t, http.StatusServiceUnavailable, "bus_unavailable")
	}
	if !strings.Contains(log.String(), "level=ERROR") || !strings.Contains(log.String(), "panics.Once") || strings.Contains(log.String(), "MUGABE") {
		t.Errorf("log: %s", log.String())
	}
}

func TestOptionsStar(t *testing.T) {
	r := oneServer(t)
	c := dial(t, r.url)
	fmt.Fprintf(c, "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusNotFound {
		t.Errorf("got %d", response.StatusCode)
	}
}

// A Content-Length is a promise; only what has come takes room.
func TestPromisedBytesTakeNoRoom(t *testing.T) {
	r := oneServer(t, func(_ *bus.Config, l *ingress.Limits) { l.MaxInFlightBytes = 2 * l.MaxBody })
	waldo := provider(t, "waldo")
	for range 8 {
		c := dial(t, r.url)
		fmt.Fprintf(c, "POST /webhooks/waldo HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n{")
	}
	for range 3 {
		r.send(r.signed(waldo, r.fresh(waldo))).expect(t, http.StatusOK, "accepted")
	}
}

func dial(t *testing.T, url string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// A body that does not come in time is answered all the same.
func TestSlowBody(t *testing.T) {
	r := oneServer(t, func(_ *bus.Config, l *ingress.Limits) { l.PublishTimeout = 6900 * time.Millisecond })
	c := dial(t, r.url)
	fmt.Fprintf(c, "POST /webhooks/waldo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("got %d", response.StatusCode)
	}
}

// What net/http says of a body that it cannot read quotes the body.
func TestUnreadableBodyIsNotLogged(t *testing.T) {
	r := oneServer(t)
	for i, rest := range []string{
		"2\r\n{}\r\n0\r\nJohn Doe passport 111\r\n\r\n", // a trailer that is none
		"2\r\n{}John Doe\r\n0\r\n\r\n",
		"John Doe\r\n{}\r\n0\r\n\r\n",
	} {
		c := dial(t, r.url)
		fmt.Fprint(c, "POST /webhooks/waldo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"+rest)
		response, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%q: got %d", rest, response.StatusCode)
		}
		natstest.Eventually(t, 10*time.Second, "it is logged", func() bool {
			return strings.Count(r.log.String(), "the body could not be read") == i+1
		})
	}
	if strings.Contains(r.log.String(), "John") {
		t.Errorf("log: %s", r.log.String())
	}
}

// What is verified is stored even if the sender does not wait for the answer.
func TestSenderHangsUp(t *testing.T) {
	r := oneServer(t)
	osapher := provider(t, "osapher")
	for range 20 {
		body := r.fresh(osapher)
		request := r.signed(osapher, body)
		c := dial(t, r.url)
		if err := request.Write(c); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	natstest.Eventually(t, 10*time.Second, "all are stored", func() bool { return r.stored("WEBHOOKS") == 20 })
}

func TestBusUnavailable(t *testing.T) {
	s := natstest.Server(t)
	r := newRig(t, s.ClientURL()).ready()
	waldo := provider(t, "waldo")
	s.Shutdown()
	s.WaitForShutdown()
	natstest.Eventually(t, 10*time.Second, "the loss is noticed", func() bool { return !r.bus.State().Ready() })
	for _, body := range [][]byte{r.fresh(waldo), []byte("not JSON")} { // to be published, to be quarantined
		a := r.send(r.signed(waldo, body))
		a.expect(t, http.StatusServiceUnavailable, "bus_unavailable")
		if a.Header.Get("Retry-After") == "" || strings.Contains(a.text, "NATS") {
			t.Errorf("Retry-After %q, %s", a.Header.Get("Retry-After"), a.text)
		}
	}
	if n := r.metric("bridge_webhooks_total", map[string]string{"provider": "waldo", "result": "failed"}); n != 2 {
		t.Errorf("%v failed", n)
	}
}

// A body that fits our limit and not the server's becomes an event that names it.
func TestBodyTooLargeForNATS(t *testing.T) {
	s := natstest.Server(t, func(o *server.Options) { o.MaxPayload = 16 << 10 })
	r := newRig(t, s.ClientURL()).ready()
	dataspike := provider(t, "dataspike")
	body := r.padded(dataspike, 40_000)
	a := r.send(r.signed(dataspike, body))
	a.expect(t, http.StatusOK, "accepted")
	msg := r.message("WEBHOOKS", a.ID)
	bucket, name, ok := binding.Dataref(msg.Header.Get("ce-dataref"))
	if !ok || len(msg.Data) != 0 || !strings.HasPrefix(name, a.ID+".") {
		t.Fatalf("%s %v", msg.Subject, msg.Header)
	}
	store, err := r.js.ObjectStore(t.Context(), bucket)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := store.GetBytes(t.Context(), name); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes (%v), want the body", len(got), err)
	}
	r.send(r.signed(dataspike, body)).expect(t, http.StatusOK, "duplicate")
}

func TestTypeTooLong(t *testing.T) {
	r := oneServer(t)
	osapher := provider(t, "osapher")
	body := with(t, r.fresh(osapher), "event", `"`+strings.Repeat("x", 2000)+`"`)
	a := r.send(r.signed(osapher, body))
	a.expect(t, http.StatusOK, "quarantined")
	if msg := r.message("WEBHOOKS_QUARANTINE", a.ID); msg.Subject != "quarantine.osapher.not_publishable" || !bytes.Equal(msg.Data, body) {
		t.Errorf("%s %s", msg.Subject, msg.Data)
	}
}

func TestIdentityMissing(t *testing.T) {
	r := oneServer(t)
	trusthub := provider(t, "trusthub")
	a := r.send(r.signed(trusthub, []byte(`{"status":"AUTO_APPROVED"}`)))
	a.expect(t, http.StatusOK, "quarantined")
	if msg := r.message("WEBHOOKS_QUARANTINE", a.ID); msg.Subject != "quarantine.trusthub.identity_missing" {
		t.Errorf("%s", msg.Subject)
	}
}

// The occurrences that a provider's bodies tell apart, and those they do not.
func TestReportsOfAState(t *testing.T) {
	r := oneServer(t)
	for _, c := range []struct {
		name, provider string
		bodies         []string
		stored         uint64
	}{
		{"flag true, false, true", "waldo", []string{`{"event":"flag","flag":true,"customerId":"c1"}`, `{"event":"flag","flag":false,"customerId":"c1"}`, `{"event":"flag","flag":true,"customerId":"c1"}`}, 3},
		{"flag true, true", "waldo", []string{`{"event":"flag","flag":true,"customerId":"c2"}`, `{"event":"flag","flag":true,"customerId":"c2"}`}, 1},
		{"the false came with a requestId", "waldo", []string{`{"event":"flag","flag":true,"customerId":"c3"}`, `{"event":"flag","flag":false,"customerId":"c3","requestId":"r3"}`, `{"event":"flag","flag":true,"customerId":"c3"}`}, 3},
		{"one requestId, three statuses", "waldo", []string{`{"event":"evaluation","evaluation":{"type":"kyc","status":"initiated"},"customerId":"c4","requestId":"r4"}`, `{"event":"evaluation","evaluation":{"type":"kyc","status":"in_progress"},"customerId":"c4","requestId":"r4"}`, `{"event":"evaluation","evaluation":{"type":"kyc","status":"completed"},"customerId":"c4","requestId":"r4"}`}, 3},
		{"approved, rejected, approved", "trusthub", []string{`{"sessionId":"s1","status":"AUTO_APPROVED"}`, `{"sessionId":"s1","status":"MANUAL_REJECTED"}`, `{"sessionId":"s1","status":"AUTO_APPROVED"}`}, 3},
		{"approved, in another order of keys", "trusthub", []string{`{"sessionId":"s2","status":"AUTO_APPROVED"}`, `{"status":"AUTO_APPROVED","sessionId":"s2"}`}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := r.stored("WEBHOOKS")
			p := provider(t, c.provider)
			for _, body := range c.bodies {
				if a := r.send(r.signed(p, []byte(body))); a.Status != http.StatusOK {
					t.Fatalf("got %d %s", a.Status, a.text)
				}
			}
			if n := r.stored("WEBHOOKS") - before; n != c.stored {
				t.Errorf("%d stored, want %d", n, c.stored)
			}
		})
	}
}

// The three attempts of a Dfns event in both readings of retryOf, and the same
// event by two webhooks.
func TestDfnsAttempts(t *testing.T) {
	r := oneServer(t)
	dfns := provider(t, "dfns")
	for name, bodies := range map[string][]string{
		"chain":                    {`"id":"whe-a1","date":"d1"`, `"id":"whe-a2","retryOf":"whe-a1","date":"d1"`, `"id":"whe-a3","retryOf":"whe-a2","date":"d1"`},
		"star":                     {`"id":"whe-b1","date":"d2"`, `"id":"whe-b2","retryOf":"whe-b1","date":"d2"`, `"id":"whe-b3","retryOf":"whe-b1","date":"d2"`},
		"the first never arrived":  {`"id":"whe-c2","retryOf":"whe-c1","date":"d3"`, `"id":"whe-c3","retryOf":"whe-c2","date":"d3"`, `"id":"whe-c4","retryOf":"whe-c1","date":"d3"`},
		"two webhooks, two ids":    {`"id":"whe-d1","date":"d4"`, `"id":"whe-d2","date":"d4"`},
		"retryOf of nobody's":      {`"id":"whe-e1","date":"d5"`, `"id":"whe-e2","retryOf":"whe-e0","date":"d5"`},
		"another attempt's number": {`"id":"whe-f1","deliveryAttempt":1,"date":"d6"`, `"id":"whe-f2","deliveryAttempt":2,"date":"d6"`},
	} {
		t.Run(name, func(t *testing.T) {
			before := r.stored("WEBHOOKS")
			for _, body := range bodies {
				full := []byte(fmt.Sprintf(`{%s,"kind":"wallet.transfer.confirmed","data":{"transferRequest":{"id":"xfr-1"}},"timestampSent":%d}`, body, start.Unix()))
				if a := r.send(r.signed(dfns, full)); a.Status != http.StatusOK {
					t.Fatalf("got %d %s", a.Status, a.text)
				}
			}
			if n := r.stored("WEBHOOKS") - before; n != 1 {
				t.Errorf("%d stored", n)
			}
		})
	}
}

// Nothing of a body, a secret or a signature leaves by a side door.
func TestNothingLeaks(t *testing.T) {
	r := oneServer(t)
	var hidden []string
	for _, p := range normalize.Providers() {
		hidden = append(hidden, secrets(p)...)
		for _, sample := range p.Samples() {
			body := p.Stamp(sample.Body, start)
			_, value, err := p.Scheme.Sign(secrets(p)[0], body, start)
			if err != nil {
				t.Fatal(err)
			}
			hidden = append(hidden, value[len(value)-40:])
			r.send(r.signed(p, body))
			r.send(r.signedWith(p, "abcd", body))
			r.send(r.signed(p, with(t, body, "event_type", "7")))
			r.send(r.signed(p, append([]byte("broken"), body...)))
		}
	}
	hidden = append(hidden, "MUGABE", "JOHN", "111111111", "22222222222", "Acme", "abcd-123-456-efgh", "53421526A", "0xb282dc7cde21717f18337a596e91ded00b79b25f", "external code 123")
	w := httptest.NewRecorder()
	r.admin.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, s := range hidden {
		if strings.Contains(r.log.String(), s) {
			t.Errorf("%q is in the log", s)
		}
		if strings.Contains(w.Body.String(), s) {
			t.Errorf("%q is in the metrics", s)
		}
	}
	if !strings.Contains(r.log.String(), `"reason":"signature_mismatch"`) || !strings.Contains(w.Body.String(), `reason="body_not_json"`) {
		t.Error("the test saw no rejection or no quarantine")
	}
}

// A line for each request says what came of it, and which message in NATS it is.
func TestLogOfRequests(t *testing.T) {
	r := oneServer(t)
	waldo := provider(t, "waldo")
	unsigned := r.signed(waldo, r.fresh(waldo))
	unsigned.Header.Del("X-Waldo-Signature")
	for _, test := range []struct {
		name    string
		request *http.Request
		level   string
		result  string
		reason  string
	}{
		{"taken", r.signed(waldo, r.fresh(waldo)), "DEBUG", "accepted", ""},
		{"not understood", r.signed(waldo, []byte("secret")), "WARN", "quarantined", "body_not_json"},
		{"refused", unsigned, "WARN", "rejected", "signature_missing"},
	} {
		before := len(r.log.String())
		a := r.serve(test.request)
		type line struct{ Level, Msg, Provider, Result, Reason, ID string }
		var got line
		for text := range strings.Lines(r.log.String()[before:]) {
			if err := json.Unmarshal([]byte(text), &got); err != nil {
				t.Fatal(err)
			}
			if got.Msg == "webhook" {
				break
			}
		}
		if want := (line{test.level, "webhook", "waldo", test.result, test.reason, a.ID}); got != want || test.result != "rejected" && a.ID == "" {
			t.Errorf("%s: got %+v, want %+v", test.name, got, want)
		}
	}
}

func TestLogLevel(t *testing.T) {
	r := oneServer(t)
	for _, test := range []struct {
		method, body string
		status       int
		level        string // from then on
	}{
		{http.MethodGet, "", http.StatusOK, "debug"},
		{http.MethodPut, `{"level":"error"}`, http.StatusOK, "error"},
		{http.MethodPut, `{"level":"warn"} `, http.StatusOK, "warn"},
		{http.MethodPut, `{"level":"WARN"}`, http.StatusBadRequest, "warn"},
		{http.MethodPut, `{"level":"error+99999"}`, http.StatusBadRequest, "warn"},
		{http.MethodPut, `{"level":"debug"} x`, http.StatusBadRequest, "warn"},
		{http.MethodPut, `{"level":"loud"}`, http.StatusBadRequest, "warn"},
		{http.MethodPut, `{}`, http.StatusBadRequest, "warn"},
		{http.MethodPut, `debug`, http.StatusBadRequest, "warn"},
		{http.MethodPut, `{"level":"` + strings.Repeat("debug", 1000) + `"}`, http.StatusBadRequest, "warn"},
		{http.MethodDelete, "", http.StatusMethodNotAllowed, "warn"},
	} {
		w := httptest.NewRecorder()
		r.admin.ServeHTTP(w, httptest.NewRequest(test.method, "/loglevel", strings.NewReader(test.body)))
		if w.Code != test.status || strings.ToLower(r.level.Level().String()) != test.level {
			t.Errorf("%s %.30s: %d %s, and the level is %v", test.method, test.body, w.Code, w.Body, r.level.Level())
		}
		if want := `{"level":"` + test.level + `"}`; w.Code == http.StatusOK && strings.TrimSpace(w.Body.String()) != want {
			t.Errorf("%s %s: got %s, want %s", test.method, test.body, w.Body, want)
		}
		if got := w.Header().Get("Content-Type"); w.Code == http.StatusBadRequest && got != "application/problem+json" {
			t.Errorf("Content-Type %s", got)
		}
	}
	for _, change := range []string{`"from":"DEBUG","to":"ERROR"`, `"from":"ERROR","to":"WARN"`} {
		if !strings.Contains(r.log.String(), change) {
			t.Errorf("no %s in the log", change)
		}
	}
}

func TestAdmin(t *testing.T) {
	s := natstest.Server(t)
	r := newRig(t, s.ClientURL()).ready()
	get := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		r.admin.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w
	}
	readiness := func() (status int, got ingress.Readiness) {
		w := get("/readyz")
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		return w.Code, got
	}
	if w := get("/livez"); w.Code != http.StatusOK {
		t.Errorf("livez: %d", w.Code)
	}
	if status, got := readiness(); status != http.StatusOK || !got.Ready || !strings.Contains(got.Durability, "one server") || len(got.Warnings) != 1 {
		t.Errorf("readyz: %d %+v", status, got)
	}
	for _, name := range []string{"bridge_webhooks_total", "bridge_publish_duration_seconds", "bridge_index_lag_messages", "bridge_index_lag_seconds", "bridge_dedupe_errors_total"} {
		if !strings.Contains(get("/metrics").Body.String(), name) {
			t.Errorf("no metric %s", name)
		}
	}
	if ready, warnings := r.metric("bridge_ready", nil), r.metric("bridge_readiness_warnings", nil); ready != 1 || warnings != 1 {
		t.Errorf("bridge_ready %v, bridge_readiness_warnings %v", ready, warnings)
	}
	// A rate starts from zero.
	for _, series := range []string{
		`bridge_rejections_total{provider="dfns",reason="signature_mismatch"} 0`,
		`bridge_rejections_total{provider="unknown",reason="unknown_provider"} 0`,
		`bridge_quarantined_total{provider="waldo",reason="type_missing"} 0`,
		`bridge_schema_violations_total{provider="waldo",type="flag"} 0`,
	} {
		if !strings.Contains(get("/metrics").Body.String(), series+"\n") {
			t.Errorf("no %s", series)
		}
	}
	s.Shutdown()
	s.WaitForShutdown()
	natstest.Eventually(t, 10*time.Second, "readyz is false", func() bool { status, _ := readiness(); return status == http.StatusServiceUnavailable })
	if _, got := readiness(); got.Ready || len(got.Problems) == 0 || !strings.Contains(got.Problems[0], "not connected") {
		t.Errorf("readyz: %+v", got)
	}
	if ready := r.metric("bridge_ready", nil); ready != 0 {
		t.Errorf("bridge_ready %v", ready)
	}
	if w := get("/livez"); w.Code != http.StatusOK {
		t.Errorf("livez without NATS: %d", w.Code)
	}
	r.admin.Drain()
	if _, got := readiness(); got.Problems[len(got.Problems)-1] != "shutting down" {
		t.Errorf("readyz: %+v", got)
	}
}
