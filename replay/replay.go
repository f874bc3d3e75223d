// Package replay delivers stored events again: [Run] copies a part of the
// stream of events into a stream of its own, [PlanReset] sets an existing
// consumer back. The stream of events is only read.
//
// A copy is on the subject replay.<name>.<subject of the original> in the
// stream REPLAY_<name>. Body and headers are the original's, byte for byte, but
// headers that tell NATS itself something (Nats-*) are left out, and headers that
// mark a copy are added. One original has one copy, in the order of the originals,
// however often a run is interrupted and resumed, and whoever else runs it at the
// same time: every copy is stored on the condition that the stream holds exactly
// the copies that go before it, and a run continues behind the original of the
// last copy.
package replay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/bus"
)

// Headers of a copy, beside those of the original.
const (
	NameHeader     = "Bridge-Replay"          // the replay's name
	SequenceHeader = "Bridge-Replay-Sequence" // the original's sequence in its stream
	RunHeader      = "Bridge-Replay-Run"      // which run has stored the copy
)

// Errors of this package. Others are those of the NATS client.
var (
	// ErrInvalid: what is asked for contradicts itself or is malformed.
	ErrInvalid = errors.New("not possible")
	// ErrNoStream: the stream of events does not exist.
	ErrNoStream = errors.New("no such stream")
	// ErrBeyondEnd: the stream ends before the first sequence asked for.
	ErrBeyondEnd = errors.New("beyond the end of the stream")
	// ErrSubject: the stream does not take the filter's subjects, or another
	// stream takes the copies'.
	ErrSubject = errors.New("wrong subject")
	// ErrExists: there is a replay of this name.
	ErrExists = errors.New("the replay exists already")
	// ErrNoReplay: there is no replay of this name to resume.
	ErrNoReplay = errors.New("no such replay")
	// ErrLost: how far the replay came is no longer known, or no longer means
	// anything. It cannot be resumed.
	ErrLost = errors.New("the replay cannot be resumed")
	// ErrBusy: somebody else stores messages in the replay's stream.
	ErrBusy = errors.New("another process runs this replay")
	// ErrPermission: the NATS server forbids a subject to this user.
	ErrPermission = errors.New("NATS does not permit it")
	// ErrNoConsumer: the stream has no such consumer.
	ErrNoConsumer = errors.New("no such consumer")
	// ErrRefused: the consumer cannot be set back, or not to that place.
	ErrRefused = errors.New("the consumer is not set back")
)

// Selection says which events are replayed; its zero value selects all. An event
// has to meet everything that is set.
type Selection struct {
	// Stored at Since or later and before Until, by the stream's clock. Whatever
	// they are, what is stored after the start of the first run is not replayed.
	Since, Until time.Time
	// Sequences of the first and the last event. FromSeq cannot be set together
	// with Since, nor ToSeq with Until.
	FromSeq, ToSeq uint64
	Filters        []string // NATS subjects with or without wildcards; one has to match, and none may cover another
	Types          []string // CloudEvents types; one has to be the event's
	IDs            []string // CloudEvents ids, likewise
	Subject        string   // CloudEvents subject
}

// Options of a run.
type Options struct {
	Stream   string        // the stream of events
	Replicas int           // of the stream of copies; 0: one
	Keep     time.Duration // how long that stream keeps a copy, at least a second; not for Resume
	Rate     int           // copies a second at most; 0: as fast as possible
	DryRun   bool          // only count: nothing is created and nothing published
	// Progress, if set, is called by the run's own goroutine, a few times a
	// second as long as messages are read.
	Progress func(Progress)
}

// Progress is how far a run has come.
type Progress struct {
	Result
	At  uint64 // sequence read last
	End uint64 // sequence at which the run ends
}

// Result is what a run has done.
type Result struct {
	Name     string `json:"replay,omitempty"` // empty: nothing has been stored
	Stream   string `json:"stream,omitempty"` // which holds the copies
	DryRun   bool   `json:"dry_run"`
	Complete bool   `json:"complete"` // nothing is left to resume

	Scanned   uint64            `json:"scanned"`    // messages read: those in the range, on the subjects
	Copied    uint64            `json:"copied"`     // by this run; in a dry run, those that would be
	Before    uint64            `json:"before"`     // copies of earlier runs
	Skipped   uint64            `json:"skipped"`    // of another type, id or entity
	NotEvents uint64            `json:"not_events"` // without the headers of a CloudEvent
	TooLarge  uint64            `json:"too_large"`  // that exceed the server's max_payload with the headers of a copy
	Types     map[string]uint64 `json:"types"`      // Copied, by CloudEvents type

	First   uint64        `json:"first_sequence,omitempty"` // of the original of this run's first copy
	Last    uint64        `json:"last_sequence,omitempty"`  // and of its last
	Elapsed time.Duration `json:"elapsed_ns"`
}

// Rate is the number of messages read a second.
func (r Result) Rate() float64 {
	return float64(r.Scanned) / max(r.Elapsed, time.Millisecond).Seconds()
}

var nameForm = regexp.MustCompile(`^[a-z0-9_-]{1,64}$`)

