package normalize_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/hookbus/bridge/normalize"
)

func BenchmarkEvent(b *testing.B) {
	for _, p := range normalize.Providers() {
		body := p.Samples()[0].Body
		b.Run(p.Name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				if _, err := p.Event(body, received); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	for _, p := range normalize.Providers() {
		body := p.Stamp(p.Samples()[0].Body, received)
		header, value, err := p.Scheme.Sign("abcd", body, received)
		if err != nil {
			b.Fatal(err)
		}
		v, err := p.Scheme.NewVerifier([]string{"abcd"}, time.Minute)
		if err != nil {
			b.Fatal(err)
		}
		h := http.Header{}
		h.Set(header, value)
		b.Run(p.Name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				if _, err := v.Verify(h, body, received); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
