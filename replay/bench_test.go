package replay_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/hookbus/bridge/replay"
)

// Copies of small events a second, with the server in the same process:
//
//	go test -run '^$' -bench . -benchtime 200000x ./replay
func BenchmarkRun(b *testing.B) {
	for name, dry := range map[string]bool{"copy": false, "dry": true} {
		b.Run(name, func(b *testing.B) {
			r := newRig(b)
			for i := 0; i < b.N; i += 10_000 {
				r.store(i, min(b.N, i+10_000))
			}
			var peak uint64
			var memory runtime.MemStats
			o := options()
			o.DryRun = dry
			o.Progress = func(replay.Progress) {
				runtime.ReadMemStats(&memory)
				peak = max(peak, memory.HeapAlloc)
			}
			b.ResetTimer()
			result := r.run(fmt.Sprint("bench-", b.N), replay.Selection{}, o)
			if result.Copied != uint64(b.N) {
				b.Fatalf("%+v", result)
			}
			b.ReportMetric(float64(peak)/(1<<20), "MiB-heap")
			b.ReportMetric(result.Rate(), "events/s")
		})
	}
}
