package bus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
)

func spoolConfig(dir string) bus.SpoolConfig {
	return bus.SpoolConfig{Dir: dir, MaxBytes: 64 << 20, MaxBody: 1 << 20, LockWait: 5 * time.Second}
}

// spool is an open spool with a log of its own.
type spool struct {
	*bus.Spool
	log      *strings.Builder
	registry *prometheus.Registry
	mu       sync.Mutex
}

func (s *spool) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

func (s *spool) logged(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.log.String(), text)
}

func openSpool(t *testing.T, cfg bus.SpoolConfig) *spool {
	t.Helper()
	s := &spool{log: &strings.Builder{}, registry: prometheus.NewRegistry()}
	var err error
	if s.Spool, err = bus.OpenSpool(t.Context(), cfg, slog.New(slog.NewTextHandler(s, nil)), s.registry); err != nil {
		t.Fatal(err)
	}
	return s
}

// run hands over what the spool holds until the returned function is called.
func (s *spool) run(handOver func(context.Context, bus.Spooled) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.Run(ctx, handOver) })
	return func() { cancel(); wg.Wait() }
}

// handed collects what a spool hands over.
type handed struct {
	mu    sync.Mutex
	items []bus.Spooled
}

func (h *handed) take(_ context.Context, item bus.Spooled) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.items = append(h.items, item)
	return nil
}

func (h *handed) get() []bus.Spooled {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.items)
}

func mustPut(t *testing.T, s *spool, item bus.Spooled) {
	t.Helper()
	if err := s.Put(t.Context(), item); err != nil {
		t.Fatal(err)
	}
}

func entityEvent(t *testing.T, entity string, n int) *normalize.Event {
	t.Helper()
	return eventOf(t, "dataspike", fmt.Sprintf(`{"id":"%s-%d","event_type":"DOCVER","payload":{"applicant_id":%q,"n":%d}}`, entity, n, entity, n))
}

