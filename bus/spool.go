package bus

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/internal/failpoint"
	"github.com/hookbus/bridge/normalize"
)

// SpoolConfig says where the spool is and how large it may get, in bytes.
type SpoolConfig struct {
	Dir      string
	MaxBytes int64
	MaxBody  int64
	LockWait time.Duration // how long to wait for another process's Dir
}

// Spool keeps verified webhooks on this machine's disk while the bus cannot
// take them. It is a JetStream stream of a server in this process that nobody
// else can reach and that syncs every write. It is safe for concurrent use.
//
// While the store is broken (disk full, not writable, damaged), Put fails,
// [Spool.Problem] says why, and [Spool.Run] opens it again until it works.
type Spool struct {
	cfg    SpoolConfig
	log    *slog.Logger
	lock   *flock.Flock
	wake   chan struct{}
	count  atomic.Int64 // messages, those being written included
	events atomic.Int64 // those of them that are events
	reason atomic.Pointer[string]
	damage atomic.Pointer[string]
	broken atomic.Bool // to be opened anew
	slow   atomic.Bool // being probed
	probed atomic.Bool // nothing was written since
	tight  atomic.Bool // no room on the disk: only emptied
	full   atomic.Bool
	moving atomic.Bool // the bus takes what is handed over
	probes sync.WaitGroup

	mu    sync.RWMutex // the store is not closed under those who use it
	store *spoolStore  // nil: broken

	order  chan struct{} // holds one element while somebody writes
	newest time.Time     // receipt of what was written last

	parked map[string]time.Time // entities that wait after a failure, and until when
}

// Spooled is what the spool holds: an event or a rejected body, and the headers
// that an event takes along if it should be rejected yet.
type Spooled struct {
	Event    *normalize.Event
	Rejected *Rejected
	Headers  map[string]string
}

// rejected is in the place of an entity for all bodies that are no events.
const rejected = ""

// entity names what the order is kept for.
func (s Spooled) entity() string {
	if s.Event == nil {
		return rejected
	}
	return s.Event.CloudEvent.Source() + " " + s.Event.CloudEvent.Subject()
}

// stateKey is what the order matters for even after a crash.
func (s Spooled) stateKey() string {
	if s.Event == nil {
		return ""
	}
	return s.Event.Identity.StateKey
}

const (
	spoolStream  = "SPOOL"
	anySubject   = "spool.>"
	eventSubject = "spool.event"
	otherSubject = "spool.rejected"
	probeBytes   = 256 << 10 // what the disk must have room for
	ballastBytes = 1 << 20
	spoolTimeout = 800 * time.Millisecond // for one write or read
	spoolRetry   = 250 * time.Millisecond // between attempts to hand over
	spoolPark    = 2 * time.Second        // for an entity while the bus takes others
	spoolReopen  = time.Second
	longestWait  = 10 * time.Second // of a request, so that a clock may be set back
	spoolWorkers = 16
	spoolFew     = 64 // events
	// What is read ahead, and so may be handed over at the same time.
	spoolBatch      = 512
	spoolScan       = 8 * spoolBatch // what is looked through for it
	spoolBatchBytes = 16 << 20
	// spoolHeader carries what the event's own headers do not.
	spoolHeader = "Bridge-Spool"
)

// OpenSpool locks the directory and opens the spool in it. A store that cannot
// be opened is no error but a [Spool.Problem]; the errors are those of the
// directory: that it cannot be made, or is another process's.
func OpenSpool(ctx context.Context, cfg SpoolConfig, log *slog.Logger, reg prometheus.Registerer) (*Spool, error) {
	lock, err := lockDir(ctx, cfg.Dir, cfg.LockWait)
	if err != nil {
		return nil, fmt.Errorf("BRIDGE_SPOOL_DIR: %w", err)
	}
	s := &Spool{cfg: cfg, log: log, lock: lock, wake: make(chan struct{}, 1), order: make(chan struct{}, 1), parked: make(map[string]time.Time)}
	err = reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "bridge_spool_messages",
		Help: "Webhooks on this machine's disk that wait for the bus.",
	}, func() float64 { return float64(s.Len()) }))
	if err != nil {
		lock.Unlock()
		return nil, err
	}
	s.open(ctx)
	return s, nil
}

