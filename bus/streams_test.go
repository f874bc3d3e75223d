package bus_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/natstest"
)

// sameConfig compares settings but for the metadata that the server adds.
func sameConfig(t *testing.T, want, got jetstream.StreamConfig) {
	t.Helper()
	ours := cmp.Transformer("ours", func(metadata map[string]string) map[string]string {
		metadata = maps.Clone(metadata)
		maps.DeleteFunc(metadata, func(name, _ string) bool { return strings.HasPrefix(name, "_nats.") })
		return metadata
	})
	metadata := cmp.FilterPath(func(p cmp.Path) bool { return p.String() == "Metadata" }, ours)
	if diff := cmp.Diff(want, got, metadata, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("stream %s (-want +got):\n%s", want.Name, diff)
	}
}

func TestStreamsAreCreated(t *testing.T) {
	cfg := external(natstest.Server(t))
	b := openReady(t, cfg)
	js := b.JetStream()

	stream := jetstream.StreamConfig{
		Name:              "WEBHOOKS",
		Description:       "CloudEvents of the webhooks bridge",
		Subjects:          []string{"webhooks.>"},
		Retention:         jetstream.LimitsPolicy,
		Storage:           jetstream.FileStorage,
		Discard:           jetstream.DiscardNew,
		Replicas:          1,
		MaxAge:            720 * time.Hour,
		MaxBytes:          -1,
		MaxMsgs:           -1,
		MaxMsgsPerSubject: -1,
		MaxMsgSize:        -1,
		MaxConsumers:      -1,
		Duplicates:        10 * time.Minute,
		AllowDirect:       true,
	}
	sameConfig(t, stream, streamInfo(t, js, "WEBHOOKS").Config)

	quarantine := stream
	quarantine.Name = "WEBHOOKS_QUARANTINE"
	quarantine.Description = "verified webhooks that could not be made events"
	quarantine.Subjects = []string{"quarantine.>"}
	quarantine.MaxBytes = cfg.QuarantineMaxBytes
	sameConfig(t, quarantine, streamInfo(t, js, "WEBHOOKS_QUARANTINE").Config)

	// The bucket is laid out as the library would lay it out.
	_, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "library", TTL: cfg.DedupeWindow, Storage: jetstream.FileStorage})
	if err != nil {
		t.Fatal(err)
	}
	bucket := streamInfo(t, js, "KV_library").Config
	bucket.Name = "KV_webhooks-dedupe"
	bucket.Description = "index of the events stored in WEBHOOKS"
	bucket.Subjects = []string{"$KV.webhooks-dedupe.>"}
	sameConfig(t, bucket, streamInfo(t, js, "KV_webhooks-dedupe").Config)
	kv := b.State().Bucket()
	if _, err := kv.PutString(t.Context(), "name", "value"); err != nil {
		t.Fatal(err)
	}
	if e, err := kv.Get(t.Context(), "name"); err != nil || string(e.Value()) != "value" {
		t.Errorf("the bucket returns %v, %v", e, err)
	}
}

func TestLimitsAreCreated(t *testing.T) {
	cfg := external(natstest.Server(t))
	cfg.Stream, cfg.SubjectPrefix = "HOOKS", "acme.hooks"
	cfg.StreamMaxAge, cfg.StreamMaxBytes = 0, 1<<20
	cfg.QuarantineMaxAge, cfg.QuarantineMaxBytes = time.Minute, 0
	cfg.DedupeWindow, cfg.DuplicateWindow = 90*time.Second, 30*time.Minute
	b := openReady(t, cfg)

	c := streamInfo(t, b.JetStream(), "HOOKS").Config
	if c.MaxAge != 0 || c.MaxBytes != 1<<20 || c.Duplicates != 30*time.Minute || !slices.Equal(c.Subjects, []string{"acme.hooks.>"}) {
		t.Errorf("stream: %+v", c)
	}
	// A duplicate window may not be longer than the age.
	c = streamInfo(t, b.JetStream(), "WEBHOOKS_QUARANTINE").Config
	if c.MaxAge != time.Minute || c.MaxBytes != -1 || c.Duplicates != time.Minute {
		t.Errorf("quarantine: %+v", c)
	}
	c = streamInfo(t, b.JetStream(), "KV_webhooks-dedupe").Config
	if c.MaxAge != 90*time.Second || c.Duplicates != 90*time.Second {
		t.Errorf("bucket: %+v", c)
	}
	if got := message(t, b.JetStream(), "HOOKS", mustPublish(t, b, newEvent(t, 1))).Subject; got != "acme.hooks.dataspike.aml_screening" {
		t.Errorf("subject: %q", got)
	}
}