// Run copies what is selected. An empty name is replaced by a new one, of the
// time and a random part. Where nothing is selected, no stream is created and
// the result has no name.
//
// What fails for a moment, a lost connection or a new leader, is tried again
// until nothing has moved for half a minute. When Run returns an error or ctx
// ends (the error is then its cause), the result says what is known to be stored,
// and [Resume] continues.
//
// Until it returns, the error handler of nc is its own: one run or [Reset] at a
// time for a connection.
//
// Its errors are [ErrInvalid], [ErrNoStream], [ErrBeyondEnd], [ErrSubject],
// [ErrExists], [ErrBusy], [ErrPermission] and [bus.ErrNoJetStream].
func Run(ctx context.Context, nc *nats.Conn, name string, s Selection, o Options) (Result, error) {
	if name == "" {
		name = time.Now().UTC().Format("20060102-150405-") + strings.ToLower(rand.Text()[:5])
	}
	if err := errors.Join(checkName(name), s.check(time.Now()), o.check(true)); err != nil {
		return Result{}, err
	}
	return within(ctx, nc, name, o, func(ctx context.Context, r *run) error {
		if err := r.begin(ctx, s); err != nil {
			return err
		}
		return r.finish(ctx)
	})
}

// Resume continues a replay with the selection of its first run, behind the
// last copy. A replay that is complete stays as it is.
//
// Its errors are those of [Run], [ErrNoReplay] and [ErrLost].
func Resume(ctx context.Context, nc *nats.Conn, name string, o Options) (Result, error) {
	if err := errors.Join(checkName(name), o.check(false)); err != nil {
		return Result{}, err
	}
	return within(ctx, nc, name, o, func(ctx context.Context, r *run) error {
		if err := r.resume(ctx); err != nil || r.result.Complete {
			return err
		}
		return r.finish(ctx)
	})
}

// within makes a run, hands it to f and explains the error.
func within(ctx context.Context, nc *nats.Conn, name string, o Options, f func(context.Context, *run) error) (Result, error) {
	ctx, done := forbidden(ctx, nc)
	defer done()
	r, err := newRun(nc, name, o)
	if err != nil {
		return Result{}, err
	}
	defer r.js.CleanupPublisher()
	err = explain(ctx, f(ctx, r))
	r.result.Elapsed = time.Since(r.started)
	return r.result, err
}

func checkName(name string) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("%w: the name %q is not 1 to 64 characters of a-z, 0-9, _ and -", ErrInvalid, name)
	}
	return nil
}

func (o Options) check(creates bool) error {
	if o.Rate < 0 {
		return fmt.Errorf("%w: a rate below 0", ErrInvalid)
	}
	if creates && !o.DryRun && o.Keep < keepLeast {
		return fmt.Errorf("%w: copies are to be kept for %v, less than %v", ErrInvalid, o.Keep, keepLeast)
	}
	return nil
}

// check finds what is wrong whatever the stream holds.
func (s Selection) check(now time.Time) error {
	var problem string
	switch {
	case !s.Since.IsZero() && s.FromSeq > 0:
		problem = "two beginnings: a time and a sequence"
	case !s.Until.IsZero() && s.ToSeq > 0:
		problem = "two ends: a time and a sequence"
	case s.Since.After(now):
		problem = "it is to begin in the future, at " + s.Since.Format(time.RFC3339)
	case !s.Until.IsZero() && !s.Since.Before(s.Until):
		problem = fmt.Sprintf("it is to begin at %s and end at %s", s.Since.Format(time.RFC3339), s.Until.Format(time.RFC3339))
	case s.ToSeq > 0 && s.FromSeq > s.ToSeq:
		problem = fmt.Sprintf("it is to begin at sequence %d and end at %d", s.FromSeq, s.ToSeq)
	}
	for _, filter := range s.Filters {
		if !ValidFilter(filter) {
			problem = fmt.Sprintf("%q is not a NATS subject: tokens with dots between, * for any one, > at the end for the rest", filter)
		}
	}
	if problem != "" {
		return fmt.Errorf("%w: %s", ErrInvalid, problem)
	}
	return nil
}

// streamOf returns the stream of events with its state as of now.
func streamOf(ctx context.Context, js jetstream.JetStream, name string) (*jetstream.StreamInfo, error) {
	stream, err := js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("%w: %s", ErrNoStream, name)
	}
	if err != nil {
		return nil, err
	}
	return stream.CachedInfo(), nil
}

// explain replaces an error by its cause, where that is known.
func explain(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, nats.ErrNoResponders) {
		return bus.ErrNoJetStream
	}
	return err
}

// forbidden returns a context that ends with [ErrPermission] when the server
// refuses a subject: it says so beside the request, whose answer never comes.
func forbidden(ctx context.Context, nc *nats.Conn) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	before := nc.ErrorHandler()
	nc.SetErrorHandler(func(nc *nats.Conn, sub *nats.Subscription, err error) {
		if errors.Is(err, nats.ErrPermissionViolation) {
			cancel(fmt.Errorf("%w: %w", ErrPermission, err))
		} else if before != nil {
			before(nc, sub, err)
		}
	})
	return ctx, func() {
		nc.SetErrorHandler(before)
		cancel(nil)
	}
}

// ValidFilter reports whether s is a NATS subject to filter by.
func ValidFilter(s string) bool {
	tokens := strings.Split(s, ".")
	for i, token := range tokens {
		if token == "" || strings.ContainsAny(token, " \t\r\n\f\x00") || token == ">" && i < len(tokens)-1 {
			return false
		}
	}
	return true
}

// overlap reports whether there is a subject that both match.
func overlap(a, b string) bool {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range min(len(as), len(bs)) {
		if as[i] == ">" || bs[i] == ">" {
			return true
		}
		if as[i] != bs[i] && as[i] != "*" && bs[i] != "*" {
			return false
		}
	}
	return len(as) == len(bs)
}

// Taken reports whether a stream of these subjects takes some of subject.
func Taken(subjects []string, subject string) bool {
	return slices.ContainsFunc(subjects, func(s string) bool { return overlap(s, subject) })
}
