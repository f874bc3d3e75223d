package events_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/events"
	"github.com/hookbus/bridge/events/dfns"
	"github.com/hookbus/bridge/events/trusthub"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
	"github.com/hookbus/bridge/schemas"
)

func TestMain(m *testing.M) { natstest.Main(m) }

// message is a message of the stream, as the bridge writes it.
type message struct {
	header nats.Header
	body   []byte
}

func (m message) Headers() nats.Header { return m.header }
func (m message) Data() []byte         { return m.body }

func of(ceType, body string) message {
	return message{nats.Header{
		"ce-specversion": {"1.0"}, "ce-id": {"1"}, "ce-source": {"urn:x"}, "ce-type": {ceType}, "ce-time": {"2026-01-01T00:00:00Z"},
		"ce-datacontenttype": {"application/json"}, "ce-subject": {"J%C3%BCrgen"}, "ce-outcome": {"approved"}, "ce-provider": {"p"}, "ce-schemaerror": {"/a"},
	}, []byte(body)}
}

func TestDecode(t *testing.T) {
	body := `{"sessionId":"s-1","status":"AUTO_APPROVED"}`
	e, err := events.Decode(t.Context(), nil, of("com.trusthub.onboarding.auto_approved", body))
	if err != nil {
		t.Fatal(err)
	}
	if e.Subject() != "Jürgen" || e.Outcome() != "approved" || e.Provider() != "p" || e.SchemaError() != "/a" || string(e.Data()) != body {
		t.Errorf("got %v", e)
	}
	want := &trusthub.OnboardingEvent{SessionID: "s-1", Status: "AUTO_APPROVED"}
	if diff := cmp.Diff(want, e.Payload); diff != "" {
		t.Error(diff)
	}
}

// What is no name that comes twice.
func TestDecodeTellsNamesApart(t *testing.T) {
	for name, member := range map[string]string{
		"ı is upper-cased to I, and is another letter than i to the decoder": `"sess\u0131onId":"s-2"`,
		"equal strings in a list":     `"a":["b","b",["b"],"b"]`,
		"equal names of two objects":  `"a":[{"b":1},{"b":2}],"c":{"a":1}`,
		"a value that is like a name": `"a":"sessionId","b":"a"`,
	} {
		e, err := events.Decode(t.Context(), nil, of("com.trusthub.onboarding.auto_approved", `{"sessionId":"s-1",`+member+`,"status":"AUTO_APPROVED"}`))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if p, ok := e.Payload.(*trusthub.OnboardingEvent); !ok || p.SessionID != "s-1" {
			t.Errorf("%s: got %+v", name, e.Payload)
		}
	}
}

func TestDecodeErrors(t *testing.T) {
	for _, test := range []struct {
		name string
		msg  message
		want error
		says string
	}{
		{"no event", message{nil, []byte("{}")}, events.ErrNotEvent, ""},
		{"no JSON", of("com.trusthub.onboarding.auto_approved", "secret"), events.ErrPayload, "not JSON"},
		{"two cases", of("com.trusthub.onboarding.auto_rejected", `{"sessionId":"s","a":[{"x":{}}],"status":"AUTO_REJECTED","Status":"AUTO_APPROVED"}`), events.ErrPayload, "a name is there twice"},
		{"a name twice", of("com.trusthub.onboarding.auto_rejected", `{"sessionId":"s","status":"x","a":{"b":{"c":1},"b":{}}}`), events.ErrPayload, "a name is there twice"},
		{"a letter that folds to another", of("com.trusthub.onboarding.auto_rejected", `{"sessionId":"s","status":"AUTO_REJECTED","\u017ftatus":"AUTO_APPROVED"}`), events.ErrPayload, "a name is there twice"},
		{"two cases within", of("com.trusthub.onboarding.auto_rejected", `{"sessionId":"s","status":"x","a":[1,{"b":"c","B":2}]}`), events.ErrPayload, "a name is there twice"},
		{"another shape", of("com.trusthub.onboarding.auto_approved", `{"status":["secret"]}`), events.ErrPayload, "status is no string"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e, err := events.Decode(t.Context(), nil, test.msg)
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "secret") {
				t.Errorf("got %v", err)
			}
			if test.want == events.ErrPayload && (e.ID() != "1" || e.Payload != nil) {
				t.Errorf("the event is %v", e)
			}
		})
	}
	// What is not known has no payload, and is no error.
	if e, err := events.Decode(t.Context(), nil, of("com.trusthub.onboarding.new", "{}")); err != nil || e.Payload != nil {
		t.Errorf("got %v, %v", e, err)
	}
}

