package ingress_test

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/normalize"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newRegistry() *prometheus.Registry { return prometheus.NewRegistry() }

// passThrough publishes without asking the index.
type passThrough struct{}

func (passThrough) Once(ctx context.Context, e *normalize.Event, publish dedupe.Publish) (dedupe.Result, error) {
	if e.Identity.StateKey != "" {
		e.SetToken("token")
	}
	ack, err := publish(ctx, e)
	return dedupe.Result{ID: e.CloudEvent.ID(), Duplicate: ack.Duplicate}, err
}

func (p passThrough) OnceCertain(ctx context.Context, e *normalize.Event, publish dedupe.Publish) (dedupe.Result, error) {
	return p.Once(ctx, e, publish)
}
