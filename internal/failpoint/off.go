//go:build !failpoints

// Package failpoint lets a test end the process at a named point of its way,
// as a crash would. Without the build tag failpoints it does nothing.
package failpoint

// ClaimFirst is for tests only.
const ClaimFirst = false

// Hit does nothing.
func Hit(string) {}
