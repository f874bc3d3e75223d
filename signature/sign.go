package signature

import (
	"crypto/hmac"
	"crypto/sha256"
	"strconv"
	"time"
)

// Sign signs the raw body as the provider would, and returns the name and the value of the header to
// send. Only HeaderTime uses now; for BodyTime the body must hold its time already.
//
// It returns [ErrSecret].
func (s Scheme) Sign(secret string, body []byte, now time.Time) (header, value string, err error) {
	key, err := s.key(secret)
	if err != nil {
		return "", "", err
	}
	stamp := strconv.FormatInt(now.Unix(), 10)
	value = s.Prefix + s.Encoding.encode(s.sum(hmac.New(sha256.New, key), stamp, body))
	if s.Time == HeaderTime {
		value = "t=" + stamp + ",v1=" + value
	}
	return s.Headers[0], value, nil
}
