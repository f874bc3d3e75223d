package normalize

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hookbus/bridge/internal/rawjson"
	"github.com/hookbus/bridge/signature"
)

// Dfns: https://docs.dfns.co/guides/developers/webhooks
//
// The documents sign JSON.stringify of the parsed body; see waldo.
var dfns = Provider{
	Name: "dfns",
	Scheme: signature.Scheme{
		Headers:      []string{"X-DFNS-WEBHOOK-SIGNATURE"},
		Prefix:       "sha256=",
		Encoding:     signature.Hex,
		Key:          signature.Text,
		Time:         signature.BodyTime,
		TimeField:    "timestampSent",
		StrictWindow: true,
		Compact:      true,
	},
	TypePrefix: "co.dfns.",
	Source:     "https://dfns.co",
	mapBody:    mapDfns,
	fresh: func(body []byte, now time.Time) []byte {
		body = dropField(body, "retryOf")
		body = setField(body, "whe-"+randomHex(3)[:5]+"-"+randomHex(3)[:5]+"-"+randomHex(8), "id")
		body = setField(body, now.UTC().Format("2006-01-02T15:04:05.000Z"), "date")
		body = setField(body, 1, "deliveryAttempt")
		body = setField(body, now.Unix(), "timestampSent")
		if o, err := parseObject(body); err == nil {
			if name, entity := dfnsEntity(o.Str("kind"), o.Get("data")); name != "" {
				id := entity.Text("id")
				body = setField(body, id[:strings.LastIndexByte(id, '-')+1]+randomHex(8), "data", name, "id")
			}
		}
		return body
	},
}

func mapDfns(_ []byte, o rawjson.Object) (mapping, error) {
	kind := o.Str("kind")
	if kind == "" {
		return mapping{}, ErrNoType
	}
	var (
		id        = o.Text("id")
		date      = o.Text("date")
		reported  = content(o, "data", dfnsEnvelope...)
		_, object = dfnsEntity(kind, o.Get("data"))
		entity    = object.Text("id")
	)
	if strings.HasPrefix(kind, "policy.approval.") {
		// Two documented shapes of policy.approval.resolved.
		data := o.Object("data")
		approval := data.Object("approval")
		entity = cmp.Or(approval.Text("id"), approval.Text("activityId"), data.Text("activityId"), entity)
	}
	m := mapping{
		kind:       kind,
		subject:    entity,
		time:       date,
		eventID:    id,
		externalID: object.Text("externalId"), // of a transfer, a transaction, a wallet: see schemas/dfns
		outcome:    dfnsOutcome[kind[strings.LastIndexByte(kind, '.')+1:]],
	}
	if n, err := strconv.ParseInt(o.Text("deliveryAttempt"), 10, 32); err == nil {
		m.attempt = int32(n)
	}
	// Every attempt has a new id, and during the rotation of a secret two webhooks
	// deliver the event, each under ids of its own. So what happened, and when, is
	// the event's name.
	if date == "" {
		m.basis, m.identity = "state", stateOf("dfns", reported, kind, entity)
		return m, nil
	}
	what := exactly(o.Get("kind"), kind)
	m.basis, m.identity = "content", named("dfns", what, exactly(o.Get("date"), date), reported)
	// The ids of the attempts are aliases, for where the date changes between
	// attempts. All attempts carry the same data, which is part of the alias: events
	// with different data must not become one because their id is a placeholder, or
	// the webhook's as in the guide's sample.
	for _, attempt := range []string{exactly(o.Get("id"), id), exactly(o.Get("retryOf"), o.Text("retryOf"))} {
		alias := Digest("alias", "dfns", what, attempt, reported)
		if attempt != "" && !slices.Contains(m.identity.Aliases, alias) {
			m.identity.Aliases = append(m.identity.Aliases, alias)
		}
	}
	return m, nil
}

// dfnsEnvelope is what may change between the attempts at one event
// (https://docs.dfns.co/api-reference/webhooks/get-webhook-event).
var dfnsEnvelope = []string{"id", "retryOf", "date", "deliveryAttempt", "timestampSent"}

// dfnsEntities says which object in data an event of a kind is about, where
// there may be several: the first that fits and has an id.
var dfnsEntities = []struct{ kind, object string }{
	{"wallet.transfer.", "transferRequest"},
	{"wallet.transaction.", "transactionRequest"},
	{"wallet.signature.", "signatureRequest"},
	{"wallet.offer.", "offer"},
	{"wallet.", "wallet"},
	{"policy.triggered", "policyEvaluation"},
	{"policy.approval.", "approval"},
	{"vault.event.", "vaultEvent"},
	{"webhook.event.retry.", "originalEvent"},
}

// dfnsEntity returns the object that the event is about, and its name: the one of
// dfnsEntities, else the first in data that has an id.
func dfnsEntity(kind string, data []byte) (name string, object rawjson.Object) {
	o, _ := rawjson.Members(data)
	for _, e := range dfnsEntities {
		if strings.HasPrefix(kind, e.kind) {
			if object := o.Object(e.object); object.Text("id") != "" {
				return e.object, object
			}
		}
	}
	for _, m := range o {
		if object, _ := rawjson.Members(m.Value); object.Text("id") != "" {
			return rawjson.Unquote(m.Name), object
		}
	}
	return "", nil
}

// dfnsOutcome maps the last word of a kind.
var dfnsOutcome = map[string]string{
	"confirmed":   "completed",
	"signed":      "completed",
	"completed":   "completed",
	"rejected":    "rejected",
	"failed":      "failed",
	"requested":   "pending",
	"pending":     "pending",
	"broadcasted": "pending",
}
