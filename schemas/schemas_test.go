package schemas_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/hookbus/bridge/normalize"
	"github.com/hookbus/bridge/schemas"
)

// documented are the kinds that the providers' pages and their own public code
// name, in braces where they differ in one word.
var documented = map[string][]string{
	"dataspike": {"{docver,docver_checks,aml_screening,applicant,aml,transaction_monitoring,kyt_wallet_check}"},
	"dfns": {
		"wallet.{created,activated,delegated,exported,tags.modified}",
		"wallet.{blockchainevent.detected,blockchain_event.transfer.included,blockchain_event.misc.confirmed}",
		"wallet.signature.{requested,failed,rejected,signed}",
		"wallet.transaction.{requested,failed,rejected,broadcasted,confirmed}",
		"wallet.transfer.{requested,failed,rejected,broadcasted,confirmed}",
		"wallet.offer.{received,accepted,rejected,withdrawn}",
		"key.{created,deleted,delegated,exported}",
		"policy.{triggered,activity.resolved,approval.pending,approval.resolved}",
		"vault.{created,updated,tags.modified,event.created}",
		"swap.{completed,failed}",
		"payout.action.required",
		"address_watch.blockchain_event.{transfer,misc}.confirmed",
		"webhook.event.retry.triggered",
	},
	"osapher":  {"verification.{completed,high_risk}", "certificate.{issued,expired}", "onboarding.submitted"},
	"trusthub": {"onboarding.{auto_approved,manual_approved,waiting_for_manual_approve,auto_rejected,manual_rejected}"},
	"waldo":    {"flag", "{onboard,evaluation}", "{onboard,evaluation}.{kyc,fraud,document}.{initiated,in_progress,completed,failed}"},
}

// expand returns what a pattern with braces stands for.
func expand(pattern string) []string {
	head, rest, ok := strings.Cut(pattern, "{")
	if !ok {
		return []string{pattern}
	}
	words, tail, _ := strings.Cut(rest, "}")
	var out []string
	for word := range strings.SplitSeq(words, ",") {
		out = append(out, expand(head+word+tail)...)
	}
	return out
}

func TestTypes(t *testing.T) {
	var want []string
	for provider, patterns := range documented {
		for _, pattern := range patterns {
			for _, kind := range expand(pattern) {
				want = append(want, provider+"/"+kind+".json")
			}
		}
	}
	var got []string
	for _, typ := range schemas.Types() {
		name, ok := schemas.Path(typ.Provider, typ.Kind)
		if !ok {
			t.Errorf("no path of %v", typ)
		}
		got = append(got, name)
	}
	if !slices.IsSorted(got) {
		t.Error("not sorted")
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("types (-documented +files):\n%s", diff)
	}
}

func TestPath(t *testing.T) {
	for _, none := range []schemas.Type{
		{"", ""}, {"waldo", ""}, {"", "flag"}, {"waldo", "unknown"}, {"osapher", "flag"}, {"waldo", "Flag"}, {"WALDO", "flag"},
		{"waldo", "_common"}, {".", "waldo/flag"}, {"waldo", "../dfns/wallet.created"}, {"waldo/..", "flag"}, {"waldo", "flag.json"},
		{"waldo", "/flag"}, {"waldo", "flag\x00"}, {"waldo", strings.Repeat("a/", 1000)},
	} {
		if name, ok := schemas.Path(none.Provider, none.Kind); ok || name != "" {
			t.Errorf("%q has the path %q", none, name)
		}
	}
	name, ok := schemas.Path("waldo", "flag")
	if _, err := fs.Stat(schemas.FS(), name); !ok || err != nil {
		t.Errorf("%q, %v, %v", name, ok, err)
	}
}

// A document is a schema file.
type document struct {
	Schema      string            `json:"$schema"`
	ID          *string           `json:"$id"`
	Title       string            `json:"title"`
	Description string            `json:"description"`
	Examples    []json.RawMessage `json:"examples"`
	whole       map[string]any
}

func read(t testing.TB, name string) document {
	t.Helper()
	data, err := fs.ReadFile(schemas.FS(), name)
	if err != nil {
		t.Fatal(err)
	}
	var d document
	if err := json.Unmarshal(data, &d); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if err := json.Unmarshal(data, &d.whole); err != nil {
		t.Fatal(err)
	}
	return d
}

// visit calls f with every object in a JSON value, examples excepted.
func visit(value any, f func(map[string]any)) {
	switch v := value.(type) {
	case map[string]any:
		f(v)
		for name, inner := range v {
			if name != "examples" {
				visit(inner, f)
			}
		}
	case []any:
		for _, inner := range v {
			visit(inner, f)
		}
	}
}

