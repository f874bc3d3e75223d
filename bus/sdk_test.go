package bus_test

import (
	"context"
	"testing"
	"time"

	cenats "github.com/cloudevents/sdk-go/protocol/nats_jetstream/v2"
	"github.com/cloudevents/sdk-go/v2/client"
	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
)

// receiveBySDK consumes the stream from its beginning as a service does that
// uses the official SDK for CloudEvents.
func receiveBySDK(t *testing.T, s *server.Server, b *bus.Bus) <-chan event.Event {
	t.Helper()
	consumer, err := cenats.NewConsumer(s.ClientURL(), b.Stream(), "webhooks.>", nil, nil, []nats.SubOpt{nats.DeliverAll()})
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(consumer, client.WithPollGoroutines(1)) // one: in the stream's order
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	events, ended := make(chan event.Event), make(chan struct{})
	go func() {
		defer close(ended)
		err := c.StartReceiver(ctx, func(ctx context.Context, e event.Event) {
			select {
			case events <- e:
			case <-ctx.Done():
			}
		})
		if err != nil {
			t.Errorf("StartReceiver: %v", err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		consumer.Close(context.Background())
	})
	return events
}

func receive(t *testing.T, events <-chan event.Event) event.Event {
	t.Helper()
	select {
	case e := <-events:
		return e
	case <-time.After(within):
		t.Fatalf("the SDK delivered nothing within %v", within)
		panic("unreachable")
	}
}

func TestOfficialSDKReadsMessages(t *testing.T) {
	s := natstest.Server(t)
	b := openReady(t, external(s))
	events := receiveBySDK(t, s, b)
	for _, p := range normalize.Providers() {
		t.Run(p.Name, func(t *testing.T) {
			samples := p.Samples()
			want := eventOf(t, p.Name, string(samples[len(samples)-1].Body)) // none with a value that is percent-encoded
			mustPublish(t, b, want)
			got := receive(t, events)
			wantSameEvent(t, want.CloudEvent, got)
			if err := got.Validate(); err != nil {
				t.Errorf("the SDK finds the event invalid: %v", err)
			}
		})
	}
}

// Version 2.16.2 of the SDK does not decode what the binding percent-encodes.
// If this fails with a newer one, it does: drop the remark in the documents.
func TestOfficialSDKDoesNotPercentDecode(t *testing.T) {
	s := natstest.Server(t)
	b := openReady(t, external(s))
	events := receiveBySDK(t, s, b)
	mustPublish(t, b, sample(t, "trusthub", "auto_approved-other-key-order"))
	got := receive(t, events)
	if got, want := got.Extensions()["externalid"], "external%20code%20123"; got != want {
		t.Errorf("externalid: got %q, want %q", got, want)
	}
}
