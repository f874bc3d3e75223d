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
