//go:build faults

// Package faults runs the bridge as it is deployed, as processes in front of a
// cluster of NATS servers, and breaks what is around it while webhooks come in.
// It reads the whole stream afterwards: every webhook that was answered 200 has
// to be there exactly once.
//
// Nothing here is part of an ordinary test run: the build tag is faults, and
// `make faults`, `make soak` and `make memory` are the entry points.
package faults

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

var (
	runTime  = flag.Duration("time", time.Minute, "how long TestFaults sends")
	seedFlag = flag.Uint64("seed", 0, "order of the faults and mix of the webhooks; 0: random")
	only     = flag.String("only", "", "inject only the faults whose names match this regular expression")
	atMost   = flag.Int("faults", 0, "inject so many faults at most; 0: as there is time for")
	keep     = flag.Bool("keep", false, "keep the logs and the stores of the processes")
	memory   = flag.Bool("memory", false, "run TestMemory")
	soakTime = flag.Duration("soak", 0, "how long TestSoak sends; 0: not at all")
)

var (
	seed     uint64
	folder   string // of binaries, stores and logs
	binaries struct{ bridge, server string }
)

func TestMain(m *testing.M) {
	flag.Parse()
	if seed = *seedFlag; seed == 0 {
		seed = rand.Uint64N(1_000_000) + 1
	}
	os.Exit(func() int {
		var err error
		if folder, err = os.MkdirTemp("", "bridge-faults-"); err == nil {
			err = build()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		code := m.Run()
		if *keep {
			fmt.Println("logs and stores are kept in", folder)
		} else {
			os.RemoveAll(folder)
		}
		return code
	}())
}

// build makes the programs that the tests run: the bridge with its failpoints,
// and the server in the version that go.mod names.
func build() error {
	binaries.bridge = filepath.Join(folder, "bridge")
	binaries.server = filepath.Join(folder, "nats-server")
	for _, args := range [][]string{
		{"-tags", "failpoints", "-o", binaries.bridge, "github.com/hookbus/bridge/cmd/bridge"},
		{"-o", binaries.server, "github.com/nats-io/nats-server/v2"},
	} {
		if out, err := exec.Command("go", append([]string{"build"}, args...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("go build %v: %w\n%s", args, err, out)
		}
	}
	return nil
}

// workspace returns a folder for one test's stores and logs.
func workspace(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(folder, "run-")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// eventually asks cond until it is true, and ends the test when it is still
// false after within. Unlike natstest's it leaves time between two questions,
// which go to other processes.
func eventually(t *testing.T, within time.Duration, what string, cond func() bool) {
	t.Helper()
	if !until(within, cond) {
		t.Fatalf("not within %s: %s", within, what)
	}
}

func until(within time.Duration, cond func() bool) bool {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(within)
	for !cond() {
		if time.Now().After(deadline) {
			return false
		}
		<-tick.C
	}
	return true
}
