//go:build faults

package faults

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// sample is what a bridge takes at one moment.
type sample struct {
	at         time.Duration
	rss        float64 // MiB
	goroutines float64
	files      float64
}

func (s sample) String() string {
	return fmt.Sprintf("%8v  %6.1f MiB  %5.0f goroutines  %5.0f files", s.at.Round(time.Second), s.rss, s.goroutines, s.files)
}

func (b *bridge) sample(since time.Time) (s sample, err error) {
	s.at = time.Since(since)
	pages, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", b.pid()))
	if err != nil {
		return s, err
	}
	resident, err := strconv.ParseFloat(strings.Fields(string(pages))[1], 64)
	if err != nil {
		return s, err
	}
	s.rss = resident * float64(os.Getpagesize()) / (1 << 20)
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", b.pid()))
	if err != nil {
		return s, err
	}
	s.files = float64(len(files))
	s.goroutines, err = b.metric("go_goroutines")
	return s, err
}

// TestSoak sends for a long time to one replica in front of one server, and
// looks at what the replica takes. Only Linux says that.
func TestSoak(t *testing.T) {
	if *soakTime == 0 {
		t.Skip("make soak runs it")
	}
	if _, err := os.Stat("/proc/self/statm"); err != nil {
		t.Skip("this system does not say what a process takes")
	}
	const every = 10 * time.Second
	t.Logf("seed %d", seed)
	c := startServer(t)
	b := startBridge(t, c, "a", "BRIDGE_SPOOL_DIR="+workspace(t))
	s := newSender(mix{rate: 300, copies: 0.2, sequences: usual.sequences, unreadable: usual.unreadable, oversized: 30 * time.Second}, seed, b)

	start := time.Now()
	var samples []sample
	done := make(chan struct{})
	go func() { defer close(done); s.run(*soakTime) }()
	tick := time.NewTicker(min(every, *soakTime/12))
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-tick.C:
			m, err := b.sample(start)
			if err != nil {
				t.Error(err)
				continue
			}
			samples = append(samples, m)
		}
	}
	x := &injector{t: t, cluster: c, bridges: s.bridges}
	m, v := finish(t, c, s, x, nil, 20)
	if v.bad() {
		t.Error("not everything that was answered 200 is stored exactly once")
	}
	if m.rate < 290 {
		t.Errorf("%.0f occurrences were sent a second, 300 are to be", m.rate)
	}
	if len(samples) < 6 {
		t.Fatalf("%d samples are too few to judge", len(samples))
	}
	// What a start takes is no part of it.
	samples = samples[len(samples)/12:]
	n := len(samples)
	for _, i := range []int{0, n / 2, n - 1} {
		t.Log(samples[i])
	}
	third := func(i int, of func(sample) float64) (sum float64) {
		part := samples[i*n/3 : (i+1)*n/3]
		for _, s := range part {
			sum += of(s)
		}
		return sum / float64(len(part))
	}
	for _, of := range []struct {
		what  string
		slack float64
		value func(sample) float64
	}{
		{"memory (MiB)", 16, func(s sample) float64 { return s.rss }},
		{"goroutines", 32, func(s sample) float64 { return s.goroutines }},
		{"files", 16, func(s sample) float64 { return s.files }},
	} {
		first, middle, last := third(0, of.value), third(1, of.value), third(2, of.value)
		t.Logf("%-12s mean of the first third %.1f, of the middle %.1f, of the last %.1f", of.what, first, middle, last)
		if last > 1.5*first+of.slack {
			t.Errorf("%s grow from %.1f to %.1f", of.what, first, last)
		}
	}
}
