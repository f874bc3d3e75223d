package examples_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/events"
	"github.com/hookbus/bridge/events/trusthub"
)

// consume reads every event of one provider, each until it is acknowledged. It
// is the snippet in the README.
func consume(ctx context.Context, natsURL string, handle func(events.Event) error) (stop func(), err error) {
	nc, err := nats.Connect(natsURL)
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	consumer, err := js.CreateOrUpdateConsumer(ctx, "WEBHOOKS", jetstream.ConsumerConfig{
		Durable:       "onboarding",
		FilterSubject: "webhooks.trusthub.>",
		AckPolicy:     jetstream.AckExplicitPolicy,
	})
	if err != nil {
		return nil, err
	}
	subscription, err := consumer.Consume(func(msg jetstream.Msg) {
		e, err := events.Decode(ctx, js, msg)
		if err == nil {
			err = handle(e)
		}
		if err != nil {
			log.Print(err)
			msg.NakWithDelay(5 * time.Second) // comes again
			return
		}
		msg.Ack()
	})
	if err != nil {
		return nil, err
	}
	return func() { subscription.Stop(); nc.Close() }, nil
}

func Example() {
	natsURL, shutdown := natsWithEvent()
	defer shutdown()

	done := make(chan struct{})
	stop, err := consume(context.Background(), natsURL, func(e events.Event) error {
		fmt.Println(e.ID(), e.Type(), e.Outcome(), e.Payload.(*trusthub.OnboardingEvent).SessionID)
		if e.ID() == "last" {
			close(done)
		}
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	defer stop()
	<-done
	// Output:
	// first com.trusthub.onboarding.auto_approved approved s-1
	// last com.trusthub.onboarding.auto_rejected rejected s-2
}

// natsWithEvent starts a NATS server that holds two events of the bridge, one
// with its body in the object store.
func natsWithEvent() (natsURL string, shutdown func()) {
	dir, err := os.MkdirTemp("", "nats")
	if err != nil {
		log.Fatal(err)
	}
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: dir, NoSigs: true})
	if err != nil {
		log.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		log.Fatal("NATS did not start")
	}
	nc, err := nats.Connect(s.ClientURL())
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "WEBHOOKS", Subjects: []string{"webhooks.>"}}); err != nil {
		log.Fatal(err)
	}
	bodies, err := js.CreateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: "WEBHOOKS_BODIES"})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := bodies.PutString(ctx, "last", `{"sessionId":"s-2","status":"AUTO_REJECTED"}`); err != nil {
		log.Fatal(err)
	}
	publish := func(id, outcome string, body []byte, dataref ...string) {
		kind := "onboarding.auto_" + outcome
		header := nats.Header{
			"ce-specversion": {"1.0"}, "ce-id": {id}, "ce-type": {"com.trusthub." + kind},
			"ce-source": {"urn:trusthub"}, "ce-outcome": {outcome}, "ce-dataref": dataref,
		}
		if _, err := js.PublishMsg(ctx, &nats.Msg{Subject: "webhooks.trusthub." + kind, Header: header, Data: body}); err != nil {
			log.Fatal(err)
		}
	}
	publish("first", "approved", []byte(`{"sessionId":"s-1","status":"AUTO_APPROVED"}`))
	publish("last", "rejected", nil, "nats-object:WEBHOOKS_BODIES/last")
	return s.ClientURL(), func() { s.Shutdown(); s.WaitForShutdown(); os.RemoveAll(dir) }
}
