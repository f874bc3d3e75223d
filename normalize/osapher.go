package normalize

import (
	"cmp"
	"time"

	"github.com/hookbus/bridge/internal/rawjson"
	"github.com/hookbus/bridge/signature"
)

// Osapher, formerly Verinty: https://osapher.com/docs/webhooks
//
// The prose names the first header, the vendor's sample reads the second.
var osapher = Provider{
	Name: "osapher",
	Scheme: signature.Scheme{
		Headers:  []string{"X-Osapher-Signature", "X-Verinty-Signature"},
		Prefix:   "sha256=",
		Encoding: signature.Hex,
		Key:      signature.Text,
	},
	TypePrefix: "com.osapher.",
	Source:     "https://osapher.com",
	mapBody:    mapOsapher,
	fresh: func(body []byte, now time.Time) []byte {
		body = setField(body, randomDigits(11), "data", "abn")
		return setField(body, now.UTC().Format("2006-01-02T15:04:05.000Z"), "timestamp")
	},
}

func mapOsapher(body []byte, o rawjson.Object) (mapping, error) {
	event := o.Str("event")
	if event == "" {
		return mapping{}, ErrNoType
	}
	var (
		timestamp = o.Text("timestamp")
		data      = o.Object("data")
		entity    = cmp.Or(data.Text("abn"), data.Text("nzbn"))
	)
	m := mapping{
		kind:    event,
		subject: entity,
		time:    timestamp,
		outcome: osapherOutcome[data.Str("status")],
		risk:    oneOf(data.Str("fractureRisk"), "low", "medium", "high", "critical"),
	}
	// There is no event id. One verification may fire two events with one
	// time, and the bulk pipeline may finish two entities in one millisecond.
	if timestamp != "" {
		m.basis, m.identity = "content", named("osapher", exactly(o.Get("event"), event), exactly(o.Get("timestamp"), timestamp), content(o, "data"))
	} else {
		m.basis, m.identity = "state", stateOf("osapher", rawjson.Compact(body), event, entity)
	}
	return m, nil
}

// osapherOutcome maps data.status (https://osapher.com/docs/verify-entity).
var osapherOutcome = map[string]string{
	"verified": "approved",
	"error":    "failed",
}