// What goes into the spool comes out as it was, also after a restart and with
// the token of a report.
func TestSpoolKeepsEverything(t *testing.T) {
	dir := t.TempDir()
	const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	var want []bus.Spooled
	for _, p := range normalize.Providers() {
		for _, sample := range p.Samples() {
			e := eventOf(t, p.Name, string(sample.Body))
			e.SetToken("token")
			want = append(want, bus.Spooled{Event: e, Headers: map[string]string{"User-Agent": `"a" / ü`}, Traceparent: traceparent})
		}
	}
	odd := eventOf(t, "waldo", `{"requestId":"1","event":"a b\"c%ü","customerId":" \u0000 "}`)
	want = append(want, bus.Spooled{Event: odd})
	for _, body := range []string{"", "\x00not JSON\xff", strings.Repeat("x", 1<<20)} {
		want = append(want, bus.Spooled{Rejected: &bus.Rejected{
			Provider: "waldo", Reason: "body_not_json", Body: []byte(body), Received: received, Headers: map[string]string{"Content-Type": "text/plain"},
		}, Traceparent: traceparent})
	}

	s := openSpool(t, spoolConfig(dir))
	for _, item := range want {
		mustPut(t, s, item)
	}
	s.Close()

	s = openSpool(t, spoolConfig(dir))
	defer s.Close()
	if w := s.Warning(); w != "" {
		t.Errorf("warning after a restart: %s", w)
	}
	if got := s.Len(); got != len(want) {
		t.Errorf("Len after a restart: got %d, want %d", got, len(want))
	}
	var got handed
	stop := s.run(got.take)
	natstest.Eventually(t, within, "the spool is empty", func() bool { return s.Len() == 0 })
	stop()
	items := got.get()
	if len(items) != len(want) {
		t.Fatalf("%d handed over, want %d", len(items), len(want))
	}
	key := func(item bus.Spooled) string {
		if item.Event != nil {
			return item.Event.CloudEvent.ID()
		}
		return item.Rejected.ID()
	}
	for _, w := range want {
		i := slices.IndexFunc(items, func(item bus.Spooled) bool { return key(item) == key(w) })
		if i < 0 {
			t.Errorf("%s is not handed over", key(w))
			continue
		}
		g := items[i]
		if w.Event == nil {
			if diff := cmp.Diff(w.Rejected, g.Rejected, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(bus.Rejected{}, "Body")); diff != "" || !bytes.Equal(w.Rejected.Body, g.Rejected.Body) {
				t.Errorf("rejected body of %d bytes, want one of %d (-want +got):\n%s", len(g.Rejected.Body), len(w.Rejected.Body), diff)
			}
			continue
		}
		wantSameEvent(t, w.Event.CloudEvent, g.Event.CloudEvent)
		a, b := *w.Event, *g.Event
		a.CloudEvent, b.CloudEvent = g.Event.CloudEvent, g.Event.CloudEvent
		if diff := cmp.Diff(a, b, cmpopts.IgnoreFields(a, "CloudEvent"), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("event (-want +got):\n%s", diff)
		}
		wire, err := bus.Encode(w.Event)
		if err != nil {
			t.Fatal(err)
		}
		again, err := bus.Encode(g.Event)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(wire, again, cmpopts.IgnoreUnexported(*wire)); diff != "" {
			t.Errorf("message (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(w.Headers, g.Headers, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("headers (-want +got):\n%s", diff)
		}
	}
}

// What fails is tried again in its order; what is about others goes on.
func TestSpoolKeepsTheOrderOfAnEntity(t *testing.T) {
	s := openSpool(t, spoolConfig(t.TempDir()))
	defer s.Close()
	const entities, each = 5, 20
	for n := range each {
		for e := range entities {
			mustPut(t, s, bus.Spooled{Event: entityEvent(t, fmt.Sprint("e", e), n)})
		}
	}
	var mu sync.Mutex
	got := make(map[string][]string)
	tries := 0
	stop := s.run(func(_ context.Context, item bus.Spooled) error {
		mu.Lock()
		defer mu.Unlock()
		e := item.Event.CloudEvent
		if e.Subject() == "e2" { // each fails twice
			if tries++; tries%3 != 0 {
				return errors.New("not yet")
			}
		}
		got[e.Subject()] = append(got[e.Subject()], string(e.Data()))
		return nil
	})
	natstest.Eventually(t, within, "the others are handed over", func() bool { return s.Len() <= each })
	natstest.Eventually(t, within, "three of e2, too", func() bool { return s.Len() <= each-3 })
	stop()
	for e := range entities {
		name := fmt.Sprint("e", e)
		for n, data := range got[name] {
			if want := string(entityEvent(t, name, n).CloudEvent.Data()); data != want {
				t.Fatalf("%s: number %d is %s", name, n, data)
			}
		}
		if name != "e2" && len(got[name]) != each {
			t.Errorf("%s: %d handed over, want %d", name, len(got[name]), each)
		}
	}
}

// Whatever fails on the way, of each entity all leaves, once, in order; also what comes
// while the spool is emptied.
func TestSpoolKeepsTheOrderWhateverFails(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	s := openSpool(t, spoolConfig(t.TempDir()))
	defer s.Close()
	const entities, each = 30, 20
	put := func(e, n int) {
		mustPut(t, s, bus.Spooled{Event: entityEvent(t, fmt.Sprint("e", e), n)})
	}
	for n := range each / 2 {
		for e := range entities {
			put(e, n)
		}
	}
	var mu sync.Mutex
	got := make(map[string]int)
	stop := s.run(func(_ context.Context, item bus.Spooled) error {
		mu.Lock()
		defer mu.Unlock()
		switch random.IntN(100) {
		case 0:
			return bus.ErrUnavailable
		case 1:
			return bus.ErrNotConnected
		case 2, 3, 4, 5, 6, 7:
			return errors.New("in doubt")
		}
		e := item.Event.CloudEvent
		if want := string(entityEvent(t, e.Subject(), got[e.Subject()]).CloudEvent.Data()); string(e.Data()) != want {
			t.Errorf("%s: after %d came %s", e.Subject(), got[e.Subject()], e.Data())
		}
		got[e.Subject()]++
		return nil
	})
	defer stop()
	for n := range each / 2 {
		for e := range entities {
			put(e, each/2+n)
		}
	}
	natstest.Eventually(t, 3*within, "all have left", func() bool { return s.Len() == 0 })
	for e := range entities {
		if n := got[fmt.Sprint("e", e)]; n != each {
			t.Errorf("e%d: %d have left, want %d", e, n, each)
		}
	}
}

func TestFullSpool(t *testing.T) {
	cfg := spoolConfig(t.TempDir())
	cfg.MaxBytes = 64 << 10
	s := openSpool(t, cfg)
	defer s.Close()
	put := func(i int) error { return s.Put(t.Context(), bus.Spooled{Event: newEvent(t, i)}) }
	stored := fill(t, put)
	if got := s.Len(); got != int(stored) {
		t.Errorf("Len: got %d, want %d", got, stored)
	}
	if !strings.Contains(s.Problem(), "full") || !strings.Contains(s.Problem(), "BRIDGE_SPOOL_MAX_BYTES") {
		t.Errorf("problem: %q", s.Problem())
	}
	if err := put(-1); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("Put into a full spool: %v", err)
	}
	var got handed
	stop := s.run(got.take)
	defer stop()
	natstest.Eventually(t, within, "the spool is empty", func() bool { return s.Len() == 0 })
	natstest.Eventually(t, within, "no problem", func() bool { return s.Problem() == "" })
	if n := len(got.get()); n != int(stored) {
		t.Errorf("%d handed over, want the %d stored", n, stored)
	}
	if err := put(-1); err != nil {
		t.Error(err)
	}
}

