// Package signature verifies the HMAC-SHA256 signatures of webhooks, and makes them.
//
// A [Scheme] declares how one provider signs; [Scheme.NewVerifier] is the entry point, and
// [Scheme.Sign] does what the provider does, for tests and tools.
//
// What [Verifier.Verify] accepts was signed with one of the given secrets and, where the provider
// signs a time, within the tolerance. Digests are compared in constant time, a digest has exactly one
// accepted spelling, and no error holds a secret, a signature or a part of the body.
package signature

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"
)

// The functions that return them say when.
var (
	ErrSecret    = errors.New("unusable signing secret")
	ErrMissing   = errors.New("signature missing")
	ErrMalformed = errors.New("signature malformed")
	ErrMismatch  = errors.New("signature mismatch")
	ErrTimestamp = errors.New("signed time unreadable or outside tolerance")
)

// Scheme declares how one provider signs. A zero field means "none".
type Scheme struct {
	// Headers are the names under which the signature may come; Sign uses the first. There are two
	// where a provider contradicts itself. Osapher, docs/webhooks: the text says
	// X-Osapher-Signature, the sample reads x-verinty-signature.
	Headers []string

	// Prefix is the text before the digest. Osapher, docs/webhooks, and Dfns,
	// guides/developers/webhooks: "sha256=".
	Prefix string

	Encoding Encoding
	Key      KeyForm
	Time     TimeSource

	// TimeField is, for BodyTime, the top-level field that holds the time in Unix seconds.
	// Dfns, guides/developers/webhooks: "timestampSent".
	TimeField string

	// StrictWindow refuses a request that is exactly as old as the tolerance.
	// Dfns, guides/developers/webhooks: the samples compare with "<".
	StrictWindow bool

	// Compact also accepts a signature over the body without insignificant white space. Waldo,
	// features/webhooks, and Dfns, guides/developers/webhooks: the samples sign
	// JSON.stringify(payload), which is the raw body unless something on the way re-formatted it.
	// Then bodies that differ in white space share a signature: do not tell them apart by it.
	Compact bool
}

// Encoding is how the digest is written. Every other spelling of the same bytes is malformed.
type Encoding int

const (
	Hex    Encoding = iota // lower case. Dataspike, Waldo, Osapher and Dfns.
	Base64                 // standard alphabet, padded. Trusthub, integration/webhooks.
)

// KeyForm is how a secret becomes the key of the HMAC.
type KeyForm int

const (
	// Text takes the secret as it is. Osapher, docs/webhooks: including its "whsec_".
	Text KeyForm = iota

	// HexAfterWhsec drops the prefix "whsec_", if there, and hex-decodes the rest. Dataspike,
	// webhooks/configuration: "hex-decode the secret after stripping the whsec_ prefix". Any length
	// will do: the secret in that page's sample has 31 bytes.
	HexAfterWhsec
)

// TimeSource is where the signed time stands.
type TimeSource int

const (
	NoTime TimeSource = iota // Waldo, Osapher and Trusthub: a captured request can be replayed.

	// HeaderTime is a header "t=<unix s>,v1=<digest>" that signs "<t>.<body>".
	// Dataspike, webhooks/configuration. The page gives no tolerance and no sample checks t.
	HeaderTime

	// BodyTime is a JSON integer in the signed body, see Scheme.TimeField.
	// Dfns, guides/developers/webhooks.
	BodyTime
)

// key returns ErrSecret for a secret that is empty or, where the scheme decodes it, not hexadecimal.
func (s Scheme) key(secret string) ([]byte, error) {
	secret = strings.TrimSpace(secret)
	key := []byte(secret)
	if s.Key == HexAfterWhsec {
		var err error
		if key, err = hex.DecodeString(strings.TrimPrefix(secret, "whsec_")); err != nil {
			return nil, fmt.Errorf("%w: not hexadecimal", ErrSecret) // err quotes the secret
		}
	}
	if len(key) == 0 {
		return nil, fmt.Errorf("%w: empty", ErrSecret)
	}
	return key, nil
}

// sum is the digest that the provider computes. Only HeaderTime signs the stamp.
func (s Scheme) sum(mac hash.Hash, stamp string, body []byte) []byte {
	if s.Time == HeaderTime {
		mac.Write([]byte(stamp + "."))
	}
	mac.Write(body)
	return mac.Sum(nil)
}

func (e Encoding) encode(digest []byte) string {
	if e == Base64 {
		return base64.StdEncoding.EncodeToString(digest)
	}
	return hex.EncodeToString(digest)
}

// decode accepts what encode writes and nothing else: the decoders let upper case, line breaks and
// stray bits pass.
func (e Encoding) decode(text string) (digest []byte, err error) {
	if e == Base64 {
		digest, err = base64.StdEncoding.DecodeString(text)
	} else {
		digest, err = hex.DecodeString(text)
	}
	if err != nil || len(digest) != sha256.Size || e.encode(digest) != text {
		return nil, ErrMalformed
	}
	return digest, nil
}
