//go:build failpoints

// Package failpoint lets a test end the process at a named point of its way,
// as a crash would. Without the build tag failpoints it does nothing.
package failpoint

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// ClaimFirst turns publish-first into claim-first: an event's names are written
// into the index before it is published. It loses events, and is there to show
// that the tests see that.
var ClaimFirst = os.Getenv("FAILPOINT_CLAIM_FIRST") != ""

// The variable FAILPOINT holds the name of a point and, after a colon, which
// time it is passed; the first without.
var (
	name, count, _ = strings.Cut(os.Getenv("FAILPOINT"), ":")
	left           atomic.Int64
)

func init() {
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil {
		n = 1
	}
	left.Store(n)
}

// Hit ends the process with SIGKILL if the point is the one that FAILPOINT
// names.
func Hit(point string) {
	if point == name && left.Add(-1) == 0 {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