func TestSpoolTakesMaxBody(t *testing.T) {
	cfg := spoolConfig(t.TempDir())
	cfg.MaxBody = 3 << 20
	s := openSpool(t, cfg)
	defer s.Close()
	mustPut(t, s, bus.Spooled{Event: bigEvent(t, 3<<20)})
}

// An event that no server takes is said to be one, not to be tried for ever.
func TestSpoolRefusesWhatCannotBePublished(t *testing.T) {
	s := openSpool(t, spoolConfig(t.TempDir()))
	defer s.Close()
	e := newEvent(t, 1)
	e.Identity.Aliases = []string{strings.Repeat("x", 70_000)}
	if err := s.Put(t.Context(), bus.Spooled{Event: e}); !errors.Is(err, bus.ErrNotPublishable) {
		t.Errorf("headers of 70 KB: %v", err)
	}
	e = newEvent(t, 1)
	e.CloudEvent.SetType("")
	if err := s.Put(t.Context(), bus.Spooled{Event: e}); !errors.Is(err, bus.ErrNotPublishable) {
		t.Errorf("no type: %v", err)
	}
	if s.Len() != 0 || s.Problem() != "" {
		t.Errorf("Len %d, problem %q", s.Len(), s.Problem())
	}
}

func TestSpoolIsOneProcessesOwn(t *testing.T) {
	cfg := spoolConfig(t.TempDir())
	s := openSpool(t, cfg)
	second := cfg
	second.LockWait = 100 * time.Millisecond
	_, err := bus.OpenSpool(t.Context(), second, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err == nil || !strings.Contains(err.Error(), "BRIDGE_SPOOL_DIR") || !strings.Contains(err.Error(), "held by another process") {
		t.Errorf("second: %v", err)
	}
	time.AfterFunc(200*time.Millisecond, s.Close)
	openSpool(t, cfg).Close() // waits for the first
}

func TestSpoolDirectoryIsAFile(t *testing.T) {
	cfg := spoolConfig(writeFile(t, "file", nil))
	_, err := bus.OpenSpool(t.Context(), cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err == nil || !strings.Contains(err.Error(), "BRIDGE_SPOOL_DIR") {
		t.Errorf("got %v", err)
	}
}

// spoolFile returns a file of the spool's stream in a directory.
func spoolFile(t *testing.T, dir, pattern string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "jetstream", "$G", "streams", "SPOOL", pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %v %v", pattern, files, err)
	}
	return files[0]
}

// Damage is said, and costs what it has hit, not the rest.
func TestDamagedSpool(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, spoolConfig(dir))
	const n = 20
	for i := range n {
		mustPut(t, s, bus.Spooled{Event: newEvent(t, i)})
	}
	s.Close()
	file := spoolFile(t, dir, "msgs/*.blk")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i := len(data) / 2; i < len(data)/2+64; i++ {
		data[i] ^= 0xff
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s = openSpool(t, spoolConfig(dir))
	defer s.Close()
	var got handed
	stop := s.run(got.take)
	defer stop()
	natstest.Eventually(t, within, "the spool is empty", func() bool { return s.Len() == 0 })
	if len(got.get()) < n/4 || len(got.get()) >= n {
		t.Errorf("%d of %d handed over", len(got.get()), n)
	}
	if !s.logged("webhooks that were answered 200 may be lost") || s.Warning() == "" {
		t.Errorf("warning %q, log: %s", s.Warning(), s.log)
	}
}

// What the server counts and cannot read holds up nothing, and is not the end of what
// is put behind it.
func TestSpoolWithAnUnreadableMessage(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, spoolConfig(dir))
	const n = 20
	for i := range n {
		mustPut(t, s, bus.Spooled{Event: newEvent(t, i)})
	}
	s.Close() // with a list of all that it holds, by which it is opened again
	file := spoolFile(t, dir, "msgs/*.blk")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[bytes.Index(data, []byte(`"id":"10"`))+6] ^= 1
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s = openSpool(t, spoolConfig(dir))
	if s.Len() != n || s.Warning() != "" {
		t.Fatalf("%d messages, warning %q", s.Len(), s.Warning())
	}
	var got handed
	stop := s.run(got.take)
	natstest.Eventually(t, within, "the spool is empty", func() bool { return s.Len() == 0 && s.Events() == 0 })
	stop()
	if handed := got.get(); slices.ContainsFunc(handed, func(item bus.Spooled) bool { return item.Event.CloudEvent.ID() == newEvent(t, 10).CloudEvent.ID() }) || len(handed) < n-1 {
		t.Errorf("%d of %d handed over", len(handed), n)
	}
	if !s.logged("1 messages cannot be read") || s.Warning() == "" {
		t.Errorf("warning %q, log: %s", s.Warning(), s.log)
	}
	for i := range n {
		mustPut(t, s, bus.Spooled{Event: newEvent(t, n+i)})
	}
	s.Close()
	if err := os.Remove(spoolFile(t, dir, "msgs/index.db")); err != nil { // as after a crash
		t.Fatal(err)
	}
	s = openSpool(t, spoolConfig(dir))
	defer s.Close()
	if s.Len() != n || s.Warning() != "" {
		t.Errorf("%d messages, warning %q", s.Len(), s.Warning())
	}
}

