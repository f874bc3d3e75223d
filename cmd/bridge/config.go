package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/dustin/go-humanize"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/ingress"
	"github.com/hookbus/bridge/normalize"
)

const envPrefix = "BRIDGE_"

// config holds the environment. The help tags are the text of
// `bridge serve --help`.
type config struct {
	ListenAddr  string `env:"LISTEN_ADDR" envDefault:":8080" help:"where webhooks are received"`
	AdminAddr   string `env:"ADMIN_ADDR" envDefault:":9090" help:"where /livez, /readyz and /metrics are served"`
	TLSCertFile string `env:"TLS_CERT_FILE" help:"certificate for LISTEN_ADDR; re-read when it changes"`
	TLSKeyFile  string `env:"TLS_KEY_FILE" help:"its key"`

	NATSURL         string `env:"NATS_URL" help:"NATS servers, comma-separated; empty: an embedded server"`
	NATSCredsFile   string `env:"NATS_CREDS_FILE" help:"credentials file (JWT)"`
	NATSNKeyFile    string `env:"NATS_NKEY_FILE" help:"NKey seed file"`
	NATSUser        string `env:"NATS_USER" help:"user, also that of the embedded server"`
	NATSPassword    string `env:"NATS_PASSWORD" help:"its password"`
	NATSTLSCAFile   string `env:"NATS_TLS_CA_FILE" help:"certificate authority of the NATS servers"`
	NATSTLSCertFile string `env:"NATS_TLS_CERT_FILE" help:"client certificate"`
	NATSTLSKeyFile  string `env:"NATS_TLS_KEY_FILE" help:"its key"`

	DataDir        string `env:"DATA_DIR" envDefault:"./data" help:"store of the embedded server"`
	EmbeddedListen string `env:"EMBEDDED_LISTEN" envDefault:"127.0.0.1:4222" help:"where the embedded server listens"`

	Stream          string        `env:"STREAM" envDefault:"WEBHOOKS" help:"stream of events"`
	SubjectPrefix   string        `env:"SUBJECT_PREFIX" envDefault:"webhooks" help:"first token of their subjects"`
	StreamReplicas  int           `env:"STREAM_REPLICAS" envDefault:"1" help:"replicas of streams and bucket; 3 survive the loss of a server"`
	StreamMaxAge    time.Duration `env:"STREAM_MAX_AGE" envDefault:"720h" help:"how long events are kept"`
	StreamMaxBytes  size          `env:"STREAM_MAX_BYTES" envDefault:"0" help:"size above which new events are refused; 0: unlimited"`
	DedupeBucket    string        `env:"DEDUPE_BUCKET" envDefault:"webhooks-dedupe" help:"key-value bucket, the index of events"`
	DedupeWindow    time.Duration `env:"DEDUPE_WINDOW" envDefault:"168h" help:"how long an event's names are remembered"`
	DuplicateWindow time.Duration `env:"DUPLICATE_WINDOW" envDefault:"10m" help:"how long the stream itself refuses a copy"`
	StateWindow     time.Duration `env:"STATE_WINDOW" envDefault:"2m" help:"age up to which an equal report without id or time is a redelivery; for Trusthub's it is the dedupe window"`

	QuarantineStream   string        `env:"QUARANTINE_STREAM" envDefault:"WEBHOOKS_QUARANTINE" help:"stream of verified bodies that are no events"`
	QuarantinePrefix   string        `env:"QUARANTINE_PREFIX" envDefault:"quarantine" help:"first token of their subjects"`
	QuarantineMaxAge   time.Duration `env:"QUARANTINE_MAX_AGE" envDefault:"720h" help:"how long they are kept"`
	QuarantineMaxBytes size          `env:"QUARANTINE_MAX_BYTES" envDefault:"1GiB" help:"size above which new ones are refused"`

	SpoolDir      string `env:"SPOOL_DIR" help:"where webhooks wait while NATS is out of reach; empty: they are answered 503"`
	SpoolMaxBytes size   `env:"SPOOL_MAX_BYTES" envDefault:"1GiB" help:"size above which no more are taken; the disk needs 16 MiB more"`

	MaxBodyBytes     size          `env:"MAX_BODY_BYTES" envDefault:"8MiB" help:"largest body"`
	MaxInFlight      int64         `env:"MAX_IN_FLIGHT" envDefault:"4096" help:"most requests at a time"`
	MaxInFlightBytes size          `env:"MAX_IN_FLIGHT_BYTES" envDefault:"256MiB" help:"most bytes of their bodies"`
	ReplayTolerance  time.Duration `env:"REPLAY_TOLERANCE" envDefault:"5m" help:"how far a signed time may be from now"`
	PublishTimeout   time.Duration `env:"PUBLISH_TIMEOUT" envDefault:"3s" help:"how long to wait for the stream's acknowledgement"`

	ShutdownDelay   time.Duration      `env:"SHUTDOWN_DELAY" envDefault:"0s" help:"how long to serve on after SIGTERM, with /readyz false"`
	ShutdownTimeout time.Duration      `env:"SHUTDOWN_TIMEOUT" envDefault:"20s" help:"how long the shutdown after that may take, and how long to wait for DATA_DIR and SPOOL_DIR at the start"`
	SchemaMode      ingress.SchemaMode `env:"SCHEMA_MODE" envDefault:"mark" help:"what becomes of an event that its schema does not allow: mark, quarantine, or off"`
	SchemaBaseURL   string             `env:"SCHEMA_BASE_URL" help:"where /schemas of the admin listener can be reached by consumers; it goes into dataschema"`

	ManageStreams bool `env:"MANAGE_STREAMS" envDefault:"true" help:"false: streams and bucket are somebody else's and only checked"`

	LogLevel  slog.Level `env:"LOG_LEVEL" envDefault:"info" help:"debug, info, warn or error"`
	LogFormat string     `env:"LOG_FORMAT" help:"json or text; by default text on a terminal, else json"`

	// secrets is where each provider's secrets come from, by its name.
	secrets map[string]secretSource
	traces  traceConfig
	// explicit holds the variables that are set, without the prefix.
	explicit map[string]bool
	// unknown holds variables with our prefix that have no effect.
	unknown []string
}

