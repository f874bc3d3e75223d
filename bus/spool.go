package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gofrs/flock"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/internal/failpoint"
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
	cfg     SpoolConfig
	log     *slog.Logger
	lock    *flock.Flock
	wake    chan struct{}
	count   atomic.Int64 // messages, those being written included
	events  atomic.Int64 // those of them that are events
	reason  atomic.Pointer[string]
	damage  atomic.Pointer[string]
	opened  atomic.Bool // at least once
	broken  atomic.Bool // to be opened anew
	slow    atomic.Bool // being probed
	probed  atomic.Bool // nothing was written since
	tight   atomic.Bool // no room on the disk: only emptied
	full    atomic.Bool
	moving  atomic.Bool  // the bus takes what is handed over
	unsure  atomic.Int64 // when something was given up that may yet be done, Unix nanoseconds
	probes  atomic.Int64 // of the disk, that have ended
	probing sync.WaitGroup

	mu    sync.RWMutex // the store is not closed under those who use it
	store *spoolStore  // nil: broken

	waiting waiting
	coming  waiting       // who is in Put
	order   chan struct{} // holds one element while somebody has the turn to write
	places  chan struct{} // holds one element for each write under way
	newest  time.Time     // receipt of what was written last

	// Of Run only:
	unread  time.Time // since when nothing can be read though there is something
	rebuilt bool      // because of that; it helps once or not at all
}

const (
	spoolStream  = "SPOOL"
	anySubject   = "spool.>"
	eventSubject = "spool.event"
	otherSubject = "spool.rejected"
	probeBytes   = 256 << 10                          // what the disk must have room for
	ballastBytes = server.FileStoreMaxBlkSize + 1<<20 // a file of the store may be written anew
	spoolTimeout = 800 * time.Millisecond             // for one write or read
	spoolPlaces  = 8                                  // the server acknowledges none that came together before all are stored
	spoolRetry   = 250 * time.Millisecond             // between attempts to hand over
	spoolPark    = 2 * time.Second                    // for an entity of which the bus does not take one
	spoolReopen  = time.Second
	longestWait  = 10 * time.Second // of a request, so that a clock may be set back
	spoolFew     = 64               // events
	spoolWorkers = 64
	spoolTries   = 64  // in each spoolRetry: of what fails once more, and of all while the bus takes nothing
	spoolMisses  = 3   // reads that do not find a message that was there, until all is looked at anew
	spoolLooks   = 512 // at most before others have a turn
	// What is known of what waits, and what of it is in memory.
	spoolKnown = 1 << 16  // entities
	spoolBytes = 16 << 20 // bytes
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
	s := &Spool{cfg: cfg, log: log, lock: lock, wake: make(chan struct{}, 1), places: make(chan struct{}, spoolPlaces), order: make(chan struct{}, 1)}
	s.coming.reset(0, 0)
	if err := reg.Register(spoolCollector{s}); err != nil {
		lock.Unlock()
		return nil, err
	}
	s.open(ctx)
	return s, nil
}

// Len returns how many messages the spool holds; -1 while that is not known, since it
// could not be opened yet.
func (s *Spool) Len() int {
	if !s.opened.Load() {
		return -1
	}
	return int(s.count.Load())
}

// Events returns how many of them are events.
func (s *Spool) Events() int { return int(s.events.Load()) }

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
	s.probing.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.close()
	s.lock.Unlock()
}

// Put writes to the disk and returns when that is synced. An event must have its
// id. The errors are [ErrUnavailable] and [ErrNotPublishable].
func (s *Spool) Put(ctx context.Context, item Spooled) error {
	if item.Event != nil {
		s.coming.add(item.entity(), 1)
		defer s.coming.add(item.entity(), -1)
	}
	err := s.put(ctx, item)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		// Once more: a disk may stand still for a moment. What is written twice
		// is recognised when it leaves.
		err = s.put(ctx, item)
	}
	return err
}

