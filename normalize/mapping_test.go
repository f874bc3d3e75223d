package normalize_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hookbus/bridge/normalize"
)

// typed are bodies with all but the event type, for which %s stands.
var typed = map[string]string{
	"dataspike": `{"event_type":%s,"id":"e-1"}`,
	"dfns":      `{"kind":%s,"id":"whe-1"}`,
	"osapher":   `{"event":%s}`,
	"trusthub":  `{"status":%s,"sessionId":"s-1"}`,
	"waldo":     `{"event":%s,"customerId":"c-1"}`,
}

func TestErrors(t *testing.T) {
	notJSON := map[string]string{
		"nothing":           "",
		"white space":       " \n",
		"array":             `[{"event":"a"}]`,
		"null":              "null",
		"string":            `"{}"`,
		"number":            "1",
		"true":              "true",
		"garbage":           "event=a&status=b",
		"trailing garbage":  "%s x",
		"trailing brace":    "%s}",
		"two objects":       "%s%s",
		"byte order mark":   "\ufeff%s",
		"trailing comma":    `{"event":"a",}`,
		"single quotes":     `{'event':'a'}`,
		"comment":           `{"event":"a"/**/}`,
		"NUL after it":      "%s\x00",
		"raw line break":    "{\"event\":\"a\nb\"}",
		"20,000 arrays":     `{"a":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + "}",
		"20,000 objects":    strings.Repeat(`{"a":`, 20000) + "1" + strings.Repeat("}", 20000),
		"20,000 open array": strings.Repeat("[", 20000),
	}
	noType := map[string]string{
		"empty":           `""`,
		"null":            `null`,
		"number":          `7`,
		"true":            `true`,
		"object":          `{"event":"a"}`,
		"array":           `["a"]`,
		"NUL":             `"a\u0000b"`,
		"line break":      `"a\r\nce-id: x"`,
		"delete":          `"a\u007f"`,
		"C1 control":      `"a\u0085"`,
		"noncharacter":    `"\uffff"`,
		"noncharacter 2":  `"a\ufdd0"`,
		"plane 16's last": `"\udbff\udfff"`,
	}
	for _, p := range normalize.Providers() {
		run := func(name, body string, want error) {
			t.Run(p.Name+"/"+name, func(t *testing.T) {
				if e, err := p.Event([]byte(body), received); e != nil || !errors.Is(err, want) {
					t.Errorf("got %v, %v, want %v", e, err, want)
				}
			})
		}
		good := fmt.Sprintf(typed[p.Name], `"a"`)
		for name, body := range notJSON {
			run(name, strings.ReplaceAll(body, "%s", good), normalize.ErrNotJSON)
		}
		t.Run(p.Name+"/truncated", func(t *testing.T) {
			for i := range len(good) {
				if _, err := p.Event([]byte(good[:i]), received); !errors.Is(err, normalize.ErrNotJSON) {
					t.Errorf("%s: got %v", good[:i], err)
				}
			}
		})
		run("type missing", `{}`, normalize.ErrNoType)
		run("type's name in other letters", strings.NewReplacer(`"event`, `"Event`, `"kind`, `"KIND`, `"status`, `"Status`).Replace(good), normalize.ErrNoType)
		for name, value := range noType {
			run("type: "+name, fmt.Sprintf(typed[p.Name], value), normalize.ErrNoType)
		}
		for _, n := range []int{normalize.MaxValue, 100_000} {
			run(fmt.Sprint("type of ", n), fmt.Sprintf(typed[p.Name], `"`+strings.Repeat("a", n)+`"`), normalize.ErrTypeTooLong)
		}
	}
}

// A type of the greatest length is accepted.
func TestLongestType(t *testing.T) {
	for _, p := range normalize.Providers() {
		prefix := p.TypePrefix
		if p.Name == "trusthub" {
			prefix += "onboarding."
		}
		body := fmt.Sprintf(typed[p.Name], `"`+strings.Repeat("a", normalize.MaxValue-len(prefix))+`"`)
		if got := len(mapped(t, p.Name, body).CloudEvent.Type()); got != normalize.MaxValue {
			t.Errorf("%s: type of %d bytes", p.Name, got)
		}
	}
}

func TestMapping(t *testing.T) {
	const now = "2026-05-06T07:08:09.123456789Z"
	type want = map[string]string // "" is absent; "nats" is the NATS subject
	long := strings.Repeat("x", normalize.MaxValue+1)
	longest := long[1:]
	for _, test := range []struct {
		provider, name, body string
		want                 want
	}{
		{"dataspike", "all", dataspikeBody, want{
			"specversion": "1.0", "type": "io.dataspike.docver", "source": "https://dataspike.io", "subject": "a-1", "time": "2026-01-02T03:04:05Z",
			"datacontenttype": "application/json", "dataschema": "", "provider": "dataspike", "dedupbasis": "id", "recordedtime": now,
			"externalid": "", "requestid": "", "providereventid": "e-1", "attempt": "", "outcome": "approved", "risk": "", "nats": "webhooks.dataspike.docver",
		}},
		{"dataspike", "unknown type", `{"event_type":"KYT_WALLET_CHECK","id":"e-1"}`, want{"type": "io.dataspike.kyt_wallet_check", "nats": "webhooks.dataspike.kyt_wallet_check", "subject": "", "time": now}},
		{"dataspike", "id is webhook_id", swap(dataspikeBody, "w-1", "e-1"), want{"dedupbasis": "content", "providereventid": "e-1"}},
		{"dataspike", "neither id nor time", `{"event_type":"AML"}`, want{"dedupbasis": "state", "providereventid": ""}},
		{"dataspike", "reference", swap(dataspikeBody, `"a-1"`, `"a-1","external_id":"x"`), want{"externalid": "x"}},
		{"dataspike", "payload is no object", swap(dataspikeBody, `{"applicant_id":"a-1","status":"verified"}`, `["a-1"]`), want{"subject": "", "outcome": "", "dedupbasis": "id"}},
		{"dataspike", "names in other letters", `{"event_type":"DOCVER","ID":"e-1","Timestamp":"2026-01-02T03:04:05Z","Payload":{"applicant_id":"a-1"}}`, want{"providereventid": "", "subject": "", "time": now, "dedupbasis": "state"}},
		{"dataspike", "numbers as ids", `{"event_type":"DOCVER","id":12345678901234567890,"payload":{"applicant_id":1e400}}`, want{"providereventid": "12345678901234567890", "subject": "1e400", "dedupbasis": "id"}},
		{"dataspike", "last of repeated names", `{"event_type":"AML","event_type":"DOCVER","id":"e-1","id":"e-2","payload":{"status":"failed"},"payload":{"applicant_id":"a-1","applicant_id":"a-2"}}`,
			want{"type": "io.dataspike.docver", "providereventid": "e-2", "subject": "a-2", "outcome": ""}},

		{"dfns", "all", dfnsBody, want{
			"specversion": "1.0", "type": "co.dfns.wallet.tags.modified", "source": "https://dfns.co", "subject": "wa-1", "time": "2026-01-02T03:04:05.678Z",
			"datacontenttype": "application/json", "dataschema": "", "provider": "dfns", "dedupbasis": "content", "recordedtime": now,
			"externalid": "", "requestid": "", "providereventid": "whe-1", "attempt": "1", "outcome": "", "risk": "", "nats": "webhooks.dfns.wallet.tags.modified",
		}},
		{"dfns", "unknown type", `{"kind":"Wallet.New>Kind.*","date":"2026-01-02"}`, want{"type": "co.dfns.Wallet.New>Kind.*", "nats": "webhooks.dfns._allet._ew__ind._", "time": now, "dedupbasis": "content"}},
		{"dfns", "no date", swap(dfnsBody, `"date":"2026-01-02T03:04:05.678Z",`, ""), want{"dedupbasis": "state", "time": now}},
		{"dfns", "last of repeated names", swap(dfnsBody, `"kind"`, `"id":"whe-2","kind":"a","kind"`), want{"type": "co.dfns.wallet.tags.modified", "providereventid": "whe-2"}},

		{"osapher", "all", osapherBody, want{
			"specversion": "1.0", "type": "com.osapher.verification.completed", "source": "https://osapher.com", "subject": "22222222222", "time": "2026-01-02T03:04:05.678Z",
			"datacontenttype": "application/json", "dataschema": "", "provider": "osapher", "dedupbasis": "content", "recordedtime": now,
			"externalid": "", "requestid": "", "providereventid": "", "attempt": "", "outcome": "approved", "risk": "", "nats": "webhooks.osapher.verification.completed",
		}},
		{"osapher", "unknown type", `{"event":"certificate.revoked"}`, want{"type": "com.osapher.certificate.revoked", "nats": "webhooks.osapher.certificate.revoked", "dedupbasis": "state"}},
		{"osapher", "New Zealand", `{"event":"a","data":{"abn":null,"nzbn":"9429000000000"}}`, want{"subject": "9429000000000"}},
		{"osapher", "Australia", `{"event":"a","data":{"nzbn":null,"abn":"22222222222"}}`, want{"subject": "22222222222"}},
		{"osapher", "abn before nzbn", `{"event":"a","data":{"nzbn":"9","abn":"2"}}`, want{"subject": "2"}},
		{"osapher", "abn a number", `{"event":"a","data":{"abn":22222222222}}`, want{"subject": "22222222222"}},

		{"trusthub", "all", swap(trusthubBody, `"p-1"`, `"p-1","externalId":"x 1"`), want{
			"specversion": "1.0", "type": "com.trusthub.onboarding.manual_approved", "source": "urn:trusthub:project:p-1", "subject": "s-1", "time": now,
			"datacontenttype": "application/json", "dataschema": "", "provider": "trusthub", "dedupbasis": "state", "recordedtime": now,
			"externalid": "x 1", "requestid": "", "providereventid": "", "attempt": "", "outcome": "approved", "risk": "", "nats": "webhooks.trusthub.onboarding.manual_approved",
		}},
		{"trusthub", "unknown type", swap(trusthubBody, "MANUAL_APPROVED", "Session started"), want{"type": "com.trusthub.onboarding.session started", "nats": "webhooks.trusthub.onboarding.session_started"}},
		{"trusthub", "a status with dots", swap(trusthubBody, "MANUAL_APPROVED", "A..B."), want{"type": "com.trusthub.onboarding.a..b.", "nats": "webhooks.trusthub.onboarding.a._.b._"}},
		{"trusthub", "a timestamp is not its time", swap(trusthubBody, `"p-1"`, `"p-1","timestamp":"2026-01-02T03:04:05Z"`), want{"time": now}},
		{"trusthub", "no project", `{"status":"A","sessionId":"s-1"}`, want{"source": "urn:trusthub"}},
		{"trusthub", "empty project", `{"status":"A","sessionId":"s-1","projectId":""}`, want{"source": "urn:trusthub"}},
		{"trusthub", "project of spaces and marks", swap(trusthubBody, "p-1", "a b/c?d#e%f:g"), want{"source": "urn:trusthub:project:a%20b%2Fc%3Fd%23e%25f:g"}},
		{"trusthub", "project beyond ASCII", swap(trusthubBody, "p-1", "é"), want{"source": "urn:trusthub:project:%C3%A9"}},
		{"trusthub", "project of dots", swap(trusthubBody, "p-1", ".."), want{"source": "urn:trusthub:project:.."}},
		{"trusthub", "project with a line break", swap(trusthubBody, "p-1", `a\nb`), want{"source": "urn:trusthub"}},
		{"trusthub", "project too long", swap(trusthubBody, "p-1", long), want{"source": "urn:trusthub"}},
		{"trusthub", "project a number", swap(trusthubBody, `"p-1"`, `42`), want{"source": "urn:trusthub:project:42"}},
		{"trusthub", "project an object", swap(trusthubBody, `"p-1"`, `{}`), want{"source": "urn:trusthub"}},

		{"waldo", "all", swap(waldoBody, `"c-1"`, `"c-1","externalId":"x"`), want{
			"specversion": "1.0", "type": "ai.waldo.evaluation.fraud.initiated", "source": "https://waldo.ai", "subject": "c-1", "time": now,
			"datacontenttype": "application/json", "dataschema": "", "provider": "waldo", "dedupbasis": "id", "recordedtime": now,
			"externalid": "x", "requestid": "r-1", "providereventid": "", "attempt": "", "outcome": "", "risk": "", "nats": "webhooks.waldo.evaluation.fraud.initiated",
		}},
		{"waldo", "flag", waldoFlag, want{"type": "ai.waldo.flag", "nats": "webhooks.waldo.flag", "dedupbasis": "state", "requestid": ""}},
		{"waldo", "unknown type", `{"event":"unflag","customerId":"c-1"}`, want{"type": "ai.waldo.unflag", "nats": "webhooks.waldo.unflag"}},
		{"waldo", "evaluation with a type only", `{"event":"evaluation","evaluation":{"type":"kyc"},"customerId":"c-1"}`, want{"type": "ai.waldo.evaluation.kyc"}},
		{"waldo", "evaluation is no object", `{"event":"evaluation","evaluation":"kyc","customerId":"c-1"}`, want{"type": "ai.waldo.evaluation"}},
		{"waldo", "requestId without customerId", `{"event":"onboard","requestId":"r-1"}`, want{"subject": "", "requestid": "r-1", "dedupbasis": "id"}},

		// Values for headers.
		{"dfns", "reference", swap(dfnsBody, `"wa-1"`, `"wa-1","externalId":"x"`), want{"externalid": "x"}},
		{"dfns", "reference of another object", swap(dfnsBody, `"tagsAdded"`, `"key":{"externalId":"x"},"tagsAdded"`), want{"externalid": ""}},
		{"waldo", "longest values", `{"event":"a","customerId":"` + longest + `","externalId":"` + longest + `","requestId":"` + longest + `"}`, want{"subject": longest, "externalid": longest, "requestid": longest}},
		{"waldo", "values too long", `{"event":"a","customerId":"` + long + `","externalId":"` + long + `","requestId":"` + long + `"}`, want{"subject": "", "externalid": "", "requestid": "", "dedupbasis": "id"}},
		{"dfns", "values too long", `{"kind":"a","date":"` + long + `","id":"` + long + `","data":{"x":{"id":"` + long + `"}}}`, want{"time": now, "providereventid": "", "subject": "", "dedupbasis": "content"}},
		{"waldo", "too long in bytes only", `{"event":"a","customerId":"` + strings.Repeat("é", normalize.MaxValue/2+1) + `"}`, want{"subject": ""}},
		{"waldo", "values with control characters", `{"event":"a","customerId":"c\u0000","externalId":"x\r\nce-id: 1","requestId":"r\u009f"}`, want{"subject": "", "externalid": "", "requestid": "", "dedupbasis": "id"}},
		{"waldo", "values beyond ASCII", `{"event":"a","customerId":"é \u2028\ud83d\ude00","externalId":"\"%"}`, want{"subject": "é \u2028😀", "externalid": `"%`}},
		{"waldo", "values that are no text", `{"event":"a","requestId":"r-1","customerId":true,"externalId":{"a":1}}`, want{"subject": "", "externalid": ""}},
		{"waldo", "no Unicode", "{\"event\":\"a\",\"customerId\":\"c\xff\",\"requestId\":\"\\ud800\"}", want{"subject": "c\ufffd", "requestid": "\ufffd"}},
		{"dfns", "numbers beyond a float", swap(dfnsBody, `["a"]`, `[1234567890123456789012345678901234567890.10,1e400,-0.0]`), want{"subject": "wa-1"}},
		{"dfns", "repeated names and white space", " " + swap(dfnsBody, `"tagsAdded"`, ` "wallet" : {"id":"wa-0","id":"wa-2"} , "tagsAdded"`) + "\r\n", want{"subject": "wa-2"}},
	} {
		t.Run(test.provider+"/"+test.name, func(t *testing.T) {
			e := mapped(t, test.provider, test.body)
			got := attributes(t, e.CloudEvent)
			got["nats"] = e.Subject("webhooks")
			for name, value := range test.want {
				if got[name] != value {
					t.Errorf("%s is %q, want %q", name, got[name], value)
				}
			}
		})
	}
}

// A time that is not RFC 3339 is the time of receipt.
func TestTime(t *testing.T) {
	for name, test := range map[string]struct{ at, want string }{
		"seconds":       {`"2026-01-02T03:04:05Z"`, "2026-01-02T03:04:05Z"},
		"nanoseconds":   {`"2026-01-02T03:04:05.123456789Z"`, "2026-01-02T03:04:05.123456789Z"},
		"offset":        {`"2026-01-02T03:04:05+10:30"`, "2026-01-01T16:34:05Z"},
		"date":          {`"2026-01-02"`, ""},
		"no zone":       {`"2026-01-02T03:04:05"`, ""},
		"month 13":      {`"2026-13-02T03:04:05Z"`, ""},
		"text":          {`"<string>"`, ""},
		"empty":         {`""`, ""},
		"Unix seconds":  {`1767323045`, ""},
		"null":          {`null`, ""},
		"object":        {`{"at":"2026-01-02T03:04:05Z"}`, ""},
		"trailing text": {`"2026-01-02T03:04:05Z "`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			for provider, body := range map[string]string{
				"dataspike": `{"event_type":"a","id":"e-1","timestamp":%s}`,
				"dfns":      `{"kind":"a","date":%s}`,
				"osapher":   `{"event":"a","timestamp":%s}`,
			} {
				want := test.want
				if want == "" {
					want = received.Format(time.RFC3339Nano)
				}
				if got := attributes(t, mapped(t, provider, fmt.Sprintf(body, test.at)).CloudEvent)["time"]; got != want {
					t.Errorf("%s: got %s, want %s", provider, got, want)
				}
			}
		})
	}
}

