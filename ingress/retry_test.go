package ingress_test

import (
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/ingress"
	"github.com/hookbus/bridge/normalize"
)

// What was rejected becomes the event that it should have been, once.
func TestRetry(t *testing.T) {
	r := oneServer(t)
	d, err := dedupe.New(r.bus, dedupe.Windows{State: 2 * time.Minute, Dedupe: time.Hour}, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	retrier := ingress.Retrier{Dedupe: d, Bus: r.bus}
	want := func(item bus.Rejected, duplicate bool) string {
		t.Helper()
		result, err := retrier.Retry(t.Context(), item)
		if err != nil || result.Duplicate != duplicate {
			t.Fatalf("got %+v, %v; want duplicate %v", result, err, duplicate)
		}
		return result.ID
	}
	for _, p := range normalize.Providers() {
		t.Run(p.Name, func(t *testing.T) {
			item := bus.Rejected{
				Provider: p.Name, Reason: "schema_violation", Body: r.fresh(p), Received: start,
				Headers: map[string]string{"Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
			}
			id := want(item, false)
			if trace := r.message("WEBHOOKS", id).Header.Get("ce-traceparent"); trace != "" { // that is the sender's
				t.Errorf("traceparent %q", trace)
			}
			if again := want(item, true); again != id {
				t.Errorf("the duplicate has id %s, the event %s", again, id)
			}
		})
	}

	// Reports are told apart by when they were received.
	flag := func(flagged string, after time.Duration) bus.Rejected {
		return bus.Rejected{Provider: "waldo", Reason: "schema_violation", Received: start.Add(after),
			Body: []byte(`{"event":"flag","customerId":"c-1","flag":` + flagged + `}`)}
	}
	want(flag("true", 0), false)
	want(flag("false", time.Second), false)
	want(flag("true", 2*time.Second), false)
	want(flag("true", 3*time.Second), true)

	for _, test := range []struct {
		item bus.Rejected
		want error
	}{
		{bus.Rejected{Provider: "waldo", Body: []byte("no")}, normalize.ErrNotJSON},
		{bus.Rejected{Provider: "waldo", Body: []byte(`{"event":"flag"}`)}, normalize.ErrNoIdentity},
	} {
		if _, err := retrier.Retry(t.Context(), test.item); !errors.Is(err, test.want) {
			t.Errorf("got %v, want %v", err, test.want)
		}
	}
	if _, err := retrier.Retry(t.Context(), bus.Rejected{Provider: "nobody", Body: []byte("{}")}); err == nil {
		t.Error("an unknown provider has events")
	}
}