// size is a number of bytes, as "8MiB" or "8388608".
type size int64

func (s *size) UnmarshalText(text []byte) error {
	n, err := humanize.ParseBytes(string(text))
	if err != nil || n > 1<<62 || bytes.ContainsRune(text, ',') { // the library drops commas
		return fmt.Errorf("%q is not a size like 1048576, 8MiB or 1GiB", text)
	}
	*s = size(n)
	return nil
}

// configError holds every problem of the environment, one line each.
type configError []string

func (e configError) Error() string {
	return "the configuration is wrong:\n  " + strings.Join(e, "\n  ")
}

// loadConfig reads the environment. With a configError the configuration is
// returned too, for the problems that only serve has.
func loadConfig(environ []string) (*config, error) {
	vars := env.ToMap(environ)
	c := &config{secrets: make(map[string]secretSource), traces: traceVariables(vars)}
	known, problems, err := c.parse(vars)
	if err != nil {
		return nil, err
	}
	for _, p := range normalize.Providers() {
		name := envPrefix + strings.ToUpper(p.Name) + "_SECRETS"
		known[name], known[name+"_FILE"] = true, true
		c.secrets[p.Name] = secretSource{variable: name, value: vars[name], file: vars[name+"_FILE"]}
	}
	for key := range vars {
		if strings.HasPrefix(key, envPrefix) && !known[key] {
			c.unknown = append(c.unknown, key)
		}
	}
	slices.Sort(c.unknown)
	if problems = append(problems, c.check()...); len(problems) > 0 {
		return c, problems
	}
	return c, nil
}

