package bus

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// One event that was not taken is no news, nor are those of long ago.
func TestFailingWarns(t *testing.T) {
	ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
	for _, test := range []struct {
		name string
		f    *failing
		want bool
	}{
		{"none", nil, false},
		{"one", &failing{first: ago(failingKnown / 2), last: ago(failingKnown / 2)}, false},
		{"two in a moment", &failing{first: ago(time.Second), last: ago(0)}, false},
		{"several", &failing{first: ago(2 * failingFor), last: ago(0)}, true},
		{"several, over", &failing{first: ago(failingKnown + 2*failingFor), last: ago(failingKnown + time.Second)}, false},
	} {
		if got := test.f.warns(); got != test.want {
			t.Errorf("%s: %t", test.name, got)
		}
	}
}

func TestNoRoom(t *testing.T) {
	for _, test := range []struct {
		code jetstream.ErrorCode
		text string
		want bool
	}{
		{10047, "insufficient storage resources available", true},
		{10005, "no suitable peers for placement, insufficient storage", true},
		{10005, "no suitable peers for placement, tags not matched ['x']", false},
		{10076, "JetStream not enabled", false},
	} {
		if got := noRoom(&jetstream.APIError{ErrorCode: test.code, Description: test.text}); got != test.want {
			t.Errorf("%s: %t", test.text, got)
		}
	}
}