// A message that cannot be read is dealt with also while others come all the time.
func TestUnreadableMessageWhileOthersCome(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, spoolConfig(dir))
	for i := range 20 {
		mustPut(t, s, bus.Spooled{Event: newEvent(t, i)})
	}
	s.Close()
	file := spoolFile(t, dir, "msgs/*.blk")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[bytes.Index(data, []byte(`"id":"10"`))+6] ^= 1
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s = openSpool(t, spoolConfig(dir))
	defer s.Close()
	var got handed
	stop := s.run(got.take)
	defer stop()
	over := make(chan struct{})
	var others sync.WaitGroup
	defer others.Wait()
	defer close(over)
	for w := range 12 {
		others.Go(func() {
			for n := 0; ; n++ {
				item := bus.Spooled{Event: entityEvent(t, fmt.Sprint("other-", w, "-", n), 1)}
				if s.Behind(context.Background(), item) {
					if err := s.Put(context.Background(), item); err != nil {
						t.Error(err)
					}
				}
				select {
				case <-over:
					return
				case <-time.After(rand.N(300 * time.Millisecond)):
				}
			}
		})
	}
	natstest.Eventually(t, within, "it is said, and others pass", func() bool {
		return s.Warning() != "" && !s.Behind(t.Context(), bus.Spooled{Event: entityEvent(t, "another", 1)})
	})
}

