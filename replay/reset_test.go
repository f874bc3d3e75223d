package replay_test

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/replay"
)

func (r *rig) consumer(c jetstream.ConsumerConfig) jetstream.Consumer {
	r.Helper()
	consumer, err := r.js.CreateConsumer(context.Background(), "WEBHOOKS", c)
	if err != nil {
		r.Fatal(err)
	}
	return consumer
}

// drain acknowledges what a consumer delivers, up to the last message, and
// returns how often each came.
func (r *rig) drain(c jetstream.Consumer) map[uint64]int {
	r.Helper()
	came := map[uint64]int{}
	for {
		batch, err := c.FetchNoWait(100)
		if err != nil {
			r.Fatal(err)
		}
		n := 0
		for msg := range batch.Messages() {
			meta, err := msg.Metadata()
			if err == nil && c.CachedInfo().Config.AckPolicy != jetstream.AckNonePolicy {
				err = msg.DoubleAck(context.Background())
			}
			if err != nil {
				r.Fatal(err)
			}
			came[meta.Sequence.Stream]++
			n++
		}
		// In a cluster the servers may learn a moment later where a new consumer is.
		if n == 0 && !errors.Is(batch.Error(), nats.ErrNoResponders) {
			return came
		}
	}
}

// each returns what drain does where the sequences up to last that want is true
// of came once.
func each(last uint64, want func(uint64) bool) map[uint64]int {
	came := map[uint64]int{}
	for seq := uint64(1); seq <= last; seq++ {
		if want(seq) {
			came[seq] = 1
		}
	}
	return came
}

func TestReset(t *testing.T) {
	r := newRig(t)
	r.store(0, 30)
	stored := must(must(r.js.Stream(t.Context(), "WEBHOOKS")).GetMsg(t.Context(), 30)).Time
	natstest.Eventually(t, timeout, "the clock has moved", func() bool { return time.Now().After(stored) })
	middle := time.Now()
	r.store(30, 60)
	explicit := jetstream.AckExplicitPolicy
	for name, test := range map[string]struct {
		config   jetstream.ConsumerConfig
		since    time.Time
		from     uint64
		messages uint64
		want     func(uint64) bool
	}{
		"all":             {config: jetstream.ConsumerConfig{AckPolicy: explicit}, from: 1, messages: 60, want: func(uint64) bool { return true }},
		"from a sequence": {config: jetstream.ConsumerConfig{AckPolicy: explicit}, from: 50, messages: 11, want: func(s uint64) bool { return s >= 50 }},
		"since":           {config: jetstream.ConsumerConfig{AckPolicy: explicit}, since: middle, messages: 30, want: func(s uint64) bool { return s > 30 }},
		"its own filter": {config: jetstream.ConsumerConfig{AckPolicy: explicit, FilterSubject: "webhooks.waldo.>"}, from: 31, messages: 10,
			want: func(s uint64) bool { return s > 30 && s%3 == 0 }},
		"its own filters": {config: jetstream.ConsumerConfig{AckPolicy: explicit, FilterSubjects: []string{"webhooks.waldo.>", "webhooks.dfns.>"}}, from: 31, messages: 20,
			want: func(s uint64) bool { return s > 30 && s%3 != 2 }},
		"no more deliveries left":   {config: jetstream.ConsumerConfig{AckPolicy: explicit, MaxDeliver: 1}, from: 59, messages: 2, want: func(s uint64) bool { return s >= 59 }},
		"acknowledged up to":        {config: jetstream.ConsumerConfig{AckPolicy: jetstream.AckAllPolicy}, from: 59, messages: 2, want: func(s uint64) bool { return s >= 59 }},
		"never acknowledged":        {config: jetstream.ConsumerConfig{AckPolicy: jetstream.AckNonePolicy}, from: 59, messages: 2, want: func(s uint64) bool { return s >= 59 }},
		"made to begin at sequence": {config: jetstream.ConsumerConfig{AckPolicy: explicit, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: 10}, from: 10, messages: 51, want: func(s uint64) bool { return s >= 10 }},
		"made to begin at a time":   {config: jetstream.ConsumerConfig{AckPolicy: explicit, DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &middle}, since: middle, messages: 30, want: func(s uint64) bool { return s > 30 }},
	} {
		t.Run(name, func(t *testing.T) {
			test.config.Durable = strings.ReplaceAll(name, " ", "-")
			consumer := r.consumer(test.config)
			before := r.drain(consumer)
			plan, err := replay.PlanReset(t.Context(), r.nc, "WEBHOOKS", test.config.Durable, test.since, test.from)
			if err != nil {
				t.Fatal(err)
			}
			var sum uint64
			for _, n := range plan.Types {
				sum += n
			}
			if plan.Messages != test.messages || sum != test.messages || plan.Done || plan.Acknowledged < 58 || plan.Outstanding != 0 {
				t.Errorf("%+v", plan)
			}
			if again := r.drain(consumer); len(again) > 0 || len(before) < int(test.messages) {
				t.Fatalf("the plan alone has delivered %v", again)
			}
			if err := plan.Apply(t.Context()); err != nil || !plan.Done {
				t.Fatal(err)
			}
			if came, want := r.drain(consumer), each(60, test.want); !maps.Equal(came, want) {
				t.Errorf("delivered %v", came)
			}
			if info := must(consumer.Info(t.Context())); info.NumPending != 0 || info.NumAckPending != 0 {
				t.Errorf("left: %+v", info)
			}
		})
	}
}