func TestReceivedIsInUTC(t *testing.T) {
	e, err := provider(t, "waldo").Event([]byte(waldoFlag), received.In(time.FixedZone("", 3600)))
	if err != nil {
		t.Fatal(err)
	}
	if !e.Received.Equal(received) || e.Received.Location() != time.UTC {
		t.Errorf("got %v", e.Received)
	}
}

// The rows of the tables of outcomes and risks; what they do not have is absent.
func TestOutcomeAndRisk(t *testing.T) {
	for _, table := range []struct{ provider, body, attribute, rows string }{
		{"dataspike", `{"event_type":"DOCVER","id":"e-1","payload":{"status":"%s"}}`, "outcome",
			"verified approved, failed rejected, initial pending, pending pending, in_progress pending, canceled -, expired -, VERIFIED -, -"},
		{"dataspike", `{"event_type":"DOCVER_CHECKS","id":"e-1","payload":{"status":"%s","result":{"status":"failed"}}}`, "outcome", "verified -, failed -"},
		{"dataspike", `{"event_type":"AML_SCREENING","id":"e-1","payload":{"risk_score":{"type":"%s"},"status":"verified"}}`, "outcome", "Low -"},
		{"dataspike", `{"event_type":"AML_SCREENING","id":"e-1","payload":{"risk_score":{"type":"%s"}}}`, "risk",
			"Low low, Medium medium, High high, Critical critical, low low, HIGH high, Unknown -, -"},
		{"dataspike", `{"event_type":"AML_SCREENING","id":"e-1","payload":{"risk_score":"%s"}}`, "risk", "Low -"},
		{"dfns", `{"kind":"wallet.transfer.%s","date":"d"}`, "outcome",
			"confirmed completed, signed completed, completed completed, rejected rejected, failed failed, requested pending, pending pending, broadcasted pending, resolved -, Confirmed -, confirmed. -, -"},
		{"dfns", `{"kind":"%s","date":"d"}`, "outcome",
			"wallet.signature.signed completed, swap.completed completed, policy.approval.pending pending, policy.triggered -, wallet.offer.rejected rejected, address_watch.blockchain_event.transfer.confirmed completed, failed failed"},
		{"osapher", `{"event":"a","data":{"status":"%s"}}`, "outcome", "verified approved, error failed, not_found -, VERIFIED -, -"},
		{"osapher", `{"event":"a","data":{"fractureRisk":"%s"}}`, "risk", "low low, medium medium, high high, critical critical, Critical critical, severe -, -"},
		{"trusthub", `{"sessionId":"s-1","status":"%s"}`, "outcome",
			"AUTO_APPROVED approved, MANUAL_APPROVED approved, AUTO_REJECTED rejected, MANUAL_REJECTED rejected, WAITING_FOR_MANUAL_APPROVE review, PENDING -, EXPIRED -, APPROVED -, auto_approved approved"},
		{"waldo", `{"event":"onboard","customerId":"c-1","validation":{"status":"%s"}}`, "outcome",
			"APPROVED approved, ACCEPTED approved, REJECTED rejected, REVIEW review, PENDING -, approved -, -"},
	} {
		for row := range strings.SplitSeq(table.rows, ", ") {
			value, want, _ := strings.Cut(row, " ")
			if want == "" {
				value, want = "", row
			}
			t.Run(table.provider+" "+table.attribute+" "+row, func(t *testing.T) {
				body := fmt.Sprintf(table.body, value)
				got, present := attributes(t, mapped(t, table.provider, body).CloudEvent)[table.attribute]
				if want == "-" && present || want != "-" && got != want {
					t.Errorf("got %q, want %q\n%s", got, want, body)
				}
			})
		}
	}
}

