package replay_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
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

func TestMain(m *testing.M) { natstest.Main(m) }

const timeout = time.Minute

// rig is a stream of events on a server of its own.
type rig struct {
	testing.TB
	url string
	nc  *nats.Conn
	js  jetstream.JetStream
}

func newRig(tb testing.TB, opts ...func(*server.Options)) *rig {
	return newRigOn(tb, natstest.Server(tb, opts...).ClientURL(), 1)
}

func newRigOn(tb testing.TB, url string, replicas int) *rig {
	tb.Helper()
	r := &rig{TB: tb, url: url, nc: natstest.Connect(tb, url)}
	var err error
	if r.js, err = jetstream.New(r.nc); err != nil {
		tb.Fatal(err)
	}
	r.makeStream("WEBHOOKS", replicas, "webhooks.>")
	return r
}

func (r *rig) makeStream(name string, replicas int, subjects ...string) {
	r.Helper()
	_, err := r.js.CreateStream(context.Background(), jetstream.StreamConfig{Name: name, Subjects: subjects, Replicas: replicas, AllowDirect: true})
	if err != nil {
		r.Fatal(err)
	}
}

// types of the events that store makes, in turns.
var types = []string{"co.dfns.wallet.transfer.requested", "io.dataspike.docver", "ai.waldo.flag"}

func eventMsg(i int) *nats.Msg {
	typ := types[i%len(types)]
	_, rest, _ := strings.Cut(typ, ".")
	msg := nats.NewMsg("webhooks." + rest)
	msg.Header = nats.Header{
		"ce-specversion":               {"1.0"},
		"ce-id":                        {fmt.Sprintf("id-%d", i)},
		"ce-type":                      {typ},
		"ce-source":                    {"https://example.com"},
		"ce-subject":                   {fmt.Sprintf("entity%%20%d", i%10)},
		"ce-dataref":                   {"nats-object:WEBHOOKS_BODIES/x"},
		"Bridge-Key":                   {fmt.Sprintf("key-%d", i)},
		jetstream.MsgIDHeader:          {fmt.Sprintf("id-%d", i)},
		jetstream.ExpectedStreamHeader: {"WEBHOOKS"},
	}
	msg.Data = fmt.Appendf(nil, "{ \"n\":\t%d}", i)
	return msg
}

// store stores events i to j-1.
func (r *rig) store(i, j int) {
	r.Helper()
	for ; i < j; i++ {
		if _, err := r.js.PublishMsgAsync(eventMsg(i), jetstream.WithStallWait(timeout)); err != nil {
			r.Fatal(err)
		}
	}
	select {
	case <-r.js.PublishAsyncComplete():
	case <-time.After(timeout):
		r.Fatal("the events are not stored")
	}
}

func (r *rig) delete(sequences ...uint64) {
	r.Helper()
	stream, err := r.js.Stream(context.Background(), "WEBHOOKS")
	for _, seq := range sequences {
		err = errors.Join(err, stream.DeleteMsg(context.Background(), seq))
	}
	if err != nil {
		r.Fatal(err)
	}
}

// all returns the messages of a stream.
func (r *rig) all(name string) []*jetstream.RawStreamMsg {
	r.Helper()
	stream, err := r.js.Stream(context.Background(), name)
	if err != nil {
		r.Fatal(err)
	}
	state := stream.CachedInfo().State
	var msgs []*jetstream.RawStreamMsg
	for seq := state.FirstSeq; seq <= state.LastSeq; seq++ {
		msg, err := stream.GetMsg(context.Background(), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			r.Fatal(err)
		}
		msgs = append(msgs, msg)
	}
	return msgs
}

// copies returns the sequences of the originals of a replay's copies.
func (r *rig) copies(name string) []uint64 {
	r.Helper()
	var sequences []uint64
	for _, msg := range r.all("REPLAY_" + name) {
		seq, err := strconv.ParseUint(msg.Header.Get(replay.SequenceHeader), 10, 64)
		if err != nil {
			r.Fatal(err)
		}
		sequences = append(sequences, seq)
	}
	return sequences
}

// wantOnce checks that each original from first to last has one copy, in order.
func (r *rig) wantOnce(name string, first, last uint64) {
	r.Helper()
	got := r.copies(name)
	for i, seq := range got {
		if seq != first+uint64(i) {
			r.Fatalf("copy %d is of %d, not of %d", i, seq, first+uint64(i))
		}
	}
	if n := last - first + 1; uint64(len(got)) != n {
		r.Fatalf("%d copies, not %d", len(got), n)
	}
}