// parse reads the variables into c. Where one cannot be read, that is a problem
// and the default takes its place, so that the others can be looked at too.
func (c *config) parse(vars map[string]string) (known map[string]bool, problems configError, err error) {
	vars = maps.Clone(vars)
	known = make(map[string]bool)
	for {
		c.explicit = make(map[string]bool)
		err := env.ParseWithOptions(c, env.Options{
			Environment: vars,
			Prefix:      envPrefix,
			OnSet: func(key string, _ any, isDefault bool) {
				known[key] = true
				if !isDefault && vars[key] != "" {
					c.explicit[strings.TrimPrefix(key, envPrefix)] = true
				}
			},
		})
		var all env.AggregateError
		if !errors.As(err, &all) {
			return known, problems, err
		}
		for _, err := range all.Errors {
			var parse env.ParseError
			if !errors.As(err, &parse) {
				return known, problems, err
			}
			// The library names our field, not the variable.
			field, _ := reflect.TypeFor[config]().FieldByName(parse.Name)
			variable := envPrefix + field.Tag.Get("env")
			if _, set := vars[variable]; !set {
				return known, problems, err // a default of ours is wrong
			}
			problems = append(problems, fmt.Sprintf("%s: %v", variable, parse.Err))
			delete(vars, variable)
		}
	}
}

var (
	streamName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	prefixName = regexp.MustCompile(`^[A-Za-z0-9-][A-Za-z0-9_-]{0,31}(\.[A-Za-z0-9_-]{1,32}){0,3}$`)
)

const (
	maxBody           = 31 << 20 // a NATS server's store takes messages up to 32 MiB, headers included
	maxPublishTimeout = 5 * time.Second
)

