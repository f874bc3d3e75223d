package ingress_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
	"github.com/hookbus/bridge/signature"
)

// A provider that is added to the list is tested by all of this without a line
// here.

var update = flag.Bool("update", false, "write the golden files")

func eachProvider(t *testing.T, test func(t *testing.T, p normalize.Provider)) {
	for _, p := range normalize.Providers() {
		t.Run(p.Name, func(t *testing.T) { test(t, p) })
	}
}

// Every sample through the whole bridge, as the message that a consumer gets.
func TestSamples(t *testing.T) {
	r := oneServer(t)
	eachProvider(t, func(t *testing.T, p normalize.Provider) {
		for _, sample := range p.Samples() {
			t.Run(sample.Name, func(t *testing.T) {
				body := p.Stamp(sample.Body, start)
				a := r.send(r.signed(p, body))
				a.expect(t, http.StatusOK, "accepted")
				msg := r.message("WEBHOOKS", a.ID)
				if !bytes.Equal(msg.Data, body) {
					t.Errorf("the body was changed:\n%s\n%s", body, msg.Data)
				}
				if msg.Header.Get("Bridge-Token") != "" { // these are random
					for _, name := range []string{"Bridge-Token", "ce-id", jetstream.MsgIDHeader} {
						msg.Header.Set(name, "random")
					}
				}
				var got strings.Builder
				fmt.Fprintln(&got, msg.Subject)
				for _, name := range slices.Sorted(maps.Keys(msg.Header)) {
					fmt.Fprintf(&got, "%s: %s\n", name, strings.Join(msg.Header[name], "|"))
				}
				golden(t, filepath.Join("testdata", "golden", p.Name, sample.Name+".txt"), got.String())
			})
		}
	})
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

func TestFlippedBits(t *testing.T) {
	r := oneServer(t)
	refused := func(t *testing.T, request *http.Request, what string) {
		t.Helper()
		if a := r.serve(request); a.Status != http.StatusUnauthorized {
			t.Errorf("%s: got %d %s", what, a.Status, a.text)
		}
	}
	eachProvider(t, func(t *testing.T, p normalize.Provider) {
		body := r.sample(p)
		header, value, err := p.Scheme.Sign(secrets(p)[0], body, start)
		if err != nil {
			t.Fatal(err)
		}
		for i := range body {
			flipped := bytes.Clone(body)
			flipped[i] ^= 1 << (i % 8)
			request := r.request(p, flipped)
			request.Header.Set(header, value)
			refused(t, request, fmt.Sprintf("body byte %d", i))
		}
		for i := range value { // the signed time, where there is one, is in it or in the body
			flipped := []byte(value)
			flipped[i] ^= 1 << (i % 7)
			request := r.request(p, body)
			request.Header[http.CanonicalHeaderKey(header)] = []string{string(flipped)}
			refused(t, request, fmt.Sprintf("header byte %d", i))
		}
	})
	if n := r.stored("WEBHOOKS") + r.stored("WEBHOOKS_QUARANTINE"); n != 0 {
		t.Errorf("%d messages stored", n)
	}
}

func TestSignatureHeader(t *testing.T) {
	r := oneServer(t)
	eachProvider(t, func(t *testing.T, p normalize.Provider) {
		body := r.sample(p)
		header, value, err := p.Scheme.Sign(secrets(p)[0], body, start)
		if err != nil {
			t.Fatal(err)
		}
		_, wrong, err := p.Scheme.Sign("abcd", body, start)
		if err != nil {
			t.Fatal(err)
		}
		// The digest stands at the end of the header, whatever is in front.
		digest := 64
		if p.Scheme.Encoding == signature.Base64 {
			digest = 44
		}
		before, sum := value[:len(value)-digest], value[len(value)-digest:]
		other := "n0t+an/encoding+of+this+scheme+at+all+0123456="
		if p.Scheme.Encoding == signature.Base64 {
			other = hex.EncodeToString(make([]byte, 32))
		}
		cases := []struct {
			name   string
			values []string
			reason string
		}{
			{"wrong secret", []string{wrong}, "signature_mismatch"},
			{"missing", nil, "signature_missing"},
			{"empty", []string{""}, "signature_missing"},
			{"repeated", []string{value, value}, "signature_malformed"},
			{"truncated", []string{value[:len(value)-1]}, "signature_malformed"},
			{"too long", []string{value + "0"}, "signature_malformed"},
			{"wrong encoding", []string{before + other}, "signature_malformed"},
			{"only what is in front", []string{before}, map[bool]string{true: "signature_missing", false: "signature_malformed"}[before == ""]},
		}
		if p.Scheme.Encoding == signature.Hex {
			cases = append(cases, struct {
				name   string
				values []string
				reason string
			}{"upper case", []string{before + strings.ToUpper(sum)}, "signature_malformed"})
		}
		for _, c := range cases {
			request := r.request(p, body)
			request.Header[http.CanonicalHeaderKey(header)] = c.values
			a := r.send(request)
			if a.Status != http.StatusUnauthorized || a.Reason != c.reason {
				t.Errorf("%s: got %d %s, want %s", c.name, a.Status, a.Reason, c.reason)
			}
		}
		for _, name := range p.Scheme.Headers {
			request := r.request(p, r.sample(p))
			request.Header.Set(name, value)
			if a := r.send(request); a.Status != http.StatusOK {
				t.Errorf("under %s: %d %s", name, a.Status, a.text)
			}
		}
	})
}

func TestSecondSecret(t *testing.T) {
	r := oneServer(t)
	eachProvider(t, func(t *testing.T, p normalize.Provider) {
		for slot, secret := range secrets(p) {
			r.send(r.signedWith(p, secret, r.fresh(p))).expect(t, http.StatusOK, "accepted")
			labels := map[string]string{"provider": p.Name, "slot": fmt.Sprint(slot)}
			if n := r.metric("bridge_secret_matches_total", labels); n != 1 {
				t.Errorf("slot %d matched %v times", slot, n)
			}
		}
	})
}

func TestSignedTime(t *testing.T) {
	r := oneServer(t)
	eachProvider(t, func(t *testing.T, p normalize.Provider) {
		if p.Scheme.Time == signature.NoTime {
			return
		}
		r.setNow(start)
		signedAt := start.Truncate(time.Second)
		edge := []int{http.StatusOK, http.StatusUnauthorized} // one nanosecond within, at the edge
		if !p.Scheme.StrictWindow {
			edge = []int{http.StatusOK, http.StatusOK}
		}
		for _, c := range []struct {
			name string
			now  time.Time
			want int
		}{
			{"late, within", signedAt.Add(tolerance - 1), edge[0]},
			{"late, at the edge", signedAt.Add(tolerance), edge[1]},
			{"late, beyond", signedAt.Add(tolerance + 1), http.StatusUnauthorized},
			{"early, within", signedAt.Add(1 - tolerance), edge[0]},
			{"early, at the edge", signedAt.Add(-tolerance), edge[1]},
			{"early, beyond", signedAt.Add(-tolerance - 1), http.StatusUnauthorized},
			{"milliseconds by mistake", time.UnixMilli(signedAt.Unix()), http.StatusUnauthorized},
			{"seconds taken for milliseconds", time.Unix(signedAt.UnixMilli(), 0), http.StatusUnauthorized},
		} {
			r.setNow(start)
			request := r.signed(p, r.fresh(p))
			r.setNow(c.now)
			a := r.send(request)
			if a.Status != c.want || c.want != http.StatusOK && a.Reason != "timestamp_outside_tolerance" {
				t.Errorf("%s: got %d %s", c.name, a.Status, a.text)
			}
		}
		r.setNow(start)
	})
}

// padded returns an event of exactly size bytes.
func (r *rig) padded(p normalize.Provider, size int) []byte {
	body := r.fresh(p)
	const member = `,"pad":""}`
	pad := size - len(body) - len(member) + 1
	return slices.Concat(body[:len(body)-1], []byte(`,"pad":"`), bytes.Repeat([]byte("x"), pad), []byte(`"}`))
}

func TestBodySize(t *testing.T) {
	const limit = 20_000
	r := oneServer(t, maxBody(limit))
	eachProvider(t, func(t *testing.T, p normalize.Provider) {
		for _, chunked := range []bool{false, true} {
			for _, c := range []struct {
				size   int
				status int
				want   string
			}{
				{limit, http.StatusOK, "accepted"},
				{limit + 1, http.StatusRequestEntityTooLarge, "body_too_large"},
				{4 * limit, http.StatusRequestEntityTooLarge, "body_too_large"},
			} {
				request := r.signed(p, r.padded(p, c.size))
				if chunked {
					request.ContentLength = -1
				}
				a := r.send(request)
				if a.Status != c.status || a.Result+a.Reason != c.want {
					t.Errorf("%d bytes, chunked %v: got %d %s", c.size, chunked, a.Status, a.text)
				}
			}
		}
		empty := r.send(r.signed(p, nil))
		if p.Scheme.Time == signature.BodyTime {
			empty.expect(t, http.StatusUnauthorized, "timestamp_outside_tolerance")
		} else {
			empty.expect(t, http.StatusOK, "quarantined")
		}
	})
}

// typeField returns the member that holds the event type, which it finds by
// changing one after the other.
func typeField(t *testing.T, p normalize.Provider, body []byte) string {
	t.Helper()
	var members map[string]json.RawMessage
	if err := json.Unmarshal(body, &members); err != nil {
		t.Fatal(err)
	}
	for name := range members {
		e, err := p.Event(with(t, body, name, `"brand.new"`), start)
		if err == nil && strings.Contains(e.Kind, "brand.new") {
			return name
		}
	}
	t.Fatalf("no member of %s is the event type", body)
	return ""
}

// with returns the body with a member set, or removed if value is empty.
func with(t *testing.T, body []byte, name, value string) []byte {
	t.Helper()
	var members map[string]json.RawMessage
	if err := json.Unmarshal(body, &members); err != nil {
		t.Fatal(err)
	}
	members[name] = json.RawMessage(value)
	if value == "" {
		delete(members, name)
	}
	out, err := json.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestUnknownType(t *testing.T) {
	r := oneServer(t)
	eachProvider(t, func(t *testing.T, p normalize.Provider) {
		body := r.fresh(p)
		field := typeField(t, p, body)
		a := r.send(r.signed(p, with(t, body, field, `"brand.new"`)))
		a.expect(t, http.StatusOK, "accepted")
		msg := r.message("WEBHOOKS", a.ID)
		if !strings.Contains(msg.Subject, "brand.new") || !strings.HasPrefix(msg.Subject, "webhooks."+p.Name+".") {
			t.Errorf("subject %s", msg.Subject)
		}
		if typ := msg.Header.Get("ce-type"); !strings.HasPrefix(typ, p.TypePrefix) || !strings.Contains(typ, "brand.new") {
			t.Errorf("type %s", typ)
		}
		for name, value := range map[string]string{"missing": "", "empty": `""`, "a number": "7", "null": "null"} {
			bad := with(t, body, field, value)
			a := r.send(r.signed(p, bad))
			a.expect(t, http.StatusOK, "quarantined")
			msg := r.message("WEBHOOKS_QUARANTINE", a.ID)
			if want := "quarantine." + p.Name + ".type_missing"; msg.Subject != want || !bytes.Equal(msg.Data, bad) {
				t.Errorf("%s: subject %s, body %s", name, msg.Subject, msg.Data)
			}
		}
	})
}

func TestNotJSON(t *testing.T) {
	r := oneServer(t)
	eachProvider(t, func(t *testing.T, p normalize.Provider) {
		for _, body := range []string{"", "hello", "[]", "null", "7", `"x"`, `{"a":1`, `{"a":1}{}`, "\xef\xbb\xbf{}", strings.Repeat("[", 20_000)} {
			a := r.send(r.signed(p, []byte(body)))
			if p.Scheme.Time == signature.BodyTime { // there is no signed time in it
				a.expect(t, http.StatusUnauthorized, "timestamp_outside_tolerance")
				continue
			}
			a.expect(t, http.StatusOK, "quarantined")
			msg := r.message("WEBHOOKS_QUARANTINE", a.ID)
			if want := "quarantine." + p.Name + ".body_not_json"; msg.Subject != want || string(msg.Data) != body {
				t.Errorf("%.20q: subject %s, body %.20q", body, msg.Subject, msg.Data)
			}
		}
	})
}

func TestSameEventTwice(t *testing.T) {
	r := oneServer(t)
	eachProvider(t, func(t *testing.T, p normalize.Provider) {
		before := r.stored("WEBHOOKS")
		body := r.fresh(p)
		first := r.send(r.signed(p, body))
		first.expect(t, http.StatusOK, "accepted")
		second := r.send(r.signed(p, body))
		second.expect(t, http.StatusOK, "duplicate")
		if first.ID != second.ID {
			t.Errorf("ids %s and %s", first.ID, second.ID)
		}
		third := r.send(r.signed(p, r.fresh(p)))
		third.expect(t, http.StatusOK, "accepted")
		if n := r.stored("WEBHOOKS") - before; n != 2 {
			t.Errorf("%d messages stored", n)
		}
	})
}

func TestManyCopiesAtOnce(t *testing.T) {
	t.Run("one server", func(t *testing.T) {
		manyCopies(t, oneServer(t))
	})
	t.Run("three servers", func(t *testing.T) {
		r := newRig(t, natstest.Cluster(t, 3).URL(), replicas(3)).ready()
		manyCopies(t, r)
	})
}

func manyCopies(t *testing.T, r *rig) {
	eachProvider(t, func(t *testing.T, p normalize.Provider) {
		before := r.stored("WEBHOOKS")
		body := r.fresh(p)
		answers := make([]answer, 64)
		var wg sync.WaitGroup
		for i := range answers {
			request := r.signed(p, body)
			wg.Go(func() { answers[i] = r.serve(request) })
		}
		wg.Wait()
		accepted := 0
		for _, a := range answers {
			if a.Status != http.StatusOK || a.ID != answers[0].ID {
				t.Errorf("got %d %s", a.Status, a.text)
			}
			if a.Result == "accepted" {
				accepted++
			}
		}
		if n := r.stored("WEBHOOKS") - before; n != 1 || accepted != 1 {
			t.Errorf("%d stored, %d answered accepted", n, accepted)
		}
	})
}

func TestMethodAndEncoding(t *testing.T) {
	r := oneServer(t)
	eachProvider(t, func(t *testing.T, p normalize.Provider) {
		for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete, http.MethodOptions} {
			request := r.signed(p, r.fresh(p))
			request.Method = method
			a := r.send(request)
			a.expect(t, http.StatusMethodNotAllowed, "method_not_allowed")
			if a.Header.Get("Allow") != http.MethodPost {
				t.Errorf("Allow: %q", a.Header.Get("Allow"))
			}
		}
		for encoding, want := range map[string]int{"gzip": 415, "br": 415, "identity, gzip": 415, "identity": 200, "": 200} {
			request := r.signed(p, r.fresh(p))
			request.Header.Set("Content-Encoding", encoding)
			if a := r.send(request); a.Status != want {
				t.Errorf("Content-Encoding %q: got %d %s", encoding, a.Status, a.text)
			}
		}
		request := r.signed(p, r.fresh(p))
		request.Header.Set("Content-Type", "text/plain")
		request.Header.Set("Accept", "text/html")
		r.send(request).expect(t, http.StatusOK, "accepted")
	})
}
