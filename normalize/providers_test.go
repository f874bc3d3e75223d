package normalize_test

import (
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hookbus/bridge/normalize"
)

func TestProviders(t *testing.T) {
	var names []string
	for _, p := range normalize.Providers() {
		names = append(names, p.Name)
		if len(p.Samples()) == 0 {
			t.Errorf("%s has no samples", p.Name)
		}
		if got := provider(t, p.Name); got.TypePrefix != p.TypePrefix {
			t.Errorf("ByName(%q) has the prefix %s", p.Name, got.TypePrefix)
		}
		for _, q := range normalize.Providers() {
			if p.Name != q.Name && strings.HasPrefix(p.TypePrefix, q.TypePrefix) {
				t.Errorf("the types of %s are among those of %s", p.Name, q.Name)
			}
		}
	}
	if !slices.IsSorted(names) {
		t.Errorf("not in the order of their names: %v", names)
	}
	for _, name := range []string{"", "Dfns", "unknown"} {
		if p, ok := normalize.ByName(name); ok {
			t.Errorf("ByName(%q) is %s", name, p.Name)
		}
	}
}

// The schemes sign as the vectors of package signature say.
func TestSchemes(t *testing.T) {
	file, err := os.ReadFile("../signature/testdata/signatures.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct {
		Provider, Name, Secret, Expect string
		Body                           []byte            `json:"body_b64"`
		Headers                        map[string]string `json:"headers"`
	}
	if err := json.Unmarshal(file, &vectors); err != nil {
		t.Fatal(err)
	}
	for _, vector := range vectors {
		t.Run(vector.Provider+"/"+vector.Name, func(t *testing.T) {
			// The time in every header that has one.
			header, value, err := provider(t, vector.Provider).Scheme.Sign(vector.Secret, vector.Body, time.Unix(1720018333, 0))
			if err != nil {
				t.Fatal(err)
			}
			if genuine := vector.Headers[header] == value; genuine != (vector.Expect != "invalid") {
				t.Errorf("signed %s: %s, the vector has %v and is %s", header, value, vector.Headers, vector.Expect)
			}
		})
	}
}

// A stamped sample, signed by the provider's scheme, is verified by it under any of its headers.
func TestSignedSamplesVerify(t *testing.T) {
	const secret = "whsec_0123456789abcdef"
	for _, p := range normalize.Providers() {
		verifier, err := p.Scheme.NewVerifier([]string{secret}, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		for _, sample := range p.Samples() {
			body := p.Stamp(p.Fresh(sample.Body, received), received)
			_, value, err := p.Scheme.Sign(secret, body, received)
			if err != nil {
				t.Fatal(err)
			}
			for _, header := range p.Scheme.Headers {
				h := http.Header{}
				h.Set(header, value)
				if _, err := verifier.Verify(h, body, received); err != nil {
					t.Errorf("%s/%s under %s: %v", p.Name, sample.Name, header, err)
				}
			}
		}
	}
}