// Len returns how many messages the spool holds.
func (s *Spool) Len() int { return int(s.count.Load()) }

// Events returns how many of them are events. As long as there are any, new ones
// must go behind them.
func (s *Spool) Events() int { return int(s.events.Load()) }

// Empty reports whether there are none. For the last few, while they leave, it
// waits: else those who come one after the other as fast as they leave would keep
// the spool in use for ever.
func (s *Spool) Empty(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, spoolRetry)
	defer cancel()
	for s.Events() > 0 {
		if !s.moving.Load() || s.Events() > spoolFew || ctx.Err() != nil {
			return false
		}
		wait(ctx, time.Millisecond)
	}
	return true
}

// Problem says why the spool takes nothing; it is empty if it does.
func (s *Spool) Problem() string {
	if reason := s.reason.Load(); reason != nil {
		return "spool: " + *reason
	}
	return ""
}

// Warning says what damage may have been done to what the spool held; it is
// empty if there was none.
func (s *Spool) Warning() string {
	if damage := s.damage.Load(); damage != nil {
		return *damage
	}
	return ""
}

// Close closes the store and releases the directory.
func (s *Spool) Close() {
	s.probes.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.store != nil {
		s.store.close()
		s.store = nil
	}
	s.lock.Unlock()
}

// spoolStore is the stream and the server that keeps it. Who writes does not wait
// for who reads: each has a connection.
type spoolStore struct {
	server *server.Server
	conns  []*nats.Conn
	js     jetstream.JetStream // writes
	stream jetstream.Stream    // reads and removes
}

// connect returns JetStream over a connection of its own.
func (st *spoolStore) connect(log *slog.Logger) (jetstream.JetStream, error) {
	nc, err := nats.Connect("", nats.InProcessServer(st.server), nats.Name("spool"), nats.NoReconnect(), nats.FlusherTimeout(time.Second),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			log.Warn("NATS client error", "component", "spool", "error", err)
		}))
	if err != nil {
		return nil, err
	}
	st.conns = append(st.conns, nc)
	return jetstream.New(nc, jetstream.WithPublishAsyncTimeout(apiTimeout), jetstream.WithPublishAsyncMaxPending(1<<16))
}

func (st *spoolStore) close() {
	for _, nc := range st.conns {
		nc.Close()
	}
	st.server.Shutdown()
	st.server.WaitForShutdown()
}

// open opens the store anew. It reports whether that worked.
func (s *Spool) open(ctx context.Context) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.store != nil {
		s.store.close()
		s.store = nil
	}
	st, err := s.openStore(ctx)
	s.broken.Store(err != nil)
	if err != nil {
		s.problem(fmt.Sprintf("opening %s fails: %v", s.cfg.Dir, err))
		return false
	}
	s.store = st
	s.probed.Store(false)
	if err := s.countStored(ctx); err != nil {
		s.broken.Store(true)
		s.problem(fmt.Sprintf("opening %s fails: %v", s.cfg.Dir, err))
		return false
	}
	if n := s.Len(); n > 0 {
		s.log.Info("the spool holds webhooks that wait for the bus", "messages", n)
	}
	if !s.tight.Load() {
		s.problem("")
	}
	return true
}

// problem keeps and logs what is new.
func (s *Spool) problem(reason string) {
	old := s.reason.Load()
	switch {
	case reason == "" && old != nil:
		s.log.Info("the spool works again")
		s.reason.Store(nil)
	case reason != "" && (old == nil || *old != reason):
		s.log.Error("the spool takes nothing", "dir", s.cfg.Dir, "problem", reason)
		s.reason.Store(&reason)
	}
}

