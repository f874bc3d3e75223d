package ingress

import (
	"errors"
	"net/http"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/normalize"
	"github.com/hookbus/bridge/signature"
)

// Reason says why a webhook was not accepted. The set is closed: the same word
// stands in the answer, in the metric's label and in the log.
type Reason string

// Reasons to refuse a request.
const (
	UnknownProvider           Reason = "unknown_provider"
	MethodNotAllowed          Reason = "method_not_allowed"
	BodyTooLarge              Reason = "body_too_large"
	EncodingUnsupported       Reason = "encoding_unsupported"
	SignatureMissing          Reason = "signature_missing"
	SignatureMalformed        Reason = "signature_malformed"
	SignatureMismatch         Reason = "signature_mismatch"
	TimestampOutsideTolerance Reason = "timestamp_outside_tolerance"
	Overloaded                Reason = "overloaded"
	BusUnavailable            Reason = "bus_unavailable"
)

// Reasons to quarantine a verified body.
const (
	BodyNotJSON     Reason = "body_not_json"
	TypeMissing     Reason = "type_missing"
	IdentityMissing Reason = "identity_missing"
	SchemaViolation Reason = "schema_violation"
	NotPublishable  Reason = "not_publishable"
)

// QuarantineReasons are all reasons to quarantine.
var QuarantineReasons = []Reason{BodyNotJSON, TypeMissing, IdentityMissing, SchemaViolation, NotPublishable}

// refusals says how each refusal is answered.
var refusals = map[Reason]struct {
	status int
	title  string
}{
	UnknownProvider:           {http.StatusNotFound, "No webhook is received at this path."},
	MethodNotAllowed:          {http.StatusMethodNotAllowed, "Webhooks are received by POST."},
	BodyTooLarge:              {http.StatusRequestEntityTooLarge, "The body is too large."},
	EncodingUnsupported:       {http.StatusUnsupportedMediaType, "A Content-Encoding is not supported."},
	SignatureMissing:          {http.StatusUnauthorized, "The signature header is missing."},
	SignatureMalformed:        {http.StatusUnauthorized, "The signature header is malformed."},
	SignatureMismatch:         {http.StatusUnauthorized, "The signature does not match."},
	TimestampOutsideTolerance: {http.StatusUnauthorized, "The signed time is missing or too far from now."},
	Overloaded:                {http.StatusServiceUnavailable, "The request could not be taken in time. Try again."},
	BusUnavailable:            {http.StatusServiceUnavailable, "The event could not be stored. Try again."},
}

// reasons maps the errors of the stages to reasons. The first that matches counts.
var reasons = []struct {
	err    error
	reason Reason
}{
	{errTooLarge, BodyTooLarge},
	{errOverloaded, Overloaded},
	{signature.ErrMissing, SignatureMissing},
	{signature.ErrMalformed, SignatureMalformed},
	{signature.ErrMismatch, SignatureMismatch},
	{signature.ErrTimestamp, TimestampOutsideTolerance},
	{normalize.ErrNotJSON, BodyNotJSON},
	{normalize.ErrNoType, TypeMissing},
	{normalize.ErrNoIdentity, IdentityMissing},
	{normalize.ErrTypeTooLong, NotPublishable},
	{ErrSchema, SchemaViolation},
	{bus.ErrNotPublishable, NotPublishable},
}

// reasonFor returns the reason of an error. One that is not listed is the bus's.
func reasonFor(err error) Reason {
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return r.reason
		}
	}
	return BusUnavailable
}
