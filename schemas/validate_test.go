package schemas_test

import (
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/hookbus/bridge/normalize"
	"github.com/hookbus/bridge/schemas"
)

var compile = func() func(testing.TB) *schemas.Validator {
	once := sync.OnceValues(schemas.Compile)
	return func(t testing.TB) *schemas.Validator {
		t.Helper()
		v, err := once()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}()

func decode(t testing.TB, body []byte) any {
	t.Helper()
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func encode(t testing.TB, value any) []byte {
	t.Helper()
	body, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// judge returns a violation as text, "valid" if there is none. What has one must
// not be said to fit.
func judge(t testing.TB, provider, kind string, body []byte) string {
	t.Helper()
	violation, known := compile(t).Validate(provider, kind, body)
	if !known {
		t.Fatalf("no schema of %s %s", provider, kind)
	}
	if violation == nil {
		return "valid"
	}
	if json.Valid(body) && compile(t).Fits(provider, kind, body) {
		t.Errorf("said to fit: %+v", violation)
	}
	if !printable.MatchString(violation.Pointer) || !printable.MatchString(violation.Expected) ||
		len(violation.Pointer) > schemas.MaxPointer || violation.Expected == "" {
		t.Errorf("not fit for a header: %+v", violation)
	}
	return violation.String()
}

var printable = regexp.MustCompile(`^[!#$&-~]*$`)

// body returns an example of a type, in which each old text, which must be
// there, is replaced by the new one that follows it.
func body(t testing.TB, provider, kind string, oldnew ...string) string {
	t.Helper()
	name, ok := schemas.Path(provider, kind)
	if !ok {
		t.Fatalf("no schema of %s %s", provider, kind)
	}
	b := string(encode(t, read(t, name).Examples[0]))
	for pair := range slices.Chunk(oldnew, 2) {
		if !strings.Contains(b, pair[0]) {
			t.Fatalf("no %s in %s", pair[0], b)
		}
		b = strings.Replace(b, pair[0], pair[1], 1)
	}
	return b
}

// Both of the shapes that documents disagree on are valid, and so is what they
// say may be absent or null.
func TestDocumentedShapes(t *testing.T) {
	aml := func(payload string) string {
		return `{"id":"e","webhook_id":"w","event_type":"AML_SCREENING","timestamp":"2023-07-18T15:32:13Z","payload":` + payload + `}`
	}
	docver := func(checks string) string {
		return `{"id":"e","webhook_id":"w","event_type":"DOCVER","timestamp":"2023-07-18T15:32:13Z","payload":{"id":"v","applicant_id":"a","status":"verified","created_at":"2023-07-18T15:32:13Z","checks":` + checks + `}}`
	}
	approval := func(data string) string {
		return `{"id":"whe-1","kind":"policy.approval.resolved","date":"2026-01-02T03:04:05Z","timestampSent":1,"data":` + data + `}`
	}
	for name, test := range map[string]struct{ provider, kind, body, want string }{
		"payload of the guide":       {"dataspike", "aml_screening", aml(`{}`), "valid"},
		"search_result":              {"dataspike", "aml_screening", aml(`{"search_result":{"data":[]}}`), "valid"},
		"search_response":            {"dataspike", "aml_screening", aml(`{"search_response":{"data":[]}}`), "valid"},
		"search_response of hits":    {"dataspike", "aml_screening", aml(`{"search_response":[]}`), "/payload/search_response:type=object"},
		"media as an object":         {"dataspike", "aml_screening", aml(`{"search_result":{"data":[{"fields":{"media":{}}}]}}`), "valid"},
		"hit that is a string":       {"dataspike", "aml_screening", aml(`{"search_result":{"data":[{},"x"]}}`), "/payload/search_result/data/1:type=object"},
		"check without data":         {"dataspike", "docver", docver(`{"liveness":{"status":"failed"}}`), "valid"},
		"check's data null":          {"dataspike", "docver", docver(`{"liveness":{"status":"failed","data":null}}`), "valid"},
		"check's data array":         {"dataspike", "docver", docver(`{"liveness":{"status":"failed","data":[]}}`), "valid"},
		"check's data object":        {"dataspike", "docver", docver(`{"liveness":{"status":"failed","data":{"a":1}}}`), "valid"},
		"check's data string":        {"dataspike", "docver", docver(`{"liveness":{"status":"failed","data":""}}`), "/payload/checks/liveness/data:type=null,array,object"},
		"unknown check":              {"dataspike", "docver", docver(`{"voice":{"status":"failed","data":null}}`), "valid"},
		"unknown check, wrong":       {"dataspike", "docver", docver(`{"voice":[]}`), "/payload/checks/voice:type=object"},
		"error without code":         {"dataspike", "docver", docver(`{"poa":{"status":"failed","errors":[{"message":"m"}]}}`), "/payload/checks/poa/errors/0/code:required"},
		"type in lower case":         {"dataspike", "docver", strings.Replace(docver(`{}`), "DOCVER", "docver", 1), "/event_type:const=DOCVER"},
		"approval of the guide":      {"dfns", "policy.approval.resolved", approval(`{"approval":{"activityId":"cr-1"}}`), "valid"},
		"approval of the reference":  {"dfns", "policy.approval.resolved", approval(`{"activityId":"cr-1","activityKind":"k","status":"Denied"}`), "valid"},
		"approval with neither":      {"dfns", "policy.approval.resolved", approval(`{"status":"Denied"}`), "/data:anyOf"},
		"no deliveryAttempt":         {"dfns", "swap.failed", body(t, "dfns", "swap.failed", `,"deliveryAttempt":1`, ""), "valid"},
		"fraction of a second sent":  {"dfns", "swap.failed", body(t, "dfns", "swap.failed", `"deliveryAttempt":1`, `"deliveryAttempt":1.5`), "/deliveryAttempt:type=integer"},
		"integer with an exponent":   {"dfns", "swap.failed", body(t, "dfns", "swap.failed", `"deliveryAttempt":1`, `"deliveryAttempt":1e2`), "valid"},
		"integer beyond any machine": {"dfns", "swap.failed", body(t, "dfns", "swap.failed", `"deliveryAttempt":1`, `"deliveryAttempt":1e400`), "/deliveryAttempt:type=integer"},
		"amount as a number":         {"dfns", "wallet.transfer.failed", body(t, "dfns", "wallet.transfer.failed", `"1000000000"`, `1000000000`), "/data/transferRequest/requestBody/amount:type=string"},
		"quote of many digits":       {"dfns", "wallet.transfer.failed", body(t, "dfns", "wallet.transfer.failed", `3021.27`, `3021.`+strings.Repeat("7", 100)), "valid"},
		"onboarding without project": {"trusthub", "onboarding.auto_approved", `{"sessionId":"s","status":"AUTO_APPROVED"}`, "valid"},
		"externalId of 512":          {"trusthub", "onboarding.auto_approved", `{"sessionId":"s","status":"AUTO_APPROVED","externalId":"` + strings.Repeat("é", 512) + `"}`, "valid"},
		"externalId of 513":          {"trusthub", "onboarding.auto_approved", `{"sessionId":"s","status":"AUTO_APPROVED","externalId":"` + strings.Repeat("é", 513) + `"}`, "/externalId:maxLength"},
		"company of New Zealand":     {"osapher", "verification.completed", `{"event":"verification.completed","timestamp":"t","data":{"abn":null,"nzbn":"9429000000000"}}`, "valid"},
		"evaluation without a type":  {"waldo", "evaluation", `{"event":"evaluation","evaluation":{}}`, "/evaluation/status:required"},
		"evaluation of another type": {"waldo", "evaluation.kyc.failed", `{"event":"evaluation","evaluation":{"type":"fraud","status":"failed"}}`, "/evaluation/type:const=kyc"},
		"last of a repeated name":    {"waldo", "evaluation", `{"event":1,"event":"evaluation"}`, "valid"},
		"body that is an array":      {"waldo", "evaluation", `[]`, ":type=object"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := judge(t, test.provider, test.kind, []byte(test.body)); got != test.want {
				t.Errorf("got %s, want %s\n%s", got, test.want, test.body)
			}
		})
	}
}

// place is a value in a body together with the schemas that hold for it.
type place struct {
	location []string
	schema   *jsonschema.Schema
}

// places returns every pair of a value and a schema that demands something of it.
func places(value any, schema *jsonschema.Schema, location ...string) []place {
	if schema == nil || schema.Bool != nil {
		return nil
	}
	at := []place{{location, schema}}
	at = append(at, places(value, schema.Ref, location...)...)
	for _, part := range schema.AllOf {
		at = append(at, places(value, part, location...)...)
	}
	inner := func(name string, value any, schema *jsonschema.Schema) {
		at = append(at, places(value, schema, append(slices.Clone(location), name)...)...)
	}
	switch v := value.(type) {
	case map[string]any:
		for name, member := range v {
			if property, ok := schema.Properties[name]; ok {
				inner(name, member, property)
			} else if others, ok := schema.AdditionalProperties.(*jsonschema.Schema); ok {
				inner(name, member, others)
			}
		}
	case []any:
		for i, item := range v {
			inner(strconv.Itoa(i), item, schema.Items2020)
		}
	}
	return at
}

// with returns a copy of value in which change was applied to what is at location.
func with(value any, location []string, change func(any) any) any {
	if len(location) == 0 {
		return change(value)
	}
	switch v := value.(type) {
	case map[string]any:
		copied := map[string]any{}
		for name, member := range v {
			if copied[name] = member; name == location[0] {
				copied[name] = with(member, location[1:], change)
			}
		}
		return copied
	case []any:
		i, _ := strconv.Atoi(location[0])
		copied := slices.Clone(v)
		copied[i] = with(v[i], location[1:], change)
		return copied
	}
	panic("test: nothing at the location")
}

// marker stands in every string of a body whose violation must not show it.
const marker = "Mallory-Marker"

// wrong has a value of every type.
var wrong = map[string]any{
	"null":    nil,
	"boolean": true,
	"number":  json.Number("1.5"),
	"string":  marker,
	"array":   []any{marker},
	"object":  map[string]any{marker: marker},
}

// Every example of which one required member is missing, one value has a type
// that it may not have, or one constant is another, is invalid at that place.
func TestMutations(t *testing.T) {
	for _, typ := range schemas.Types() {
		name, _ := schemas.Path(typ.Provider, typ.Kind)
		schema := compileFile(t, name)
		for _, example := range read(t, name).Examples {
			sent := decode(t, example)
			removed, replaced, constants := 0, 0, 0
			expect := func(want string, location []string, change func(any) any) {
				t.Helper()
				mutated := encode(t, with(sent, location, change))
				got := judge(t, typ.Provider, typ.Kind, mutated)
				if pointer, _, _ := strings.Cut(got, ":"); pointer != want {
					t.Errorf("%s: got %s, want it at %s\n%s", name, got, want, mutated)
				}
				if strings.Contains(got, marker) {
					t.Errorf("%s: a value in %s", name, got)
				}
			}
			for _, p := range places(sent, schema) {
				here := strings.Join(append([]string{""}, p.location...), "/")
				for _, required := range p.schema.Required {
					removed++
					expect(here+"/"+required, p.location, func(v any) any {
						o := v.(map[string]any)
						kept := map[string]any{}
						for name, value := range o {
							if name != required {
								kept[name] = value
							}
						}
						return kept
					})
				}
				if p.schema.Const != nil {
					constants++
					expect(here, p.location, func(any) any { return marker })
				}
				if p.schema.Types == nil {
					continue
				}
				for typeName, value := range wrong {
					if !slices.Contains(p.schema.Types.ToStrings(), typeName) {
						replaced++
						expect(here, p.location, func(any) any { return value })
					}
				}
			}
			if removed < 1 || replaced < 10 || constants < 1 {
				t.Errorf("%s: only %d members removed, %d values replaced, %d constants", name, removed, replaced, constants)
			}
		}
	}
}

func compileFile(t testing.TB, name string) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.UseLoader(loadFunc(func(url string) (any, error) {
		f, err := schemas.FS().Open(strings.TrimPrefix(url, "test:///"))
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return jsonschema.UnmarshalJSON(f)
	}))
	schema, err := c.Compile("test:///" + name)
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// A member that no document names, in any object, and a text that no document
// lists, in place of any but the type, are valid.
func TestOpen(t *testing.T) {
	for _, typ := range schemas.Types() {
		name, _ := schemas.Path(typ.Provider, typ.Kind)
		schema := compileFile(t, name)
		for _, example := range read(t, name).Examples {
			sent := decode(t, example)
			all := places(sent, schema)
			constant := func(location []string) bool {
				return slices.ContainsFunc(all, func(p place) bool {
					return p.schema.Const != nil && slices.Equal(p.location, location)
				})
			}
			for _, p := range all {
				opened := with(sent, p.location, func(v any) any {
					switch v := v.(type) {
					case string:
						if !constant(p.location) {
							return "A_NEW_VALUE"
						}
					case map[string]any:
						if _, ok := p.schema.AdditionalProperties.(*jsonschema.Schema); ok {
							break // a map of something: its members are not unknown
						}
						more := map[string]any{"aNewField": []any{nil}}
						for name, value := range v {
							more[name] = value
						}
						return more
					}
					return v
				})
				if got := judge(t, typ.Provider, typ.Kind, encode(t, opened)); got != "valid" {
					t.Errorf("%s: %s\n%s", name, got, encode(t, opened))
				}
			}
		}
	}
}

func TestUnknownType(t *testing.T) {
	for _, unknown := range []schemas.Type{{"waldo", "unknown"}, {"unknown", "flag"}, {"waldo", "_common"}, {"", ""}} {
		if violation, known := compile(t).Validate(unknown.Provider, unknown.Kind, []byte("{")); violation != nil || known {
			t.Errorf("%v: %v, %v", unknown, violation, known)
		}
	}
}

// With many violations, the one that comes first by pointer is returned, again and again.
func TestFirst(t *testing.T) {
	sent := []byte(`{"id":1,"webhook_id":1,"timestamp":1,"payload":{"status":1,"checks":{"z":1,"b":{"errors":[1,1]},"a/b~c":{"status":1}}}}`)
	for range 100 {
		if got := judge(t, "dataspike", "docver", sent); got != "/event_type:required" {
			t.Fatal(got)
		}
	}
	sent = []byte(strings.Replace(string(sent), `{"id":1,`, `{"id":"","event_type":"DOCVER",`, 1))
	for range 100 {
		if got := judge(t, "dataspike", "docver", sent); got != "/payload/applicant_id:required" {
			t.Fatal(got)
		}
	}
}

func TestHostile(t *testing.T) {
	docver := func(checks string) string {
		return `{"id":"e","webhook_id":"w","event_type":"DOCVER","timestamp":"t","payload":{"applicant_id":"a","created_at":"t","id":"v","status":"s","checks":` + checks + `}}`
	}
	retry := func(data string) string {
		return `{"id":"e","kind":"webhook.event.retry.triggered","date":"t","timestampSent":1,"data":` + data + `}`
	}
	nested := func(open, close string, n int) string {
		return strings.Repeat(open, n) + strings.Repeat(close, n)
	}
	key := strings.Repeat("k", 1<<20)
	for name, test := range map[string]struct{ provider, kind, body, want string }{
		"nothing":               {"waldo", "flag", "", ":json"},
		"white space":           {"waldo", "flag", " \n", ":json"},
		"garbage":               {"waldo", "flag", "flag=true", ":json"},
		"trailing garbage":      {"waldo", "flag", body(t, "waldo", "flag") + "x", ":json"},
		"two bodies":            {"waldo", "flag", body(t, "waldo", "flag") + body(t, "waldo", "flag"), ":json"},
		"byte order mark":       {"waldo", "flag", "\ufeff" + body(t, "waldo", "flag"), ":json"},
		"null":                  {"waldo", "flag", "null", ":type=object"},
		"broken UTF-8":          {"waldo", "flag", body(t, "waldo", "flag", "abcd", "\xff\xfe"), "valid"},
		"deepest array":         {"dfns", "webhook.event.retry.triggered", retry(`{"originalEvent":{"id":"","data":{"a":` + nested("[", "]", 9996) + `}}}`), "valid"},
		"deepest object":        {"dfns", "webhook.event.retry.triggered", retry(`{"originalEvent":{"id":"","data":` + strings.Repeat(`{"a":`, 9997) + "1" + strings.Repeat("}", 9997) + `}}`), "valid"},
		"too deep":              {"dfns", "webhook.event.retry.triggered", retry(`{"originalEvent":{"id":"","data":{"a":` + nested("[", "]", 9997) + `}}}`), ":json"},
		"too deep an object":    {"dfns", "webhook.event.retry.triggered", retry(`{"originalEvent":{"id":"","data":` + strings.Repeat(`{"a":`, 9998) + "1" + strings.Repeat("}", 9998) + `}}`), ":json"},
		"20,000 open brackets":  {"waldo", "flag", strings.Repeat("[", 20_000), ":json"},
		"long key":              {"dataspike", "docver", docver(`{"` + key + `":1}`), "/payload/checks/" + key[:schemas.MaxPointer-len("/payload/checks/")] + ":type=object"},
		"key of slashes":        {"dataspike", "docver", docver(`{"a/b~c":1}`), "/payload/checks/a~1b~0c:type=object"},
		"key of slashes at end": {"dataspike", "docver", docver(`{"` + strings.Repeat("/", 1000) + `":1}`), "/payload/checks/" + strings.Repeat("~1", 120) + ":type=object"},
		"key of controls":       {"dataspike", "docver", docver(`{"a\r\nb: c%20\u0000\u007f\"é\ud83d\ude00":1}`), "/payload/checks/a__b:_c_20_____:type=object"},
		"empty key":             {"dataspike", "docver", docver(`{"":1}`), "/payload/checks/:type=object"},
		"8 MiB of digits":       {"dfns", "swap.failed", body(t, "dfns", "swap.failed", `"deliveryAttempt":1`, `"deliveryAttempt":`+strings.Repeat("9", 8<<20)), "/deliveryAttempt:type=integer"},
		"8 MiB of text":         {"waldo", "flag", body(t, "waldo", "flag", "abcd", strings.Repeat("a", 8<<20)), "valid"},
		"huge exponents":        {"dataspike", "docver", docver(`{"a":{"status":"s","errors":[` + strings.Repeat(`{"code":1E+999999},`, 10_000) + `1]}}`), "/payload/checks/a/errors/0/code:type=integer"},
		"tiny exponents":        {"dataspike", "docver", docver(`{"a":{"status":"s","errors":[` + strings.Repeat(`{"code":1e-999999},`, 10_000) + `1]}}`), "/payload/checks/a/errors/0/code:type=integer"},
		"many wrong values":     {"dataspike", "docver", docver(`{"a":{"status":"s","errors":[` + strings.Repeat(`1,`, schemas.MaxValues-20) + `1]}}`), "/payload/checks/a/errors/0:type=object"},
		"too many values":       {"dataspike", "docver", docver(`{"a":{"status":"s","errors":[` + strings.Repeat(`1,`, schemas.MaxValues) + `1]}}`), "valid"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := judge(t, test.provider, test.kind, []byte(test.body)); got != test.want {
				t.Errorf("got %.400s, want %.400s", got, test.want)
			}
		})
	}
}

func TestConcurrently(t *testing.T) {
	v := compile(t)
	var wg sync.WaitGroup
	for _, p := range normalize.Providers() {
		for range 4 {
			wg.Go(func() {
				for _, sample := range p.Samples() {
					if violation, _ := v.Validate(p.Name, sample.Kind, sample.Body); violation != nil {
						t.Errorf("%s/%s: %v", p.Name, sample.Name, violation)
					}
				}
			})
		}
	}
	wg.Wait()
}
