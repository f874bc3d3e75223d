package dedupe

import (
	"fmt"
	"testing"
	"time"
)

// filled returns a filter that covers all until now, with so many names.
func filled(names int) *filter {
	f := &filter{}
	for i := range names {
		f.add(named{name(i), uint64(i + 1), time.Now()}, time.Hour)
	}
	f.window(10 * time.Minute)
	f.covered(time.Now())
	return f
}

func name(i int) string { return fmt.Sprintf("%064x", i) }

// A million names take 4 MiB at most, none of them is missing, and of others one in
// 500 at most seems to be there.
func TestFilterOfAMillion(t *testing.T) {
	const million = 1_000_000
	f := filled(million)
	var bytes uint
	for _, g := range f.generations {
		bytes += g.names.Cap() / 8
	}
	if bytes > 4<<20 {
		t.Errorf("%d bytes", bytes)
	}
	wrong := 0
	for i := range 100_000 {
		if f.lacks(name(i * 10)) {
			t.Fatalf("it lacks %d", i*10)
		}
		if !f.lacks(name(million + i)) {
			wrong++
		}
	}
	t.Logf("%d bytes, %d of 100000 seem to be there", bytes, wrong)
	if wrong > 200 {
		t.Errorf("%d of 100000 seem to be there", wrong)
	}
}

// What it does not cover has to be within three quarters of the duplicate window.
func TestFilterCovers(t *testing.T) {
	for _, test := range []struct {
		behind, duplicates time.Duration
		asked              bool
	}{
		{0, 10 * time.Minute, true},
		{7 * time.Minute, 10 * time.Minute, true},
		{8 * time.Minute, 10 * time.Minute, false},
		{0, leastWindow, true},
		{0, leastWindow - 1, false},
		{0, 0, false},
	} {
		f := filled(1)
		f.window(test.duplicates)
		if got := f.covered(time.Now().Add(-test.behind)); got != test.asked || f.lacks(name(1)) != got {
			t.Errorf("%v behind, of %v: %v", test.behind, test.duplicates, got)
		}
		if f.lacks(name(0)) {
			t.Error("it lacks what it has")
		}
	}
	if (&filter{}).lacks(name(1)) {
		t.Error("an empty one is asked")
	}
}

// It forgets a generation whose names the bucket has forgotten.
func TestFilterForgets(t *testing.T) {
	const window = time.Hour
	f := filled(1)
	f.add(named{name(1), 2, time.Now().Add(-window - time.Minute)}, window) // too old
	for i := range generationNames {
		f.add(named{name(0), uint64(3 + i), time.Now()}, window) // the same again takes no room
	}
	if f.lacks(name(0)) || !f.lacks(name(1)) || len(f.generations) != 1 {
		t.Errorf("%d generations", len(f.generations))
	}
	f.generations[0].newest = time.Now().Add(-window - time.Minute)
	if f.lacks(name(0)) {
		t.Error("forgotten before others come")
	}
	f.add(named{name(2), 1 << 30, time.Now()}, window)
	if !f.lacks(name(0)) || f.lacks(name(2)) || len(f.generations) != 1 {
		t.Errorf("%d generations", len(f.generations))
	}
	f.empty()
	if f.lacks(name(0)) || len(f.generations) != 0 {
		t.Error("it is asked though it is empty")
	}
}

// It says when it is full, and does not grow any more.
func TestFilterIsFull(t *testing.T) {
	f := filled(1)
	for len(f.generations) < mostGenerations {
		f.generations = append(f.generations, f.generations[0])
	}
	last := &f.generations[mostGenerations-1]
	last.count = generationNames - 1
	if !f.add(named{name(1), 2, time.Now()}, time.Hour) || f.add(named{name(2), 3, time.Now()}, time.Hour) {
		t.Error("it takes more or less than it should")
	}
	f.generations[0].newest = time.Now().Add(-2 * time.Hour)
	if !f.add(named{name(2), 3, time.Now()}, time.Hour) || len(f.generations) != mostGenerations {
		t.Error("it takes nothing after it has forgotten")
	}
}

func BenchmarkFilter(b *testing.B) {
	f := filled(1_000_000)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		f.lacks(name(0))
	}
}