// A body that is in the object store is read there.
func TestDataref(t *testing.T) {
	nc := natstest.Connect(t, natstest.Server(t).ClientURL())
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	store, err := js.CreateObjectStore(t.Context(), jetstream.ObjectStoreConfig{Bucket: "B"})
	if err != nil {
		t.Fatal(err)
	}
	body := `{"sessionId":"s-1","status":"` + strings.Repeat("x", 2<<20) + `"}`
	if _, err := store.PutBytes(t.Context(), "name", []byte(body)); err != nil {
		t.Fatal(err)
	}
	msg := of("com.trusthub.onboarding.auto_approved", "")
	msg.header["ce-dataref"] = []string{"nats-object:B/name"}
	e, err := events.Decode(t.Context(), js, msg)
	if err != nil || string(e.Data()) != body || e.Payload.(*trusthub.OnboardingEvent).SessionID != "s-1" {
		t.Errorf("%d bytes, %v", len(e.Data()), err)
	}
	if _, err := events.Decode(t.Context(), nil, msg); !errors.Is(err, events.ErrBody) {
		t.Errorf("without object stores: %v", err)
	}
	for _, ref := range []string{"nats-object:B/none", "nats-object:none/name", "nats-object:B", "https://example.com"} {
		msg.header["ce-dataref"] = []string{ref}
		if _, err := events.Decode(t.Context(), js, msg); !errors.Is(err, events.ErrBody) {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

// Every sample has a payload that loses nothing but white space: what is read
// from the body and written again is what the schema names of it.
func TestSamples(t *testing.T) {
	for _, p := range normalize.Providers() {
		for _, s := range p.Samples() {
			t.Run(p.Name+"/"+s.Name, func(t *testing.T) {
				payload := events.PayloadOf(p.TypePrefix + s.Kind)
				if payload == nil {
					t.Fatal("no payload")
				}
				if err := json.Unmarshal(s.Body, payload); err != nil {
					t.Fatal(err)
				}
				again, err := json.Marshal(payload)
				if err != nil {
					t.Fatal(err)
				}
				for path, value := range leaves(t, again) {
					if original := leaves(t, s.Body)[path]; original != value {
						t.Errorf("%s: %s became %s", path, original, value)
					}
				}
			})
		}
	}
}

// leaves returns the scalars of a JSON text by their paths, as they are written.
func leaves(t *testing.T, text []byte) map[string]string {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	found := make(map[string]string)
	var walk func(string, any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, value := range v {
				walk(path+"/"+name, value)
			}
		case []any:
			for i, value := range v {
				walk(fmt.Sprintf("%s/%d", path, i), value)
			}
		default:
			found[path] = fmt.Sprint(v)
		}
	}
	walk("", v)
	return found
}

// Every type that has a schema has a payload, and none holds a float.
func TestPayloads(t *testing.T) {
	for _, typ := range schemas.Types() {
		p, _ := normalize.ByName(typ.Provider)
		payload := events.PayloadOf(p.TypePrefix + typ.Kind)
		if payload == nil {
			t.Errorf("%s/%s has no payload", typ.Provider, typ.Kind)
			continue
		}
		var seen []reflect.Type
		var walk func(reflect.Type)
		walk = func(of reflect.Type) {
			if slices.Contains(seen, of) {
				return
			}
			seen = append(seen, of)
			switch of.Kind() {
			case reflect.Float32, reflect.Float64, reflect.Interface:
				t.Errorf("%s/%s holds a %v", typ.Provider, typ.Kind, of)
			case reflect.Pointer, reflect.Slice, reflect.Map:
				walk(of.Elem())
			case reflect.Struct:
				for i := range of.NumField() {
					walk(of.Field(i).Type)
				}
			}
		}
		walk(reflect.TypeOf(payload))
	}
}

// An amount that no float holds stays as it is.
func TestAmounts(t *testing.T) {
	const amount = "123456789012345678901234567890"
	body := fmt.Sprintf(`{"id":"i","kind":"k","date":"d","timestampSent":1,"data":{"transferRequest":{"id":"x","walletId":"w","requestBody":{"kind":"Native","amount":%q},
		"metadata":{"asset":{"quotes":{"USD":0.1234567890123456789}}}}}}`, amount)
	e, err := events.Decode(t.Context(), nil, of("co.dfns.wallet.transfer.confirmed", body))
	if err != nil {
		t.Fatal(err)
	}
	r := e.Payload.(*dfns.TransferRequestEvent).Data.TransferRequest
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{amount, "0.1234567890123456789"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s is not in %s", want, text)
		}
	}
}