func (s *Spool) put(caller context.Context, item Spooled) error {
	if err := s.turn(caller); err != nil {
		return fmt.Errorf("%w: spool: %w", ErrUnavailable, err)
	}
	defer func() { <-s.places }()
	next := sync.OnceFunc(func() { <-s.order })
	defer next()
	if err := s.use(caller); err != nil {
		return fmt.Errorf("%w: spool: %w", ErrUnavailable, err)
	}
	defer s.mu.RUnlock()
	if s.store == nil || s.broken.Load() || s.tight.Load() {
		return fmt.Errorf("%w: %s", ErrUnavailable, s.Problem())
	}
	failpoint.Hit("spool-write")
	ctx, cancel := withTimeout(caller, spoolTimeout)
	defer cancel()
	probes := s.probes.Load()
	s.add(item, 1)
	written, err := s.write(item)
	next()
	if err == nil {
		err = await(ctx, written)
	}
	if err == nil {
		failpoint.Hit("spool-written")
		s.probed.Store(false)
		if s.full.Swap(false) {
			s.problem("")
		}
		s.notify()
		return nil
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		s.unsure.Store(time.Now().UnixNano()) // it may be stored yet, and would not be counted
	} else {
		s.add(item, -1)
	}
	switch {
	case errors.Is(err, ErrNotPublishable):
		return err
	case errors.Is(err, nats.ErrMaxPayload), hasCode(err, errHeadersTooLarge):
		return fmt.Errorf("%w: %w", ErrNotPublishable, err)
	case hasCode(err, errStoreFailed):
		s.full.Store(true)
		s.problem(fmt.Sprintf("full; BRIDGE_SPOOL_MAX_BYTES is %d", s.cfg.MaxBytes))
	case caller.Err() == nil:
		return s.fail("writing", probes, err)
	}
	return fmt.Errorf("%w: spool: %w", ErrUnavailable, err)
}

// turn waits for the turn to write, which callers get in the order in which they came,
// and for one of the places. On a slow disk it waits as long as that takes; on one that
// stands still, or while the store is opened anew, it soon gives up.
func (s *Spool) turn(ctx context.Context) error {
	given, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	go func() {
		tick := time.NewTicker(spoolTimeout)
		defer tick.Stop()
		for {
			select {
			case <-given.Done():
				return
			case <-tick.C:
			}
			if s.slow.Load() || s.broken.Load() {
				giveUp(context.DeadlineExceeded)
				return
			}
		}
	}()
	select {
	case s.order <- struct{}{}:
	case <-given.Done():
		return context.Cause(given)
	}
	select {
	case s.places <- struct{}{}:
		return nil
	case <-given.Done():
		<-s.order
		return context.Cause(given)
	}
}

// use waits while the disk is probed, and for the store while it is opened anew. It
// locks it for reading, or returns an error.
func (s *Spool) use(ctx context.Context) error {
	ctx, cancel := withTimeout(ctx, spoolTimeout)
	defer cancel()
	for s.slow.Load() || !s.mu.TryRLock() {
		if wait(ctx, time.Millisecond); ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

func (s *Spool) add(item Spooled, n int) {
	s.count.Add(int64(n))
	if item.Event != nil {
		s.events.Add(int64(n))
		s.waiting.add(item.entity(), n)
	}
}

// write has an item written, after those whose turn was before. Items are judged later
// by their time of receipt: it must follow the order in which they stand in the spool.
func (s *Spool) write(item Spooled) (jetstream.PubAckFuture, error) {
	msg, received, err := item.encode(s.newest)
	if err != nil {
		return nil, err
	}
	written, err := s.store.js.PublishMsgAsync(msg, once)
	if err == nil {
		s.newest = received
	}
	return written, err
}

func await(ctx context.Context, written jetstream.PubAckFuture) error {
	select {
	case <-written.Ok():
		return nil
	case err := <-written.Err():
		return late(ctx, err)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// late returns context.DeadlineExceeded instead of the errors that the client has for no
// answer in time.
func late(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, jetstream.ErrAsyncPublishTimeout):
		return context.DeadlineExceeded
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return err
}

// withTimeout is like [context.WithTimeout], but its clock stands still while this
// process does: a process that was frozen or starved would take its own pause for the
// disk's. The cause is context.DeadlineExceeded.
func withTimeout(parent context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	const steps = 16
	ctx, cancel := context.WithCancelCause(parent)
	go func() {
		tick := time.NewTicker(d / steps)
		defer tick.Stop()
		for range steps {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
		cancel(context.DeadlineExceeded)
	}()
	return ctx, func() { cancel(nil) }
}

// fail has the store opened anew. If it only did not answer in time, the disk is probed
// first, and nothing is written meanwhile; of what was begun before that, when so many
// probes had ended, nothing more follows. What the matter is, the server has logged.
func (s *Spool) fail(what string, probes int64, err error) error {
	late := errors.Is(err, context.DeadlineExceeded)
	switch {
	case late && s.probes.Load() != probes:
	case !late || s.probed.Load():
		s.broken.Store(true)
		s.problem(fmt.Sprintf("%s in %s fails: %v", what, s.cfg.Dir, err))
		s.notify()
	case !s.broken.Load() && s.slow.CompareAndSwap(false, true):
		s.problem(fmt.Sprintf("%s in %s takes too long", what, s.cfg.Dir))
		s.probing.Go(s.probe)
	}
	return fmt.Errorf("%w: spool: %w", ErrUnavailable, err)
}

func (s *Spool) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
