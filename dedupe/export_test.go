package dedupe

import (
	"context"
	"time"
)

// HearsLate has the deduper believe that the stream is the one created then,
// until it asks in any case.
func (d *Deduper) HearsLate(created time.Time) {
	d.incarnation = func(context.Context) (time.Time, error) { return created, nil }
}

// Lacks reports whether the filter is certain that none of the names is stored,
// but for those that the duplicate window knows.
func (d *Deduper) Lacks(names []string) bool { return d.filter.lacks(names[0]) }

// LetGather has the indexer, which does not run yet, leave more time for messages
// to gather.
func (x *Indexer) LetGather(d time.Duration) { x.pause = d }

// HurryFilter has, for all tests, the filter be asked with short duplicate windows,
// and follow the bucket again soon.
func HurryFilter() { leastWindow, filterRetry = time.Second, time.Second/2 }
