// Package schemas holds the JSON Schema of every event type that a provider
// documents, and judges bodies by them.
//
// There is one file a type, <provider>/<kind>.json, named like the NATS subject
// of the type below the prefix; what the types of a provider share is in
// <provider>/_common.json. The files refer to each other by relative
// references and have no $id, so they resolve wherever they are served from.
//
// The entry point is [Compile]. A schema says what the provider documents and
// no more: a field is required only if the documents and every sample say so,
// unknown fields and unknown values of enumerations are valid, and formats are
// not asserted. No message or pointer holds a value of a body.
package schemas

import (
	"embed"
	"io/fs"
	"path"
	"strings"
)

//go:embed */*.json
var files embed.FS

// A Type names an event type. Kind is the CloudEvents type without the
// provider's prefix, for example "wallet.transfer.confirmed".
type Type struct {
	Provider, Kind string
}

// Types returns all types that have a schema, in the order of their paths.
func Types() []Type {
	names, err := fs.Glob(files, "*/*.json")
	if err != nil {
		panic(err) // the pattern is well-formed
	}
	var types []Type
	for _, name := range names {
		if kind := strings.TrimSuffix(path.Base(name), ".json"); !shared(kind) {
			types = append(types, Type{Provider: path.Dir(name), Kind: kind})
		}
	}
	return types
}

// Path returns the path of a type's schema in [FS], and whether there is one.
func Path(provider, kind string) (string, bool) {
	name := provider + "/" + kind + ".json"
	if _, err := fs.Stat(files, name); err != nil || shared(kind) {
		return "", false
	}
	return name, true
}

// FS returns all files, the shared ones included, for a server of them.
func FS() fs.FS { return files }

// shared reports whether a file holds definitions for others and is no type.
func shared(kind string) bool { return strings.HasPrefix(kind, "_") }
