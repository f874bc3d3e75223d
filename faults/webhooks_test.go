//go:build faults

package faults

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/hookbus/bridge/normalize"
)

// occurrence is one thing that happened at a provider, and all that was sent
// about it.
type occurrence struct {
	provider normalize.Provider
	// marker stands in the body and becomes the event's subject. Reports of one
	// thing share it.
	marker string
	// unit is what is counted in the stream: the marker and, of a report, the
	// state.
	unit string
	// digest is the body's, if that may end in the quarantine.
	digest string
	// only says that it must: the body cannot be read.
	unreadable bool
	report     bool
	// compose returns the body of a delivery. The id is new with each, the other
	// ids are those of earlier ones.
	compose func(attempt int, id, first, previous string) []byte

	mu         sync.Mutex
	first      string // id of the first delivery
	previous   string // of the last attempt
	attempts   int
	deliveries []delivery
}

// delivery is one request and its answer.
type delivery struct {
	why    string
	at     time.Time
	took   time.Duration
	bridge string
	status int // 0: none
	result string
	reason string
	id     string
	err    string
	body   [sha256.Size]byte
}

func (d delivery) ok() bool { return d.status == 200 }

func (d delivery) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s +%v  %s to %s: %d %s%s%s %.12s", d.at.Format("15:04:05.000"), d.took.Round(time.Millisecond), d.why, d.bridge, d.status, d.result, d.reason, d.err, d.id))
}

// answered reports whether one of the deliveries was answered 200.
func (o *occurrence) answered() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, d := range o.deliveries {
		if d.ok() {
			return true
		}
	}
	return false
}

// body returns the body to send: the first, a retry (which is a new attempt), or
// the copy of what was sent before. To a provider that numbers its deliveries a
// copy may be one by a second webhook, with an id of its own.
func (o *occurrence) body(why string) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	id := fmt.Sprintf("whe-%05x-%05x-%014x", rand.Uint32()&0xfffff, rand.Uint32()&0xfffff, rand.Uint64()&0xffffffffffffff)
	switch {
	case o.first == "":
		o.first, o.previous, o.attempts = id, id, 1
		return o.compose(1, id, "", "")
	case why == retry || why == again:
		previous := o.previous
		o.previous, o.attempts = id, o.attempts+1
		return o.compose(o.attempts, id, o.first, previous)
	case rand.IntN(2) == 0:
		return o.compose(1, id, "", "")
	default:
		return o.compose(1, o.first, "", "")
	}
}

// Why something is sent.
const (
	original = "original"
	retry    = "retry"        // the provider's, of what was not answered 200
	atOnce   = "copy at once" // beside the original
	late     = "late copy"    // of what was answered 200
	again    = "again"        // at the end, of what was not answered 200
)

// retries names the providers that send again what was not answered 200.
var retries = map[string]bool{"dataspike": true, "dfns": true}

// maker makes occurrences, each with a marker of its own.
type maker struct {
	random *rand.Rand
	made   int
}

func (m *maker) marker() string {
	m.made++
	return fmt.Sprintf("fx-%d-x", m.made)
}

func provider(name string) normalize.Provider {
	p, ok := normalize.ByName(name)
	if !ok {
		panic(name)
	}
	return p
}

// fixed is the compose of a provider that sends the same body every time.
func fixed(format string, args ...any) func(int, string, string, string) []byte {
	body := fmt.Appendf(nil, format, args...)
	return func(int, string, string, string) []byte { return body }
}

// named makes an event that can be told from all others.
func (m *maker) named() *occurrence {
	marker, at := m.marker(), time.Now().UTC()
	o := &occurrence{marker: marker, unit: marker}
	stamp := at.Format("2006-01-02T15:04:05.000Z")
	switch n := m.random.IntN(100); {
	case n < 40:
		o.provider = provider("dfns")
		kind, data := "wallet.transfer.requested", fmt.Sprintf(`{"transferRequest":{"id":%q,"walletId":"wa-39abb-e9kpk-xxxxxxxxxxxxxxxx","network":"EthereumSepolia","requestBody":{"kind":"Native","to":"0xb282dc7cde21717f18337a596e91ded00b79b25f","amount":"1000000000"},"dateRequested":%q,"status":"Pending"}}`, marker, stamp)
		if n < 10 {
			kind, data = "wallet.signature.requested", fmt.Sprintf(`{"signatureRequest":{"id":%q,"keyId":"key-01snl-t56gb-j8tsok0vn802p80i","dateRequested":%q}}`, marker, stamp)
		}
		star := m.random.IntN(2) == 0 // both readings of retryOf
		o.compose = func(attempt int, id, first, previous string) []byte {
			retryOf := ""
			if attempt > 1 {
				if star {
					previous = first
				}
				retryOf = fmt.Sprintf(`,"retryOf":%q`, previous)
			}
			return fmt.Appendf(nil, `{"id":%q,"kind":%q,"date":%q,"data":%s,"timestampSent":0,"deliveryAttempt":%d%s}`, id, kind, stamp, data, attempt, retryOf)
		}
	case n < 60:
		o.provider = provider("dataspike")
		id := fmt.Sprintf("%s-id", marker)
		o.compose = fixed(`{"id":%q,"webhook_id":"8c8e7195-f176-4279-bf46-98eed9acdb35","event_type":"DOCVER","timestamp":%q,"payload":{"id":%q,"applicant_id":%q,"status":"verified","document_type":"passport","checks":{"face_comparison":{"status":"verified","errors":[],"data":null}}}}`, id, stamp, id, marker)
	case n < 70: // the documented sample, whose ids are all the same
		o.provider = provider("dataspike")
		o.compose = fixed(`{"id":%q,"webhook_id":%[1]q,"event_type":"AML_SCREENING","timestamp":%q,"payload":{"risk_score":{"type":"Low"},"applicant_id":%[1]q,"external_id":"external_id_123","screening_id":%[1]q,"search_response":{"data":[]}}}`, marker, stamp)
	case n < 90:
		o.provider = provider("osapher")
		o.compose = fixed(`{"event":"verification.completed","timestamp":%q,"data":{"legalName":"Acme Corp Pty Ltd","abn":%q,"jurisdiction":"AU","fractureScore":0,"fractureRisk":"low","status":"verified"}}`, stamp, marker)
	default:
		o.provider = provider("waldo")
		o.compose = fixed(`{"requestId":%q,"event":"onboard","evaluation":{"type":"fraud","status":"initiated"},"validation":{"status":"REVIEW","kyc":"PENDING","fraudScore":0},"externalId":"abcd-123-456-efgh","customerId":%q,"uri":"https://app.waldo.ai/customers/%[2]s"}`, marker+"-r", marker)
	}
	return o
}

