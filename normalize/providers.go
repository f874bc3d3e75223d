package normalize

import (
	"time"

	"github.com/hookbus/bridge/internal/rawjson"
	"github.com/hookbus/bridge/signature"
)

// A Provider is a sender of webhooks: how it signs, and how its bodies become
// events.
type Provider struct {
	// Name is the last element of the path and the second token of the subject.
	Name string
	// Scheme says how the provider signs.
	Scheme signature.Scheme
	// TypePrefix begins every CloudEvents type of the provider.
	TypePrefix string
	// Source is the CloudEvents source, unless the body names a finer one.
	Source string

	// mapBody reads a body and the object in it.
	mapBody func(body []byte, o rawjson.Object) (mapping, error)
	// fresh makes a sample body a new event that happens at now.
	fresh func(body []byte, now time.Time) []byte
}

// Providers returns all providers, in the order of their names.
func Providers() []Provider {
	return []Provider{dataspike, dfns, osapher, trusthub, waldo}
}

// ByName returns the provider with that name.
func ByName(name string) (Provider, bool) {
	for _, p := range Providers() {
		if p.Name == name {
			return p, true
		}
	}
	return Provider{}, false
}
