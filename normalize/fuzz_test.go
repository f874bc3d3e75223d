package normalize_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hookbus/bridge/normalize"
)

func FuzzDataspike(f *testing.F) { fuzzEvent(f, "dataspike", dataspikeBody) }
func FuzzDfns(f *testing.F)      { fuzzEvent(f, "dfns", dfnsBody) }
func FuzzOsapher(f *testing.F)   { fuzzEvent(f, "osapher", osapherBody) }
func FuzzTrusthub(f *testing.F)  { fuzzEvent(f, "trusthub", trusthubBody) }
func FuzzWaldo(f *testing.F)     { fuzzEvent(f, "waldo", waldoFlag, waldoBody, waldoNoReq) }

// Any body gives one of the errors or a valid event that keeps it, and its identity is that of the
// compacted body.
func fuzzEvent(f *testing.F, name string, seeds ...string) {
	p := provider(f, name)
	for _, sample := range p.Samples() {
		f.Add(sample.Body)
	}
	for _, seed := range seeds {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		sent := string(body)
		e, err := p.Event(body, received)
		if err != nil {
			if e != nil || !slices.Contains(sentinels, err) {
				t.Errorf("got %v, %v", e, err)
			}
			return
		}
		e.SetToken("t")
		check(t, e, sent)

		var compact bytes.Buffer
		if err := json.Compact(&compact, body); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(e.Identity, mapped(t, name, compact.String()).Identity); diff != "" {
			t.Errorf("identities (-as sent +compact):\n%s", diff)
		}
	})
}

func FuzzSubject(f *testing.F) {
	for _, p := range normalize.Providers() {
		for _, sample := range p.Samples() {
			f.Add(sample.Kind)
		}
	}
	f.Add("")
	f.Add("..*.>. \x00\xffé")
	f.Fuzz(func(t *testing.T, kind string) {
		checkSubject(t, "webhooks", "dfns", normalize.Subject("webhooks", "dfns", kind))
	})
}