func TestReplicasStartAtOnce(t *testing.T) {
	s := natstest.Server(t)
	var buses []*bus.Bus
	for range 8 {
		b, err := tryOpen(t, external(s))
		if err != nil {
			t.Fatal(err)
		}
		buses = append(buses, b)
	}
	for _, b := range buses {
		run(t, b)
	}
	for i, b := range buses {
		waitReady(t, b)
		if st, first := b.State(), buses[0].State(); !st.StreamCreated.Equal(first.StreamCreated) || !st.BucketCreated.Equal(first.BucketCreated) {
			t.Errorf("replica %d has another stream or bucket than replica 0", i)
		}
		mustPublish(t, b, newEvent(t, i))
	}
	wantStreams(t, buses[0].JetStream(), "KV_webhooks-dedupe", "OBJ_WEBHOOKS_BODIES", "WEBHOOKS", "WEBHOOKS_QUARANTINE")
}

func wantStreams(t *testing.T, js jetstream.JetStream, want ...string) {
	t.Helper()
	var got []string
	names := js.StreamNames(t.Context())
	for name := range names.Name() {
		got = append(got, name)
	}
	if err := names.Err(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("streams: got %q, want %q", got, want)
	}
}

// somebodyElses are the streams as an operator may have made them: no setting
// is the bridge's.
func somebodyElses() map[string]jetstream.StreamConfig {
	c := jetstream.StreamConfig{
		Description:       "managed by the platform team",
		Storage:           jetstream.FileStorage,
		Discard:           jetstream.DiscardNew,
		Replicas:          1,
		MaxAge:            1440 * time.Hour,
		MaxBytes:          100 << 20,
		MaxMsgs:           1_000_000,
		MaxMsgsPerSubject: -1,
		MaxMsgSize:        2 << 20,
		MaxConsumers:      50,
		Duplicates:        time.Hour,
		Compression:       jetstream.S2Compression,
		ConsumerLimits:    jetstream.StreamConsumerLimits{InactiveThreshold: time.Hour, MaxAckPending: 5000},
		Metadata:          map[string]string{"team": "platform"},
		DenyDelete:        true,
	}
	stream, quarantine, bucket := c, c, c

	stream.Name = "WEBHOOKS"
	stream.Subjects = []string{"webhooks.>", "other.>"}
	stream.SubjectTransform = &jetstream.SubjectTransformConfig{Source: "other.old.>", Destination: "other.new.>"}
	stream.RePublish = &jetstream.RePublish{Source: "other.>", Destination: "copies.>"}

	quarantine.Name = "WEBHOOKS_QUARANTINE"
	quarantine.Subjects = []string{"quarantine.>", "rejected.>"}

	bucket.Name = "KV_webhooks-dedupe"
	bucket.Subjects = []string{"$KV.webhooks-dedupe.>"}
	bucket.MaxMsgsPerSubject = 5
	bucket.AllowRollup = true
	return map[string]jetstream.StreamConfig{stream.Name: stream, quarantine.Name: quarantine, bucket.Name: bucket}
}

// create makes the streams and returns their settings with the server's defaults.
func create(t *testing.T, js jetstream.JetStream, configs map[string]jetstream.StreamConfig) map[string]jetstream.StreamConfig {
	t.Helper()
	created := make(map[string]jetstream.StreamConfig)
	for name, c := range configs {
		s, err := js.CreateStream(t.Context(), c)
		if err != nil {
			t.Fatalf("create stream %s: %v", name, err)
		}
		created[name] = s.CachedInfo().Config
	}
	return created
}

