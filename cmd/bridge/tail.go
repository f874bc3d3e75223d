package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/binding"
	"github.com/hookbus/bridge/normalize"
	"github.com/hookbus/bridge/replay"
)

type tailCmd struct {
	Filter   string        `help:"Only events on this subject; wildcards are * and >." placeholder:"SUBJECT"`
	Since    time.Duration `help:"Begin with events stored this long ago, for example 1h or 30m; without it, with the next one." placeholder:"D"`
	Provider string        `help:"Only events of this provider." placeholder:"PROVIDER"`
	Type     string        `help:"Only events of this CloudEvents type." placeholder:"TYPE"`
	Outcome  string        `help:"Only events with this outcome: approved, rejected, review, pending, completed or failed." placeholder:"OUTCOME"`
	Entity   string        `help:"Only events about this entity, the CloudEvents subject." placeholder:"ENTITY"`
	JSON     bool          `help:"Print each event as a CloudEvent in JSON, its data included."`
}

func (t *tailCmd) Run(c *cli) error {
	if t.Since < 0 {
		return usageError("--since must not be negative")
	}
	if err := checkProvider(t.Provider); err != nil {
		return err
	}
	if t.Outcome != "" && !slices.Contains(outcomes, t.Outcome) {
		return usageError(fmt.Sprintf("--outcome %s: it is one of %s", t.Outcome, strings.Join(outcomes, ", ")))
	}
	if t.Filter != "" && !replay.ValidFilter(t.Filter) {
		return usageError(fmt.Sprintf("--filter %q is no NATS subject: tokens with dots between, * for any one, > at the end for the rest", t.Filter))
	}
	if t.Provider != "" && t.Filter != "" {
		return usageError("--provider and --filter exclude each other")
	}
	cfg, err := loadConfig(c.environ)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(c.ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	nc, err := c.connect(cfg)
	if err != nil {
		return err
	}
	defer nc.Close()
	return t.print(ctx, nc, cfg, c.stdout)
}

// outcomes of an event.
var outcomes = []string{"approved", "rejected", "review", "pending", "completed", "failed"}

// checkProvider refuses a provider that does not exist.
func checkProvider(name string) error {
	if _, known := normalize.ByName(name); name != "" && !known {
		return usageError(fmt.Sprintf("--provider %s: it is one of %s", name, providerNames()))
	}
	return nil
}

// connect reaches NATS as serve would, but gives up at once. What the user may
// not do ends the command.
func (cli *cli) connect(c *config) (*nats.Conn, error) {
	options, err := bus.ClientOptions(c.busConfig())
	if err != nil {
		return nil, err
	}
	options = append(options, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		if errors.Is(err, nats.ErrPermissionViolation) {
			cli.cancel(fmt.Errorf("this user may not do that on NATS at %s: %w", c.shownURL(), err))
		}
	}))
	nc, err := nats.Connect(c.clientURL(), append(options, nats.MaxReconnects(-1))...)
	if err != nil {
		hint := "is the bridge running, or should BRIDGE_NATS_URL name another server?"
		return nil, fmt.Errorf("no connection to NATS at %s: %w; %s", c.shownURL(), err, hint)
	}
	return nc, nil
}

// tailHeartbeat: after two without one the consumer is made anew, where it was.
const tailHeartbeat = time.Second

