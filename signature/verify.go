package signature

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hookbus/bridge/internal/rawjson"
)

// Verifier verifies the requests of one provider. It is safe for concurrent use.
type Verifier struct {
	scheme    Scheme
	macs      []*sync.Pool // of hash.Hash, by slot: resetting one costs less than making one
	tolerance time.Duration
}

// Slots returns the number of secrets. Each of them is a slot, counted from 0.
func (v *Verifier) Slots() int { return len(v.macs) }

// NewVerifier returns a Verifier that accepts any of the secrets, as a rotation needs. White space
// around a secret does not count. Tolerance is how far the signed time may be from the clock, in
// either direction; it is our policy, except that Dfns's samples use 5 minutes.
//
// It returns [ErrSecret], with the slot (from 0) and the reason, if a secret is empty or cannot be
// decoded, or if there is none.
func (s Scheme) NewVerifier(secrets []string, tolerance time.Duration) (*Verifier, error) {
	if len(secrets) == 0 {
		return nil, fmt.Errorf("%w: none given", ErrSecret)
	}
	macs := make([]*sync.Pool, len(secrets))
	for slot, secret := range secrets {
		key, err := s.key(secret)
		if err != nil {
			return nil, fmt.Errorf("slot %d: %w", slot, err)
		}
		macs[slot] = &sync.Pool{New: func() any { return hmac.New(sha256.New, key) }}
	}
	return &Verifier{scheme: s, macs: macs, tolerance: tolerance}, nil
}

// Verify returns the slot of the secret that signed the body as it came, byte for byte, or -1 and
// the first of these that applies:
//
//   - [ErrMissing]: no header, or only empty ones.
//   - [ErrMalformed]: the header is repeated, contradicts the other one, or is not written as the
//     scheme says.
//   - [ErrTimestamp]: the time in the header is missing or not 1 to 18 decimal digits.
//   - [ErrMismatch]: no secret gives this signature, however old the request is.
//   - [ErrTimestamp]: the signed time is outside the tolerance; or, for BodyTime, the body is not a
//     JSON object whose last field of that very name is an integer.
func (v *Verifier) Verify(h http.Header, body []byte, now time.Time) (slot int, err error) {
	stamp, digest, err := v.scheme.read(h)
	if err != nil {
		return -1, err
	}
	var signed time.Time
	if v.scheme.Time == HeaderTime {
		if signed, err = parseUnix(stamp); err != nil {
			return -1, err
		}
	}

	slot = v.match(stamp, body, digest)
	if slot < 0 && v.scheme.Compact {
		var compact bytes.Buffer
		if json.Compact(&compact, body) == nil && compact.Len() < len(body) {
			slot = v.match(stamp, compact.Bytes(), digest)
		}
	}
	if slot < 0 {
		return -1, ErrMismatch
	}

	if v.scheme.Time == BodyTime {
		if signed, err = parseUnix(topLevel(body, v.scheme.TimeField)); err != nil {
			return -1, err
		}
	}
	if v.scheme.Time != NoTime && !v.fresh(signed, now) {
		return -1, ErrTimestamp
	}
	return slot, nil
}

// match returns the first slot whose key gives the digest, or -1.
func (v *Verifier) match(stamp string, body, digest []byte) int {
	for slot, macs := range v.macs {
		mac := macs.Get().(hash.Hash)
		mac.Reset()
		sum := v.scheme.sum(mac, stamp, body)
		macs.Put(mac)
		if hmac.Equal(digest, sum) {
			return slot
		}
	}
	return -1
}

func (v *Verifier) fresh(signed, now time.Time) bool {
	away := now.Sub(signed).Abs() // neither overflows: both saturate
	if v.scheme.StrictWindow {
		return away < v.tolerance
	}
	return away <= v.tolerance
}

// read checks the syntax of the header, except that of the stamp, which it returns as it was sent.
func (s Scheme) read(h http.Header) (stamp string, digest []byte, err error) {
	value, err := s.value(h)
	if err != nil {
		return "", nil, err
	}
	if s.Time == HeaderTime {
		if stamp, value, err = splitItems(value); err != nil {
			return "", nil, err
		}
	}
	text, ok := strings.CutPrefix(value, s.Prefix)
	if !ok {
		return "", nil, ErrMalformed
	}
	digest, err = s.Encoding.decode(text)
	return stamp, digest, err
}

// value returns the one value that came under the scheme's names. Two names with the same value are
// a provider in the middle of renaming its header.
func (s Scheme) value(h http.Header) (value string, err error) {
	for _, name := range s.Headers {
		switch values := h.Values(name); {
		case len(values) > 1:
			return "", ErrMalformed
		case len(values) == 0 || values[0] == "":
		case value != "" && value != values[0]:
			return "", ErrMalformed
		default:
			value = values[0]
		}
	}
	if value == "" {
		return "", ErrMissing
	}
	return value, nil
}

// splitItems returns the items t and v1 of "t=1720018333,v1=a3f4...". It passes over others, which a
// later version of the scheme may add. A missing v1 is an empty digest, which decode refuses.
func splitItems(value string) (t, v1 string, err error) {
	var seenT, seenV1 bool
	for item := range strings.SplitSeq(value, ",") {
		key, val, ok := strings.Cut(item, "=")
		switch {
		case !ok, strings.ContainsAny(item, " \t"), key == "t" && seenT, key == "v1" && seenV1:
			return "", "", ErrMalformed
		case key == "t":
			t, seenT = val, true
		case key == "v1":
			v1, seenV1 = val, true
		}
	}
	return t, v1, nil
}

// parseUnix reads seconds. 18 digits stay clear of every overflow in package time.
func parseUnix(text string) (time.Time, error) {
	sec, err := strconv.ParseUint(text, 10, 64)
	if err != nil || len(text) > 18 {
		return time.Time{}, ErrTimestamp
	}
	return time.Unix(int64(sec), 0), nil
}

// topLevel returns the literal of a field of a JSON object, or "". Decoding into a struct would match
// the field's name in upper and lower case alike.
func topLevel(body []byte, field string) string {
	if !json.Valid(body) {
		return ""
	}
	o, _ := rawjson.Members(body)
	return string(o.Get(field))
}
