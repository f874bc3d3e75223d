//go:build darwin || freebsd || linux

package bus

import (
	"math"
	"syscall"
)

// available returns how many bytes can still be written to the disk of a directory; the
// greatest number if that cannot be told.
func available(dir string) int64 {
	var st syscall.Statfs_t
	if syscall.Statfs(dir, &st) != nil {
		return math.MaxInt64
	}
	return int64(uint64(st.Bavail) * uint64(st.Bsize))
}