func TestAttempt(t *testing.T) {
	for sent, want := range map[string]string{
		"1":                    "1",
		"5":                    "5",
		"2147483647":           "2147483647",
		"2147483648":           "",
		"4294967298":           "", // 2 in 32 bits
		"12345678901234567890": "",
		"0":                    "",
		"-1":                   "",
		"2.0":                  "",
		"2e0":                  "",
		`"x"`:                  "",
		"null":                 "",
		"true":                 "",
		"[2]":                  "",
	} {
		t.Run(sent, func(t *testing.T) {
			e := mapped(t, "dfns", swap(dfnsBody, `Attempt":1`, `Attempt":`+sent))
			if got := attributes(t, e.CloudEvent)["attempt"]; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			if value, ok := e.CloudEvent.Extensions()["attempt"]; ok {
				if _, ok := value.(int32); !ok {
					t.Errorf("a %T is not a CloudEvents Integer", value)
				}
			}
		})
	}
}

// The subject of a Dfns event is the id of what its kind is about.
func TestDfnsSubject(t *testing.T) {
	for _, test := range []struct{ kind, data, want string }{
		{"wallet.created", `{"wallet":{"id":"wa-1"}}`, "wa-1"},
		{"wallet.exported", `{"wallet":{"id":"wa-1"}}`, "wa-1"},
		{"wallet.delegated", `{"wallet":{"id":"wa-1"}}`, "wa-1"},
		{"wallet.tags.modified", `{"wallet":{"id":"wa-1"},"tagsAdded":["tag1"]}`, "wa-1"},
		{"wallet.transfer.requested", `{"transferRequest":{"id":"xfr-1","walletId":"wa-1"}}`, "xfr-1"},
		{"wallet.transfer.confirmed", `{"wallet":{"id":"wa-1"},"transferRequest":{"id":"xfr-1"}}`, "xfr-1"},
		{"wallet.transaction.failed", `{"wallet":{"id":"wa-1"},"transactionRequest":{"id":"tx-1"}}`, "tx-1"},
		{"wallet.signature.signed", `{"wallet":{"id":"wa-1"},"signatureRequest":{"id":"sig-1"}}`, "sig-1"},
		{"wallet.offer.received", `{"wallet":{"id":"wa-1"},"offer":{"id":"ofr-1"}}`, "ofr-1"},
		{"wallet.blockchainevent.detected", `{"blockchainEvent":{"id":"x","kind":"y"},"wallet":{"id":"wa-1"}}`, "wa-1"},
		{"wallet.blockchain_event.transfer.included", `{"blockchainEvent":{"txHash":"0x"},"wallet":{"id":"wa-1"}}`, "wa-1"},
		{"policy.triggered", `{"policy":{"id":"plc-1"},"policyEvaluation":{"id":"plce-1"}}`, "plce-1"},
		{"policy.approval.pending", `{"approval":{"id":"ap-1","activity":{"id":"cr-1"}}}`, "ap-1"},
		{"policy.approval.resolved", `{"approval":{"id":"ap-1","activityId":"cr-1"}}`, "ap-1"},
		{"policy.approval.resolved", `{"approval":{"activityId":"cr-1"}}`, "cr-1"},
		{"policy.approval.resolved", `{"activityId":"cr-1","activityKind":"Registry:Addresses:Modify","status":"x"}`, "cr-1"},
		{"vault.event.created", `{"vault":{"id":"vlt-1"},"vaultEvent":{"id":"vlt-evt-1","vaultId":"vlt-1"}}`, "vlt-evt-1"},
		{"vault.created", `{"vault":{"id":"vlt-1"}}`, "vlt-1"},
		{"webhook.event.retry.triggered", `{"id":"whe-2","webhookId":"wh-1","originalEvent":{"id":"whe-1"}}`, "whe-1"},
		{"key.created", `{"key":{"id":"key-1"}}`, "key-1"},
		{"swap.completed", `{"kind":"x","first":{"x":1},"swap":{"id":"swp-1"},"wallet":{"id":"wa-1"}}`, "swp-1"},
		{"wallet.transfer.requested", `{"other":{"id":"o-1"}}`, "o-1"},
		{"address_watch.blockchain_event.transfer.confirmed", `{"blockchainEvent":{}}`, ""},
		{"a", `{"id":"x","list":[{"id":"y"}]}`, ""},
		{"a", `{}`, ""},
		{"a", `[{"id":"x"}]`, ""},
		{"a", `null`, ""},
		{"a", `"x"`, ""},
	} {
		t.Run(test.kind+" "+test.data, func(t *testing.T) {
			body := fmt.Sprintf(`{"kind":%q,"date":"d","data":%s}`, test.kind, test.data)
			if got := mapped(t, "dfns", body).CloudEvent.Subject(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestSubject(t *testing.T) {
	letters := "a.b.c.d.e.f.g.h.i.j.k.l.m"
	for name, test := range map[string]struct{ prefix, kind, want string }{
		"type of an event":        {"webhooks", "wallet.transfer.confirmed", "webhooks.dfns.wallet.transfer.confirmed"},
		"prefix of two tokens":    {"eu.webhooks", "a", "eu.webhooks.dfns.a"},
		"digits and marks":        {"webhooks", "a-1_b", "webhooks.dfns.a-1_b"},
		"all that is kept":        {"webhooks", "abcdefghijklmnopqrstuvwxyz0123456789_-", "webhooks.dfns.abcdefghijklmnopqrstuvwxyz0123456789_-"},
		"what stands beside it":   {"webhooks", "`{/:", "webhooks.dfns.____"},
		"wildcards":               {"webhooks", "*.>", "webhooks.dfns._._"},
		"white space":             {"webhooks", "a b\tc", "webhooks.dfns.a_b_c"},
		"one _ for a character":   {"webhooks", "aé😀Z\x00\xff", "webhooks.dfns.a_____"},
		"nothing":                 {"webhooks", "", "webhooks.dfns._"},
		"empty tokens":            {"webhooks", ".a..b.", "webhooks.dfns._.a._.b._"},
		"13 tokens":               {"webhooks", letters, "webhooks.dfns." + letters},
		"14 tokens":               {"webhooks", letters + ".n", "webhooks.dfns." + letters},
		"100 tokens":              {"webhooks", letters + strings.Repeat(".n", 87), "webhooks.dfns." + letters},
		"256 bytes":               {"webhooks", strings.Repeat("a", 242), "webhooks.dfns." + strings.Repeat("a", 242)},
		"257 bytes":               {"webhooks", strings.Repeat("a", 243), "webhooks.dfns." + strings.Repeat("a", 242)},
		"no room for a token":     {"webhooks", strings.Repeat("a", 241) + ".b", "webhooks.dfns." + strings.Repeat("a", 241)},
		"room for a letter":       {"webhooks", strings.Repeat("a", 240) + ".bc", "webhooks.dfns." + strings.Repeat("a", 240) + ".b"},
		"room for an empty one":   {"webhooks", strings.Repeat("a", 240) + "..b", "webhooks.dfns." + strings.Repeat("a", 240) + "._"},
		"characters, not bytes":   {"webhooks", strings.Repeat("é", 243), "webhooks.dfns." + strings.Repeat("_", 242)},
		"a prefix near the limit": {strings.Repeat("p", 250), "abc", strings.Repeat("p", 250) + ".dfns"},
	} {
		t.Run(name, func(t *testing.T) {
			got := normalize.Subject(test.prefix, "dfns", test.kind)
			if got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
			checkSubject(t, test.prefix, "dfns", got)
		})
	}
}

func TestNothingWritesToTheBody(t *testing.T) {
	for _, p := range normalize.Providers() {
		for _, sample := range p.Samples() {
			before := bytes.Clone(sample.Body)
			if _, err := p.Event(sample.Body, received); err != nil {
				t.Error(err)
			}
			p.Fresh(sample.Body, received)
			p.Stamp(sample.Body, received)
			if !bytes.Equal(before, sample.Body) {
				t.Errorf("%s/%s was changed", p.Name, sample.Name)
			}
		}
	}
}
