package normalize

import (
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/hookbus/bridge/internal/rawjson"
	"github.com/hookbus/bridge/signature"
)

// Dataspike: https://docs.dataspike.io/webhooks/configuration.md
var dataspike = Provider{
	Name: "dataspike",
	Scheme: signature.Scheme{
		Headers:  []string{"X-Webhook-Signature"},
		Encoding: signature.Hex,
		Key:      signature.HexAfterWhsec,
		Time:     signature.HeaderTime,
	},
	TypePrefix: "io.dataspike.",
	Source:     "https://dataspike.io",
	mapBody:    mapDataspike,
	fresh: func(body []byte, now time.Time) []byte {
		body = setField(body, uuid.NewString(), "id")
		return setField(body, now.UTC().Format("2006-01-02T15:04:05.000000Z"), "timestamp")
	},
}

func mapDataspike(body []byte, o rawjson.Object) (mapping, error) {
	eventType := o.Str("event_type")
	if eventType == "" {
		return mapping{}, ErrNoType
	}
	var (
		id        = o.Text("id")
		timestamp = o.Text("timestamp")
		payload   = o.Object("payload")
		applicant = payload.Text("applicant_id")
	)
	m := mapping{
		kind:       strings.ToLower(eventType),
		subject:    applicant,
		time:       timestamp,
		eventID:    id,
		externalID: payload.Text("external_id"),
		risk:       oneOf(payload.Object("risk_score").Str("type"), "low", "medium", "high", "critical"),
	}
	if m.kind == "docver" {
		m.outcome = dataspikeOutcome[payload.Str("status")]
	}
	// The current documentation's sample has one placeholder as id, webhook_id
	// and applicant_id: an id that names the subscription does not name the
	// event. The vendor's SDK samples share one id among different payloads,
	// so the payload is always part of the name.
	switch {
	case id != "" && id != o.Text("webhook_id"):
		m.basis, m.identity = "id", named("dataspike", "id", exactly(o.Get("event_type"), eventType), exactly(o.Get("id"), id), o.Compact("payload"))
	case timestamp != "":
		m.basis, m.identity = "content", named("dataspike", "timestamp", exactly(o.Get("event_type"), eventType), exactly(o.Get("timestamp"), timestamp), content(o, "payload"))
	default:
		m.basis, m.identity = "state", stateOf("dataspike", rawjson.Compact(body), eventType, applicant)
	}
	return m, nil
}

// dataspikeOutcome maps the status of a verification (Dataspike API reference,
// create-new-verification).
var dataspikeOutcome = map[string]string{
	"verified":    "approved",
	"failed":      "rejected",
	"initial":     "pending",
	"pending":     "pending",
	"in_progress": "pending",
}