func (s *Spool) openStore(ctx context.Context) (_ *spoolStore, err error) {
	if err := s.makeRoom(); err != nil {
		return nil, err
	}
	_, err = os.Stat(s.streamDir())
	existed, before := err == nil, s.blocks()
	st := &spoolStore{}
	st.server, err = startServer(serverConfig{name: "spool", dir: s.cfg.Dir, maxBody: s.cfg.MaxBody}, s.log)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			st.close()
		}
	}()
	if st.js, err = st.connect(s.log); err != nil {
		return nil, err
	}
	reader, err := st.connect(s.log)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	s.noteDamage(before)
	if existed {
		// Made anew, it would forget what it held.
		if _, err := reader.Stream(ctx, spoolStream); errors.Is(err, jetstream.ErrStreamNotFound) {
			return nil, errors.New("it holds a stream that cannot be read (the log says why): restore it, or move it away and lose what is in it")
		}
	}
	st.stream, err = reader.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name:        spoolStream,
		Description: "webhooks that wait for the bus",
		Subjects:    []string{anySubject},
		Storage:     jetstream.FileStorage,
		MaxBytes:    s.cfg.MaxBytes,
		Discard:     jetstream.DiscardNew,
		AllowDirect: true,
	})
	if err != nil {
		return nil, err
	}
	return st, nil
}

// blocks returns the sizes of the files that hold the messages.
func (s *Spool) blocks() map[string]int64 {
	sizes := make(map[string]int64)
	files, _ := filepath.Glob(filepath.Join(s.streamDir(), "msgs", "*.blk"))
	for _, file := range files {
		if info, err := os.Stat(file); err == nil {
			sizes[file] = info.Size()
		}
	}
	return sizes
}

func (s *Spool) streamDir() string {
	return filepath.Join(s.cfg.Dir, server.JetStreamStoreDir, "$G", "streams", spoolStream)
}

// noteDamage says what the server has cut off because it could not be read; it
// does so without a word.
func (s *Spool) noteDamage(before map[string]int64) {
	after, lost := s.blocks(), int64(0)
	for file, size := range before {
		lost += max(0, size-after[file])
	}
	if lost > 0 {
		damage := fmt.Sprintf("spool: %d bytes in %s could not be read: webhooks that were answered 200 may be lost", lost, s.cfg.Dir)
		s.log.Error(damage)
		s.damage.Store(&damage)
	}
}

// spoolMeta is what goes with a message, in spoolHeader.
type spoolMeta struct {
	Provider string              `json:"provider"`
	Received time.Time           `json:"received"`
	Kind     string              `json:"kind,omitempty"`
	Identity *normalize.Identity `json:"identity,omitempty"`
	Token    string              `json:"token,omitempty"`
	Reason   string              `json:"reason,omitempty"`
	Headers  map[string]string   `json:"headers,omitempty"`
}

// Put writes to the disk and returns when that is synced. An event must have its
// id. The errors are [ErrUnavailable] and [ErrNotPublishable].
func (s *Spool) Put(ctx context.Context, item Spooled) error {
	ctx, cancel := context.WithTimeout(ctx, spoolTimeout)
	defer cancel()
	for !s.mu.TryRLock() { // it is being opened
		if wait(ctx, time.Millisecond); ctx.Err() != nil {
			return fmt.Errorf("%w: spool: %w", ErrUnavailable, ctx.Err())
		}
	}
	defer s.mu.RUnlock()
	if s.store == nil || s.broken.Load() || s.slow.Load() || s.tight.Load() {
		return fmt.Errorf("%w: %s", ErrUnavailable, s.Problem())
	}
	failpoint.Hit("spool-write")
	s.add(item, 1)
	err := s.write(ctx, item)
	if err == nil {
		failpoint.Hit("spool-written")
		s.probed.Store(false)
		if s.full.Swap(false) {
			s.problem("")
		}
		s.notify()
		return nil
	}
	s.add(item, -1)
	var api *jetstream.APIError
	switch {
	case errors.Is(err, ErrNotPublishable):
		return err
	case errors.Is(err, nats.ErrMaxPayload), errors.As(err, &api) && api.ErrorCode == errHeadersTooLarge:
		return fmt.Errorf("%w: %w", ErrNotPublishable, err)
	case errors.As(err, &api) && api.ErrorCode == errStoreFailed:
		s.full.Store(true)
		s.problem(fmt.Sprintf("full; BRIDGE_SPOOL_MAX_BYTES is %d", s.cfg.MaxBytes))
	default:
		return s.fail("writing", err)
	}
	return fmt.Errorf("%w: spool: %w", ErrUnavailable, err)
}

