package normalize

import (
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/hookbus/bridge/internal/rawjson"
	"github.com/hookbus/bridge/signature"
)

// Trusthub (Trustmatic): https://dev.trustmatic.io/documentation/docs/integration/webhooks/
//
// The key is the API password.
var trusthub = Provider{
	Name: "trusthub",
	Scheme: signature.Scheme{
		Headers:  []string{"X-Signature"},
		Encoding: signature.Base64,
		Key:      signature.Text,
	},
	TypePrefix: "com.trusthub.",
	Source:     "urn:trusthub",
	mapBody:    mapTrusthub,
	fresh: func(body []byte, _ time.Time) []byte {
		return setField(body, uuid.NewString(), "sessionId")
	},
}

func mapTrusthub(_ []byte, o rawjson.Object) (mapping, error) {
	status := o.Str("status")
	if status == "" {
		return mapping{}, ErrNoType
	}
	// The vendor's own sample is no UUID: opaque text.
	session := o.Text("sessionId")
	if session == "" {
		return mapping{}, ErrNoIdentity
	}
	project := o.Text("projectId") // absent on older installations
	m := mapping{
		kind:    "onboarding." + strings.ToLower(status),
		source:  urn("urn:trusthub", project),
		subject: session,
		basis:   "state",
		// The order of the fields varies, so the body is no identity. A reviewer
		// may go from approved to rejected and back.
		identity:   stateOf("trusthub", exactly(o.Get("status"), status), exactly(o.Get("projectId"), project), exactly(o.Get("sessionId"), session)),
		externalID: o.Text("externalId"),
		outcome:    trusthubOutcome(strings.ToUpper(status)),
	}
	m.identity.Transition = true
	return m, nil
}

func trusthubOutcome(status string) string {
	switch {
	case strings.HasSuffix(status, "_APPROVED"):
		return "approved"
	case strings.HasSuffix(status, "_REJECTED"):
		return "rejected"
	case strings.HasPrefix(status, "WAITING_"):
		return "review"
	}
	return ""
}
