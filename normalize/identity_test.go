package normalize_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hookbus/bridge/normalize"
)

// Bodies that name all that identifies an event; the cases change one thing in them.
const (
	dataspikeBody = `{"id":"e-1","webhook_id":"w-1","event_type":"DOCVER","timestamp":"2026-01-02T03:04:05Z","payload":{"applicant_id":"a-1","status":"verified"}}`
	dfnsBody      = `{"id":"whe-1","kind":"wallet.tags.modified","date":"2026-01-02T03:04:05.678Z","data":{"wallet":{"id":"wa-1"},"tagsAdded":["a"]},"timestampSent":1767323045,"deliveryAttempt":1}`
	osapherBody   = `{"event":"verification.completed","timestamp":"2026-01-02T03:04:05.678Z","data":{"abn":"22222222222","status":"verified"}}`
	trusthubBody  = `{"projectId":"p-1","sessionId":"s-1","status":"MANUAL_APPROVED"}`
	waldoFlag     = `{"event":"flag","flag":true,"customerId":"c-1"}`
	waldoBody     = `{"requestId":"r-1","event":"evaluation","evaluation":{"type":"fraud","status":"initiated"},"customerId":"c-1"}`
	waldoNoReq    = `{"event":"evaluation","evaluation":{"type":"fraud","status":"initiated"},"customerId":"c-1"}`
)

