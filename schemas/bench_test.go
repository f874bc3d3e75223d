package schemas_test

import (
	"testing"

	"github.com/hookbus/bridge/normalize"
	"github.com/hookbus/bridge/schemas"
)

func BenchmarkValidate(b *testing.B) {
	v := compile(b)
	for _, p := range normalize.Providers() {
		for _, sample := range p.Samples() {
			b.Run(p.Name+"/"+sample.Name, func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(len(sample.Body)))
				for b.Loop() {
					if violation, _ := v.Validate(p.Name, sample.Kind, sample.Body); violation != nil {
						b.Fatal(violation)
					}
				}
			})
		}
	}
}

func BenchmarkFits(b *testing.B) {
	v := compile(b)
	for _, p := range normalize.Providers() {
		for _, sample := range p.Samples() {
			b.Run(p.Name+"/"+sample.Name, func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(len(sample.Body)))
				for b.Loop() {
					if !v.Fits(p.Name, sample.Kind, sample.Body) {
						b.Fatal("it does not")
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
