package examples_test

import (
	"context"
	"fmt"
	"log"
	"net/url"
	"os"
	"strings"
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
		body := msg.Data()
		if ref := h.Get("ce-dataref"); err == nil && ref != "" { // too large for a message
			body, err = object(ctx, js, ref)
		}
		if err == nil {
			err = handle(h.Get("ce-id"), typ, h.Get("ce-outcome"), body)
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

// object reads the body that a dataref names: nats-object:<bucket>/<name>.
func object(ctx context.Context, js jetstream.JetStream, dataref string) ([]byte, error) {
	path, ok := strings.CutPrefix(dataref, "nats-object:")
	bucket, name, found := strings.Cut(path, "/")
	if !ok || !found {
		return nil, fmt.Errorf("not an object: %q", dataref)
	}
	store, err := js.ObjectStore(ctx, bucket)
	if err != nil {
		return nil, err
	}
	return store.GetBytes(ctx, name)
}

func Example() {
	natsURL, shutdown := natsWithEvent()
	defer shutdown()

	done := make(chan struct{})
	stop, err := consume(context.Background(), natsURL, func(id, typ, outcome string, body []byte) error {
		fmt.Println(id, typ, outcome, string(body))
		if id == "last" {
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
	// first com.trusthub.onboarding.auto_approved approved {"sessionId":"s-1","status":"AUTO_APPROVED"}
	// last com.trusthub.onboarding.auto_rejected rejected {"sessionId":"s-2","status":"AUTO_REJECTED"}
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