func TestIdentity(t *testing.T) {
	const (
		dataspikePlaceholder = `{"id":"w-1","webhook_id":"w-1","event_type":"DOCVER","timestamp":"2026-01-02T03:04:05Z","payload":{"applicant_id":"a-1","n":1}}`
		dataspikeNoID        = `{"event_type":"DOCVER","timestamp":"2026-01-02T03:04:05Z","payload":{"applicant_id":"a-1","n":1}}`
		dataspikeNothing     = `{"event_type":"DOCVER","payload":{"applicant_id":"a-1","n":1}}`
		dfnsNoDate           = `{"id":"whe-1","kind":"wallet.tags.modified","data":{"wallet":{"id":"wa-1"},"tagsAdded":["a"]},"timestampSent":1767323045}`
		osapherNoTime        = `{"event":"verification.completed","data":{"abn":"22222222222","status":"verified"}}`
		waldoOnlyReq         = `{"requestId":"r-1","event":"evaluation","evaluation":{"type":"fraud","status":"initiated"}}`
		dfnsNoData           = `{"id":"whe-1","kind":"policy.approval.resolved","date":"2026-01-02T03:04:05.678Z","activityId":"cr-1","timestampSent":1767323045}`
		osapherNoData        = `{"event":"certificate.issued","timestamp":"2026-01-02T03:04:05.678Z","certificateId":"c-1"}`
		dataspikeNoPayload   = `{"event_type":"DOCVER","timestamp":"2026-01-02T03:04:05Z","applicant":"a-1"}`
		trusthubNoProject    = `{"sessionId":"s-1","status":"MANUAL_APPROVED"}`
	)
	for _, test := range []struct {
		provider, name string
		a, b           string
		want           relation
	}{
		{"dataspike", "retry", dataspikeBody, dataspikeBody, sameKey},
		{"dataspike", "same id, other webhook", dataspikeBody, swap(dataspikeBody, "w-1", "w-2"), sameKey},
		{"dataspike", "other id", dataspikeBody, swap(dataspikeBody, "e-1", "e-2"), unrelated},
		{"dataspike", "an id that is no text", swap(dataspikeBody, "e-1", "\xfe"), swap(dataspikeBody, "e-1", "\xff"), unrelated},
		{"dataspike", "same id, other type", dataspikeBody, swap(dataspikeBody, "DOCVER", "DOCVER_CHECKS"), unrelated},
		{"dataspike", "same id, other payload", dataspikeBody, swap(dataspikeBody, "verified", "failed"), unrelated},
		{"dataspike", "id is webhook_id, retry", dataspikePlaceholder, dataspikePlaceholder, sameKey},
		{"dataspike", "id is webhook_id, other payload", dataspikePlaceholder, swap(dataspikePlaceholder, `"n":1`, `"n":2`), unrelated},
		{"dataspike", "id is webhook_id, other time", dataspikePlaceholder, swap(dataspikePlaceholder, "05Z", "06Z"), unrelated},
		{"dataspike", "id is webhook_id, other type", dataspikePlaceholder, swap(dataspikePlaceholder, "DOCVER", "AML"), unrelated},
		{"dataspike", "id empty, as if it were webhook_id", swap(dataspikePlaceholder, `"id":"w-1",`, `"id":"",`), dataspikePlaceholder, sameKey},
		{"dataspike", "id absent, as if it were webhook_id", dataspikeNoID, dataspikePlaceholder, sameKey},
		{"dataspike", "id null, other time", swap(dataspikePlaceholder, `"id":"w-1",`, `"id":null,`), swap(dataspikeNoID, "05Z", "06Z"), unrelated},
		{"dataspike", "neither id nor time, again", dataspikeNothing, dataspikeNothing, sameState},
		{"dataspike", "neither id nor time, other payload", dataspikeNothing, swap(dataspikeNothing, `"n":1`, `"n":2`), otherState},
		{"dataspike", "neither id nor time, other field", dataspikeNothing, swap(dataspikeNothing, `"payload"`, `"sandbox":true,"payload"`), otherState},
		{"dataspike", "neither id nor time, other applicant", dataspikeNothing, swap(dataspikeNothing, "a-1", "a-2"), unrelated},
		{"dataspike", "neither id nor time, other type", dataspikeNothing, swap(dataspikeNothing, "DOCVER", "AML"), unrelated},
		{"dataspike", "no payload, again", dataspikeNoPayload, dataspikeNoPayload, sameKey},
		{"dataspike", "no payload, other field", dataspikeNoPayload, swap(dataspikeNoPayload, "a-1", "a-2"), unrelated},

		{"dfns", "same attempt", dfnsBody, dfnsBody, sameKey},
		{"dfns", "two webhooks in a rotation", dfnsBody, swap(dfnsBody, "whe-1", "whe-2", "1767323045", "1767323046"), sameKey},
		{"dfns", "a retry of an attempt never seen", dfnsBody, swap(dfnsBody, `"id":"whe-1"`, `"id":"whe-3","retryOf":"whe-2"`, `Attempt":1`, `Attempt":3`), sameKey},
		{"dfns", "a list API's status and error", dfnsBody, swap(dfnsBody, `"id":"whe-1"`, `"id":"whe-2","status":"500","error":"x"`), sameKey},
		{"dfns", "two events in one millisecond", dfnsBody, swap(dfnsBody, "whe-1", "whe-2", "wa-1", "wa-2"), unrelated},
		{"dfns", "same data, other time", dfnsBody, swap(dfnsBody, "whe-1", "whe-2", ".678Z", ".679Z"), unrelated},
		{"dfns", "same data, other kind", dfnsBody, swap(dfnsBody, "whe-1", "whe-2", "wallet.tags.modified", "wallet.created"), unrelated},
		{"dfns", "amounts beyond a float", swap(dfnsBody, `["a"]`, "9007199254740993"), swap(dfnsBody, `["a"]`, "9007199254740992", "whe-1", "whe-2"), unrelated},
		{"dfns", "date changed, id alike", dfnsBody, swap(dfnsBody, ".678Z", ".679Z"), sharedName},
		{"dfns", "date changed, retryOf names the id", dfnsBody, swap(dfnsBody, `"id":"whe-1"`, `"id":"whe-2","retryOf":"whe-1"`, ".678Z", ".679Z"), sharedName},
		{"dfns", "id alike, other kind", dfnsBody, swap(dfnsBody, "tags.modified", "created"), unrelated},
		{"dfns", "a webhook's id is no alias", swap(dfnsBody, "whe-1", "wh-1"), swap(dfnsBody, "whe-1", "wh-1", "wa-1", "wa-2"), unrelated},
		{"dfns", "a webhook's id as retryOf is no alias", swap(dfnsBody, `"id":"whe-1"`, `"id":"whe-1","retryOf":"wh-1"`), swap(dfnsBody, `"id":"whe-1"`, `"id":"whe-2","retryOf":"wh-1"`, "wa-1", "wa-2"), unrelated},
		{"dfns", "a date that is no text", swap(dfnsBody, "2026-01-02T03:04:05.678Z", `\ud800`, "whe-1", ""), swap(dfnsBody, "2026-01-02T03:04:05.678Z", `\ud801`, "whe-1", ""), unrelated},
		{"dfns", "no date, retry", dfnsNoDate, swap(dfnsNoDate, "whe-1", "whe-2", "1767323045", "1767323105"), sameState},
		{"dfns", "no date, other data", dfnsNoDate, swap(dfnsNoDate, `["a"]`, `["b"]`), otherState},
		{"dfns", "no date, other wallet", dfnsNoDate, swap(dfnsNoDate, "wa-1", "wa-2"), unrelated},
		{"dfns", "no date, other kind", dfnsNoDate, swap(dfnsNoDate, "tags.modified", "created"), unrelated},
		{"dfns", "no data, retry", dfnsNoData, swap(dfnsNoData, `"id":"whe-1"`, `"id":"whe-2","retryOf":"whe-1","deliveryAttempt":2`, "1767323045", "1767323105"), sameKey},
		{"dfns", "no data, date changed", dfnsNoData, swap(dfnsNoData, `"id":"whe-1"`, `"id":"whe-2","retryOf":"whe-1"`, ".678Z", ".679Z"), sharedName},
		{"dfns", "no data, other field", dfnsNoData, swap(dfnsNoData, "whe-1", "whe-2", "cr-1", "cr-2"), unrelated},

		{"osapher", "again", osapherBody, osapherBody, sameKey},
		{"osapher", "completed and high_risk with one time", osapherBody, swap(osapherBody, "completed", "high_risk"), unrelated},
		{"osapher", "one time, other data", osapherBody, swap(osapherBody, "22222222222", "33333333333"), unrelated},
		{"osapher", "verified again later", osapherBody, swap(osapherBody, ".678Z", ".679Z"), unrelated},
		{"osapher", "a time that is no text", swap(osapherBody, "2026-01-02T03:04:05.678Z", "\xfe"), swap(osapherBody, "2026-01-02T03:04:05.678Z", "\xff"), unrelated},
		{"osapher", "no time, again", osapherNoTime, osapherNoTime, sameState},
		{"osapher", "no time, other status", osapherNoTime, swap(osapherNoTime, "verified", "error"), otherState},
		{"osapher", "no time, other entity", osapherNoTime, swap(osapherNoTime, "2222", "3333"), unrelated},
		{"osapher", "no data, again", osapherNoData, osapherNoData, sameKey},
		{"osapher", "data null, other field", swap(osapherNoData, `"certificateId"`, `"data":null,"certificateId"`), swap(osapherNoData, `"certificateId":"c-1"`, `"data":null,"certificateId":"c-2"`), unrelated},
		{"osapher", "no data, other field", osapherNoData, swap(osapherNoData, "c-1", "c-2"), unrelated},

		{"trusthub", "again", trusthubBody, trusthubBody, sameState},
		{"trusthub", "approved, then rejected", trusthubBody, swap(trusthubBody, "APPROVED", "REJECTED"), otherState},
		{"trusthub", "other order of names", trusthubBody, `{"status":"MANUAL_APPROVED","sessionId":"s-1","projectId":"p-1"}`, sameState},
		{"trusthub", "with a reference", trusthubBody, swap(trusthubBody, `"s-1"`, `"s-1","externalId":"x"`), sameState},
		{"trusthub", "other session", trusthubBody, swap(trusthubBody, "s-1", "s-2"), unrelated},
		{"trusthub", "other project", trusthubBody, swap(trusthubBody, "p-1", "p-2"), unrelated},
		{"trusthub", "a project that is no text", swap(trusthubBody, `"p-1"`, `{"id":"p-1"}`), swap(trusthubBody, `"p-1"`, `{"id":"p-2"}`), unrelated},
		{"trusthub", "project null and absent", swap(trusthubNoProject, `"sessionId"`, `"projectId":null,"sessionId"`), trusthubNoProject, sameState},
		{"trusthub", "no project and a project", trusthubBody, trusthubNoProject, unrelated},
		{"trusthub", "no project, again", trusthubNoProject, trusthubNoProject, sameState},
		{"trusthub", "project and session do not run together", swap(trusthubBody, "p-1", "ab", "s-1", "c"), swap(trusthubBody, "p-1", "a", "s-1", "bc"), unrelated},
		{"trusthub", "a sessionId that is no UUID", swap(trusthubBody, "s-1", "e7abc715e-a674-48ef-a237-1196ab3664e8"), trusthubBody, unrelated},
		{"trusthub", "halves of surrogate pairs", swap(trusthubBody, "s-1", `s\ud800`), swap(trusthubBody, "s-1", `s\udfff`), unrelated},
		{"trusthub", "bytes that are no text", swap(trusthubBody, "s-1", "s\xe8"), swap(trusthubBody, "s-1", "s\xe9"), unrelated},
		{"trusthub", "bytes that are no text, again", swap(trusthubBody, "s-1", "s\xe8"), swap(trusthubBody, "s-1", "s\xe8"), sameState},

		{"waldo", "requestId, again", waldoBody, waldoBody, sameKey},
		{"waldo", "requestId, in progress", waldoBody, swap(waldoBody, "initiated", "in_progress"), unrelated},
		{"waldo", "requestId, completed", waldoBody, swap(waldoBody, "initiated", "completed"), unrelated},
		{"waldo", "requestId, in progress and completed", swap(waldoBody, "initiated", "in_progress"), swap(waldoBody, "initiated", "completed"), unrelated},
		{"waldo", "requestId, kyc and fraud", waldoBody, swap(waldoBody, "fraud", "kyc"), unrelated},
		{"waldo", "other requestId", waldoBody, swap(waldoBody, "r-1", "r-2"), unrelated},
		{"waldo", "requestId without customerId", waldoOnlyReq, waldoOnlyReq, sameKey},
		{"waldo", "requestId without customerId records no state", waldoOnlyReq, waldoNoReq, unrelated},
		{"waldo", "requestId records the state of the customer", waldoBody, waldoNoReq, otherState},
		{"waldo", "requestId, other evaluation", swap(waldoBody, "fraud", "kyc"), waldoNoReq, unrelated},
		{"waldo", "requestId, other customer", swap(waldoBody, "c-1", "c-2"), waldoNoReq, unrelated},
		{"waldo", "requestId, other event", swap(waldoBody, `"evaluation",`, `"onboard",`), waldoNoReq, unrelated},
		{"waldo", "flagged again", waldoFlag, waldoFlag, sameState},
		{"waldo", "flagged with white space", waldoFlag, "\n{ \"event\" : \"flag\",\t\"flag\": true, \"customerId\":\"c-1\" }\r\n", sameState},
		{"waldo", "flag true and false", waldoFlag, swap(waldoFlag, "true", "false"), otherState},
		{"waldo", "other customer", waldoFlag, swap(waldoFlag, "c-1", "c-2"), unrelated},
		{"waldo", "evaluation, other status", waldoNoReq, swap(waldoNoReq, "initiated", "completed"), otherState},
		{"waldo", "evaluation, other type", waldoNoReq, swap(waldoNoReq, "fraud", "kyc"), unrelated},
	} {
		t.Run(test.provider+"/"+test.name, func(t *testing.T) {
			a, b := mapped(t, test.provider, test.a), mapped(t, test.provider, test.b)
			if got := relate(a.Identity, b.Identity); got != test.want {
				t.Errorf("%s, want %s\n%s\n%s", got, test.want, test.a, test.b)
			}
			// Events that are one have one Nats-Msg-Id, unless only an alias joins them.
			one := test.want == sameKey || test.want == sameState
			if (a.CloudEvent.ID() == b.CloudEvent.ID()) != one {
				t.Errorf("ids %s and %s", a.CloudEvent.ID(), b.CloudEvent.ID())
			}
		})
	}
}

