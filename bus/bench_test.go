package bus_test

import (
	"testing"
	"time"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/normalize"
)

// An event as a message, without what the client does to send it.
func BenchmarkEncode(b *testing.B) {
	for _, p := range normalize.Providers() {
		b.Run(p.Name, func(b *testing.B) {
			e, err := p.Event(p.Samples()[0].Body, time.Now())
			if err != nil {
				b.Fatal(err)
			}
			e.SetToken("token")
			b.ReportAllocs()
			for b.Loop() {
				if _, err := bus.Encode(e); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