func (s *Spool) add(item Spooled, n int64) {
	s.count.Add(n)
	if item.Event != nil {
		s.events.Add(n)
	}
}

// write writes an item and waits for the acknowledgement. Items are judged later
// by the time of their receipt, which must be in the order in which they stand.
func (s *Spool) write(ctx context.Context, item Spooled) error {
	select {
	case s.order <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	msg, received, err := item.encode(s.newest)
	var future jetstream.PubAckFuture
	if err == nil {
		if future, err = s.store.js.PublishMsgAsync(msg, jetstream.WithRetryAttempts(0)); err == nil {
			s.newest = received
		}
	}
	<-s.order
	if err != nil {
		return err
	}
	select {
	case <-future.Ok():
		return nil
	case err := <-future.Err():
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fail has the store opened anew. What only did not answer in time is probed
// before, and nothing is written meanwhile. What the matter is, the server has
// logged.
func (s *Spool) fail(what string, err error) error {
	slow := errors.Is(err, context.DeadlineExceeded) && !s.probed.Load()
	switch {
	case !slow:
		s.broken.Store(true)
		s.problem(fmt.Sprintf("%s in %s fails: %v", what, s.cfg.Dir, err))
		s.notify()
	case s.slow.CompareAndSwap(false, true):
		s.problem(fmt.Sprintf("%s in %s takes too long", what, s.cfg.Dir))
		s.probes.Go(s.probe)
	}
	return fmt.Errorf("%w: spool: %w", ErrUnavailable, err)
}

// probe finds out whether the disk takes writes.
func (s *Spool) probe() {
	err := s.probeDisk()
	s.probed.Store(true)
	if err == nil {
		s.problem("")
	} else {
		s.broken.Store(true)
		s.problem(err.Error())
	}
	s.slow.Store(false)
	s.notify()
}

func (s *Spool) probeDisk() error {
	file, err := os.CreateTemp(s.cfg.Dir, "probe")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(make([]byte, probeBytes))
	return cmp.Or(err, file.Sync(), file.Close())
}

// makeRoom looks whether the disk has room. On one that is full the spool can
// still be emptied, which needs some, too: a file of no other use is kept for
// that.
func (s *Spool) makeRoom() error {
	ballast := filepath.Join(s.cfg.Dir, "ballast")
	full := s.probeDisk()
	if full == nil {
		s.tight.Store(false)
		if info, err := os.Stat(ballast); err == nil && info.Size() == ballastBytes {
			return nil
		}
		return os.WriteFile(ballast, make([]byte, ballastBytes), 0o600)
	}
	if !errors.Is(full, syscall.ENOSPC) {
		return full
	}
	s.tight.Store(true)
	s.problem(full.Error())
	if err := os.Remove(ballast); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (s *Spool) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// encode makes an item the message of the spool. It was received after another
// that was received at newest.
func (s Spooled) encode(newest time.Time) (msg *nats.Msg, received time.Time, err error) {
	var meta spoolMeta
	if e := s.Event; e != nil {
		meta = spoolMeta{Provider: e.Provider, Received: e.Received, Kind: e.Kind, Identity: &e.Identity, Token: e.Token, Headers: s.Headers}
		if msg, err = encode(e, ""); err != nil {
			return nil, newest, err
		}
	} else {
		r := s.Rejected
		meta = spoolMeta{Provider: r.Provider, Received: r.Received, Reason: r.Reason, Headers: r.Headers}
		msg = &nats.Msg{Header: nats.Header{}, Data: r.Body}
	}
	if meta.Received.Before(newest) && newest.Sub(meta.Received) < longestWait {
		meta.Received = newest
	}
	header, err := json.Marshal(meta)
	if err != nil {
		return nil, newest, fmt.Errorf("%w: %w", ErrNotPublishable, err)
	}
	msg.Subject = otherSubject
	if s.Event != nil {
		msg.Subject = eventSubject
	}
	msg.Header[spoolHeader] = []string{string(header)}
	return msg, meta.Received, nil
}

// decodeSpooled reads what encode has written. What cannot be read is for the
// quarantine.
func decodeSpooled(msg *jetstream.RawStreamMsg) Spooled {
	var meta spoolMeta
	err := json.Unmarshal([]byte(msg.Header.Get(spoolHeader)), &meta)
	if err == nil && meta.Reason == "" && meta.Identity != nil {
		ce, err := Decode(msg.Header, msg.Data)
		if err == nil {
			return Spooled{Event: &normalize.Event{
				CloudEvent: ce, Provider: meta.Provider, Kind: meta.Kind,
				Identity: *meta.Identity, Token: meta.Token, Received: meta.Received,
			}, Headers: meta.Headers}
		}
	}
	received := meta.Received
	if received.IsZero() {
		received = msg.Time
	}
	return Spooled{Rejected: &Rejected{
		Provider: cmp.Or(meta.Provider, "unknown"), Reason: cmp.Or(meta.Reason, "not_publishable"),
		Body: msg.Data, Received: received, Headers: meta.Headers,
	}}
}

// Run hands over what the spool holds until ctx ends, the oldest first: what is
// about one entity in the order in which it came, the rest side by side. What
// handOver returns no error for is removed. After an error it is tried again,
// and with it what comes later about the entity; others go on. What was begun
// when ctx ends is finished. Close comes after Run.
func (s *Spool) Run(ctx context.Context, handOver func(context.Context, Spooled) error) {
	limit := spoolBatch
	for ctx.Err() == nil {
		if s.broken.Load() && !s.open(ctx) {
			wait(ctx, spoolReopen)
			continue
		}
		n, err := s.drain(ctx, limit, handOver)
		s.moving.Store(n > 0 && !errors.Is(err, ErrUnavailable))
		if n > 0 && s.full.Swap(false) {
			s.problem("")
		}
		if s.tight.Load() && s.makeRoom() == nil && !s.tight.Load() {
			s.problem("")
		}
		limit = spoolBatch
		switch {
		case errors.Is(err, ErrUnavailable):
			limit = 1 // one is enough to find out
			wait(ctx, spoolRetry)
		case n > 0:
		case err != nil, len(s.parked) > 0, s.tight.Load():
			wait(ctx, spoolRetry)
		default:
			s.recount(ctx)
			select {
			case <-ctx.Done():
			case <-s.wake:
			}
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// stored is a message of the spool.
type stored struct {
	sequence uint64
	Spooled
}

// drain hands over the oldest messages, limit at most, removes what was taken,
// and returns how many that were. After the first ErrUnavailable, which comes
// before other errors, no more is begun.
func (s *Spool) drain(ctx context.Context, limit int, handOver func(context.Context, Spooled) error) (n int, err error) {
	batch, err := s.oldest(ctx, limit)
	var order []string // of entities
	groups := make(map[string][]stored)
	for _, m := range batch {
		key := m.entity()
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], m)
	}
	var mu sync.Mutex
	done := make(map[uint64]bool)
	take := func(key string, m stored) bool {
		mu.Lock()
		stop := ctx.Err() != nil || errors.Is(err, ErrUnavailable)
		mu.Unlock()
		if stop {
			return false
		}
		failpoint.Hit("drain")
		failed := handOver(context.WithoutCancel(ctx), m.Spooled)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case failed == nil:
			failpoint.Hit("drain-stored")
			done[m.sequence] = true
		case errors.Is(failed, ErrUnavailable):
			err = failed
			s.parked[key] = time.Now().Add(spoolPark)
		default:
			err = cmp.Or(err, failed)
			s.parked[key] = time.Now().Add(spoolRetry)
		}
		return failed == nil
	}
	var wg sync.WaitGroup
	places := make(chan struct{}, spoolWorkers)
	for _, key := range order {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			for _, m := range groups[key] {
				if !take(key, m) {
					return
				}
			}
		})
	}
	wg.Wait()
	return len(done), cmp.Or(s.remove(batch, done), err)
}

// remove removes the messages of a batch that are done: those before which all
// are, in one go.
func (s *Spool) remove(batch []stored, done map[uint64]bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), apiTimeout)
	defer cancel()
	var first int
	for first < len(batch) && done[batch[first].sequence] && len(s.parked) == 0 {
		first++
	}
	if first > 0 {
		if err := s.store.stream.Purge(ctx, jetstream.WithPurgeSequence(batch[first-1].sequence+1)); err != nil {
			return s.fail("removing", err)
		}
		for _, m := range batch[:first] {
			s.add(m.Spooled, -1)
		}
	}
	for _, m := range batch[first:] {
		if !done[m.sequence] {
			continue
		}
		if err := s.store.stream.DeleteMsg(ctx, m.sequence); err != nil {
			return s.fail("removing", err)
		}
		s.add(m.Spooled, -1)
	}
	return nil
}