// A file that cannot be read when the store is opened costs nothing: the server would
// remove them all.
func TestStoreThatCannotBeReadForAWhile(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, spoolConfig(dir))
	const n = 20
	for i := range n {
		mustPut(t, s, bus.Spooled{Event: newEvent(t, i)})
	}
	s.Close()
	file, away := spoolFile(t, dir, "msgs/*.blk"), filepath.Join(t.TempDir(), "away")
	if err := errors.Join(os.Rename(file, away), os.Symlink(file, file)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s = openSpool(t, spoolConfig(dir))
		if !strings.Contains(s.Problem(), "cannot be read (SPOOL") || s.Len() != -1 {
			t.Errorf("%d messages, problem %q", s.Len(), s.Problem())
		}
		s.Close()
	}
	if err := os.Rename(away, file); err != nil {
		t.Fatal(err)
	}
	s = openSpool(t, spoolConfig(dir))
	defer s.Close()
	var got handed
	stop := s.run(got.take)
	defer stop()
	natstest.Eventually(t, within, "the spool is empty", func() bool { return s.Len() == 0 })
	if len(got.get()) != n || s.Warning() != "" {
		t.Errorf("%d of %d handed over, warning %q", len(got.get()), n, s.Warning())
	}
	if _, err := os.Stat(filepath.Join(dir, "kept")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was kept is there still: %v", err)
	}
}

// A stream that the server cannot open is not replaced by an empty one.
// What cannot be opened is not empty: the disk of one that is may be deleted.
func TestUnreadableSpoolIsNotEmpty(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, spoolConfig(dir))
	mustPut(t, s, bus.Spooled{Event: newEvent(t, 1)})
	s.Close()
	meta := spoolFile(t, dir, "meta.inf")
	was, err := os.ReadFile(meta)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(meta, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = openSpool(t, spoolConfig(dir))
	defer s.Close()
	if n := s.Len(); n != -1 {
		t.Errorf("%d messages, and it cannot be opened", n)
	}
	if values, err := s.registry.Gather(); len(values) != 0 || err != nil {
		t.Errorf("metrics: %v, %v", values, err)
	}
	if err := os.WriteFile(meta, was, 0o600); err != nil {
		t.Fatal(err)
	}
	stop := s.run(func(context.Context, bus.Spooled) error { return bus.ErrUnavailable })
	natstest.Eventually(t, within, "it is opened", func() bool { return s.Len() == 1 })
	stop()
	if values, err := s.registry.Gather(); len(values) != 1 || values[0].Metric[0].Gauge.GetValue() != 1 || err != nil {
		t.Errorf("metrics: %v, %v", values, err)
	}
}

func TestUnreadableSpool(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, spoolConfig(dir))
	mustPut(t, s, bus.Spooled{Event: newEvent(t, 1)})
	s.Close()
	meta := spoolFile(t, dir, "meta.inf")
	good, err := os.ReadFile(meta)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(meta, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = openSpool(t, spoolConfig(dir))
	if !strings.Contains(s.Problem(), "cannot be read") || !strings.Contains(s.Problem(), dir) {
		t.Errorf("problem: %q", s.Problem())
	}
	if err := s.Put(t.Context(), bus.Spooled{Event: newEvent(t, 2)}); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("Put: %v", err)
	}
	if err := os.WriteFile(meta, good, 0o600); err != nil { // restored
		t.Fatal(err)
	}
	var got handed
	stop := s.run(got.take)
	natstest.Eventually(t, within, "what it held is handed over", func() bool { return len(got.get()) == 1 })
	natstest.Eventually(t, within, "no problem", func() bool { return s.Problem() == "" })
	stop()
	s.Close()
}

