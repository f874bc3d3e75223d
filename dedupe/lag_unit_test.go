package dedupe

import (
	"testing"
	"time"

	"github.com/hookbus/bridge/bus"
)

// What was measured says nothing of a bucket or a stream that is another by now.
func TestIndexedIsOfOneBucket(t *testing.T) {
	then := time.Date(2026, 7, 1, 10, 0, 0, 0, time.UTC)
	st := &bus.State{BucketCreated: then, StreamCreated: then.Add(-time.Hour)}
	bucket, stream := incarnations(st)
	x := &Indexer{}
	x.lag.Store(&measured{})
	if at := x.indexed(st); !at.IsZero() {
		t.Errorf("nothing was measured, got %v", at)
	}
	x.lag.Store(&measured{Lag: Lag{Oldest: time.Minute}, at: then, consumer: map[string]string{bucketMetadata: bucket, streamMetadata: stream}})
	if at, want := x.indexed(st), then.Add(-time.Minute); !at.Equal(want) {
		t.Errorf("got %v, want %v", at, want)
	}
	for _, other := range []*bus.State{
		{BucketCreated: then.Add(time.Second), StreamCreated: st.StreamCreated},
		{BucketCreated: st.BucketCreated, StreamCreated: then},
	} {
		if at := x.indexed(other); !at.IsZero() {
			t.Errorf("got %v of %+v", at, other)
		}
	}
}

// A failure or two are no lag; then all counts that was stored since the first.
func TestLagWithoutAnAnswer(t *testing.T) {
	ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
	known := Lag{Messages: 3, Oldest: time.Minute}
	for _, tt := range []struct {
		name string
		measured
		want time.Duration
	}{
		{"answered", measured{Lag: known, at: ago(time.Hour)}, time.Minute},
		{"a failure", measured{Lag: known, at: ago(time.Hour), failing: ago(lagUnknown / 2)}, time.Minute},
		{"many", measured{Lag: known, at: ago(time.Hour), failing: ago(2 * lagUnknown)}, time.Minute + 2*lagUnknown},
		{"many, one just now", measured{Lag: known, at: ago(time.Hour), failing: ago(2 * lagUnknown)}.unanswered(time.Now(), true), time.Minute + 2*lagUnknown},
		{"no connection", measured{Lag: known, at: ago(time.Hour), failing: ago(2 * lagUnknown)}.unanswered(time.Now(), false), time.Minute},
		{"a connection again", measured{Lag: known, at: ago(time.Hour)}.unanswered(time.Now(), true), time.Minute},
	} {
		x := &Indexer{}
		x.lag.Store(&tt.measured)
		if got := x.Lag(); got.Messages != 3 || got.Oldest.Round(time.Second) != tt.want {
			t.Errorf("%s: got %+v, want %v", tt.name, got, tt.want)
		}
	}
}
