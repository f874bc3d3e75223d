package asyncapi_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/hookbus/bridge/asyncapi"
	"github.com/hookbus/bridge/normalize"
	"github.com/hookbus/bridge/schemas"
)

func document(t *testing.T, prefix string) map[string]any {
	t.Helper()
	text, err := asyncapi.Document(prefix, "v1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	var d map[string]any
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// at returns what is at a JSON pointer of the form #/a/b.
func at(d any, ref string) (any, bool) {
	for _, name := range strings.Split(strings.TrimPrefix(ref, "#/"), "/") {
		o, ok := d.(map[string]any)
		if !ok {
			return nil, false
		}
		if d, ok = o[name]; !ok {
			return nil, false
		}
	}
	return d, true
}

// Every type has a channel at its subject, with its CloudEvents type and payload.
func TestDocument(t *testing.T) {
	d := document(t, "acme.hooks")
	channels := d["channels"].(map[string]any)
	if got, want := len(channels), len(schemas.Types()); got != want {
		t.Errorf("%d channels, want %d", got, want)
	}
	for _, typ := range schemas.Types() {
		name := typ.Provider + "." + typ.Kind
		p, _ := normalize.ByName(typ.Provider)
		if address, _ := at(d, "#/channels/"+name); address == nil {
			t.Errorf("%s has no channel", name)
		} else if got, want := address.(map[string]any)["address"], normalize.Subject("acme.hooks", typ.Provider, typ.Kind); got != want {
			t.Errorf("%s is at %v, want %s", name, got, want)
		}
		if got, _ := at(d, "#/components/messages/"+name+"/name"); got != p.TypePrefix+typ.Kind {
			t.Errorf("%s has the type %v", name, got)
		}
	}
}

// Every reference leads somewhere, and nothing stands beside one.
func TestReferences(t *testing.T) {
	d := document(t, "webhooks")
	n := 0
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				n++
				if _, found := at(d, ref); !found || len(v) != 1 {
					t.Errorf("%s: %s, with %d beside it", path, ref, len(v)-1)
				}
			}
			for name, value := range v {
				if name != "examples" {
					walk(path+"/"+name, value)
				}
			}
		case []any:
			for i, value := range v {
				walk(fmt.Sprintf("%s/%d", path, i), value)
			}
		}
	}
	walk("", d)
	if n < len(schemas.Types()) {
		t.Errorf("only %d references", n)
	}
}