// check returns what is wrong with values that can be read.
func (c *config) check() (problems configError) {
	wrong := func(variable, format string, args ...any) {
		problems = append(problems, envPrefix+variable+": "+fmt.Sprintf(format, args...))
	}
	pair := func(a, aValue, b, bValue string) {
		if (aValue == "") != (bValue == "") {
			wrong(a, "needs %s%s too, and the other way round", envPrefix, b)
		}
	}
	for variable, addr := range map[string]string{"LISTEN_ADDR": c.ListenAddr, "ADMIN_ADDR": c.AdminAddr, "EMBEDDED_LISTEN": c.EmbeddedListen} {
		_, port, err := net.SplitHostPort(addr)
		if _, number := strconv.ParseUint(port, 10, 16); err != nil || number != nil {
			wrong(variable, "%q is not host:port, with a number as port", addr)
		}
	}
	pair("TLS_CERT_FILE", c.TLSCertFile, "TLS_KEY_FILE", c.TLSKeyFile)
	pair("NATS_TLS_CERT_FILE", c.NATSTLSCertFile, "NATS_TLS_KEY_FILE", c.NATSTLSKeyFile)
	pair("NATS_USER", c.NATSUser, "NATS_PASSWORD", c.NATSPassword)
	if _, err := bus.RedactURL(c.NATSURL); err != nil {
		problems = append(problems, err.Error())
	}
	if c.NATSURL == "" {
		if c.NATSUser == "" && !loopback(c.EmbeddedListen) {
			wrong("EMBEDDED_LISTEN", "%s can be reached from elsewhere; it needs %sNATS_USER and %[2]sNATS_PASSWORD", c.EmbeddedListen, envPrefix)
		}
		if c.StreamReplicas > 1 {
			wrong("STREAM_REPLICAS", "the embedded server is one server; more replicas need %sNATS_URL", envPrefix)
		}
	}
	for variable, name := range map[string]string{"STREAM": c.Stream, "QUARANTINE_STREAM": c.QuarantineStream, "DEDUPE_BUCKET": c.DedupeBucket} {
		if !streamName.MatchString(name) {
			wrong(variable, "%q is not a name of letters, digits, _ and -", name)
		}
		if strings.HasPrefix(name, "KV_") || strings.HasPrefix(name, "OBJ_") {
			wrong(variable, "%q is how NATS names the stream of a bucket", name)
		}
	}
	for variable, prefix := range map[string]string{"SUBJECT_PREFIX": c.SubjectPrefix, "QUARANTINE_PREFIX": c.QuarantinePrefix} {
		if !prefixName.MatchString(prefix) { // clients get their replies under _INBOX
			wrong(variable, "%q is not a subject of letters, digits, _ and -, that does not begin with _", prefix)
		}
	}
	if c.Stream == c.QuarantineStream {
		wrong("QUARANTINE_STREAM", "must not be %sSTREAM", envPrefix)
	}
	if a, b := c.SubjectPrefix+".", c.QuarantinePrefix+"."; strings.HasPrefix(a, b) || strings.HasPrefix(b, a) {
		wrong("QUARANTINE_PREFIX", "must not overlap with %sSUBJECT_PREFIX", envPrefix)
	}
	if c.StreamReplicas < 1 || c.StreamReplicas > 5 {
		wrong("STREAM_REPLICAS", "%d is not between 1 and 5", c.StreamReplicas)
	}
	if !(0 < c.StateWindow && c.StateWindow < c.DuplicateWindow && c.DuplicateWindow < c.DedupeWindow && c.DedupeWindow <= c.StreamMaxAge) {
		wrong("DEDUPE_WINDOW", "it must be 0 < STATE_WINDOW (%v) < DUPLICATE_WINDOW (%v) < DEDUPE_WINDOW (%v) <= STREAM_MAX_AGE (%v)",
			c.StateWindow, c.DuplicateWindow, c.DedupeWindow, c.StreamMaxAge)
	}
	for variable, d := range map[string]time.Duration{"QUARANTINE_MAX_AGE": c.QuarantineMaxAge, "REPLAY_TOLERANCE": c.ReplayTolerance, "SHUTDOWN_TIMEOUT": c.ShutdownTimeout} {
		if d <= 0 {
			wrong(variable, "%v is not above 0", d)
		}
	}
	if c.ShutdownDelay < 0 {
		wrong("SHUTDOWN_DELAY", "%v is below 0", c.ShutdownDelay)
	}
	if c.PublishTimeout <= 0 || c.PublishTimeout > maxPublishTimeout {
		wrong("PUBLISH_TIMEOUT", "%v is not between 0 and %v: a provider wants its answer within 10 s", c.PublishTimeout, maxPublishTimeout)
	}
	if c.MaxBodyBytes < 1 || c.MaxBodyBytes > maxBody {
		wrong("MAX_BODY_BYTES", "%d is not between 1 and %d", c.MaxBodyBytes, maxBody)
	}
	if c.SpoolMaxBytes < 1 {
		wrong("SPOOL_MAX_BYTES", "%d is not above 0", c.SpoolMaxBytes)
	}
	if c.SpoolDir != "" && c.NATSURL == "" && sameDir(c.SpoolDir, c.DataDir) {
		wrong("SPOOL_DIR", "must not be %sDATA_DIR", envPrefix)
	}
	if c.MaxInFlight < 1 {
		wrong("MAX_IN_FLIGHT", "%d is not above 0", c.MaxInFlight)
	}
	if c.MaxInFlightBytes < 3*c.MaxBodyBytes {
		wrong("MAX_IN_FLIGHT_BYTES", "%d is less than three times %sMAX_BODY_BYTES, which one body may take while it is read and verified", c.MaxInFlightBytes, envPrefix)
	}
	if !slices.Contains([]ingress.SchemaMode{ingress.SchemaMark, ingress.SchemaQuarantine, ingress.SchemaOff}, c.SchemaMode) {
		wrong("SCHEMA_MODE", "%q is not mark, quarantine or off", c.SchemaMode)
	}
	if u, err := url.Parse(c.SchemaBaseURL); c.SchemaBaseURL != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.ContainsAny(c.SchemaBaseURL, " \t") || u.RawQuery+u.Fragment != "" || u.User != nil) {
		wrong("SCHEMA_BASE_URL", "it is not a URL like https://bridge.example.com")
	}
	c.SchemaBaseURL = strings.TrimSuffix(c.SchemaBaseURL, "/")
	if !slices.Contains([]string{"", "json", "text"}, c.LogFormat) {
		wrong("LOG_FORMAT", "%q is neither json nor text", c.LogFormat)
	}
	slices.Sort(problems) // maps have no order
	return problems
}

