// Command go is a service that consumes the bridge's events: a durable pull
// consumer that takes the types it wants, handles each event once by its
// CloudEvents id, tries again with growing pauses what fails, puts aside what
// fails too often, continues the bridge's traces, and when it stops finishes
// what it has begun.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/trace"

	"github.com/hookbus/bridge/events"
	"github.com/hookbus/bridge/events/dfns"
	"github.com/hookbus/bridge/events/trusthub"
)

// backoff is the pause after each failed attempt; after the last one more.
var backoff = []time.Duration{100 * time.Millisecond, 500 * time.Millisecond, 2 * time.Second, 10 * time.Second}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

// variable returns an environment variable, or another value if it is empty.
func variable(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

type service struct {
	js      jetstream.JetStream
	durable string
	handled jetstream.KeyValue
	failing string       // an entity whose events fail, to see what happens
	tracer  trace.Tracer // nil: off
}

func run(ctx context.Context) error {
	stream := variable("STREAM", "WEBHOOKS")
	s := &service{durable: variable("DURABLE", "onboarding"), failing: os.Getenv("FAIL")}
	tracer, flush, err := tracing(ctx, s.durable)
	if err != nil {
		return err
	}
	s.tracer = tracer
	defer func() {
		// A collector that does not answer does not keep it from stopping.
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		flush(ctx)
	}()
	nc, err := nats.Connect(variable("NATS_URL", nats.DefaultURL), nats.Name(s.durable), nats.MaxReconnects(-1))
	if err != nil {
		return err
	}
	defer nc.Close() // sends what is left; Drain would go on in the background
	if s.js, err = jetstream.New(nc); err != nil {
		return err
	}
	consumer, err := s.js.CreateOrUpdateConsumer(ctx, stream, jetstream.ConsumerConfig{
		Durable:        s.durable,
		FilterSubjects: strings.Split(variable("SUBJECTS", "webhooks.trusthub.>"), ","),
		AckPolicy:      jetstream.AckExplicitPolicy,
		AckWait:        30 * time.Second,
	})
	if err != nil {
		return fmt.Errorf("consumer %s of %s: %w", s.durable, stream, err)
	}
	// What failed too often waits here for somebody to look at it.
	if _, err := s.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: s.durable + "-dead", Subjects: []string{"dead." + s.durable + ".>"}, Discard: jetstream.DiscardNew,
	}); err != nil {
		return err
	}
	// Which events were handled. A service with a database keeps this there,
	// written in the transaction that has the effect.
	if s.handled, err = s.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: s.durable + "-handled", TTL: 8 * 24 * time.Hour}); err != nil {
		return err
	}
	// Whoever leads the consumer may not be known for a moment: after two heartbeats
	// that do not come it is asked again.
	messages, err := consumer.Messages(jetstream.PullMaxMessages(100), jetstream.PullHeartbeat(time.Second))
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, messages.Drain)()
	fmt.Printf("consuming %s as %s\n", stream, s.durable)
	for {
		msg, err := messages.Next()
		if errors.Is(err, jetstream.ErrMsgIteratorClosed) {
			fmt.Println("stopped")
			return nil
		}
		if errors.Is(err, jetstream.ErrNoHeartbeat) {
			log.Print(err) // the connection comes back
			continue
		}
		if err != nil {
			return err
		}
		// Not ctx: the one at hand is finished before the service stops.
		if err := s.one(context.Background(), msg); err != nil {
			log.Print(err) // not acknowledged: it comes again
		}
	}
}

// one takes one message to its end.
func (s *service) one(ctx context.Context, msg jetstream.Msg) error {
	failed := s.event(ctx, msg)
	if failed == nil {
		return msg.DoubleAck(ctx)
	}
	meta, err := msg.Metadata()
	if err != nil {
		return err
	}
	if n := int(meta.NumDelivered); n <= len(backoff) {
		fmt.Printf("failed, attempt %d of %d: %v\n", n, len(backoff)+1, failed)
		return msg.NakWithDelay(backoff[n-1])
	}
	// Only when it is put aside it may be given up.
	dead := &nats.Msg{Subject: "dead." + s.durable + "." + msg.Subject(), Header: nats.Header{}, Data: msg.Data()}
	for name, values := range msg.Headers() {
		if !strings.HasPrefix(name, "Nats-") { // those are the server's
			dead.Header[name] = values
		}
	}
	if _, err := s.js.PublishMsg(ctx, dead, jetstream.WithMsgID(fmt.Sprintf("%s-%d", s.durable, meta.Sequence.Stream))); err != nil {
		return err
	}
	fmt.Printf("given up after %d attempts: %v\n", meta.NumDelivered, failed)
	return msg.TermWithReason(failed.Error())
}

// event handles the event in a message, unless it was handled before.
func (s *service) event(ctx context.Context, msg jetstream.Msg) error {
	e, err := events.Decode(ctx, s.js, msg)
	if err != nil {
		return err
	}
	_, err = s.handled.Get(ctx, e.ID())
	if err == nil {
		fmt.Printf("known %s id=%.12s\n", e.Type(), e.ID())
		return nil
	}
	if !errors.Is(err, jetstream.ErrKeyNotFound) {
		return err
	}
	if err := s.traced(ctx, e, s.handle); err != nil {
		return err
	}
	_, err = s.handled.Put(ctx, e.ID(), []byte(time.Now().UTC().Format(time.RFC3339)))
	return err
}

// handle has the effect of an event.
func (s *service) handle(e events.Event) error {
	if s.failing != "" && e.Subject() == s.failing {
		return fmt.Errorf("cannot handle %s", e.Subject())
	}
	detail := ""
	switch p := e.Payload.(type) {
	case *trusthub.OnboardingEvent:
		detail = " status=" + p.Status
	case *dfns.TransferRequestEvent:
		detail = " wallet=" + p.Data.TransferRequest.WalletID
	}
	fmt.Printf("handled %s subject=%s outcome=%s id=%.12s%s\n", e.Type(), e.Subject(), e.Outcome(), e.ID(), detail)
	return nil
}
