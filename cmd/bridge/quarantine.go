package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/ingress"
)

type quarantineCmd struct {
	Ls    quarantineLs    `cmd:"" help:"List what is in the quarantine."`
	Show  quarantineShow  `cmd:"" help:"Print headers and body, which hold personal data."`
	Retry quarantineRetry `cmd:"" help:"Make events of what is in the quarantine, and remove it there."`
	Rm    quarantineRm    `cmd:"" help:"Remove from the quarantine for good."`
}

// selected is which bodies a command is about.
type selected struct {
	Sequence []uint64 `arg:"" optional:"" help:"Numbers, as ls shows them." placeholder:"SEQ"`
	All      bool     `help:"All of them."`
	Provider string   `help:"Those of this provider." placeholder:"PROVIDER"`
	Reason   string   `help:"Those with this reason, such as body_not_json or schema_violation." placeholder:"REASON"`
}

func (s selected) check() error {
	byKind := s.Provider != "" || s.Reason != ""
	switch {
	case len(s.Sequence) == 0 && !s.All && !byKind:
		return usageError("say which: numbers, --reason, --provider or --all")
	case len(s.Sequence) > 0 && (s.All || byKind), s.All && byKind:
		return usageError("numbers, --reason or --provider, and --all exclude each other")
	}
	return checkKind(s.Provider, s.Reason)
}

// checkKind refuses a provider or a reason that does not exist.
func checkKind(provider, reason string) error {
	if reason != "" && !slices.Contains(ingress.QuarantineReasons, ingress.Reason(reason)) {
		return usageError(fmt.Sprintf("--reason %s: it is one of %s", reason, strings.Trim(fmt.Sprint(ingress.QuarantineReasons), "[]")))
	}
	return checkProvider(provider)
}

// find returns what is selected, without bodies.
func (s selected) find(ctx context.Context, cfg *config, q *bus.QuarantineStream) ([]bus.Quarantined, error) {
	var found []bus.Quarantined
	missing := slices.Compact(slices.Sorted(slices.Values(s.Sequence)))
	for item, err := range q.All(ctx) {
		if err != nil {
			return nil, streamError(cfg.QuarantineStream, "QUARANTINE_STREAM", err)
		}
		if i := slices.Index(missing, item.Sequence); i >= 0 {
			missing = slices.Delete(missing, i, i+1)
		} else if len(s.Sequence) > 0 || s.Provider != "" && s.Provider != item.Provider || s.Reason != "" && s.Reason != item.Reason {
			continue
		}
		found = append(found, item)
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("there is no %d in the quarantine; bridge quarantine ls lists it", missing[0])
	}
	return found, nil
}

// each does something with what is selected.
func (s selected) each(c *cli, verb string, json bool, do func(context.Context, *config, *bus.QuarantineStream, []bus.Quarantined) error) error {
	if err := s.check(); err != nil {
		return err
	}
	return quarantine(c, func(ctx context.Context, cfg *config, q *bus.QuarantineStream) error {
		items, err := s.find(ctx, cfg, q)
		if err != nil {
			return err
		}
		if len(items) == 0 && !json {
			_, err := fmt.Fprintf(c.stdout, "There is nothing to %s.\n", verb)
			return err
		}
		return do(ctx, cfg, q, items)
	})
}

// streamError says why a stream cannot be read, and what to do about it.
func streamError(stream, variable string, err error) error {
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return fmt.Errorf("there is no stream %s on this NATS; has a bridge run on it, or should %s%s be another?", stream, envPrefix, variable)
	case errors.Is(err, nats.ErrNoResponders):
		err = bus.ErrNoJetStream
	case errors.Is(err, context.DeadlineExceeded):
		err = errors.New("no answer: JetStream has no leader")
	}
	return fmt.Errorf("stream %s: %w", stream, err)
}

// quarantine does something with the quarantine of the configured NATS.
func quarantine(c *cli, do func(ctx context.Context, cfg *config, q *bus.QuarantineStream) error) error {
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
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	q, err := bus.OpenQuarantine(ctx, js, cfg.QuarantineStream, cfg.QuarantinePrefix)
	if err != nil {
		return streamError(cfg.QuarantineStream, "QUARANTINE_STREAM", err)
	}
	return do(ctx, cfg, q)
}

type quarantineLs struct {
	Provider string `help:"Only those of this provider." placeholder:"PROVIDER"`
	Reason   string `help:"Only those with this reason." placeholder:"REASON"`
	JSON     bool   `help:"Print JSON, a line for each."`
}

// quarantinedJSON is a body in the quarantine, as --json shows it.
type quarantinedJSON struct {
	Sequence uint64            `json:"sequence"`
	ID       string            `json:"id"`
	Provider string            `json:"provider"`
	Reason   string            `json:"reason"`
	Received time.Time         `json:"received"`
	Size     int               `json:"size"`
	Trace    string            `json:"traceparent,omitempty"`
	Headers  map[string]string `json:"headers,omitempty"`
	Body     *string           `json:"body,omitempty"`
	Base64   []byte            `json:"body_base64,omitempty"` // of a body that is no text
}

