package schemas_test

import (
	"testing"

	"github.com/hookbus/bridge/normalize"
	"github.com/hookbus/bridge/schemas"
)

// Any body is valid or has a violation that fits into a header and is the same
// one each time.
func FuzzValidate(f *testing.F) {
	types := schemas.Types()
	index := map[schemas.Type]uint8{}
	for i, typ := range types {
		index[typ] = uint8(i)
	}
	for _, p := range normalize.Providers() {
		for _, sample := range p.Samples() {
			f.Add(index[schemas.Type{Provider: p.Name, Kind: sample.Kind}], sample.Body)
		}
	}
	f.Add(index[schemas.Type{Provider: "dataspike", Kind: "docver"}], []byte(`{"payload":{"checks":{"\r\n":{"errors":[1e99999]}}}}`))
	f.Fuzz(func(t *testing.T, i uint8, body []byte) {
		typ := types[int(i)%len(types)]
		first := judge(t, typ.Provider, typ.Kind, body)
		if again := judge(t, typ.Provider, typ.Kind, body); again != first {
			t.Errorf("%s, then %s", first, again)
		}
	})
}
