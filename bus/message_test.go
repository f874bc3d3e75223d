package bus_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"pgregory.net/rapid"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/binding"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
)

// sample returns the event of a documented body.
func sample(t *testing.T, provider, name string) *normalize.Event {
	t.Helper()
	p, ok := normalize.ByName(provider)
	if !ok {
		t.Fatalf("no provider %q", provider)
	}
	for _, s := range p.Samples() {
		if s.Name == name {
			return eventOf(t, provider, string(s.Body))
		}
	}
	t.Fatalf("%s has no sample %q", provider, name)
	return nil
}

// attributes returns all attributes and extensions in their text form.
func attributes(t *testing.T, ce event.Event) map[string]string {
	t.Helper()
	attributes := map[string]string{
		"specversion": ce.SpecVersion(),
		"id":          ce.ID(),
		"source":      ce.Source(),
		"type":        ce.Type(),
		"subject":     ce.Subject(),
		"time":        types.FormatTime(ce.Time()),
		"contenttype": ce.DataContentType(),
		"dataschema":  ce.DataSchema(),
	}
	for name, value := range ce.Extensions() {
		text, err := types.Format(value)
		if err != nil {
			t.Fatal(err)
		}
		attributes[name] = text
	}
	return attributes
}

func wantSameEvent(t *testing.T, want, got event.Event) {
	t.Helper()
	if diff := cmp.Diff(attributes(t, want), attributes(t, got)); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
	if string(got.Data()) != string(want.Data()) {
		t.Errorf("data: got %q, want %q", got.Data(), want.Data())
	}
}

// The messages of one documented body of each provider, as consumers see them:
// subject and headers. The digests are the event's own.
func TestGoldenMessages(t *testing.T) {
	b := openReady(t, external(natstest.Server(t)))
	for _, test := range []struct{ provider, sample, want string }{
		{"dataspike", "aml_screening-docs", `
webhooks.dataspike.aml_screening
Bridge-Key: {key}
Nats-Expected-Stream: WEBHOOKS
Nats-Msg-Id: {id}
ce-datacontenttype: application/json
ce-dedupbasis: content
ce-externalid: external_id_123
ce-id: {id}
ce-provider: dataspike
ce-providereventid: 01827ed4-c928-7a3c-9a30-7ab7cc169d11
ce-recordedtime: 2026-07-01T10:00:01.25Z
ce-risk: low
ce-source: https://dataspike.io
ce-specversion: 1.0
ce-subject: 01827ed4-c928-7a3c-9a30-7ab7cc169d11
ce-time: 2023-07-18T15:32:13Z
ce-type: io.dataspike.aml_screening
content-type: application/json
`},
		{"dfns", "wallet.blockchainevent.detected", `
webhooks.dfns.wallet.blockchainevent.detected
Bridge-Aliases: {aliases}
Bridge-Key: {key}
Nats-Expected-Stream: WEBHOOKS
Nats-Msg-Id: {id}
ce-attempt: 2
ce-datacontenttype: application/json
ce-dedupbasis: content
ce-id: {id}
ce-provider: dfns
ce-providereventid: <string>
ce-recordedtime: 2026-07-01T10:00:01.25Z
ce-source: https://dfns.co
ce-specversion: 1.0
ce-subject: wa-1f04s-lqc9q-xxxxxxxxxxxxxxxx
ce-time: 2023-11-07T05:31:56Z
ce-type: co.dfns.wallet.blockchainevent.detected
content-type: application/json
`},
		{"osapher", "verification.completed", `
webhooks.osapher.verification.completed
Bridge-Key: {key}
Nats-Expected-Stream: WEBHOOKS
Nats-Msg-Id: {id}
ce-datacontenttype: application/json
ce-dedupbasis: content
ce-id: {id}
ce-outcome: approved
ce-provider: osapher
ce-recordedtime: 2026-07-01T10:00:01.25Z
ce-risk: low
ce-source: https://osapher.com
ce-specversion: 1.0
ce-subject: 22222222222
ce-time: 2026-04-26T10:23:01Z
ce-type: com.osapher.verification.completed
content-type: application/json
`},
		{"trusthub", "auto_approved-other-key-order", `
webhooks.trusthub.onboarding.auto_approved
Bridge-State-Key: {state key}
Bridge-State: {state}
Bridge-Token: TOKEN
Nats-Expected-Stream: WEBHOOKS
Nats-Msg-Id: {id}
ce-datacontenttype: application/json
ce-dedupbasis: state
ce-externalid: external%20code%20123
ce-id: {id}
ce-outcome: approved
ce-provider: trusthub
ce-recordedtime: 2026-07-01T10:00:01.25Z
ce-source: urn:trusthub:project:test-project
ce-specversion: 1.0
ce-subject: 186e4aaa-95f5-461d-9ff1-837bf1484b10
ce-time: 2026-07-01T10:00:01.25Z
ce-type: com.trusthub.onboarding.auto_approved
content-type: application/json
`},
		{"waldo", "evaluation-fraud-initiated", `
webhooks.waldo.evaluation.fraud.initiated
Bridge-Key: {key}
Bridge-State-Key: {state key}
Bridge-State: {state}
Nats-Expected-Stream: WEBHOOKS
Nats-Msg-Id: {id}
ce-datacontenttype: application/json
ce-dedupbasis: id
ce-externalid: abcd-123-456-efgh
ce-id: {id}
ce-outcome: review
ce-provider: waldo
ce-recordedtime: 2026-07-01T10:00:01.25Z
ce-requestid: ayclpQyi6p
ce-source: https://waldo.ai
ce-specversion: 1.0
ce-subject: 650c3ebe44aa0043cc846755
ce-time: 2026-07-01T10:00:01.25Z
ce-type: ai.waldo.evaluation.fraud.initiated
content-type: application/json
`},
	} {
		t.Run(test.provider, func(t *testing.T) {
			e := sample(t, test.provider, test.sample)
			m := message(t, b.JetStream(), b.Stream(), mustPublish(t, b, e))
			symbols := map[string]string{
				e.CloudEvent.ID():                     "{id}",
				e.Identity.Key:                        "{key}",
				strings.Join(e.Identity.Aliases, ","): "{aliases}",
				e.Identity.StateKey:                   "{state key}",
				e.Identity.State:                      "{state}",
			}
			var lines []string
			for header, values := range m.Header {
				if len(values) != 1 {
					t.Errorf("header %s has %d values", header, len(values))
				}
				value, ok := symbols[values[0]]
				if !ok {
					value = values[0]
				}
				lines = append(lines, header+": "+value)
			}
			slices.Sort(lines)
			got := m.Subject + "\n" + strings.Join(lines, "\n")
			if diff := cmp.Diff(strings.TrimSpace(test.want), got); diff != "" {
				t.Errorf("message (-want +got):\n%s", diff)
			}
			if string(m.Data) != string(e.CloudEvent.Data()) {
				t.Errorf("body: got %q, want %q", m.Data, e.CloudEvent.Data())
			}
		})
	}
}