func TestFiles(t *testing.T) {
	titles := map[string]string{}
	used, defined := map[string]bool{}, map[string]bool{}
	names, err := fs.Glob(schemas.FS(), "*/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		d := read(t, name)
		if d.Schema != "https://json-schema.org/draft/2020-12/schema" || d.ID != nil {
			t.Errorf("%s: $schema %q, $id %v", name, d.Schema, d.ID)
		}
		if d.Title == "" || !strings.Contains(d.Description, "https://") {
			t.Errorf("%s: title %q, description %q", name, d.Title, d.Description)
		}
		if other := titles[path.Dir(name)+d.Title]; other != "" {
			t.Errorf("%s and %s have one title", name, other)
		}
		titles[path.Dir(name)+d.Title] = name

		defs, _ := d.whole["$defs"].(map[string]any)
		for def := range defs {
			defined[path.Dir(name)+"/_common.json#/$defs/"+def] = true
		}
		visit(d.whole, func(o map[string]any) {
			if ref, ok := o["$ref"].(string); ok {
				file, fragment, _ := strings.Cut(ref, "#")
				used[path.Dir(name)+"/_common.json#"+fragment] = true
				if file != "" && file != "_common.json" {
					t.Errorf("%s: reference to %s", name, ref)
				}
			}
			if annotation, _ := json.Marshal(o["goJSONSchema"]); o["type"] == "number" && !strings.Contains(string(annotation), `"json.Number"`) {
				t.Errorf("%s: a number without goJSONSchema: %v", name, o)
			}
		})
	}
	if diff := cmp.Diff(defined, used); diff != "" {
		t.Errorf("definitions (-defined +used):\n%s", diff)
	}
}

// Every example is an event of the type of its file, by its body.
func TestExamples(t *testing.T) {
	v := compile(t)
	for _, typ := range schemas.Types() {
		name, _ := schemas.Path(typ.Provider, typ.Kind)
		provider, ok := normalize.ByName(typ.Provider)
		if !ok {
			t.Fatalf("no provider %s", typ.Provider)
		}
		examples := read(t, name).Examples
		if len(examples) == 0 {
			t.Errorf("%s: no examples", name)
		}
		for i, example := range examples {
			if violation, known := v.Validate(typ.Provider, typ.Kind, example); violation != nil || !known {
				t.Errorf("%s: example %d: %v, %v", name, i, violation, known)
			}
			e, err := provider.Event(example, time.Time{})
			if err != nil {
				t.Errorf("%s: example %d: %v", name, i, err)
				continue
			}
			if subject := e.Subject("webhooks"); e.Kind != typ.Kind || subject != "webhooks."+typ.Provider+"."+typ.Kind {
				t.Errorf("%s: example %d: kind %s, subject %s", name, i, e.Kind, subject)
			}
		}
	}
}

// The bodies that the providers document are valid, and are examples.
func TestSamples(t *testing.T) {
	v := compile(t)
	for _, p := range normalize.Providers() {
		for _, sample := range p.Samples() {
			violation, known := v.Validate(p.Name, sample.Kind, sample.Body)
			if violation != nil || !known {
				t.Errorf("%s/%s: %v, %v", p.Name, sample.Name, violation, known)
				continue
			}
			if !v.Fits(p.Name, sample.Kind, sample.Body) {
				t.Errorf("%s/%s is judged by the library", p.Name, sample.Name)
			}
			name, _ := schemas.Path(p.Name, sample.Kind)
			if !slices.ContainsFunc(read(t, name).Examples, func(example json.RawMessage) bool {
				return reflect.DeepEqual(decode(t, example), decode(t, sample.Body))
			}) {
				t.Errorf("%s/%s is no example of %s", p.Name, sample.Name, name)
			}
		}
	}
}

// References resolve wherever the files are served from.
func TestServed(t *testing.T) {
	served := "https://bridge.example/some/schemas/"
	c := jsonschema.NewCompiler()
	c.UseLoader(loadFunc(func(url string) (any, error) {
		name, ok := strings.CutPrefix(url, served)
		if !ok {
			return nil, fmt.Errorf("%s is not served", url)
		}
		f, err := schemas.FS().Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return jsonschema.UnmarshalJSON(f)
	}))
	for _, typ := range schemas.Types() {
		name, _ := schemas.Path(typ.Provider, typ.Kind)
		if _, err := c.Compile(served + name); err != nil {
			t.Error(err)
		}
	}
}

type loadFunc func(url string) (any, error)

func (f loadFunc) Load(url string) (any, error) { return f(url) }