// A client that is at work receives what comes again, without being told.
func TestResetUnderAClient(t *testing.T) {
	r := newRig(t)
	r.store(0, 20)
	consumer := r.consumer(jetstream.ConsumerConfig{Durable: "busy", AckPolicy: jetstream.AckExplicitPolicy})
	came := make(chan uint64, 100)
	c, err := consumer.Consume(func(msg jetstream.Msg) {
		meta, _ := msg.Metadata()
		msg.DoubleAck(context.Background())
		came <- meta.Sequence.Stream
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { c.Stop(); <-c.Closed() }()
	expect := func(from uint64) {
		t.Helper()
		for want := from; want <= 20; want++ {
			select {
			case got := <-came:
				if got != want {
					t.Fatalf("%d came instead of %d", got, want)
				}
			case <-time.After(timeout):
				t.Fatalf("%d does not come", want)
			}
		}
	}
	expect(1)
	plan, err := replay.PlanReset(t.Context(), r.nc, "WEBHOOKS", "busy", time.Time{}, 11)
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect(11)
}

func TestResetInACluster(t *testing.T) {
	r := newRigOn(t, natstest.Cluster(t, 3).URL(), 3)
	r.store(0, 30)
	consumer := r.consumer(jetstream.ConsumerConfig{Durable: "three", AckPolicy: jetstream.AckExplicitPolicy})
	r.drain(consumer)
	plan, err := replay.PlanReset(t.Context(), r.nc, "WEBHOOKS", "three", time.Now().Add(-time.Hour), 0)
	if err != nil || plan.From != 1 || plan.Messages != 30 {
		t.Fatalf("%v: %+v", err, plan)
	}
	if err := plan.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if came := r.drain(consumer); !maps.Equal(came, each(30, func(uint64) bool { return true })) {
		t.Errorf("delivered %v", came)
	}
}

func TestResetReadsThroughANewConsumer(t *testing.T) {
	s := natstest.Server(t)
	r := newRigOn(t, s.ClientURL(), 1)
	r.store(0, 30)
	r.drain(r.consumer(jetstream.ConsumerConfig{Durable: "one", AckPolicy: jetstream.AckExplicitPolicy}))
	natstest.UnknownOnce(t, s, "WEBHOOKS")
	plan, err := replay.PlanReset(t.Context(), r.nc, "WEBHOOKS", "one", time.Time{}, 11)
	if err != nil || plan.Messages != 20 {
		t.Fatalf("%v: %+v", err, plan)
	}
}

func TestResetRefusals(t *testing.T) {
	r := newRig(t)
	r.store(0, 10)
	natstest.Eventually(t, timeout, "the clock has moved", func() bool {
		return time.Now().After(must(must(r.js.Stream(t.Context(), "WEBHOOKS")).GetMsg(t.Context(), 10)).Time)
	})
	late := time.Now()
	r.store(10, 20)
	for name, c := range map[string]jetstream.ConsumerConfig{
		"new":       {DeliverPolicy: jetstream.DeliverNewPolicy},
		"last":      {DeliverPolicy: jetstream.DeliverLastPolicy},
		"last-each": {DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy, FilterSubject: "webhooks.>"},
		"at-5":      {DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: 5},
		"at-late":   {DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &late},
		"behind":    {},
		"waldo":     {FilterSubject: "webhooks.waldo.>"},
		"done":      {},
	} {
		c.AckPolicy = jetstream.AckExplicitPolicy
		c.Durable = name
		consumer := r.consumer(c)
		if name != "behind" && name != "waldo" {
			r.drain(consumer)
		}
	}
	r.consumer(jetstream.ConsumerConfig{Name: "ephemeral", AckPolicy: jetstream.AckExplicitPolicy})
	must(r.js.CreatePushConsumer(t.Context(), "WEBHOOKS", jetstream.ConsumerConfig{Durable: "push", DeliverSubject: "there"}))
	plain := natstest.Connect(t, natstest.Server(t, func(o *server.Options) { o.JetStream = false }).ClientURL())
	for name, test := range map[string]struct {
		nc               *nats.Conn
		stream, consumer string
		since            time.Time
		from             uint64
		want             error
		says             string
	}{
		"the indexer":         {consumer: "bridge-indexer", from: 1, want: replay.ErrRefused, says: "recognises redeliveries"},
		"a push consumer":     {consumer: "push", from: 1, want: replay.ErrRefused, says: "push"},
		"an ephemeral one":    {consumer: "ephemeral", from: 1, want: replay.ErrRefused, says: "not durable"},
		"only new":            {consumer: "new", from: 1, want: replay.ErrRefused, says: `"new"`},
		"only the last":       {consumer: "last", from: 1, want: replay.ErrRefused, says: `"last"`},
		"the last of each":    {consumer: "last-each", from: 1, want: replay.ErrRefused, says: `"last_per_subject"`},
		"before its sequence": {consumer: "at-5", from: 4, want: replay.ErrRefused, says: "at sequence 5"},
		"before its time":     {consumer: "at-late", from: 10, want: replay.ErrRefused, says: "sequence 11"},
		"over what is unread": {consumer: "behind", from: 11, want: replay.ErrRefused, says: "pass over 10 messages"},
		"over some unread":    {consumer: "waldo", from: 11, want: replay.ErrRefused, says: "pass over 3 messages"},
		"beyond the end":      {consumer: "done", from: 21, want: replay.ErrBeyondEnd, says: "ends at sequence 20"},
		"none":                {consumer: "none", from: 1, want: replay.ErrNoConsumer, says: "none"},
		"a name that is none": {consumer: "a.b", from: 1, want: replay.ErrNoConsumer},
		"no stream":           {stream: "NONE", consumer: "done", from: 1, want: replay.ErrNoStream},
		"no place":            {consumer: "done", want: replay.ErrInvalid},
		"two places":          {consumer: "done", from: 1, since: late, want: replay.ErrInvalid},
		"the future":          {consumer: "done", since: late.Add(time.Hour), want: replay.ErrInvalid},
		"no JetStream":        {nc: plain, consumer: "done", from: 1, want: bus.ErrNoJetStream},
	} {
		t.Run(name, func(t *testing.T) {
			if test.nc == nil {
				test.nc = r.nc
			}
			if test.stream == "" {
				test.stream = "WEBHOOKS"
			}
			plan, err := replay.PlanReset(t.Context(), test.nc, test.stream, test.consumer, test.since, test.from)
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) || plan != nil {
				t.Errorf("%v", err)
			}
			// What is refused before is what the server refuses.
			if strings.HasPrefix(test.says, `"`) || strings.Contains(name, "before its") {
				if _, err := r.js.ResetConsumerToSequence(t.Context(), "WEBHOOKS", test.consumer, test.from); !errors.Is(err, jetstream.ErrConsumerInvalidReset) {
					t.Errorf("the server says %v", err)
				}
			}
		})
	}

	plan, err := replay.PlanReset(t.Context(), r.nc, "WEBHOOKS", "done", time.Time{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.js.DeleteConsumer(t.Context(), "WEBHOOKS", "done"); err != nil {
		t.Fatal(err)
	}
	if err := plan.Apply(t.Context()); !errors.Is(err, replay.ErrNoConsumer) || plan.Done {
		t.Errorf("deleted meanwhile: %v", err)
	}
	if plan, err := replay.PlanReset(t.Context(), r.nc, "WEBHOOKS", "at-5", late, 0); err != nil || plan.From != 11 {
		t.Errorf("%v: %+v", err, plan)
	}
	if plan, err := replay.PlanReset(t.Context(), r.nc, "WEBHOOKS", "at-5", time.Now(), 0); err != nil || plan.Messages != 0 {
		t.Errorf("nothing to deliver: %v: %+v", err, plan)
	}
}
