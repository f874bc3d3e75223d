// Command bridge receives the webhooks of identity, fraud and custody
// providers and publishes them as CloudEvents on NATS JetStream.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/alecthomas/kong"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/normalize"
)

// Set by the linker.
var version, commit, date = "dev", "none", "unknown"

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// cli is the command line, and the process as its commands see it.
type cli struct {
	Serve      serveCmd      `cmd:"" default:"1" help:"Receive webhooks and publish them as events."`
	Dev        devCmd        `cmd:"" help:"Try it all in one process, with generated secrets and every provider's samples."`
	Send       sendCmd       `cmd:"" help:"Sign a webhook and send it as the provider would."`
	Tail       tailCmd       `cmd:"" help:"Print events as they come."`
	Replay     replayCmd     `cmd:"" help:"Deliver stored events again: copy them, or set a consumer back."`
	Quarantine quarantineCmd `cmd:"" help:"Look after verified webhooks that could not be made events."`
	Asyncapi   asyncapiCmd   `cmd:"" help:"Print an AsyncAPI 3 document of what is published."`
	Status     statusCmd     `cmd:"" help:"Show streams, index, quarantine, consumers and bridges on one screen."`
	Health     healthCmd     `cmd:"" help:"Ask a bridge whether it is ready."`
	Version    versionCmd    `cmd:"" help:"Print the version."`

	ctx            context.Context
	cancel         context.CancelCauseFunc
	environ        []string
	stdin          io.Reader
	stdout, stderr io.Writer
}

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr))
}

// run is the whole program; it returns the exit code.
func run(ctx context.Context, args, environ []string, stdin io.Reader, stdout, stderr io.Writer) (code int) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c := &cli{ctx: ctx, cancel: cancel, environ: environ, stdin: stdin, stdout: stdout, stderr: stderr}
	type exit int
	defer func() {
		if r := recover(); r != nil {
			e, ok := r.(exit)
			if !ok {
				panic(r)
			}
			code = int(e)
		}
	}()
	parser, err := kong.New(c,
		kong.Name("bridge"),
		kong.Description("Webhooks of identity, fraud and custody providers, as CloudEvents on NATS JetStream.\n\nExit status: 0 done, 1 failed, 2 wrong usage."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { panic(exit(code)) }), // --help has been printed
		kong.Vars{"providers": providerNames()},
	)
	if err != nil {
		panic(err) // the command line's definition is wrong
	}
	command, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(stderr, "bridge: %v\nTry: bridge --help\n", err)
		return exitUsage
	}
	for _, p := range command.Path { // --consumer "$UNSET" must not act as if it were not there
		if p.Flag != nil && empty(p.Flag.Target.Interface()) {
			fmt.Fprintf(stderr, "bridge: --%s has no value\n", p.Flag.Name)
			return exitUsage
		}
	}
	err = command.Run(c)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, nats.ErrPermissionViolation) {
		err = cause // and not that nobody answered
	}
	if err == nil {
		return exitDone
	}
	fmt.Fprintf(stderr, "bridge: %v\n", err)
	if _, usage := errors.AsType[usageError](err); usage {
		return exitUsage
	}
	return exitFailed
}

// empty reports whether a flag's value is "", an empty list or a list with "".
func empty(value any) bool {
	switch v := value.(type) {
	case string:
		return v == ""
	case []string:
		return len(v) == 0 || slices.Contains(v, "")
	}
	return false
}

// usageError is a mistake in the command line that the parser cannot know.
type usageError string

func (e usageError) Error() string { return string(e) }

func providerNames() string {
	var names []string
	for _, p := range normalize.Providers() {
		names = append(names, p.Name)
	}
	return strings.Join(names, ",")
}

// Help lists the variables.
func (serveCmd) Help() string {
	var b strings.Builder
	b.WriteString("Configuration is read from the environment:\n\n")
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, p := range normalize.Providers() {
		name := strings.ToUpper(p.Name) + "_SECRETS"
		fmt.Fprintf(w, "  %s%s\t%s\n", envPrefix, name, "secrets, comma-separated; any may match")
		fmt.Fprintf(w, "  %s%s_FILE\t%s\n", envPrefix, name, "file with one a line; re-read when it changes")
	}
	t := reflect.TypeFor[config]()
	for i := range t.NumField() {
		tag := t.Field(i).Tag
		name := tag.Get("env")
		if name == "" {
			continue
		}
		text := tag.Get("help")
		if d := tag.Get("envDefault"); d != "" {
			text += " (" + d + ")"
		}
		fmt.Fprintf(w, "  %s%s\t%s\n", envPrefix, name, text)
	}
	fmt.Fprintf(w, "  OTEL_EXPORTER_OTLP_ENDPOINT\t%s\n", "collector that takes traces by OTLP over HTTP; empty: none. OpenTelemetry's other variables hold too")
	w.Flush()
	return b.String()
}

// logger writes to stderr, as text on a terminal and as JSON elsewhere unless
// the format is set.
func (c *config) logger(stderr io.Writer, level slog.Leveler) *slog.Logger {
	format := c.LogFormat
	if format == "" {
		format = "json"
		if terminal(stderr) {
			format = "text"
		}
	}
	options := &slog.HandlerOptions{Level: level}
	if format == "text" {
		return slog.New(traceHandler{slog.NewTextHandler(stderr, options)})
	}
	return slog.New(traceHandler{slog.NewJSONHandler(stderr, options)})
}

type versionCmd struct {
	JSON bool `help:"Print JSON."`
}

func (v versionCmd) Run(c *cli) error {
	if v.JSON {
		return printJSON(c.stdout, map[string]string{"version": version, "commit": commit, "date": date, "go": runtime.Version()})
	}
	_, err := fmt.Fprintf(c.stdout, "bridge %s (commit %s, %s, %s)\n", version, commit, date, runtime.Version())
	return err
}

func buildInfo() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "bridge_build_info",
		Help:        "1; the labels say which build runs.",
		ConstLabels: prometheus.Labels{"version": version, "commit": commit, "goversion": runtime.Version()},
	}, func() float64 { return 1 })
}
