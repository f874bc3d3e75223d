package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/nats-io/nats.go"
	"golang.org/x/term"

	"github.com/hookbus/bridge/replay"
)

type replayCmd struct {
	Since   string   `help:"Events stored at this time or later: RFC 3339, or how long ago, for example 1h." placeholder:"TIME"`
	Until   string   `help:"Events stored before this time. What is stored after the start is never replayed." placeholder:"TIME"`
	FromSeq uint64   `help:"Events from this sequence of the stream on." placeholder:"N"`
	ToSeq   uint64   `help:"Events up to and including this sequence." placeholder:"N"`
	Filter  []string `help:"Events on this subject; wildcards are * and >. May be repeated." sep:"none" placeholder:"SUBJECT"`
	Type    []string `help:"Events of this CloudEvents type. May be repeated." sep:"none" placeholder:"TYPE"`
	ID      []string `help:"The event with this CloudEvents id. May be repeated." sep:"none" placeholder:"ID"`
	Subject string   `help:"Events about this entity, their ce-subject." placeholder:"ENTITY"`
	Rate    int      `help:"At most this many events a second; 0: as fast as possible." placeholder:"N"`
	DryRun  bool     `help:"Only count what would be delivered, by type."`

	Name     string        `help:"Name of the replay, of a-z, 0-9, _ and -; without it, the time and a random part." placeholder:"NAME"`
	Keep     time.Duration `help:"How long the copies are kept (24h)." placeholder:"D"`
	Resume   string        `help:"Continue this replay where it was interrupted, with the selection it had." placeholder:"NAME"`
	Consumer string        `help:"Copy nothing, but set this durable consumer back to --since or --from-seq." placeholder:"NAME"`
	Yes      bool          `help:"Do not ask before a consumer is set back."`
	JSON     bool          `help:"Print the summary as JSON."`
}

// defaultKeep is how long copies are kept.
const defaultKeep = 24 * time.Hour

// Help says what the flags do together.
func (replayCmd) Help() string {
	return `Without --consumer, what is selected is copied to replay.<name>.<subject> in a stream of its own, REPLAY_<name>, byte for byte, with the headers Bridge-Replay, Bridge-Replay-Sequence and Bridge-Replay-Run. Only those who subscribe to it see it. An interrupted replay is continued with --resume and copies nothing twice.

With --consumer, an existing durable consumer of the stream of events receives again all that its own filters let through, from --since or --from-seq on.

Progress is on stderr: a line that is rewritten on a terminal, else a line of JSON every five seconds. The summary is on stdout.`
}

func (r *replayCmd) Run(c *cli) error {
	selection, err := r.selection(time.Now())
	if err == nil {
		err = r.check(selection)
	}
	if err == nil && r.Consumer != "" && !r.Yes && !r.DryRun && !terminal(c.stdin) {
		err = usageError("--consumer sets a consumer back: --yes is needed where nobody can be asked; --dry-run shows what would be delivered")
	}
	if err != nil {
		return err
	}
	cfg, err := loadConfig(c.environ)
	if err != nil {
		return err
	}
	nc, err := c.connect(cfg)
	if err != nil {
		return err
	}
	defer nc.Close()
	if r.Consumer != "" {
		err = r.reset(c, nc, cfg, selection)
	} else {
		err = r.copy(c, nc, cfg, selection)
	}
	switch {
	case errors.Is(err, replay.ErrInvalid):
		return usageError(err.Error())
	case errors.Is(err, replay.ErrNoStream):
		return fmt.Errorf("%w on this NATS; has a bridge run on it, or should BRIDGE_STREAM be another?", err)
	}
	return err
}

func (r *replayCmd) selection(now time.Time) (s replay.Selection, err error) {
	s = replay.Selection{FromSeq: r.FromSeq, ToSeq: r.ToSeq, Filters: r.Filter, Types: r.Type, IDs: r.ID, Subject: r.Subject}
	if s.Since, err = moment("--since", r.Since, now); err == nil {
		s.Until, err = moment("--until", r.Until, now)
	}
	return s, err
}

