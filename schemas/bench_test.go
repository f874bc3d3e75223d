package schemas_test

import (
	"testing"

	"github.com/hookbus/bridge/normalize"
	"github.com/hookbus/bridge/schemas"
)

func BenchmarkValidate(b *testing.B) {
	v := compile(b)
	benchmarkSamples(b, func(provider, kind string, body []byte) bool {
		violation, _ := v.Validate(provider, kind, body)
		return violation == nil
	})
}

func BenchmarkFits(b *testing.B) { benchmarkSamples(b, compile(b).Fits) }

// benchmarkSamples judges the bodies that the providers document, which are valid.
func benchmarkSamples(b *testing.B, valid func(provider, kind string, body []byte) bool) {
	for _, p := range normalize.Providers() {
		for _, sample := range p.Samples() {
			b.Run(p.Name+"/"+sample.Name, func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(len(sample.Body)))
				for b.Loop() {
					if !valid(p.Name, sample.Kind, sample.Body) {
						b.Fatal("not valid")
					}
				}
			})
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := schemas.Compile(); err != nil {
			b.Fatal(err)
		}
	}
}