// Only the settings whose variables were set are changed on what exists.
func TestExistingStreams(t *testing.T) {
	type configs = map[string]jetstream.StreamConfig
	edit := func(c configs, name string, f func(*jetstream.StreamConfig)) {
		changed := c[name]
		f(&changed)
		c[name] = changed
	}
	variables := []struct {
		name string
		want func(configs)
	}{
		{"SUBJECT_PREFIX", func(c configs) {
			edit(c, "WEBHOOKS", func(c *jetstream.StreamConfig) { c.Subjects = []string{"webhooks.>", "other.>", "hooks.>"} })
		}},
		{"STREAM_REPLICAS", func(configs) {}}, // 1 as it is; more need a cluster
		{"STREAM_MAX_AGE", func(c configs) {
			edit(c, "WEBHOOKS", func(c *jetstream.StreamConfig) { c.MaxAge = 721 * time.Hour })
		}},
		{"STREAM_MAX_BYTES", func(c configs) {
			edit(c, "WEBHOOKS", func(c *jetstream.StreamConfig) { c.MaxBytes = 20 << 20 })
		}},
		{"DUPLICATE_WINDOW", func(c configs) {
			edit(c, "WEBHOOKS", func(c *jetstream.StreamConfig) { c.Duplicates = 11 * time.Minute })
		}},
		{"QUARANTINE_PREFIX", func(c configs) {
			edit(c, "WEBHOOKS_QUARANTINE", func(c *jetstream.StreamConfig) {
				c.Subjects = []string{"quarantine.>", "rejected.>", "bad.>"}
			})
		}},
		{"QUARANTINE_MAX_AGE", func(c configs) {
			edit(c, "WEBHOOKS_QUARANTINE", func(c *jetstream.StreamConfig) { c.MaxAge = 722 * time.Hour })
		}},
		{"QUARANTINE_MAX_BYTES", func(c configs) {
			edit(c, "WEBHOOKS_QUARANTINE", func(c *jetstream.StreamConfig) { c.MaxBytes = -1 })
		}},
		{"DEDUPE_WINDOW", func(c configs) {
			edit(c, "KV_webhooks-dedupe", func(c *jetstream.StreamConfig) { c.MaxAge = 169 * time.Hour })
		}},
	}
	check := func(t *testing.T, manage bool, explicit []string, want func(configs)) {
		s := natstest.Server(t)
		js := jetStream(t, s.ClientURL())
		expected := create(t, js, somebodyElses())
		want(expected)

		cfg := external(s)
		cfg.Manage = manage
		cfg.StreamMaxAge, cfg.StreamMaxBytes, cfg.DuplicateWindow = 721*time.Hour, 20<<20, 11*time.Minute
		cfg.QuarantineMaxAge, cfg.QuarantineMaxBytes = 722*time.Hour, 0
		cfg.DedupeWindow = 169 * time.Hour
		cfg.Explicit = make(map[string]bool)
		for _, name := range explicit {
			cfg.Explicit[name] = true
			switch name {
			case "SUBJECT_PREFIX":
				cfg.SubjectPrefix = "hooks"
			case "QUARANTINE_PREFIX":
				cfg.QuarantinePrefix = "bad"
			}
		}
		b := openReady(t, cfg)
		mustPublish(t, b, newEvent(t, 1))
		names := []string{"KV_webhooks-dedupe", "OBJ_WEBHOOKS_BODIES", "WEBHOOKS", "WEBHOOKS_QUARANTINE"}
		if !cfg.Manage {
			names = slices.Delete(names, 1, 2)
		}
		wantStreams(t, js, names...)
		for name := range expected {
			sameConfig(t, expected[name], streamInfo(t, js, name).Config)
		}
	}

	var all []string
	for _, v := range variables {
		all = append(all, v.name)
		t.Run(v.name, func(t *testing.T) { check(t, true, []string{v.name}, v.want) })
	}
	t.Run("all", func(t *testing.T) {
		check(t, true, all, func(c configs) {
			for _, v := range variables {
				v.want(c)
			}
		})
	})
	t.Run("none", func(t *testing.T) { check(t, true, nil, func(configs) {}) })
	t.Run("not ours to manage", func(t *testing.T) {
		numbers := slices.DeleteFunc(slices.Clone(all), func(name string) bool { return strings.HasSuffix(name, "_PREFIX") })
		check(t, false, numbers, func(configs) {})
	})
}

// A setting that the server refuses is said, and is no reason to stop.
func TestSettingThatCannotBeChanged(t *testing.T) {
	s := natstest.Server(t)
	want := create(t, jetStream(t, s.ClientURL()), somebodyElses())
	cfg := external(s)
	cfg.Replicas = 3 // of one server
	cfg.Explicit = map[string]bool{"STREAM_REPLICAS": true}
	b := openReady(t, cfg)
	for name := range want {
		if !slices.ContainsFunc(b.State().Warnings, func(w string) bool {
			return strings.Contains(w, name) && strings.Contains(w, "could not be changed")
		}) {
			t.Errorf("no warning about %s among %q", name, b.State().Warnings)
		}
		sameConfig(t, want[name], streamInfo(t, b.JetStream(), name).Config)
	}
	mustPublish(t, b, newEvent(t, 1))
}

// Two bridges with different values would take turns, and the lower age wins.
func TestSettingThatIsChangedAgainAndAgain(t *testing.T) {
	cfg := external(natstest.Server(t))
	cfg.Explicit = map[string]bool{"STREAM_MAX_AGE": true}
	b := openReady(t, cfg)
	warned := func() bool {
		return slices.ContainsFunc(b.State().Warnings, func(w string) bool { return strings.Contains(w, "somebody else changes its max_age") })
	}
	for range 2 {
		if warned() {
			t.Errorf("%q", b.State().Warnings)
		}
		c := streamInfo(t, b.JetStream(), "WEBHOOKS").Config
		c.MaxAge = cfg.StreamMaxAge - time.Hour
		if _, err := b.JetStream().UpdateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		b.Wake()
		natstest.Eventually(t, within, "it is set back", func() bool {
			return streamInfo(t, b.JetStream(), "WEBHOOKS").Config.MaxAge == cfg.StreamMaxAge
		})
	}
	natstest.Eventually(t, within, "a warning", warned)
}

func TestUnmanagedStreamsAreNotCreated(t *testing.T) {
	s := natstest.Server(t)
	cfg := external(s)
	cfg.Manage = false
	b := open(t, cfg)
	for _, name := range []string{"WEBHOOKS", "WEBHOOKS_QUARANTINE", "KV_webhooks-dedupe"} {
		waitProblem(t, b, "stream "+name+": it does not exist, and BRIDGE_MANAGE_STREAMS is false")
	}
	wantError(t, b, newEvent(t, 1), bus.ErrUnavailable)
	wantStreams(t, b.JetStream())

	create(t, b.JetStream(), somebodyElses())
	b.Wake()
	waitReady(t, b)
	mustPublish(t, b, newEvent(t, 1))
}
