package normalize_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/hookbus/bridge/normalize"
)

// The SDK trims a type: one of white space is none, and the kind must not keep what the type has not.
func TestTypeWithWhiteSpaceAround(t *testing.T) {
	for _, p := range normalize.Providers() {
		if _, err := p.Event([]byte(fmt.Sprintf(typed[p.Name], `" "`)), received); !errors.Is(err, normalize.ErrNoType) {
			t.Errorf("%s: got %v", p.Name, err)
		}
		body := []byte(fmt.Sprintf(typed[p.Name], `"a "`))
		if e, err := p.Event(body, received); err == nil && e.CloudEvent.Type() != p.TypePrefix+e.Kind {
			t.Errorf("%s: type %q, kind %q", p.Name, e.CloudEvent.Type(), e.Kind)
		}
	}
}

// RFC 3339 has years of four digits; consumers cannot read ce-time if its year in UTC is none.
func TestTimeWhoseYearInUTCIsOutOfRange(t *testing.T) {
	for _, at := range []string{"9999-12-31T23:59:59-01:00", "0000-01-01T00:00:00+01:00"} {
		e := mapped(t, "dfns", swap(dfnsBody, "2026-01-02T03:04:05.678Z", at))
		if got := e.CloudEvent.Time(); !got.Equal(received) {
			t.Errorf("%s: got %v", at, got)
		}
	}
}

func TestFreshDropsRetryOfWhereverItStands(t *testing.T) {
	for name, body := range map[string]string{
		"first":   `{"retryOf":"whe-0" , "kind":"a"}`,
		"only":    `{ "retryOf" : "whe-0" }`,
		"twice":   `{"kind":"a","retryOf":"whe-0","retryOf":"whe-0"}`,
		"escaped": `{"kind":"a","retry\u004ff":"whe-0"}`,
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if r := recover(); r != nil {
					t.Errorf("panic: %v", r)
				}
			}()
			fresh := provider(t, "dfns").Fresh([]byte(body), received)
			if _, ok := members(t, fresh)["retryOf"]; ok {
				t.Errorf("%s", fresh)
			}
		})
	}
}

// The last of repeated names counts, for the signature too.
func TestStampWritesTheTimeThatCounts(t *testing.T) {
	body := swap(dfnsBody, `"kind"`, `"timestampSent":1,"kind"`)
	stamped := provider(t, "dfns").Stamp([]byte(body), received)
	if got := members(t, stamped)["timestampSent"]; got != fmt.Sprint(received.Unix()) {
		t.Errorf("got %s\n%s", got, stamped)
	}
}

func TestDfnsActivityIsTheSubjectBeforeOtherObjects(t *testing.T) {
	const body = `{"kind":"policy.approval.resolved","date":"d","data":{"activityId":"cr-1","policy":{"id":"plc-1"}}}`
	if got := mapped(t, "dfns", body).CloudEvent.Subject(); got != "cr-1" {
		t.Errorf("got %s", got)
	}
}
