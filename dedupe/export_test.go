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

// SetLeastWindow changes, for all tests, the duplicate window from which on the
// filter is asked.
func SetLeastWindow(d time.Duration) { leastWindow = d }
