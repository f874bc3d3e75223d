package signature_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/hookbus/bridge/signature"
)

const tolerance = 5 * time.Minute

// now is the clock of the tests, and the time in every signature that does not say otherwise.
var now = time.Unix(1_720_018_333, 0)

// provider is a scheme with a secret and a body that fit it.
type provider struct {
	signature.Scheme
	secret string
	body   string
}

var providers = map[string]provider{
	"dataspike": {signature.Scheme{
		Headers: []string{"X-Webhook-Signature"},
		Time:    signature.HeaderTime,
		Key:     signature.HexAfterWhsec,
	}, "whsec_a1b2c3d4e5f6", `{"event_type":"DOCVER"}`},
	"waldo": {signature.Scheme{
		Headers: []string{"X-Waldo-Signature"},
		Compact: true,
	}, "waldo-test-secret", `{"event":"flag","flag":true}`},
	"osapher": {signature.Scheme{
		Headers: []string{"X-Osapher-Signature", "X-Verinty-Signature"},
		Prefix:  "sha256=",
	}, "whsec_test_osapher", `{"event":"certificate.issued"}`},
	"trusthub": {signature.Scheme{
		Headers:  []string{"X-Signature"},
		Encoding: signature.Base64,
	}, "<secret>", `{"status":"AUTO_APPROVED"}`},
	"dfns": {signature.Scheme{
		Headers:      []string{"X-DFNS-WEBHOOK-SIGNATURE"},
		Prefix:       "sha256=",
		Time:         signature.BodyTime,
		TimeField:    "timestampSent",
		StrictWindow: true,
		Compact:      true,
	}, "whs-Fij3kMCRZLCAzOqnpLzV", `{"kind":"wallet.created","timestampSent":1720018333}`},
}

func (p provider) verifier(t testing.TB) *signature.Verifier {
	t.Helper()
	v, err := p.NewVerifier([]string{p.secret}, tolerance)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// sign returns the header value for the body at the time now.
func (p provider) sign(t testing.TB, body string) string {
	t.Helper()
	_, value, err := p.Sign(p.secret, []byte(body), now)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func (p provider) header(value string) http.Header {
	h := http.Header{}
	h.Set(p.Headers[0], value)
	return h
}
