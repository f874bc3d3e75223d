package normalize

import (
	"time"

	"github.com/hookbus/bridge/internal/rawjson"
	"github.com/hookbus/bridge/signature"
)

// Waldo: https://docs.waldo.ai/features/webhooks
//
// The documents sign JSON.stringify of the parsed body. That is the raw body
// where the sender is JavaScript; the compact one covers a proxy's formatting.
var waldo = Provider{
	Name: "waldo",
	Scheme: signature.Scheme{
		Headers:  []string{"X-Waldo-Signature"},
		Encoding: signature.Hex,
		Key:      signature.Text,
		Compact:  true,
	},
	TypePrefix: "ai.waldo.",
	Source:     "https://waldo.ai",
	mapBody:    mapWaldo,
	fresh: func(body []byte, _ time.Time) []byte {
		if o, err := parseObject(body); err == nil && o.Get("requestId") != nil {
			return setField(body, randomHex(5), "requestId")
		}
		return setField(body, randomHex(12), "customerId")
	},
}

func mapWaldo(body []byte, o rawjson.Object) (mapping, error) {
	event := o.Str("event")
	if event == "" {
		return mapping{}, ErrNoType
	}
	var (
		evaluation = o.Object("evaluation")
		customer   = o.Text("customerId")
		request    = o.Text("requestId")
		content    = rawjson.Compact(body)
	)
	m := mapping{
		kind:       event,
		subject:    customer,
		externalID: o.Text("externalId"),
		requestID:  request,
		outcome:    waldoOutcome[o.Object("validation").Str("status")],
	}
	for _, word := range []string{evaluation.Str("type"), evaluation.Str("status")} {
		if word != "" {
			m.kind += "." + word
		}
	}
	// A requestId names a request, which has several notifications. Without
	// one, nothing tells "flagged" from "flagged again": it is a state report.
	// One with a requestId changes the state too, so it records it.
	var state Identity
	if customer != "" {
		state = stateOf("waldo", content, customer, event, evaluation.Str("type"))
	}
	switch {
	case request != "":
		m.basis, m.identity = "id", named("waldo", request, content)
		m.identity.StateKey, m.identity.State = state.StateKey, state.State
	case customer != "":
		m.basis, m.identity = "state", state
	default:
		return mapping{}, ErrNoIdentity
	}
	return m, nil
}

// waldoOutcome maps validation.status; ACCEPTED is from an older page.
var waldoOutcome = map[string]string{
	"APPROVED": "approved",
	"ACCEPTED": "approved",
	"REJECTED": "rejected",
	"REVIEW":   "review",
}
