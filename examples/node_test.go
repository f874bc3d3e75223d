//go:build node

package examples_test

import "testing"

// TestNodeService needs Node and what `npm ci` has installed: make test-node.
func TestNodeService(t *testing.T) {
	b := startBridge(t)
	tour(t, func(environ ...string) *process { return begin(t, "node", environ, "node", "consume.js") }, b)
}