func TestDecodeReadsWhatPublishWrites(t *testing.T) {
	b := openReady(t, external(natstest.Server(t)))
	for _, p := range normalize.Providers() {
		for _, s := range p.Samples() {
			t.Run(p.Name+"/"+s.Name, func(t *testing.T) {
				e := eventOf(t, p.Name, string(s.Body))
				e.CloudEvent.SetDataSchema("https://example.com/schemas/" + p.Name + ".json")
				m := message(t, b.JetStream(), b.Stream(), mustPublish(t, b, e))
				got, err := binding.Decode(m.Header, m.Data)
				if err != nil {
					t.Fatal(err)
				}
				wantSameEvent(t, e.CloudEvent, got)
				if got := m.Header.Get(jetstream.MsgIDHeader); got != e.CloudEvent.ID() {
					t.Errorf("Nats-Msg-Id is %q, the event's id %q", got, e.CloudEvent.ID())
				}
			})
		}
	}
}

// CloudEvents HTTP protocol binding 1.0.2, section 3.1.3.2, to which the NATS
// binding refers. The first case is the specification's own.
func TestPercentEncoding(t *testing.T) {
	b := openReady(t, external(natstest.Server(t)))
	for _, test := range []struct{ name, text, wire string }{
		{"example", "Euro € 😀", "Euro%20%E2%82%AC%20%F0%9F%98%80"},
		{"plain", "AbZ-09_.~", "AbZ-09_.~"},
		{"first and last printable", "!~", "!~"},
		{"reserved in URLs", "a+b/c?d=e&f#g", "a+b/c?d=e&f#g"},
		{"space", " ", "%20"},
		{"quote", `"a"`, "%22a%22"},
		{"percent", "100%", "100%25"},
		{"encoded already", "%20", "%2520"},
		{"line break", "a\r\nNats-Msg-Id: b", "a%0D%0ANats-Msg-Id:%20b"},
		{"NUL, DEL", "\x00\x7f", "%00%7F"},
		{"Latin", "Grüße", "Gr%C3%BC%C3%9Fe"},
		{"noncharacter", "\ufffe", "%EF%BF%BE"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := newEvent(t, test.name)
			e.CloudEvent.SetExtension("externalid", test.text)
			m := message(t, b.JetStream(), b.Stream(), mustPublish(t, b, e))
			if got := m.Header["ce-externalid"]; !slices.Equal(got, []string{test.wire}) {
				t.Errorf("header: got %q, want %q", got, test.wire)
			}
			ce, err := binding.Decode(m.Header, m.Data)
			if err != nil {
				t.Fatal(err)
			}
			if got := ce.Extensions()["externalid"]; got != test.text {
				t.Errorf("Decode: got %q, want %q", got, test.text)
			}
		})
	}
}