// unreadable makes a body that is signed and no event. Where the body holds the
// time of signing there is none.
func (m *maker) unreadable() *occurrence {
	marker := m.marker()
	names := []string{"dataspike", "osapher", "trusthub", "waldo"}
	return quarantinable(&occurrence{
		provider: provider(names[m.random.IntN(len(names))]), marker: marker, unit: marker, unreadable: true,
		compose: fixed("this is not JSON: %s", marker),
	})
}

// oversized makes a screening with more hits than fit into a NATS message.
func (m *maker) oversized() *occurrence {
	marker := m.marker()
	const size = 1_500_000
	hit := `{"uuid":"a3","type":"Person","tags":["Finance"],"risk_score":"Low"},`
	return quarantinable(&occurrence{
		provider: provider("dataspike"), marker: marker, unit: marker,
		compose: func(int, string, string, string) []byte {
			return fmt.Appendf(nil, `{"id":"%s-id","webhook_id":"8c8e7195-f176-4279-bf46-98eed9acdb35","event_type":"AML_SCREENING","timestamp":"2026-02-03T04:05:06Z","payload":{"risk_score":{"type":"High"},"applicant_id":%[1]q,"search_response":{"data":[%s{}]}}}`, marker, strings.Repeat(hit, size/len(hit)))
		},
	})
}

// quarantinable gives the occurrence the digest of its body.
func quarantinable(o *occurrence) *occurrence {
	sum := sha256.Sum256(o.compose(1, "", "", ""))
	o.digest = hex.EncodeToString(sum[:])
	return o
}

// sequence is what becomes of one thing whose state is reported: each report is
// sent when the one before was answered 200.
type sequence struct {
	marker string
	states []string
	next   int
	pinned int // the replica that has one in its spool, -1: none
	// reports made so far, in the order of sending.
	reports []*occurrence
}

func (m *maker) sequence() *sequence {
	q := &sequence{marker: m.marker(), pinned: -1, states: []string{"true", "false", "true"}}
	if m.random.IntN(2) == 0 {
		q.states = []string{"WAITING_FOR_MANUAL_APPROVE", "MANUAL_APPROVED", "MANUAL_REJECTED", "MANUAL_APPROVED"}
	}
	return q
}

// report makes the next report of the sequence.
func (q *sequence) report() *occurrence {
	state := q.states[q.next]
	q.next++
	o := &occurrence{marker: q.marker, unit: q.marker + " " + state, report: true}
	if state == "true" || state == "false" {
		o.provider = provider("waldo")
		o.compose = fixed(`{"event":"flag","flag":%s,"externalId":"abcd-123-456-efgh","customerId":%q,"uri":"https://app.waldo.ai/customers/%[2]s"}`, state, q.marker)
	} else {
		o.provider = provider("trusthub")
		// The order of the fields varies.
		o.compose = func(int, string, string, string) []byte {
			if rand.IntN(2) == 0 {
				return fmt.Appendf(nil, `{"sessionId":%q,"externalId":"external code 123","projectId":"test-project","status":%q}`, q.marker, state)
			}
			return fmt.Appendf(nil, `{"sessionId":%q,"status":%q,"projectId":"test-project","externalId":"external code 123"}`, q.marker, state)
		}
	}
	q.reports = append(q.reports, o)
	return o
}

var reported = regexp.MustCompile(`"(?:flag|status)":"?(\w+)`)

// unitOf returns what a stored body of that marker counts for.
func unitOf(marker string, isReport bool, body []byte) string {
	if !isReport {
		return marker
	}
	if m := reported.FindSubmatch(body); m != nil {
		return marker + " " + string(m[1])
	}
	return marker
}