// moment reads a time or how long ago it was.
func moment(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, usageError(fmt.Sprintf("%s %q is neither a duration like 90m nor a time like 2006-01-02T15:04:05Z", flag, text))
	}
	return t, nil
}

// check finds flags that have no effect together.
func (r *replayCmd) check(s replay.Selection) error {
	begins := !s.Since.IsZero() || s.FromSeq > 0
	selects := len(s.Filters)+len(s.Types)+len(s.IDs) > 0 || s.Subject != ""
	ends := !s.Until.IsZero() || s.ToSeq > 0
	switch {
	case r.Yes && r.Consumer == "":
		return usageError("--yes goes with --consumer, which is missing or empty")
	case r.Consumer != "":
		if r.Resume != "" || r.Name != "" || r.Keep != 0 || r.Rate != 0 || ends || selects {
			return usageError("--consumer goes with --since or --from-seq alone: the server sets back a consumer's place in the stream, and delivers again all that the consumer's own filters let through from there on; to select among that, or to slow it down, replay without --consumer")
		}
		if !begins {
			return usageError("--consumer needs --since or --from-seq: the place to which to set it back")
		}
	case r.Resume != "":
		if r.Name != "" || r.Keep != 0 || begins || ends || selects {
			return usageError("--resume continues with the name and the selection that the replay has")
		}
	case !begins && !ends && !selects:
		return usageError("nothing says what to replay: --since, --from-seq, --filter, --type, --id, --subject, or --from-seq 1 for all there is")
	}
	return nil
}