// missing returns a problem for each file that serve needs and that is not there.
func (c *config) missing() (problems configError) {
	for variable, file := range map[string]string{
		"TLS_CERT_FILE": c.TLSCertFile, "TLS_KEY_FILE": c.TLSKeyFile, "NATS_CREDS_FILE": c.NATSCredsFile, "NATS_NKEY_FILE": c.NATSNKeyFile,
		"NATS_TLS_CA_FILE": c.NATSTLSCAFile, "NATS_TLS_CERT_FILE": c.NATSTLSCertFile, "NATS_TLS_KEY_FILE": c.NATSTLSKeyFile,
	} {
		if _, err := os.Stat(file); file != "" && err != nil {
			problems = append(problems, fmt.Sprintf("%s%s: %v", envPrefix, variable, err))
		}
	}
	slices.Sort(problems)
	return problems
}

func sameDir(a, b string) bool {
	a, errA := filepath.Abs(a)
	b, errB := filepath.Abs(b)
	return errA == nil && errB == nil && a == b
}

func loopback(addr string) bool {
	host, _, _ := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (c *config) busConfig() bus.Config {
	return bus.Config{
		URL: c.NATSURL, CredsFile: c.NATSCredsFile, NKeyFile: c.NATSNKeyFile, User: c.NATSUser, Password: c.NATSPassword,
		TLSCA: c.NATSTLSCAFile, TLSCertFile: c.NATSTLSCertFile, TLSKeyFile: c.NATSTLSKeyFile,
		DataDir: c.DataDir, EmbeddedListen: c.EmbeddedListen, LockWait: c.ShutdownTimeout,
		Stream: c.Stream, SubjectPrefix: c.SubjectPrefix, Replicas: c.StreamReplicas,
		StreamMaxAge: c.StreamMaxAge, StreamMaxBytes: int64(c.StreamMaxBytes),
		Bucket: c.DedupeBucket, DedupeWindow: c.DedupeWindow, DuplicateWindow: c.DuplicateWindow,
		QuarantineStream: c.QuarantineStream, QuarantinePrefix: c.QuarantinePrefix,
		QuarantineMaxAge: c.QuarantineMaxAge, QuarantineMaxBytes: int64(c.QuarantineMaxBytes),
		MaxBody: int64(c.MaxBodyBytes), PublishTimeout: c.PublishTimeout,
		Manage: c.ManageStreams, Explicit: c.explicit,
	}
}

func (c *config) spoolConfig() bus.SpoolConfig {
	return bus.SpoolConfig{Dir: c.SpoolDir, MaxBytes: int64(c.SpoolMaxBytes), MaxBody: int64(c.MaxBodyBytes), LockWait: c.ShutdownTimeout}
}

func (c *config) windows() dedupe.Windows {
	return dedupe.Windows{State: c.StateWindow, Dedupe: c.DedupeWindow}
}

func (c *config) limits() ingress.Limits {
	return ingress.Limits{
		MaxBody: int64(c.MaxBodyBytes), MaxInFlight: c.MaxInFlight,
		MaxInFlightBytes: int64(c.MaxInFlightBytes), PublishTimeout: c.PublishTimeout,
	}
}

// shownURL is clientURL without passwords.
func (c *config) shownURL() string {
	shown, err := bus.RedactURL(c.clientURL())
	if err != nil {
		return "BRIDGE_NATS_URL"
	}
	return shown
}

// clientURL is where commands other than serve find NATS.
func (c *config) clientURL() string {
	if c.NATSURL != "" {
		return c.NATSURL
	}
	return "nats://" + reachable(c.EmbeddedListen)
}

// reachable is this machine's name for an address that listens everywhere.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip.IsUnspecified()) {
		return net.JoinHostPort("localhost", port)
	}
	return addr
}