// Two providers never share a name, whatever they send.
func TestIdentityNamesItsProvider(t *testing.T) {
	const body = `{"event":"a","timestamp":"2026-01-02T03:04:05Z","requestId":"r-1","customerId":"c-1"}`
	osapher, waldo := mapped(t, "osapher", body), mapped(t, "waldo", body)
	if osapher.Identity.Key == waldo.Identity.Key || osapher.CloudEvent.ID() == waldo.CloudEvent.ID() {
		t.Errorf("%+v and %+v", osapher.Identity, waldo.Identity)
	}
}

// dfnsAttempts are the five attempts of one event. retryOf says which attempt the n-th one names; their
// dates are the event's, or differ.
func dfnsAttempts(t *testing.T, retryOf func(n int) int, datesDiffer bool) []*normalize.Event {
	var events []*normalize.Event
	for n := 1; n <= 5; n++ {
		body := swap(dfnsBody, "whe-1", fmt.Sprint("whe-", n), "1767323045", fmt.Sprint(1767323045+60*n), `Attempt":1`, fmt.Sprint(`Attempt":`, n))
		if n > 1 {
			body = swap(body, `"kind"`, fmt.Sprintf(`"retryOf":"whe-%d","kind"`, retryOf(n)))
		}
		if datesDiffer {
			body = swap(body, ".678Z", fmt.Sprintf(".%03dZ", n))
		}
		events = append(events, mapped(t, "dfns", body))
	}
	return events
}