func toJSON(item bus.Quarantined) quarantinedJSON {
	return quarantinedJSON{Sequence: item.Sequence, ID: item.ID, Provider: item.Provider, Reason: item.Reason, Received: item.Received, Size: item.Size, Trace: item.Traceparent}
}

func (l *quarantineLs) Run(c *cli) error {
	if err := checkKind(l.Provider, l.Reason); err != nil {
		return err
	}
	return quarantine(c, func(ctx context.Context, cfg *config, q *bus.QuarantineStream) error {
		items, err := selected{Provider: l.Provider, Reason: l.Reason}.find(ctx, cfg, q)
		if err != nil {
			return err
		}
		if l.JSON {
			for _, item := range items {
				if err := printJSON(c.stdout, toJSON(item)); err != nil {
					return err
				}
			}
			return nil
		}
		if len(items) == 0 {
			nothing := "There is nothing in the quarantine."
			if l.Provider+l.Reason != "" {
				nothing = "There is nothing like that in the quarantine."
			}
			_, err := fmt.Fprintln(c.stdout, nothing)
			return err
		}
		w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "SEQ\tPROVIDER\tREASON\tAGE\tSIZE\tID")
		for _, item := range items {
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%.12s\n", item.Sequence, item.Provider, item.Reason, age(item.Received), humanize.IBytes(uint64(item.Size)), item.ID)
		}
		return w.Flush()
	})
}

// age says how long ago that was, to the second.
func age(t time.Time) string { return time.Since(t).Round(time.Second).String() }

type quarantineShow struct {
	Sequence []uint64 `arg:"" help:"Numbers, as ls shows them." placeholder:"SEQ"`
	JSON     bool     `help:"Print JSON, a line for each."`
}

func (s *quarantineShow) Run(c *cli) error {
	return quarantine(c, func(ctx context.Context, cfg *config, q *bus.QuarantineStream) error {
		for _, sequence := range s.Sequence {
			item, err := q.Get(ctx, sequence)
			if err != nil {
				return readError(cfg, sequence, err)
			}
			if err := s.print(c.stdout, item); err != nil {
				return err
			}
		}
		return nil
	})
}

// readError says why one cannot be read.
func readError(cfg *config, sequence uint64, err error) error {
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound), sequence == 0: // which the server takes for no question
		return fmt.Errorf("there is no %d in the quarantine; bridge quarantine ls lists it", sequence)
	case errors.Is(err, jetstream.ErrObjectNotFound), errors.Is(err, jetstream.ErrBucketNotFound):
		return fmt.Errorf("%d: its body is no longer in the object store", sequence)
	}
	return streamError(cfg.QuarantineStream, "QUARANTINE_STREAM", err)
}

func (s *quarantineShow) print(w io.Writer, item bus.Quarantined) error {
	if s.JSON {
		j := toJSON(item)
		j.Headers = item.Headers
		if text := string(item.Body); utf8.ValidString(text) {
			j.Body = &text
		} else {
			j.Base64 = item.Body
		}
		return printJSON(w, j)
	}
	head := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(head, "sequence\t%d\nid\t%s\nprovider\t%s\nreason\t%s\nreceived\t%s\nsize\t%d\n",
		item.Sequence, item.ID, item.Provider, item.Reason, item.Received.Format(time.RFC3339Nano), item.Size)
	if item.Traceparent != "" {
		fmt.Fprintf(head, "trace\t%q\n", item.Traceparent)
	}
	for _, name := range slices.Sorted(maps.Keys(item.Headers)) {
		fmt.Fprintf(head, "%s\t%q\n", name, item.Headers[name])
	}
	if err := head.Flush(); err != nil {
		return err
	}
	body := string(item.Body)
	if terminal(w) {
		body = harmless(body)
	}
	_, err := fmt.Fprintf(w, "\n%s\n\n", body)
	return err
}

// harmless replaces what a terminal would obey: control characters and those that
// change the direction of the text.
func harmless(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Cf, r)) {
			return utf8.RuneError
		}
		return r
	}, s)
}

type quarantineRetry struct {
	selected
	JSON bool `help:"Print JSON, a line for each."`
}

func (quarantineRetry) Help() string {
	return "What becomes an event goes through recognition as a webhook does, and is removed from the quarantine; what does not stays there. " +
		"BRIDGE_SCHEMA_MODE decides about events that their schema does not allow: with mark, the default, they are published."
}

// retried is what became of one.
type retried struct {
	Sequence uint64 `json:"sequence"`
	Result   string `json:"result"` // accepted, duplicate, gone or failed
	ID       string `json:"id,omitempty"`
	Error    string `json:"error,omitempty"`
}

func (r retried) String() string {
	switch {
	case r.Error != "":
		return fmt.Sprintf("%d  %s  %s", r.Sequence, r.Result, r.Error)
	case r.ID != "":
		return fmt.Sprintf("%d  %s  id=%s", r.Sequence, r.Result, r.ID)
	}
	return fmt.Sprintf("%d  %s", r.Sequence, r.Result)
}

