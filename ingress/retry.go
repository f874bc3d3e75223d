package ingress

import (
	"context"
	"fmt"
	"time"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/normalize"
)

// Retrier makes events of what is in the quarantine.
type Retrier struct {
	Dedupe  Deduper
	Bus     Bus
	Schemas *Schemas
}

// Retry takes a rejected body through the stages after the verification, which
// it has passed. A state report is judged by the time of its receipt. The errors
// are those of the stages: the body would be rejected again, it cannot be stored
// now ([bus.ErrUnavailable]), or it cannot be told now whether it is stored
// already ([dedupe.ErrDoubt]).
func (r Retrier) Retry(ctx context.Context, item bus.Rejected) (dedupe.Result, error) {
	p, ok := normalize.ByName(item.Provider)
	if !ok {
		return dedupe.Result{}, fmt.Errorf("ingress: %q is no provider", item.Provider)
	}
	e, err := newEvent(p, item.Body, item.Received, r.Schemas)
	if err != nil {
		return dedupe.Result{}, err
	}
	// The same each time, so that a retry that broke off can be made again.
	e.SetToken(normalize.Digest("retry", item.Provider, item.ID(), item.Received.Format(time.RFC3339Nano)))
	return r.Dedupe.OnceCertain(ctx, e, r.Bus.Publish)
}