func (r *replayCmd) copy(c *cli, nc *nats.Conn, cfg *config, s replay.Selection) error {
	ctx, stop := signal.NotifyContext(c.ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	show := &progress{w: c.stderr, terminal: terminal(c.stderr), shown: time.Now()}
	o := replay.Options{Stream: cfg.Stream, Replicas: cfg.StreamReplicas, Keep: cmp.Or(r.Keep, defaultKeep), Rate: r.Rate, DryRun: r.DryRun, Progress: show.show}
	var result replay.Result
	var err error
	if r.Resume != "" {
		result, err = replay.Resume(ctx, nc, r.Resume, o)
	} else {
		result, err = replay.Run(ctx, nc, r.Name, s, o)
	}
	show.clear()
	if err == nil || result.Name != "" {
		if err := r.print(c.stdout, result); err != nil {
			return err
		}
	}
	switch {
	case err == nil && result.TooLarge > 0:
		return fmt.Errorf("%d selected events were not copied: with the headers of a copy they exceed the server's max_payload", result.TooLarge)
	case err == nil:
		return nil
	case errors.Is(err, replay.ErrExists):
		return fmt.Errorf("%w; --resume continues it", err)
	case errors.Is(err, context.Canceled) && result.Name == "":
		return errors.New("interrupted before anything was copied")
	case errors.Is(err, context.Canceled):
		err = errors.New("interrupted")
	}
	if result.Name == "" || errors.Is(err, replay.ErrLost) || errors.Is(err, replay.ErrNoReplay) {
		return err
	}
	return fmt.Errorf("%w; to continue: bridge replay --resume %s", err, result.Name)
}

func (r *replayCmd) print(w io.Writer, result replay.Result) error {
	if r.JSON {
		return printJSON(w, struct {
			replay.Result
			Rate float64 `json:"rate"`
		}{result, result.Rate()})
	}
	var b strings.Builder
	count := func(n uint64) string { return humanize.Comma(int64(n)) }
	copied := "copied"
	switch {
	case result.DryRun:
		copied = "to copy"
	case result.Complete && result.Name != "" && result.Scanned == 0:
		_, err := fmt.Fprintf(w, "Replay %s is complete: %s copies in %s\n", result.Name, count(result.Before), result.Stream)
		return err
	}
	if result.Copied+result.Before == 0 {
		fmt.Fprintf(&b, "Nothing is selected: ")
	} else if result.Name != "" {
		fmt.Fprintf(&b, "Replay %s, on replay.%[1]s.> in stream %s: ", result.Name, result.Stream)
	}
	fmt.Fprintf(&b, "%s scanned, %s %s", count(result.Scanned), count(result.Copied), copied)
	for _, part := range []struct {
		n    uint64
		text string
	}{{result.Before, "copied before"}, {result.Skipped, "not selected"}, {result.NotEvents, "not an event"}, {result.TooLarge, "too large"}} {
		if part.n > 0 {
			fmt.Fprintf(&b, ", %s %s", count(part.n), part.text)
		}
	}
	fmt.Fprintf(&b, ", in %v (%s a second)\n", result.Elapsed.Round(time.Millisecond), count(uint64(result.Rate())))
	if result.Copied > 0 {
		fmt.Fprintf(&b, "Sequences %d to %d\n", result.First, result.Last)
	}
	writeTypes(&b, result.Types)
	_, err := io.WriteString(w, b.String())
	return err
}

func writeTypes(b *strings.Builder, types map[string]uint64) {
	for _, typ := range slices.Sorted(maps.Keys(types)) {
		name := typ
		if name == "" {
			name = "not an event"
		}
		fmt.Fprintf(b, "%12s  %s\n", humanize.Comma(int64(types[typ])), name)
	}
}

// reset leaves signals as they are: until it is answered nothing has changed.
func (r *replayCmd) reset(c *cli, nc *nats.Conn, cfg *config, s replay.Selection) error {
	plan, err := replay.PlanReset(c.ctx, nc, cfg.Stream, r.Consumer, s.Since, s.FromSeq)
	if err != nil {
		return err
	}
	ask := !r.Yes && !r.DryRun && plan.Messages > 0
	if !r.JSON || ask {
		w := c.stdout
		if r.JSON {
			w = c.stderr
		}
		var b strings.Builder
		fmt.Fprintf(&b, "Consumer %s of stream %s has acknowledged all up to sequence %d; %d more are with it.\n", plan.Consumer, plan.Stream, plan.Acknowledged, plan.Outstanding)
		fmt.Fprintf(&b, "From sequence %d on it receives %s messages:\n", plan.From, humanize.Comma(int64(plan.Messages)))
		writeTypes(&b, plan.Types)
		if _, err := io.WriteString(w, b.String()); err != nil {
			return err
		}
	}
	if ask {
		if err := c.confirm(fmt.Sprintf("Set %s back to sequence %d?", plan.Consumer, plan.From)); err != nil {
			return err
		}
	}
	if !r.DryRun && plan.Messages > 0 {
		if err := plan.Apply(c.ctx); err != nil {
			return err
		}
	}
	if r.JSON {
		return printJSON(c.stdout, plan)
	}
	if plan.Done {
		_, err = fmt.Fprintf(c.stdout, "%s is set back to sequence %d.\n", plan.Consumer, plan.From)
	}
	return err
}

// terminal reports whether there is somebody at f.
func terminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// progressEvery is the time between two lines of JSON.
const progressEvery = 5 * time.Second

// progress shows how far a replay is.
type progress struct {
	w        io.Writer
	terminal bool
	shown    time.Time
	first    uint64 // sequence at the first report, from which the time left follows
	began    time.Duration
}

func (p *progress) show(at replay.Progress) {
	if p.first == 0 {
		p.first, p.began = at.At, at.Elapsed
	}
	done := float64(at.At-p.first) / float64(max(1, at.End-p.first))
	var left time.Duration
	if done > 0 {
		left = time.Duration(float64(at.Elapsed-p.began) * (1 - done) / done).Round(time.Second)
	}
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[Ksequence %d of %d, %s copied, %s a second, %v left", at.At, at.End, humanize.Comma(int64(at.Copied)), humanize.Comma(int64(at.Rate())), left)
		return
	}
	if time.Since(p.shown) < progressEvery {
		return
	}
	p.shown = time.Now()
	json.NewEncoder(p.w).Encode(map[string]any{
		"sequence": at.At, "end": at.End, "scanned": at.Scanned, "copied": at.Copied, "rate": int(at.Rate()), "left_seconds": int(left.Seconds()),
	})
}

// clear ends the line on a terminal.
func (p *progress) clear() {
	if p.terminal && p.first > 0 {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