func (r *rig) noReplays() {
	r.Helper()
	for name := range r.js.StreamNames(context.Background()).Name() {
		if strings.HasPrefix(name, "REPLAY_") {
			r.Errorf("there is a stream %s", name)
		}
	}
}

func options() replay.Options { return replay.Options{Stream: "WEBHOOKS", Keep: time.Hour} }

func (r *rig) run(name string, s replay.Selection, o replay.Options) replay.Result {
	r.Helper()
	result, err := replay.Run(context.Background(), r.nc, name, s, o)
	if err != nil {
		r.Fatal(err)
	}
	return result
}

func (r *rig) resume(name string) replay.Result {
	r.Helper()
	result, err := replay.Resume(context.Background(), r.nc, name, options())
	if err != nil {
		r.Fatal(err)
	}
	return result
}

func TestCopiesAreTheOriginals(t *testing.T) {
	r := newRig(t)
	r.store(0, 30)
	odd := eventMsg(30)
	odd.Header["nats-expected-last-msg-id"] = nil
	odd.Header["X-Twice"] = []string{"a", "b"}
	odd.Data = []byte{0, 0xff, '\r', '\n'}
	if _, err := r.js.PublishMsg(t.Context(), odd); err != nil {
		t.Fatal(err)
	}
	result := r.run("one", replay.Selection{}, options())
	if result.Copied != 31 || result.Scanned != 31 || !result.Complete || result.Name != "one" || result.Stream != "REPLAY_one" || result.First != 1 || result.Last != 31 || result.Types[types[0]] != 11 {
		t.Errorf("%+v", result)
	}
	copies := r.all("REPLAY_one")
	for i, original := range r.all("WEBHOOKS") {
		c := copies[i]
		if c.Subject != "replay.one."+original.Subject || !bytes.Equal(c.Data, original.Data) {
			t.Fatalf("%s %q is a copy of %s %q", c.Subject, c.Data, original.Subject, original.Data)
		}
		for name, values := range original.Header {
			if !strings.HasPrefix(name, "Nats-") && !slices.Equal(c.Header[name], values) {
				t.Errorf("%s is %q, not %q", name, c.Header[name], values)
			}
		}
		added := map[string]string{
			"Bridge-Replay": "one", "Bridge-Replay-Sequence": strconv.Itoa(i + 1), "Bridge-Replay-Run": copies[0].Header.Get("Bridge-Replay-Run"),
			"Nats-Msg-Id": "replay.one." + strconv.Itoa(i+1), "Nats-Expected-Stream": "REPLAY_one", "Nats-Expected-Last-Sequence": strconv.Itoa(i),
		}
		for name, value := range added {
			if value == "" || c.Header.Get(name) != value {
				t.Errorf("%s is %q, not %q", name, c.Header.Get(name), value)
			}
		}
		for name := range c.Header {
			if _, ok := original.Header[name]; !ok && added[name] == "" {
				t.Errorf("%s has been added", name)
			}
		}
	}
	config := must(r.js.Stream(t.Context(), "REPLAY_one")).CachedInfo().Config
	if config.MaxAge != time.Hour || config.Storage != jetstream.FileStorage || config.Discard != jetstream.DiscardNew || !slices.Equal(config.Subjects, []string{"replay.one.>"}) {
		t.Errorf("%+v", config)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestSelection(t *testing.T) {
	r := newRig(t)
	r.store(0, 30)
	stored := must(must(r.js.Stream(t.Context(), "WEBHOOKS")).GetMsg(t.Context(), 30)).Time
	natstest.Eventually(t, timeout, "the clock has moved", func() bool { return time.Now().After(stored) })
	middle := time.Now()
	r.store(30, 60)
	r.delete(10, 31, 60)
	if _, err := r.js.Publish(t.Context(), "webhooks.other", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		s         replay.Selection
		first     uint64
		last      uint64
		copied    uint64
		notEvents uint64
	}{
		"all":                     {replay.Selection{}, 1, 59, 57, 1},
		"from a sequence":         {replay.Selection{FromSeq: 51}, 51, 59, 9, 1},
		"from a deleted sequence": {replay.Selection{FromSeq: 31}, 32, 59, 28, 1},
		"from the last one":       {replay.Selection{FromSeq: 61}, 0, 0, 0, 1},
		"up to a sequence":        {replay.Selection{ToSeq: 5}, 1, 5, 5, 0},
		"up to a deleted one":     {replay.Selection{FromSeq: 8, ToSeq: 10}, 8, 9, 2, 0},
		"a deleted one":           {replay.Selection{FromSeq: 10, ToSeq: 10}, 0, 0, 0, 0},
		"beyond the end":          {replay.Selection{FromSeq: 59, ToSeq: 1000}, 59, 59, 1, 1},
		"since":                   {replay.Selection{Since: middle}, 32, 59, 28, 1},
		"since and to a sequence": {replay.Selection{Since: middle, ToSeq: 40}, 32, 40, 9, 0},
		"since before all":        {replay.Selection{Since: middle.Add(-time.Hour)}, 1, 59, 57, 1},
		"since now":               {replay.Selection{Since: time.Now()}, 0, 0, 0, 0},
		"until":                   {replay.Selection{Until: middle}, 1, 30, 29, 0},
		"until before all":        {replay.Selection{Until: middle.Add(-time.Hour)}, 0, 0, 0, 0},
		"until the future":        {replay.Selection{Since: middle, Until: middle.Add(time.Hour)}, 32, 59, 28, 1},
		"a filter":                {replay.Selection{Filters: []string{"webhooks.dfns.>"}}, 1, 58, 18, 0},
		"two filters":             {replay.Selection{Filters: []string{"webhooks.*.flag", "webhooks.dataspike.docver"}}, 2, 59, 39, 0},
		"a filter without events": {replay.Selection{Filters: []string{"webhooks.none"}}, 0, 0, 0, 0},
		"a type":                  {replay.Selection{Types: []string{types[2]}}, 3, 57, 19, 1},
		"two types":               {replay.Selection{Types: types[1:]}, 2, 59, 39, 1},
		"a type's beginning":      {replay.Selection{Types: []string{"ai.waldo"}}, 0, 0, 0, 1},
		"ids":                     {replay.Selection{IDs: []string{"id-7", "id-40", "id-9"}}, 8, 41, 2, 1},
		"an entity":               {replay.Selection{Subject: "entity 3"}, 4, 54, 6, 1},
		"everything at once":      {replay.Selection{FromSeq: 4, Filters: []string{"webhooks.>"}, Types: types[:2], IDs: []string{"id-3", "id-5", "id-13"}, Subject: "entity 3"}, 4, 14, 2, 1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dry := options()
			dry.DryRun = true
			counted := r.run("", test.s, dry)
			if counted.Name != "" || counted.Complete {
				t.Errorf("a dry run has made %+v", counted)
			}
			result := r.run("", test.s, options())
			for _, result := range []replay.Result{counted, result} {
				if result.First != test.first || result.Last != test.last || result.Copied != test.copied || result.NotEvents != test.notEvents || result.Scanned != result.Copied+result.Skipped+result.NotEvents {
					t.Errorf("%+v", result)
				}
			}
			if !maps.Equal(counted.Types, result.Types) {
				t.Errorf("%v was to be, %v is", counted.Types, result.Types)
			}
			if test.copied == 0 {
				if result.Name != "" || !result.Complete {
					t.Errorf("nothing is selected: %+v", result)
				}
				return
			}
			if copies := r.copies(result.Name); uint64(len(copies)) != test.copied || copies[0] != test.first || copies[len(copies)-1] != test.last {
				t.Errorf("copies of %v", copies)
			}
			if again := r.resume(result.Name); !again.Complete || again.Copied != 0 || again.Before != test.copied {
				t.Errorf("resumed: %+v", again)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	r := newRig(t)
	r.store(0, 3)
	r.makeStream("OTHER", 1, "replay.blocked.>")
	r.makeStream("LOOP", 1, "replay.loop.>", "x.>")
	r.run("taken", replay.Selection{}, options())
	now := time.Now()
	change := func(f func(*replay.Options)) replay.Options { o := options(); f(&o); return o }
	plain := natstest.Connect(t, natstest.Server(t, func(o *server.Options) { o.JetStream = false }).ClientURL())
	for name, test := range map[string]struct {
		nc     *nats.Conn
		name   string
		s      replay.Selection
		o      replay.Options
		resume bool
		want   error
		says   string
	}{
		"a name with a dot":          {name: "a.b", want: replay.ErrInvalid, says: `"a.b"`},
		"a name in capitals":         {name: "A", want: replay.ErrInvalid},
		"resuming a name":            {name: "*", resume: true, want: replay.ErrInvalid},
		"a malformed filter":         {s: replay.Selection{Filters: []string{"webhooks..x"}}, want: replay.ErrInvalid, says: `"webhooks..x"`},
		"a filter after >":           {s: replay.Selection{Filters: []string{"webhooks.>.x"}}, want: replay.ErrInvalid},
		"a filter with a space":      {s: replay.Selection{Filters: []string{"webhooks.a b"}}, want: replay.ErrInvalid},
		"a filter outside":           {s: replay.Selection{Filters: []string{"quarantine.>"}}, want: replay.ErrSubject, says: "webhooks.>"},
		"filters over one another":   {s: replay.Selection{Filters: []string{"webhooks.>", "webhooks.ai.*"}}, want: replay.ErrSubject, says: "covers"},
		"since the future":           {s: replay.Selection{Since: now.Add(time.Hour)}, want: replay.ErrInvalid, says: "future"},
		"since after until":          {s: replay.Selection{Since: now.Add(-time.Hour), Until: now.Add(-2 * time.Hour)}, want: replay.ErrInvalid},
		"from after to":              {s: replay.Selection{FromSeq: 2, ToSeq: 1}, want: replay.ErrInvalid},
		"two beginnings":             {s: replay.Selection{Since: now, FromSeq: 1}, want: replay.ErrInvalid},
		"two ends":                   {s: replay.Selection{Until: now, ToSeq: 1}, want: replay.ErrInvalid},
		"beyond the end":             {s: replay.Selection{FromSeq: 4}, want: replay.ErrBeyondEnd, says: "ends at sequence 3"},
		"a negative rate":            {o: change(func(o *replay.Options) { o.Rate = -1 }), want: replay.ErrInvalid},
		"kept for no time":           {o: change(func(o *replay.Options) { o.Keep = 0 }), want: replay.ErrInvalid},
		"no stream":                  {o: change(func(o *replay.Options) { o.Stream = "NONE" }), want: replay.ErrNoStream, says: "NONE"},
		"a name that is taken":       {name: "taken", want: replay.ErrExists, says: "taken"},
		"a subject that is taken":    {name: "blocked", want: replay.ErrSubject},
		"copies that come back":      {name: "loop", o: change(func(o *replay.Options) { o.Stream = "LOOP" }), want: replay.ErrSubject, says: "replay.loop.>"},
		"resuming what is not":       {name: "none", resume: true, want: replay.ErrNoReplay},
		"resuming on other streams":  {name: "broken", resume: true, o: change(func(o *replay.Options) { o.Stream = "OTHER" }), want: replay.ErrLost},
		"resuming what is no replay": {name: "foreign", resume: true, want: replay.ErrNoReplay},
		"no JetStream":               {nc: plain, want: bus.ErrNoJetStream},
	} {
		t.Run(name, func(t *testing.T) {
			if test.o.Stream == "" {
				test.o = options()
			}
			if test.nc == nil {
				test.nc = r.nc
			}
			switch test.name {
			case "broken":
				interrupted(r, "broken", replay.Selection{}, 1)
			case "foreign":
				r.makeStream("REPLAY_foreign", 1, "foreign")
			}
			var err error
			if test.resume {
				_, err = replay.Resume(t.Context(), test.nc, test.name, test.o)
			} else {
				_, err = replay.Run(t.Context(), test.nc, test.name, test.s, test.o)
			}
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%v", err)
			}
		})
	}
}

// interrupted runs until so many copies are stored, one after the other.
func interrupted(r *rig, name string, s replay.Selection, copies int) replay.Result {
	r.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stored, err := r.nc.SubscribeSync("replay." + name + ".>")
	if err != nil {
		r.Fatal(err)
	}
	defer stored.Unsubscribe()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for range copies {
			if _, err := stored.NextMsg(timeout); err != nil {
				r.Error(err)
			}
		}
		cancel()
	}()
	o := options()
	o.Rate = 500 // so that it is not over before
	result, err := replay.Run(ctx, r.nc, name, s, o)
	if !errors.Is(err, context.Canceled) || result.Complete {
		r.Fatalf("%v: %+v", err, result)
	}
	<-watched
	return result
}

func TestResume(t *testing.T) {
	r := newRig(t)
	r.store(0, 600)
	s := replay.Selection{FromSeq: 10, ToSeq: 590}
	result := interrupted(r, "one", s, 200)
	if copies := r.copies("one"); uint64(len(copies)) != result.Copied || result.Copied < 200 || result.Copied >= 581 || result.Last != copies[len(copies)-1] {
		t.Fatalf("%d copies, the result is %+v", len(copies), result)
	}
	r.store(600, 700) // outside of what was selected
	rest := r.resume("one")
	if rest.Before != result.Copied || rest.Copied != 581-result.Copied || !rest.Complete {
		t.Errorf("%+v", rest)
	}
	r.wantOnce("one", 10, 590)
	if _, err := replay.Run(t.Context(), r.nc, "one", s, options()); !errors.Is(err, replay.ErrExists) {
		t.Errorf("%v", err)
	}
	for range 2 {
		if again := r.resume("one"); again.Copied != 0 || again.Before != 581 || !again.Complete || again.Name != "one" {
			t.Errorf("%+v", again)
		}
	}
}

// The selection of the first run is that of every run.
func TestResumeKeepsTheSelection(t *testing.T) {
	r := newRig(t)
	r.store(0, 600)
	s := replay.Selection{Filters: []string{"webhooks.dfns.>", "webhooks.waldo.>"}, Types: types[:1], Subject: "entity 0"}
	want := r.run("", s, options())
	interrupted(r, "one", s, 5)
	r.resume("one")
	if got, want := r.copies("one"), r.copies(want.Name); !slices.Equal(got, want) {
		t.Errorf("copies of %v, want %v", got, want)
	}
}

// The window in which the stream itself knows an id is long over.
func TestResumeAfterTheDuplicateWindow(t *testing.T) {
	r := newRig(t)
	r.store(0, 300)
	interrupted(r, "one", replay.Selection{}, 100)
	stream := must(r.js.Stream(t.Context(), "REPLAY_one"))
	config := stream.CachedInfo().Config
	config.Duplicates = 100 * time.Millisecond // the least
	must(r.js.UpdateStream(t.Context(), config))
	last := must(stream.GetMsg(t.Context(), stream.CachedInfo().State.LastSeq))
	natstest.Eventually(t, timeout, "the window is over", func() bool { return time.Since(last.Time) > time.Second })
	r.resume("one")
	r.wantOnce("one", 1, 300)
}

func TestResumeWhatCannotBe(t *testing.T) {
	r := newRig(t)
	r.store(0, 300)
	for _, name := range []string{"purged", "foreign", "recreated"} {
		interrupted(r, name, replay.Selection{}, 10)
	}
	if err := must(r.js.Stream(t.Context(), "REPLAY_purged")).Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	must(r.js.Publish(t.Context(), "replay.foreign.x", nil))
	for _, name := range []string{"purged", "foreign"} {
		if _, err := replay.Resume(t.Context(), r.nc, name, options()); !errors.Is(err, replay.ErrLost) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := r.js.DeleteStream(t.Context(), "WEBHOOKS"); err != nil {
		t.Fatal(err)
	}
	r.makeStream("WEBHOOKS", 1, "webhooks.>")
	if _, err := replay.Resume(t.Context(), r.nc, "recreated", options()); !errors.Is(err, replay.ErrLost) || !strings.Contains(err.Error(), "anew") {
		t.Errorf("%v", err)
	}
}

// What comes in after the start is not copied, so that a run ends.
func TestEndIsFixedAtTheStart(t *testing.T) {
	r := newRig(t)
	r.store(0, 300)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := 300; ctx.Err() == nil; i++ {
			r.js.PublishMsg(ctx, eventMsg(i))
		}
	}()
	o := options()
	o.Rate = 1000
	r.run("one", replay.Selection{}, o)
	filtered := r.run("", replay.Selection{Filters: []string{"webhooks.none", "webhooks.other"}}, o)
	cancel()
	<-ended
	if n := len(r.copies("one")); n < 300 || n > 350 {
		t.Errorf("%d copies", n)
	}
	if filtered.Scanned != 0 {
		t.Errorf("%+v", filtered)
	}
}

// What is gone before it was read is not copied, and the run ends all the same.
func TestPurgedMeanwhile(t *testing.T) {
	r := newRig(t)
	r.store(0, 5000)
	var once bool
	o := options()
	o.Rate = 2000
	o.Progress = func(p replay.Progress) {
		if !once {
			once = true
			if err := must(r.js.Stream(t.Context(), "WEBHOOKS")).Purge(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if p.End != 5000 || p.At == 0 || p.At > 5000 {
			t.Errorf("%+v", p)
		}
	}
	result := r.run("one", replay.Selection{}, o)
	if n := len(r.copies("one")); !result.Complete || n == 0 || n > 2000 || uint64(n) != result.Copied {
		t.Errorf("%d copies, %+v", n, result)
	}
}

// What is gone because the stream is another is not passed over in silence.
func TestStreamMadeAnewMeanwhile(t *testing.T) {
	r := newRig(t)
	r.store(0, 5000)
	var once bool
	o := options()
	o.Rate = 2000
	o.Progress = func(replay.Progress) {
		if !once {
			once = true
			if err := r.js.DeleteStream(t.Context(), "WEBHOOKS"); err != nil {
				t.Error(err)
			}
			r.makeStream("WEBHOOKS", 1, "webhooks.>")
			r.store(0, 10)
		}
	}
	result, err := replay.Run(t.Context(), r.nc, "one", replay.Selection{}, o)
	if !errors.Is(err, replay.ErrLost) || result.Complete {
		t.Errorf("%v: %+v", err, result)
	}
}

func TestRate(t *testing.T) {
	r := newRig(t)
	r.store(0, 100)
	o := options()
	o.Rate = 50
	if result := r.run("one", replay.Selection{ToSeq: 26}, o); result.Elapsed < 490*time.Millisecond {
		t.Errorf("26 copies at 50 a second in %v", result.Elapsed)
	}
}

// Two processes run the same replay: one gives up, at the latest when both have
// sent a copy, and no original is copied twice.
func TestTwoAtOnce(t *testing.T) {
	r := newRig(t)
	r.store(0, 3000)
	interrupted(r, "one", replay.Selection{}, 10)
	type outcome struct {
		result replay.Result
		err    error
	}
	outcomes := make(chan outcome)
	for range 3 {
		nc := natstest.Connect(t, r.url)
		go func() {
			result, err := replay.Resume(t.Context(), nc, "one", options())
			outcomes <- outcome{result, err}
		}()
	}
	for range 3 {
		if o := <-outcomes; o.err != nil && !errors.Is(o.err, replay.ErrBusy) {
			t.Errorf("%v: %+v", o.err, o.result)
		}
	}
	r.resume("one")
	r.wantOnce("one", 1, 3000)
}

// The second start under one name is refused, also while the first has not yet
// stored anything.
func TestTwoStartsUnderOneName(t *testing.T) {
	r := newRig(t)
	r.store(0, 1000)
	errs := make(chan error)
	for range 2 {
		nc := natstest.Connect(t, r.url)
		go func() {
			_, err := replay.Run(t.Context(), nc, "one", replay.Selection{}, options())
			errs <- err
		}()
	}
	one, two := <-errs, <-errs
	if one != nil {
		one, two = two, one
	}
	if one != nil || !errors.Is(two, replay.ErrExists) {
		t.Errorf("%v, %v", one, two)
	}
	r.wantOnce("one", 1, 1000)
}

// The process dies between publishing and the acknowledgement: copies are stored
// of which nobody knows.
func TestCrashBeforeTheAcknowledgement(t *testing.T) {
	r := newRig(t)
	r.store(0, 2000)
	crashed := natstest.Connect(t, r.url, nats.NoReconnect())
	stored, err := r.nc.SubscribeSync("replay.one.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan replay.Result)
	go func() {
		result, _ := replay.Run(ctx, crashed, "one", replay.Selection{}, options())
		done <- result
	}()
	for range 300 {
		if _, err := stored.NextMsg(timeout); err != nil {
			t.Fatal(err)
		}
	}
	crashed.Close()
	cancel()
	result := <-done
	// Copies may still be on their way into the stream.
	if rest := r.resume("one"); rest.Before < result.Copied || rest.Before+rest.Copied != 2000 {
		t.Errorf("%+v after %+v", rest, result)
	}
	r.wantOnce("one", 1, 2000)
}

// A run goes on when its connection comes back.
func TestConnectionLost(t *testing.T) {
	r := newRig(t)
	r.store(0, 4000)
	runner := natstest.Connect(t, r.url)
	var cut int
	o := options()
	o.Rate = 4000
	o.Progress = func(p replay.Progress) {
		if cut < 3 {
			cut++
			if err := runner.ForceReconnect(); err != nil {
				t.Error(err)
			}
		}
	}
	result, err := replay.Run(t.Context(), runner, "one", replay.Selection{}, o)
	if err != nil || result.Copied != 4000 || result.Scanned != 4000 || cut == 0 {
		t.Errorf("%v, cut %d times: %+v", err, cut, result)
	}
	r.wantOnce("one", 1, 4000)
}

func TestClusterLosesItsLeader(t *testing.T) {
	c := natstest.Cluster(t, 3)
	r := newRigOn(t, c.URL(), 3)
	r.store(0, 5000)
	var stopped bool
	o := options()
	o.Rate, o.Replicas = 4000, 3
	o.Progress = func(p replay.Progress) {
		if stopped || p.Copied == 0 {
			return
		}
		stopped = true
		for i, s := range c.Servers {
			if s.JetStreamIsStreamLeader(server.DEFAULT_GLOBAL_ACCOUNT, "REPLAY_one") {
				c.Stop(i)
				return
			}
		}
		t.Error("no leader")
	}
	result := r.run("one", replay.Selection{}, o)
	if !stopped || result.Copied != 5000 {
		t.Errorf("stopped %v: %+v", stopped, result)
	}
	r.wantOnce("one", 1, 5000)
}

func TestPermissions(t *testing.T) {
	deny := func(t *testing.T, subjects ...string) *nats.Conn {
		r := newRig(t, func(o *server.Options) {
			o.Users = []*server.User{{Username: "all", Password: "x"}, {Username: "some", Password: "x", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: subjects}}}}
			o.NoAuthUser = "all"
		})
		r.store(0, 10)
		return natstest.Connect(t, r.url, nats.UserInfo("some", "x"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	}
	for _, subject := range []string{"$JS.API.STREAM.INFO.WEBHOOKS", "$JS.API.CONSUMER.CREATE.>", "$JS.API.STREAM.CREATE.>", "replay.>", "$JS.API.CONSUMER.MSG.NEXT.>"} {
		t.Run(subject, func(t *testing.T) {
			start := time.Now()
			_, err := replay.Run(t.Context(), deny(t, subject), "one", replay.Selection{}, options())
			if !errors.Is(err, replay.ErrPermission) || !errors.Is(err, nats.ErrPermissionViolation) || time.Since(start) > timeout/2 {
				t.Errorf("after %v: %v", time.Since(start), err)
			}
		})
	}
	t.Run("reset", func(t *testing.T) {
		nc := deny(t, "$JS.API.CONSUMER.RESET.>")
		r := &rig{TB: t, nc: nc, js: must(jetstream.New(nc))}
		r.consumer(jetstream.ConsumerConfig{Durable: "mine", AckPolicy: jetstream.AckExplicitPolicy})
		plan, err := replay.PlanReset(t.Context(), nc, "WEBHOOKS", "mine", time.Time{}, 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := plan.Apply(t.Context()); !errors.Is(err, replay.ErrPermission) || plan.Done {
			t.Errorf("%v", err)
		}
	})
}

// An original that only just fits into a message has no room for a copy's
// headers.
func TestTooLarge(t *testing.T) {
	r := newRig(t, func(o *server.Options) { o.MaxPayload = 4096 })
	r.store(0, 2)
	large := eventMsg(2)
	large.Data = bytes.Repeat([]byte("x"), 4096)
	for errors.Is(r.nc.PublishMsg(large), nats.ErrMaxPayload) {
		large.Data = large.Data[1:]
	}
	r.store(3, 5)
	result := r.run("one", replay.Selection{}, options())
	if copies := r.copies("one"); result.TooLarge != 1 || result.Copied != 4 || !slices.Equal(copies, []uint64{1, 2, 4, 5}) {
		t.Errorf("copies of %v, %+v", copies, result)
	}
}

func TestNothingSelectedCreatesNothing(t *testing.T) {
	r := newRig(t)
	if result := r.run("empty", replay.Selection{}, options()); !result.Complete || result.Scanned != 0 {
		t.Errorf("%+v", result)
	}
	r.store(0, 10)
	r.run("none", replay.Selection{IDs: []string{"x"}}, options())
	r.noReplays()
}