// Every attempt has its own id; retryOf is documented as the previous and as the first attempt.
func TestDfnsAttemptsAreOneEvent(t *testing.T) {
	for name, retryOf := range map[string]func(n int) int{
		"chain": func(n int) int { return n - 1 },
		"star":  func(int) int { return 1 },
	} {
		// Any two of them, so also if the first or any other never came.
		t.Run(name, func(t *testing.T) {
			events := dfnsAttempts(t, retryOf, false)
			for i, a := range events {
				for j, b := range events {
					if got := relate(a.Identity, b.Identity); got != sameKey {
						t.Errorf("attempts %d and %d: %s", i+1, j+1, got)
					}
				}
			}
		})
		t.Run(name+", dates differ", func(t *testing.T) {
			events := dfnsAttempts(t, retryOf, true)
			for n := 2; n <= 5; n++ {
				a, b := events[n-1], events[retryOf(n)-1]
				if got := relate(a.Identity, b.Identity); got != sharedName {
					t.Errorf("attempts %d and %d: %s", n, retryOf(n), got)
				}
			}
			// Attempt 1 never came.
			if got := relate(events[1].Identity, events[2].Identity); got != sharedName {
				t.Errorf("attempts 2 and 3: %s", got)
			}
		})
	}
}

func TestTransition(t *testing.T) {
	for name, test := range map[string]struct {
		provider, body string
		want           bool
	}{
		"a session's step": {"trusthub", trusthubBody, true},
		"a flag":           {"waldo", waldoFlag, false},
		"a named event":    {"waldo", waldoBody, false},
		"no time":          {"osapher", `{"event":"a"}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := mapped(t, test.provider, test.body).Identity.Transition; got != test.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestNoIdentity(t *testing.T) {
	for name, test := range map[string]struct{ provider, body string }{
		"waldo, nothing":               {"waldo", `{"event":"flag","flag":true,"externalId":"x"}`},
		"waldo, empty":                 {"waldo", `{"event":"flag","customerId":"","requestId":""}`},
		"waldo, null":                  {"waldo", `{"event":"flag","customerId":null,"requestId":null}`},
		"waldo, not text":              {"waldo", `{"event":"flag","customerId":{"id":"c-1"},"requestId":true}`},
		"trusthub, no session":         {"trusthub", `{"status":"AUTO_APPROVED","projectId":"p-1","externalId":"x"}`},
		"trusthub, empty session":      {"trusthub", `{"status":"AUTO_APPROVED","sessionId":""}`},
		"trusthub, session not a text": {"trusthub", `{"status":"AUTO_APPROVED","sessionId":["s-1"]}`},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := provider(t, test.provider).Event([]byte(test.body), received)
			if e != nil || !errors.Is(err, normalize.ErrNoIdentity) {
				t.Errorf("got %v, %v", e, err)
			}
		})
	}
}

func TestSetToken(t *testing.T) {
	event := func(name, body string) *normalize.Event {
		e, err := provider(t, name).Event([]byte(body), received)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	with := func(name, body, token string) *normalize.Event {
		e := event(name, body)
		e.SetToken(token)
		if want := map[bool]string{true: token, false: ""}[e.Identity.Judged()]; e.Token != want {
			t.Errorf("token %q, want %q", e.Token, want)
		}
		return e
	}
	t.Run("state report", func(t *testing.T) {
		e := event("waldo", waldoFlag)
		if id := e.CloudEvent.ID(); id != "" {
			t.Errorf("id %q before it has a token", id)
		}
		a, again, b := with("waldo", waldoFlag, "a"), with("waldo", waldoFlag, "a"), with("waldo", waldoFlag, "b")
		if a.CloudEvent.ID() != again.CloudEvent.ID() {
			t.Error("one token, two ids")
		}
		if a.CloudEvent.ID() == b.CloudEvent.ID() {
			t.Error("two tokens, one id")
		}
		if diff := cmp.Diff(e.Identity, a.Identity); diff != "" {
			t.Errorf("the identity changed (-before +after):\n%s", diff)
		}
	})
	t.Run("named event that records a state", func(t *testing.T) {
		e, a := event("waldo", waldoBody), with("waldo", waldoBody, "a")
		if e.CloudEvent.ID() == "" || e.CloudEvent.ID() != a.CloudEvent.ID() {
			t.Errorf("id %q, with a token %q", e.CloudEvent.ID(), a.CloudEvent.ID())
		}
	})
}

func TestDigest(t *testing.T) {
	for name, lists := range map[string][2][]string{
		"moved boundary":         {{"a", "bc"}, {"ab", "c"}},
		"empty part at the end":  {{"a"}, {"a", ""}},
		"empty part in front":    {{"a"}, {"", "a"}},
		"no part, an empty part": {{}, {""}},
		"joined":                 {{"a", "b"}, {"ab"}},
		"a length inside":        {{"a", "b"}, {"a\x00\x00\x00\x00\x00\x00\x00\x01b"}},
		"order":                  {{"a", "b"}, {"b", "a"}},
	} {
		t.Run(name, func(t *testing.T) {
			if normalize.Digest("key", "p", lists[0]...) == normalize.Digest("key", "p", lists[1]...) {
				t.Errorf("%q and %q have one digest", lists[0], lists[1])
			}
		})
	}
	if normalize.Digest("key", "p", "a") == normalize.Digest("alias", "p", "a") || normalize.Digest("key", "p", "a") == normalize.Digest("key", "q", "a") {
		t.Error("the domain and the provider are not part of it")
	}
	// printf '\0\0\0\0\0\0\0\3key\0\0\0\0\0\0\0\1p\0\0\0\0\0\0\0\2ab' | sha256sum
	const want = "3b94ba85f37e40108e5fee9f6b205cd6e3e10081c1a3197e6438abc0290f84db"
	if got := normalize.Digest("key", "p", "ab"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