// Copies that come at the same moment may be written in another order than they
// were received in. They are handed over as received in the order in which they
// stand; a clock that is set back is another matter.
func TestSpoolKeepsTheOrderOfReceipt(t *testing.T) {
	s := openSpool(t, spoolConfig(t.TempDir()))
	defer s.Close()
	for n, offset := range []time.Duration{0, -time.Second, time.Second, -time.Hour} {
		e := entityEvent(t, "one", n)
		e.Received = received.Add(offset)
		mustPut(t, s, bus.Spooled{Event: e})
	}
	var got handed
	stop := s.run(got.take)
	natstest.Eventually(t, within, "the spool is empty", func() bool { return s.Len() == 0 })
	stop()
	for n, want := range []time.Duration{0, 0, time.Second, -time.Hour} {
		if item := got.get()[n]; !item.Event.Received.Equal(received.Add(want)) {
			t.Errorf("number %d is handed over as received at %v, want %v", n, item.Event.Received, received.Add(want))
		}
	}
}

// What is written while others are removed stays, also when the store is opened
// again: the server's own check of its counts finds nothing wrong.
func TestSpoolFillsWhileItIsEmptied(t *testing.T) {
	t.Parallel()
	cfg := spoolConfig(t.TempDir())
	cfg.MaxBody = 2 << 20
	s := openSpool(t, cfg)
	var got handed
	var up atomic.Bool
	stop := s.run(func(ctx context.Context, item bus.Spooled) error {
		if !up.Load() {
			return bus.ErrNotConnected
		}
		return got.take(ctx, item)
	})
	puts := 0
	put := func(n int) {
		var wg sync.WaitGroup
		for range n {
			text := "x"
			if puts%50 == 0 {
				text = strings.Repeat("x", 3<<19)
			}
			e := eventOf(t, "dataspike", fmt.Sprintf(`{"id":"%d","event_type":"DOCVER","payload":{"text":%q}}`, puts, text))
			puts++
			wg.Go(func() { mustPut(t, s, bus.Spooled{Event: e}) })
		}
		wg.Wait()
	}
	for range 6 {
		up.Store(false)
		put(20)
		up.Store(true)
		for range 10 {
			put(4)
		}
		natstest.Eventually(t, within, "the spool is empty", func() bool { return s.Len() == 0 })
	}
	stop()
	s.Close()
	if n := len(got.get()); n != puts {
		t.Errorf("%d handed over, want %d", n, puts)
	}
	again := openSpool(t, cfg)
	defer again.Close()
	if w := again.Warning(); w != "" || s.logged("inconsistency") {
		t.Errorf("%s\n%s", w, s.log)
	}
}

// Messages that are gone although nobody removed them are not passed over.
func TestSpoolMissesMessages(t *testing.T) {
	s := openSpool(t, spoolConfig(t.TempDir()))
	defer s.Close()
	mustPut(t, s, bus.Spooled{Event: entityEvent(t, "a", 1)})
	s.DropAll(t)
	stop := s.run(func(context.Context, bus.Spooled) error { return nil })
	defer stop()
	natstest.Eventually(t, within, "a warning", func() bool { return strings.Contains(s.Warning(), "1 messages are missing") })
	if n := s.Len(); n != 0 {
		t.Errorf("Len %d, want 0", n)
	}
}