func TestAnyTextSurvives(t *testing.T) {
	b := openReady(t, external(natstest.Server(t)))
	wire := regexp.MustCompile(`^([!#$&-~]|%[0-9A-F]{2})+$`)
	n := 0
	rapid.Check(t, func(r *rapid.T) {
		text := rapid.StringN(1, 80, -1)
		e := newEvent(t, n)
		n++
		e.CloudEvent.SetExtension("externalid", text.Draw(r, "externalid"))
		e.CloudEvent.SetSubject(text.Draw(r, "subject")) // trims it
		body := rapid.SliceOf(rapid.Byte()).Draw(r, "body")
		e.CloudEvent.DataEncoded = body

		m := message(t, b.JetStream(), b.Stream(), mustPublish(t, b, e))
		for name, values := range m.Header {
			if strings.HasPrefix(name, "ce-") && !wire.MatchString(values[0]) {
				r.Errorf("header %s: %q", name, values[0])
			}
		}
		got, err := binding.Decode(m.Header, m.Data)
		if err != nil {
			r.Fatal(err)
		}
		if diff := cmp.Diff(attributes(t, e.CloudEvent), attributes(t, got)); diff != "" {
			r.Errorf("attributes (-want +got):\n%s", diff)
		}
		if string(got.Data()) != string(body) {
			r.Errorf("data: got %q, want %q", got.Data(), body)
		}
	})
}

func TestDecodeErrors(t *testing.T) {
	good := func() nats.Header {
		return nats.Header{
			"ce-specversion": {"1.0"},
			"ce-id":          {"1"},
			"ce-source":      {"https://example.com"},
			"ce-type":        {"com.example"},
			"ce-time":        {"2026-07-01T10:00:00Z"},
			"ce-attempt":     {"1"},
			"Nats-Msg-Id":    {"1"},
			"ce-empty":       {},
		}
	}
	if _, err := binding.Decode(good(), nil); err != nil {
		t.Fatalf("Decode: %v", err)
	}
	for _, test := range []struct{ name, header, value, want string }{
		{"id missing", "ce-id", "", "id"},
		{"source missing", "ce-source", "", "source"},
		{"source is no URI reference", "ce-source", "%2525:", "source"},
		{"type missing", "ce-type", "", "type"},
		{"unknown version", "ce-specversion", "9.9", "specversion"},
		{"time is none", "ce-time", "yesterday", "attribute time"},
		{"percent alone", "ce-attempt", "100%", "attribute attempt"},
		{"name of an extension", "ce-not_allowed", "1", "not_allowed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := good()
			delete(h, test.header)
			if test.value != "" {
				h[test.header] = []string{test.value}
			}
			_, err := binding.Decode(h, nil)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Decode: got the error %v, want one with %q", err, test.want)
			}
		})
	}
}

func TestDecodeWithoutHeaders(t *testing.T) {
	if _, err := binding.Decode(nil, []byte("{}")); err == nil {
		t.Error("Decode returns no error")
	}
}

func TestPublishRefusesWhatIsNoEvent(t *testing.T) {
	b := openReady(t, external(natstest.Server(t)))
	for _, test := range []struct {
		name   string
		change func(*normalize.Event)
	}{
		{"no id", func(e *normalize.Event) {
			*e = normalize.Event{Provider: "waldo", Kind: "flag", CloudEvent: event.New()}
		}},
		{"headers beyond 64 KiB", func(e *normalize.Event) { e.CloudEvent.SetExtension("big", strings.Repeat("x", 64<<10)) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := newEvent(t, test.name)
			test.change(e)
			wantError(t, b, e, bus.ErrNotPublishable)
		})
	}
	if got := streamInfo(t, b.JetStream(), b.Stream()).State.Msgs; got != 0 {
		t.Errorf("the stream holds %d messages, want none", got)
	}
}