// oldest reads the messages to hand over next. Those of parked entities are left
// out. Of the reports about one thing only one is among them: after a crash,
// what had been stored is handed over again, and a report is recognised only
// until the next is stored.
func (s *Spool) oldest(ctx context.Context, limit int) (batch []stored, err error) {
	for key, until := range s.parked {
		if time.Now().After(until) {
			delete(s.parked, key)
		}
	}
	subject := anySubject
	if _, parked := s.parked[rejected]; parked {
		subject = eventSubject
	}
	reports := make(map[string]bool)
	next, size := uint64(1), 0
	for range spoolScan {
		if len(batch) == limit || size > spoolBatchBytes {
			break
		}
		msg, err := s.read(ctx, next, subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		}
		if err != nil {
			return batch, err
		}
		next = msg.Sequence + 1
		m := stored{msg.Sequence, decodeSpooled(msg)}
		if _, parked := s.parked[m.entity()]; parked {
			continue
		}
		if key := m.stateKey(); key != "" {
			if reports[key] {
				break
			}
			reports[key] = true
		}
		batch, size = append(batch, m), size+len(msg.Data)
	}
	return batch, nil
}

// read returns the first message from a sequence on.
func (s *Spool) read(ctx context.Context, sequence uint64, subject string) (*jetstream.RawStreamMsg, error) {
	bounded, cancel := context.WithTimeout(ctx, spoolTimeout)
	defer cancel()
	msg, err := s.store.stream.GetMsg(bounded, sequence, jetstream.WithGetMsgSubject(subject))
	if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) && ctx.Err() == nil {
		return nil, s.fail("reading", err)
	}
	return msg, err
}

// recount brings the counts in line with the store, of which damage may have
// taken a part.
func (s *Spool) recount(ctx context.Context) {
	if s.Len() == 0 {
		return
	}
	s.mu.Lock() // nothing is being written
	defer s.mu.Unlock()
	if err := s.countStored(ctx); err != nil {
		s.log.Warn("counting what the spool holds", "error", err)
	}
}

func (s *Spool) countStored(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	info, err := s.store.stream.Info(ctx, jetstream.WithSubjectFilter(anySubject))
	if err != nil {
		return err
	}
	s.count.Store(int64(info.State.Msgs))
	s.events.Store(int64(info.State.Subjects[eventSubject]))
	return nil
}
