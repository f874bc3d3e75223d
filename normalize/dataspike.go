package normalize

import (
	"strings"
	"time"

	"github.com/google/uuid"

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

func mapDataspike(body []byte, o object) (mapping, error) {
	eventType := o.str("event_type")
	if eventType == "" {
		return mapping{}, ErrNoType
	}
	var (
		id        = o.text("id")
		timestamp = o.text("timestamp")
		content   = o.compact("payload")
		payload   = o.object("payload")
		applicant = payload.text("applicant_id")
	)
	m := mapping{
		kind:    strings.ToLower(eventType),
		subject: applicant,
		time:    timestamp,
		extensions: map[string]string{
			"providereventid": id,
			"externalid":      payload.text("external_id"),
			"risk":            oneOf(payload.object("risk_score").str("type"), "low", "medium", "high", "critical"),
		},
	}
	if m.kind == "docver" {
		m.extensions["outcome"] = dataspikeOutcome[payload.str("status")]
	}
	// The current documentation's sample has one placeholder as id, webhook_id
	// and applicant_id: an id that names the subscription does not name the
	// event. The vendor's SDK samples share one id among different payloads,
	// so the payload is always part of the name.
	switch {
	case id != "" && id != o.text("webhook_id"):
		m.basis, m.identity = "id", named("dataspike", "id", eventType, id, content)
	case timestamp != "":
		m.basis, m.identity = "content", named("dataspike", "timestamp", eventType, timestamp, content)
	default:
		m.basis, m.identity = "state", stateOf("dataspike", compact(body), eventType, applicant)
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
