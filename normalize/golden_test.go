package normalize_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hookbus/bridge/normalize"
)

var update = flag.Bool("update", false, "write the golden files anew")

// Every documented body becomes the event in its golden file. A state report has the id that it gets with
// the token "token". That the body is kept is checked, not stored.
func TestGolden(t *testing.T) {
	left := map[string]bool{}
	files, err := filepath.Glob("testdata/golden/*/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		left[file] = true
	}
	for _, p := range normalize.Providers() {
		for _, sample := range p.Samples() {
			file := filepath.Join("testdata/golden", p.Name, sample.Name+".json")
			delete(left, file)
			t.Run(p.Name+"/"+sample.Name, func(t *testing.T) {
				e := mapped(t, p.Name, string(sample.Body))
				if e.Kind != sample.Kind {
					t.Errorf("the sample's kind is %q, the event's %q", sample.Kind, e.Kind)
				}
				golden(t, file, struct {
					NATSSubject string
					Attributes  map[string]string
					Identity    normalize.Identity
				}{e.Subject("webhooks"), attributes(t, e.CloudEvent), e.Identity})
			})
		}
	}
	for file := range left {
		t.Errorf("%s has no sample", file)
	}
}

// golden compares v, as JSON, with the file, or writes it with -update.
func golden(t *testing.T, file string, v any) {
	t.Helper()
	var got bytes.Buffer
	enc := json.NewEncoder(&got)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (write it with -update)", err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}