func (t *tailCmd) print(ctx context.Context, nc *nats.Conn, cfg *config, w io.Writer) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	var wanted jetstream.OrderedConsumerConfig
	flag, filter := "filter "+t.Filter, t.Filter
	if t.Provider != "" {
		flag, filter = "provider "+t.Provider, cfg.SubjectPrefix+"."+t.Provider+".>"
	}
	if filter != "" {
		wanted.FilterSubjects = []string{filter}
	}
	stream, err := js.Stream(ctx, cfg.Stream)
	if err != nil {
		return streamError(cfg.Stream, "STREAM", err)
	}
	if t.Since > 0 {
		start := time.Now().Add(-t.Since)
		wanted.DeliverPolicy, wanted.OptStartTime = jetstream.DeliverByStartTimePolicy, &start
	} else { // the policy "new" would pass over what is stored before the consumer is made anew
		wanted.DeliverPolicy, wanted.OptStartSeq = jetstream.DeliverByStartSequencePolicy, stream.CachedInfo().State.LastSeq+1
	}
	if subjects := stream.CachedInfo().Config.Subjects; filter != "" && len(subjects) > 0 && !replay.Taken(subjects, filter) {
		return usageError(fmt.Sprintf("--%s: the stream has %s", flag, strings.Join(subjects, ", ")))
	}
	consumer, err := stream.OrderedConsumer(ctx, wanted)
	if err != nil {
		return streamError(cfg.Stream, "STREAM", err)
	}
	messages, err := consumer.Messages(jetstream.PullHeartbeat(tailHeartbeat))
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, messages.Stop)
	defer stop()
	defer messages.Stop()
	for {
		msg, err := messages.Next()
		if errors.Is(err, jetstream.ErrMsgIteratorClosed) {
			return nil
		}
		if errors.Is(err, jetstream.ErrNoHeartbeat) {
			continue
		}
		if err != nil {
			return fmt.Errorf("stream %s: %w", cfg.Stream, err)
		}
		if err := t.printEvent(ctx, js, w, msg); err != nil {
			return err
		}
	}
}

func (t *tailCmd) printEvent(ctx context.Context, js jetstream.JetStream, w io.Writer, msg jetstream.Msg) error {
	ce, err := binding.Decode(msg.Headers(), msg.Data())
	if err != nil {
		if t.Type+t.Outcome+t.Entity != "" {
			return nil
		}
		if t.JSON {
			return printJSON(w, map[string]string{"nats_subject": msg.Subject(), "error": "not a CloudEvent"})
		}
		_, err = fmt.Fprintf(w, "%s  not a CloudEvent\n", harmless(msg.Subject()))
		return err
	}
	outcome, _ := ce.Extensions()["outcome"].(string)
	differs := func(wanted, has string) bool { return wanted != "" && wanted != has }
	if differs(t.Type, ce.Type()) || differs(t.Outcome, outcome) || differs(t.Entity, ce.Subject()) {
		return nil
	}
	at, err := msg.Metadata()
	if err != nil {
		return err
	}
	if !t.JSON {
		_, err = fmt.Fprintf(w, "%s  seq=%d\n", harmless(eventLine(msg.Subject(), ce)), at.Sequence.Stream)
		return err
	}
	// The extension "sequence" of CloudEvents: where it is in the stream.
	ce.SetExtension("sequence", strconv.FormatUint(at.Sequence.Stream, 10))
	if ref, ok := ce.Extensions()["dataref"].(string); ok {
		body, err := binding.ReadObject(ctx, js, ref)
		if err != nil {
			return printJSON(w, map[string]string{"id": ce.ID(), "type": ce.Type(), "error": "its body cannot be read: " + err.Error()})
		}
		ce.DataEncoded = body
	}
	if len(ce.Data()) > 0 && (!json.Valid(ce.Data()) || !utf8.Valid(ce.Data())) {
		return printJSON(w, map[string]string{"id": ce.ID(), "type": ce.Type(), "error": "its data is no JSON in UTF-8"})
	}
	return printJSON(w, ce)
}

// eventLine shows an event without its data.
func eventLine(subject string, ce event.Event) string {
	line := fmt.Sprintf("%s  %s  id=%.12s", ce.Time().Format(time.RFC3339), subject, ce.ID())
	if s := ce.Subject(); s != "" {
		line += fmt.Sprintf("  subject=%q", s)
	}
	for _, name := range []string{"outcome", "risk"} {
		if v, ok := ce.Extensions()[name]; ok {
			line += fmt.Sprintf("  %s=%v", name, v)
		}
	}
	return line
}