func (r *quarantineRetry) Run(c *cli) error {
	return r.each(c, "retry", r.JSON, func(ctx context.Context, cfg *config, q *bus.QuarantineStream, items []bus.Quarantined) error {
		b, stop, err := cfg.openBus(ctx, c.stderr)
		if err != nil {
			return err
		}
		defer stop()
		registry := prometheus.NewRegistry()
		d, err := dedupe.New(b, cfg.windows(), registry)
		if err != nil {
			return err
		}
		schemas, err := ingress.NewSchemas(cfg.SchemaMode, cfg.SchemaBaseURL, registry)
		if err != nil {
			return err
		}
		retrier := ingress.Retrier{Dedupe: d, Bus: b, Schemas: schemas}
		failed := 0
		for _, item := range items {
			done, err := r.one(ctx, cfg, q, item.Sequence, retrier)
			if errors.Is(err, bus.ErrUnavailable) {
				return fmt.Errorf("events cannot be stored now: %w", err)
			}
			if done.Error != "" {
				failed++
			}
			if r.JSON {
				err = printJSON(c.stdout, done)
			} else {
				_, err = fmt.Fprintln(c.stdout, done)
			}
			if err != nil {
				return err
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		if failed > 0 {
			return fmt.Errorf("%d of %d are still in the quarantine", failed, len(items))
		}
		return nil
	})
}

// one retries one; the error is why it failed.
func (r *quarantineRetry) one(ctx context.Context, cfg *config, q *bus.QuarantineStream, sequence uint64, retrier ingress.Retrier) (done retried, err error) {
	done = retried{Sequence: sequence, Result: "failed"}
	item, err := q.Get(ctx, sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) { // somebody else has retried or removed it
		done.Result = "gone"
		return done, nil
	}
	if err != nil {
		err = readError(cfg, sequence, err)
		done.Error = err.Error()
		return done, err
	}
	result, err := retrier.Retry(ctx, item.Rejected)
	if err != nil {
		done.Error = err.Error()
		return done, err
	}
	done.Result, done.ID = "accepted", result.ID
	if result.Duplicate {
		done.Result = "duplicate"
	}
	if err := q.Remove(ctx, item); err != nil {
		done.Error = fmt.Sprintf("it is stored as an event, but could not be removed: %v", err)
	}
	return done, nil
}

// busPatience is how long a command waits until events can be stored.
const busPatience = 5 * time.Second

// openBus connects to store events as serve does, without changing streams.
func (c *config) openBus(ctx context.Context, stderr io.Writer) (*bus.Bus, func(), error) {
	bc := c.busConfig()
	bc.URL, bc.Manage = c.clientURL(), false
	b, err := bus.Open(ctx, bc, c.logger(stderr, max(c.LogLevel, slog.LevelError)), prometheus.NewRegistry())
	if err != nil {
		return nil, nil, err
	}
	stopRun := background(b.Run)
	stop := func() { stopRun(); b.Close(context.Background()) }
	if err := ready(ctx, b, busPatience); err != nil {
		stop()
		return nil, nil, err
	}
	return b, stop, nil
}

// ready waits until events can be stored.
func ready(ctx context.Context, b *bus.Bus, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for st := b.State(); !st.Ready(); st = b.State() {
		select {
		case <-st.Changed():
		case <-ctx.Done():
			return fmt.Errorf("events cannot be stored: %s", strings.Join(st.Problems, "; "))
		}
	}
	return nil
}

type quarantineRm struct {
	selected
	Yes  bool `help:"Do not ask."`
	JSON bool `help:"Print JSON."`
}

func (r *quarantineRm) Run(c *cli) error {
	return r.each(c, "remove", r.JSON, func(ctx context.Context, _ *config, q *bus.QuarantineStream, items []bus.Quarantined) error {
		reasons := make(map[string]int)
		for _, item := range items {
			reasons[item.Provider+" "+item.Reason]++
		}
		for _, what := range slices.Sorted(maps.Keys(reasons)) {
			fmt.Fprintf(c.stderr, "%6d  %s\n", reasons[what], what)
		}
		if !r.Yes && len(items) > 0 {
			if err := c.confirm(fmt.Sprintf("Remove %d for good?", len(items))); err != nil {
				return err
			}
		}
		for _, item := range items {
			if err := q.Remove(ctx, item); err != nil {
				return fmt.Errorf("%d: %w", item.Sequence, err)
			}
		}
		if r.JSON {
			return printJSON(c.stdout, map[string]int{"removed": len(items)})
		}
		_, err := fmt.Fprintf(c.stdout, "%d removed\n", len(items))
		return err
	})
}

// confirm asks on the terminal. Whoever is not at one has to say --yes.
func (c *cli) confirm(question string) error {
	if !terminal(c.stdin) {
		return usageError("nobody can be asked here: say --yes")
	}
	if !confirmed(c.stdin, c.stderr, question) {
		return errors.New("nothing was done")
	}
	return nil
}

// confirmed asks, and takes nothing but yes for yes.
func confirmed(in io.Reader, out io.Writer, question string) bool {
	fmt.Fprintf(out, "%s [yes/no] ", question)
	answer, _ := bufio.NewReader(in).ReadString('\n')
	return strings.EqualFold(strings.TrimSpace(answer), "yes")
}
