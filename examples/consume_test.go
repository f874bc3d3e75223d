package examples_test

import (
	"context"
	"fmt"
	"log"
	"net/url"
	"os"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// consume reads every event of one provider, each until it is acknowledged. It
// is the snippet in the README.
func consume(ctx context.Context, natsURL string, handle func(id, typ, outcome string, body []byte) error) (stop func(), err error) {
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
		// Attributes are headers, percent-encoded where they need it.
		h := msg.Headers()
		typ, err := url.PathUnescape(h.Get("ce-type"))
		if err == nil {
			err = handle(h.Get("ce-id"), typ, h.Get("ce-outcome"), msg.Data())
		}
		if err != nil {
			log.Print(err)
			msg.Nak() // comes again
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
	stop, err := consume(context.Background(), natsURL, func(id, typ, outcome string, body []byte) error {
		fmt.Println(id, typ, outcome, string(body))
		close(done)
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	defer stop()
	<-done
	// Output: 7b61cb6e com.trusthub.onboarding.auto_approved approved {"sessionId":"s-1","status":"AUTO_APPROVED"}
}

// natsWithEvent starts a NATS server that holds one event of the bridge.
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
	if _, err := js.PublishMsg(ctx, &nats.Msg{
		Subject: "webhooks.trusthub.onboarding.auto_approved",
		Header: nats.Header{
			"ce-specversion": {"1.0"}, "ce-id": {"7b61cb6e"}, "ce-type": {"com.trusthub.onboarding.auto_approved"},
			"ce-source": {"urn:trusthub"}, "ce-outcome": {"approved"},
		},
		Data: []byte(`{"sessionId":"s-1","status":"AUTO_APPROVED"}`),
	}); err != nil {
		log.Fatal(err)
	}
	return s.ClientURL(), func() { s.Shutdown(); s.WaitForShutdown(); os.RemoveAll(dir) }
}