// What cannot be stored, or told whether it is, holds up only what is about the
// same entity: also with a second report about the same thing behind it, with more
// behind it than is looked through at once, and with many such entities.
func TestSpoolHeldUpByAFew(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		held int
		err  error
		put  func(n int) bus.Spooled
	}{
		{"two reports in doubt", 2, errors.New("in doubt"), func(n int) bus.Spooled {
			e := eventOf(t, "waldo", fmt.Sprintf(`{"event":"flag","customerId":"bad","flag":%t}`, n == 0))
			e.SetToken(fmt.Sprint(n))
			return bus.Spooled{Event: e}
		}},
		{"thousands that cannot be stored", 4400, bus.ErrUnavailable, func(n int) bus.Spooled {
			return bus.Spooled{Event: entityEvent(t, "bad", n)}
		}},
		{"a dozen entities that cannot be stored", 12, bus.ErrUnavailable, func(n int) bus.Spooled {
			return bus.Spooled{Event: entityEvent(t, fmt.Sprint("bad", n), n)}
		}},
		{"hundreds of entities in doubt", 600, errors.New("in doubt"), func(n int) bus.Spooled {
			return bus.Spooled{Event: entityEvent(t, fmt.Sprint("bad", n), n)}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := openSpool(t, spoolConfig(t.TempDir()))
			defer s.Close()
			var wg sync.WaitGroup
			for w := range 64 {
				wg.Go(func() {
					for n := w; n < test.held; n += 64 {
						mustPut(t, s, test.put(n))
					}
				})
			}
			wg.Wait()
			const others = 20
			for n := range others {
				mustPut(t, s, bus.Spooled{Event: entityEvent(t, fmt.Sprint("e", n), n)})
			}
			var got handed
			var mended atomic.Bool
			stop := s.run(func(ctx context.Context, item bus.Spooled) error {
				if strings.HasPrefix(item.Event.CloudEvent.Subject(), "bad") && !mended.Load() {
					return test.err
				}
				return got.take(ctx, item)
			})
			defer stop()
			natstest.Eventually(t, within, "the others have left", func() bool { return len(got.get()) == others })
			mended.Store(true)
			natstest.Eventually(t, within, "all have left", func() bool { return len(got.get()) == others+test.held && s.Len() == 0 })
		})
	}
}

// A copy is not dropped in the spool: it may have names that the first has not.
func TestSpoolKeepsCopies(t *testing.T) {
	s := openSpool(t, spoolConfig(t.TempDir()))
	defer s.Close()
	first, second := entityEvent(t, "a", 1), entityEvent(t, "a", 1)
	second.Identity.Aliases = []string{normalize.Digest("alias", "dataspike", "another")}
	mustPut(t, s, bus.Spooled{Event: first})
	mustPut(t, s, bus.Spooled{Event: second})
	var got handed
	defer s.run(got.take)()
	natstest.Eventually(t, within, "both have left", func() bool { return len(got.get()) == 2 && s.Len() == 0 })
	if aliases := got.get()[1].Event.Identity.Aliases; len(aliases) != 1 {
		t.Errorf("the copy has the aliases %v", aliases)
	}
}

// While the bus takes what it is given, an event goes behind those of its entity
// only: else those who come would keep the spool in use where the disk is slow. After
// a restart it goes behind all that was there until that has been looked at.
func TestSpoolLetsOthersPass(t *testing.T) {
	cfg := spoolConfig(t.TempDir())
	s := openSpool(t, cfg)
	behind := func(entity string) bool {
		t.Helper()
		return s.Behind(t.Context(), bus.Spooled{Event: entityEvent(t, entity, 1)})
	}
	if behind("a") {
		t.Error("behind nothing")
	}
	mustPut(t, s, bus.Spooled{Event: entityEvent(t, "a", 1)})
	if !behind("a") || !behind("b") {
		t.Error("past others while the bus takes nothing")
	}
	var taken, away atomic.Bool
	taken.Store(true)
	handOver := func(_ context.Context, item bus.Spooled) error {
		switch {
		case away.Load():
			return bus.ErrUnavailable
		case item.Event != nil && item.Event.CloudEvent.Subject() == "a" && !taken.Load():
			return errors.New("in doubt")
		}
		return nil
	}
	stop := s.run(handOver)
	natstest.Eventually(t, within, "a has left", func() bool { return s.Len() == 0 })
	taken.Store(false)
	mustPut(t, s, bus.Spooled{Event: entityEvent(t, "a", 2)})
	mustPut(t, s, bus.Spooled{Event: entityEvent(t, "b", 1)})
	natstest.Eventually(t, within, "b passes a", func() bool { return !behind("b") })
	if !behind("a") {
		t.Error("a passes a")
	}
	body := bus.Spooled{Rejected: &bus.Rejected{Provider: "waldo", Reason: "body_not_json", Body: []byte("x"), Received: time.Now()}}
	if s.Behind(t.Context(), body) {
		t.Error("a rejected body does not pass a")
	}
	stop()
	mustPut(t, s, body)
	if !s.Behind(t.Context(), body) {
		t.Error("a rejected body passes another")
	}
	stop = s.run(handOver)
	natstest.Eventually(t, within, "the rejected body has left", func() bool { return s.Len() == 1 })
	stop()
	if s.Miscounted(t.Context()) || behind("b") || !behind("a") { // a was put when nothing had been found
		t.Error("who waits is forgotten since it was counted")
	}
	stop = s.run(handOver)
	away.Store(true)
	s.Stalled()
	mustPut(t, s, bus.Spooled{Event: entityEvent(t, "c", 1)})
	if !behind("b") {
		t.Error("past others while the bus takes nothing")
	}
	stop()
	s.Close()

	s = openSpool(t, cfg)
	defer s.Close()
	away.Store(false)
	if !behind("b") {
		t.Error("past what is unknown")
	}
	defer s.run(handOver)()
	natstest.Eventually(t, within, "c has left", func() bool { return s.Len() == 1 })
	if behind("b") || !behind("a") {
		t.Error("behind another that was there before, or past its own")
	}
	taken.Store(true)
	natstest.Eventually(t, within, "a has left", func() bool { return s.Len() == 0 })
	if behind("a") || behind("b") {
		t.Error("behind nothing")
	}
}

