package ingress_test

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/ingress"
	"github.com/hookbus/bridge/normalize"
	"github.com/hookbus/bridge/schemas"
)

// wrong is a body that its schema does not allow.
const wrong = `{"event":"flag","customerId":"c-1","uri":"u","flag":"yes, and this is private"}`

// schemaRig is a bridge for Waldo that does that with what a schema does not allow.
func schemaRig(t *testing.T, mode ingress.SchemaMode) *rig {
	t.Helper()
	r := oneServer(t)
	r.registry = prometheus.NewRegistry()
	waldo, _ := normalize.ByName("waldo")
	verifier, err := waldo.Scheme.NewVerifier(secrets(waldo), tolerance)
	if err != nil {
		t.Fatal(err)
	}
	d, err := dedupe.New(r.bus, dedupe.Windows{State: 2 * time.Minute, Dedupe: time.Hour}, r.registry)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ingress.NewSchemas(mode, "https://bridge.example.com", r.registry)
	if err != nil {
		t.Fatal(err)
	}
	r.handler, err = ingress.New([]ingress.Endpoint{{Provider: waldo, Verifier: verifier}}, d, r.bus, nil, s,
		ingress.Limits{MaxBody: 64 << 10, MaxInFlight: 512, MaxInFlightBytes: 64 << 20, PublishTimeout: 3 * time.Second},
		func() time.Time { return *r.now.Load() }, slog.New(slog.NewJSONHandler(r.log, nil)), r.registry, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSchemaModes(t *testing.T) {
	waldo, _ := normalize.ByName("waldo")
	for _, test := range []struct {
		mode   ingress.SchemaMode
		result string
		marked string
		count  float64
	}{
		{ingress.SchemaOff, "accepted", "", 0},
		{ingress.SchemaMark, "accepted", "/flag", 1},
		{ingress.SchemaQuarantine, "quarantined", "", 1},
	} {
		t.Run(string(test.mode), func(t *testing.T) {
			r := schemaRig(t, test.mode)
			a := r.serve(r.signed(waldo, []byte(wrong)))
			a.expect(t, http.StatusOK, test.result)
			if n := r.metric("bridge_schema_violations_total", map[string]string{"provider": "waldo", "type": "flag"}); n != test.count {
				t.Errorf("%v violations counted, want %v", n, test.count)
			}
			if strings.Contains(r.log.String(), "private") {
				t.Error("a part of the body is in the log")
			}
			if test.result == "quarantined" {
				m := r.message("WEBHOOKS_QUARANTINE", a.ID)
				if m.Header.Get("Bridge-Reason") != "schema_violation" || string(m.Data) != wrong {
					t.Errorf("in the quarantine: %v", m)
				}
				return
			}
			m := r.message("WEBHOOKS", a.ID)
			if got := m.Header.Get("ce-schemaerror"); got != test.marked {
				t.Errorf("schemaerror %q, want %q", got, test.marked)
			}
			if got, want := m.Header.Get("ce-dataschema"), "https://bridge.example.com/schemas/waldo/flag.json"; got != want {
				t.Errorf("dataschema %q, want %q", got, want)
			}
		})
	}
}

// An event without a schema passes in every mode.
func TestUnknownTypeHasNoSchema(t *testing.T) {
	waldo, _ := normalize.ByName("waldo")
	r := schemaRig(t, ingress.SchemaQuarantine)
	a := r.serve(r.signed(waldo, []byte(`{"event":"new_one","customerId":"c-1"}`)))
	a.expect(t, http.StatusOK, "accepted")
	if m := r.message("WEBHOOKS", a.ID); m.Header.Get("ce-dataschema") != "" {
		t.Errorf("dataschema %q", m.Header.Get("ce-dataschema"))
	}
}

// What a schema kept out comes in when it is retried without it.
func TestRetryOfASchemaViolation(t *testing.T) {
	waldo, _ := normalize.ByName("waldo")
	r := schemaRig(t, ingress.SchemaQuarantine)
	r.serve(r.signed(waldo, []byte(wrong))).expect(t, http.StatusOK, "quarantined")
	q, err := bus.OpenQuarantine(t.Context(), r.js, "WEBHOOKS_QUARANTINE", "quarantine")
	if err != nil {
		t.Fatal(err)
	}
	item, err := q.Get(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	d, err := dedupe.New(r.bus, dedupe.Windows{State: 2 * time.Minute, Dedupe: time.Hour}, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		mode ingress.SchemaMode
		err  error
	}{{ingress.SchemaQuarantine, ingress.ErrSchema}, {ingress.SchemaMark, nil}} {
		s, err := ingress.NewSchemas(test.mode, "", prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		retrier := ingress.Retrier{Dedupe: d, Bus: r.bus, Schemas: s}
		if _, err := retrier.Retry(t.Context(), item.Rejected); !errors.Is(err, test.err) {
			t.Errorf("%s: got %v, want %v", test.mode, err, test.err)
		}
	}
	if n := r.stored("WEBHOOKS"); n != 1 {
		t.Errorf("%d events, want 1", n)
	}
}

// Flagged, not flagged, flagged: the third is no copy of the first, also where it is
// no event.
func TestQuarantineKeepsEveryReport(t *testing.T) {
	waldo, _ := normalize.ByName("waldo")
	r := schemaRig(t, ingress.SchemaQuarantine)
	for i, flag := range []string{"yes", "no", "yes"} {
		r.setNow(start.Add(time.Duration(i) * time.Minute))
		r.serve(r.signed(waldo, []byte(strings.Replace(wrong, "yes", flag, 1)))).expect(t, http.StatusOK, "quarantined")
	}
	if n := r.stored("WEBHOOKS_QUARANTINE"); n != 3 {
		t.Errorf("%d in the quarantine, want 3", n)
	}
}

// An object in which nothing is known that tells occurrences apart is kept each time it
// comes; a copy of an event with an id is not, nor one of what is no object.
func TestQuarantineKeepsWhatMayBeAnother(t *testing.T) {
	waldo := provider(t, "waldo")
	r := schemaRig(t, ingress.SchemaQuarantine)
	for name, test := range map[string]struct {
		body string
		kept uint64
	}{
		"no type":        {`{"flag":true,"customerId":"c1"}`, 2},
		"not an object":  {`["verification.completed"]`, 1},
		"not JSON":       {`status=AUTO_APPROVED`, 1},
		"no identity":    {`{"event":"flag","flag":true}`, 2},
		"an id":          {`{"event":"flag","requestId":"r1","flag":"yes","customerId":"c1"}`, 1},
		"neither, state": {wrong, 2},
	} {
		before := r.stored("WEBHOOKS_QUARANTINE")
		for i := range 2 {
			r.setNow(start.Add(time.Duration(i) * time.Minute))
			r.serve(r.signed(waldo, []byte(test.body))).expect(t, http.StatusOK, "quarantined")
		}
		if kept := r.stored("WEBHOOKS_QUARANTINE") - before; kept != test.kept {
			t.Errorf("%s: %d in the quarantine, want %d", name, kept, test.kept)
		}
	}
}

func TestSchemasAreServed(t *testing.T) {
	r := oneServer(t)
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		r.admin.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		body, _ := io.ReadAll(w.Body)
		return w.Code, string(body)
	}
	for _, typ := range schemas.Types() {
		path, _ := schemas.Path(typ.Provider, typ.Kind)
		if code, body := get("/schemas/" + path); code != http.StatusOK || !json.Valid([]byte(body)) {
			t.Errorf("%s: %d", path, code)
		}
	}
	for path, want := range map[string]int{
		"/schemas/waldo/_common.json": 200, "/schemas/waldo/none.json": 404, "/schemas/../go.mod": 307, "/asyncapi.json": 200,
	} {
		if code, _ := get(path); code != want {
			t.Errorf("%s: %d, want %d", path, code, want)
		}
	}
}
