package normalize

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/hookbus/bridge/internal/rawjson"
)

// An Identity says when two requests report one occurrence.
//
// A named event is a duplicate if its Key or one of its Aliases is known. A
// state report, which nothing in its body tells from an earlier one of the
// same state, is a duplicate if the report stored last for its StateKey has
// the same State and is recent. All values are digests made by [Digest] from
// signed bytes only.
type Identity struct {
	// Key names the occurrence. It is empty for a state report.
	Key string
	// Aliases are further names under which the occurrence may come again.
	Aliases []string
	// StateKey names the thing whose state is reported; State is the state. A
	// named event that has them too records its state, but is not judged by it.
	StateKey, State string
	// Transition says that the state is a step of a named session. The same step
	// does not really happen twice within minutes, so that an equal report is a
	// duplicate within the dedupe window instead of the short one.
	Transition bool
}

// Judged reports whether the event is judged by its state alone.
func (i Identity) Judged() bool { return i.Key == "" }

// Names returns the Key and the aliases; nothing for a state report.
func (i Identity) Names() []string {
	if i.Judged() {
		return nil
	}
	return append([]string{i.Key}, i.Aliases...)
}

// Digest returns the SHA-256, in lower-case hex, of the domain word, the
// provider and the parts, each behind its length as eight bytes, so that no
// two lists of parts look alike.
func Digest(domain, provider string, parts ...string) string {
	var room [1 << 10]byte // most are shorter
	b := room[:0]
	add := func(s string) { b = append(binary.BigEndian.AppendUint64(b, uint64(len(s))), s...) }
	add(domain)
	add(provider)
	for _, p := range parts {
		add(p)
	}
	sum := sha256.Sum256(b)
	var text [2 * sha256.Size]byte
	hex.Encode(text[:], sum[:])
	return string(text[:])
}

// named is the identity of an event that its body names.
func named(provider string, parts ...string) Identity {
	return Identity{Key: Digest("key", provider, parts...)}
}

// content returns what a body reports, without white space: the value under name or,
// if that is absent or null, all members but those of the envelope, so that two bodies
// of an unknown shape are not taken for one.
func content(o rawjson.Object, name string, envelope ...string) string {
	if value := o.Get(name); value != nil && string(value) != "null" {
		return rawjson.Compact(value)
	}
	var b strings.Builder
	for _, m := range o {
		if !slices.Contains(envelope, rawjson.Unquote(m.Name)) {
			fmt.Fprintf(&b, "%q:%s,", m.Name, rawjson.Compact(m.Value))
		}
	}
	return b.String()
}

// exactly returns the text of a value or, where another value may have the same text,
// its literal: all invalid bytes and surrogates are decoded to one character. Absent,
// null and the empty string are "".
func exactly(value []byte, text string) string {
	if text != "" && !strings.ContainsRune(text, utf8.RuneError) {
		return text
	}
	switch string(value) {
	case "", "null", `""`:
		return ""
	}
	return rawjson.Compact(value)
}

// stateOf is the identity of a report of the state of what key names.
func stateOf(provider, state string, key ...string) Identity {
	return Identity{
		StateKey: Digest("state", provider, key...),
		State:    Digest("state", provider, state),
	}
}