// A write that was given up and is stored all the same is counted, or what comes
// later would not go behind it.
func TestSpoolCountsWhatComesLate(t *testing.T) {
	s := openSpool(t, spoolConfig(t.TempDir()))
	defer s.Close()
	stored := 0
	natstest.Eventually(t, within, "a write is given up and stored", func() bool {
		impatient, cancel := context.WithTimeout(t.Context(), 100*time.Microsecond)
		defer cancel()
		if s.Put(impatient, bus.Spooled{Event: entityEvent(t, "a", stored)}) == nil {
			stored++
		}
		return s.Stored(t) > stored
	})
	if s.Len() < s.Stored(t) || s.Events() < s.Stored(t) {
		t.Errorf("%d of %d are counted", s.Len(), s.Stored(t))
	}
	want := s.Stored(t)
	var got handed
	defer s.run(got.take)()
	natstest.Eventually(t, within, "the spool is empty", func() bool { return s.Len() == 0 && s.Events() == 0 })
	if n := len(got.get()); n < want || s.Warning() != "" {
		t.Errorf("%d of %d handed over, warning %q", n, want, s.Warning())
	}
}

// The time of receipt by which an event is judged is the one that is published,
// by which the indexer judges it.
func TestSpoolHasOneTimeOfReceipt(t *testing.T) {
	s := openSpool(t, spoolConfig(t.TempDir()))
	defer s.Close()
	p, _ := normalize.ByName("waldo")
	for n, at := range []time.Time{received.Add(time.Millisecond), received} { // the second waited for the first
		e, err := p.Event([]byte(fmt.Sprintf(`{"event":"flag","customerId":"c","flag":%t}`, n == 0)), at)
		if err != nil {
			t.Fatal(err)
		}
		e.SetToken(fmt.Sprint(n))
		mustPut(t, s, bus.Spooled{Event: e})
	}
	var got handed
	defer s.run(got.take)()
	natstest.Eventually(t, within, "both have left", func() bool { return len(got.get()) == 2 })
	for _, item := range got.get() {
		published, err := types.ToTime(item.Event.CloudEvent.Extensions()["recordedtime"])
		if err != nil || !published.Equal(item.Event.Received) || item.Event.Received.Before(received.Add(time.Millisecond)) {
			t.Errorf("received %v, published %v, %v", item.Event.Received, published, err)
		}
	}
}

// While a disk that did not answer in time is probed, what comes waits for that:
// as a rule it was the process that stood still.
func TestSpoolWaitsForItsProbe(t *testing.T) {
	s := openSpool(t, spoolConfig(t.TempDir()))
	defer s.Close()
	s.Probe(50 * time.Millisecond)
	mustPut(t, s, bus.Spooled{Event: entityEvent(t, "a", 1)})

	s.Probe(time.Hour) // a disk that hangs
	if err := s.Put(t.Context(), bus.Spooled{Event: entityEvent(t, "a", 2)}); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}
