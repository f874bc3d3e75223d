//go:build faults

package faults

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// point is a place in the bridge's way at which its process dies.
type point struct {
	name string
	// sends makes what passes the point.
	sends func(*maker) *occurrence
	// outage: no server runs while it is sent, so that it is spooled.
	outage bool
	// drains: the process dies when the servers are back.
	drains bool
}

// points holds every point of the code; one that an earlier or later version
// has not is skipped.
var points = []point{
	{name: "verified", sends: anEvent},
	{name: "normalized", sends: anEvent},
	{name: "looked-up", sends: anEvent},
	{name: "marked", sends: aReport},
	{name: "published", sends: anEvent},
	{name: "published", sends: aReport},
	{name: "settled", sends: aReport},
	{name: "replying", sends: anEvent},
	{name: "replying", sends: aReport},
	{name: "quarantined", sends: (*maker).unreadable},
	{name: "index-write", sends: anEvent},
	{name: "index-write", sends: aReport},
	{name: "index-ack", sends: anEvent},
	{name: "index-ack", sends: aReport},
	{name: "object-written", sends: (*maker).oversized},
	{name: "spool-write", sends: anEvent, outage: true},
	{name: "spool-write", sends: aReport, outage: true},
	{name: "spool-written", sends: anEvent, outage: true},
	{name: "spool-written", sends: aReport, outage: true},
	{name: "drain", sends: anEvent, outage: true, drains: true},
	{name: "drain", sends: aReport, outage: true, drains: true},
	{name: "drain-stored", sends: anEvent, outage: true, drains: true},
	{name: "drain-stored", sends: aReport, outage: true, drains: true},
}

// anEvent makes an event whose provider tries again, with another id.
func anEvent(m *maker) *occurrence {
	for {
		if o := m.named(); o.provider.Name == "dfns" {
			return o
		}
	}
}

func aReport(m *maker) *occurrence { return m.sequence().report() }

// TestFailpoints has the bridge die at each point, once, and the provider send
// again what was not answered.
func TestFailpoints(t *testing.T) {
	code := pointsInCode(t)
	for _, name := range code {
		if !slices.ContainsFunc(points, func(p point) bool { return p.name == name }) {
			t.Errorf("the point %q of the code is not tested", name)
		}
	}
	for i, p := range points {
		m := &maker{random: rand.New(rand.NewPCG(seed, uint64(i)))}
		o := p.sends(m)
		kind := "event"
		switch {
		case o.unreadable:
			kind = "unreadable"
		case o.digest != "":
			kind = "oversized"
		case o.report:
			kind = "report"
		}
		t.Run(p.name+"/"+kind, func(t *testing.T) {
			if !slices.Contains(code, p.name) {
				t.Fatal("the code has no such point")
			}
			p.test(t, o)
		})
	}
}

func (p point) test(t *testing.T, o *occurrence) {
	c := startServer(t)
	b := startBridge(t, c, "a", "BRIDGE_SPOOL_DIR="+filepath.Join(workspace(t), "spool"), "FAILPOINT="+p.name)
	s := newSender(mix{}, seed, b)
	s.all = []*occurrence{o}
	t.Cleanup(s.client.CloseIdleConnections)

	server := c.servers[0]
	start := func() {
		if err := server.start(); err != nil {
			t.Fatal(err)
		}
	}
	if p.outage {
		server.kill()
	}
	s.deliver(o, original, 0)
	if p.drains {
		start()
	}
	if err := b.waitKilled(20 * time.Second); err != nil {
		t.Fatalf("it did not die at %s: %v\n%v\n%s", p.name, err, o.deliveries, b.tail(t))
	}
	b.env = slices.DeleteFunc(slices.Clone(b.env), func(s string) bool { return strings.HasPrefix(s, "FAILPOINT=") })
	if err := b.start(); err != nil {
		t.Fatal(err)
	}
	why := retry
	if p.drains {
		// It was answered 200, so this is a copy, and it comes when all is calm.
		recovered(t, c, s.bridges)
		why = late
	}
	eventually(t, 20*time.Second, "the bridge is alive", func() bool {
		status, _, err := get(b.adminURL("/livez"))
		return err == nil && status == 200
	})
	if !p.outage {
		recovered(t, c, s.bridges)
	}
	if d := s.deliver(o, why, 0); !d.ok() {
		t.Errorf("what was sent again is not answered 200: %v", d)
	}
	start()
	recovered(t, c, s.bridges)

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	v, err := judge(ctx, c, s, nil)
	if err != nil {
		t.Fatal(err)
	}
	if v.bad() || v.limit > 0 || v.inStream+v.quarantined != 1 {
		t.Errorf("lost %d, twice %d, not indexed %d, stored %d and %d:\n%s%s\n%s", v.lost, v.twice+v.limit, v.unindexed, v.inStream, v.quarantined, strings.Join(v.offenders, "\n"), v.history(o, nil), b.tail(t))
	}
}

// pointsInCode returns the names with which the project calls failpoint.Hit.
func pointsInCode(t *testing.T) (found []string) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if f, ok := call.Fun.(*ast.SelectorExpr); !ok || f.Sel.Name != "Hit" {
				return true
			} else if pkg, ok := f.X.(*ast.Ident); !ok || pkg.Name != "failpoint" {
				return true
			}
			literal, ok := call.Args[0].(*ast.BasicLit)
			if !ok {
				t.Errorf("%s: the name of a failpoint is to be a literal", path)
				return true
			}
			name, err := strconv.Unquote(literal.Value)
			if err != nil {
				t.Error(err)
			}
			if !slices.Contains(found, name) {
				found = append(found, name)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		t.Error("no failpoint found in the code")
	}
	return found
}
