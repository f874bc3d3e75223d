// Package bus is the bridge's side of NATS: the connection, the embedded
// server for those who have none, the streams and the bucket, and publishing
// with an acknowledgement.
//
// [Open] connects, [Bus.Run] keeps streams and bucket as they should be, and
// [Bus.Publish] stores one event. What an acknowledgement is worth depends on
// the stream; [Bus.State] says it.
package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
)

// Errors of [Bus.Publish] and [Bus.Quarantine].
var (
	// ErrUnavailable: the event is not known to be stored; sending it again,
	// with the same id, is safe.
	ErrUnavailable = errors.New("bus: unavailable")
	// ErrNotConnected is ErrUnavailable for want of a connection.
	ErrNotConnected = fmt.Errorf("%w: not connected to NATS", ErrUnavailable)
	// ErrNotPublishable: the server will never take this event as it is.
	ErrNotPublishable = errors.New("bus: not publishable")
)

// Config says where NATS is and what to keep there. All sizes are in bytes.
type Config struct {
	URL                            string // comma-separated; empty: embedded server
	CredsFile, NKeyFile            string
	User, Password                 string
	TLSCA, TLSCertFile, TLSKeyFile string

	DataDir        string        // of the embedded server
	EmbeddedListen string        // host:port
	LockWait       time.Duration // how long to wait for another process's DataDir

	Stream         string
	SubjectPrefix  string
	Replicas       int
	StreamMaxAge   time.Duration
	StreamMaxBytes int64 // 0: unlimited

	Bucket          string
	DedupeWindow    time.Duration
	DuplicateWindow time.Duration

	QuarantineStream   string
	QuarantinePrefix   string
	QuarantineMaxAge   time.Duration
	QuarantineMaxBytes int64

	MaxBody        int64
	PublishTimeout time.Duration

	// Manage allows streams and bucket to be created and changed. Without it they
	// are somebody else's and only checked.
	Manage bool
	// Explicit holds the names of the environment variables, without BRIDGE_,
	// that were set: only their settings are changed on what exists.
	Explicit map[string]bool
}

// Bus is a connection to NATS. It is safe for concurrent use.
type Bus struct {
	cfg    Config
	log    *slog.Logger
	server *embedded // nil: external
	nc     *nats.Conn
	js     jetstream.JetStream
	// Of the stream of events and of the bucket; nil: external.
	group, bucketGroup *group

	state   atomic.Pointer[State]
	wake    chan struct{}
	failing atomic.Pointer[failing] // nil: the last event was taken
	changed map[string]string       // what this bus has changed settings to, by stream; of Run only

	incarnation struct {
		sync.Mutex
		created time.Time
		asked   time.Time
		err     error
	}
	metrics *metrics
}

// Open starts the embedded server, if cfg has no URL, and connects. An
// external server need not be reachable: the connection is tried for ever.
// The errors are those of configuration: credentials that cannot be read, an
// address in use, a data directory held by another process.
func Open(ctx context.Context, cfg Config, log *slog.Logger, reg prometheus.Registerer) (_ *Bus, err error) {
	b := &Bus{
		cfg:     cfg,
		log:     log,
		wake:    make(chan struct{}, 1),
		changed: make(map[string]string),
		metrics: newMetrics(),
	}
	b.state.Store(&State{
		Problems: []string{"nothing known of NATS yet"},
		refused:  map[string]string{cfg.Stream: notLookedAt, cfg.QuarantineStream: notLookedAt},
		changed:  make(chan struct{}),
	})
	if err := b.register(reg); err != nil {
		return nil, err
	}
	if cfg.URL == "" {
		if b.server, err = startEmbedded(ctx, cfg, log); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				b.server.stop()
			}
		}()
	}
	options, err := b.options()
	if err != nil {
		return nil, err
	}
	if _, err := RedactURL(cfg.URL); err != nil {
		return nil, err
	}
	if b.nc, err = nats.Connect(cfg.URL, options...); err != nil {
		return nil, fmt.Errorf("connecting to NATS: %w", err)
	}
	// Those who publish have shorter timeouts of their own.
	if b.js, err = jetstream.New(b.nc, jetstream.WithPublishAsyncTimeout(storeTimeout), jetstream.WithPublishAsyncMaxPending(1<<16)); err != nil {
		b.nc.Close()
		return nil, err
	}
	if b.server != nil {
		b.group = newGroup(b.js, cfg.PublishTimeout/3, func(ctx context.Context, msg *nats.Msg) (*jetstream.PubAck, error) {
			return b.attempt(ctx, msg, time.Now().Add(cfg.PublishTimeout)) // ctx ends before
		})
		b.bucketGroup = newGroup(b.js, cfg.PublishTimeout/3, func(ctx context.Context, msg *nats.Msg) (*jetstream.PubAck, error) {
			return b.js.PublishMsg(ctx, msg, once)
		})
	}
	return b, nil
}

func (b *Bus) options() ([]nats.Option, error) {
	options, err := ClientOptions(b.cfg)
	if err != nil {
		return nil, err
	}
	if b.server != nil {
		options = append(options, nats.InProcessServer(b.server.Server))
	}
	return append(options,
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(),
		nats.CustomReconnectDelay(func(attempts int) time.Duration {
			return min(50*time.Millisecond<<min(attempts, 6), 2*time.Second)
		}),
		// What could not be sent must not be sent later: its sender was told
		// that it failed.
		nats.ReconnectBufSize(-1),
		nats.PingInterval(10*time.Second),
		// A server that hangs blocks whoever writes to it, and all who wait behind
		// that for the connection, by default for a minute.
		nats.FlusherTimeout(writeTimeout),
		nats.SetCustomDialer(dialer{net.Dialer{Timeout: dialTimeout}}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil { // nil: closed by us
				b.log.Warn("disconnected from NATS", "error", err)
			}
			b.Wake()
		}),
		nats.ConnectHandler(func(nc *nats.Conn) {
			b.log.Info("connected to NATS", "server", b.serverName(nc))
			b.Wake()
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			b.log.Info("reconnected to NATS", "server", b.serverName(nc))
			b.Wake()
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				b.metrics.denied.Inc()
				b.log.Error("NATS does not permit this user what the bridge needs", "error", err)
				return
			}
			b.log.Warn("NATS client error", "error", err)
		}),
	), nil
}

// serverName says which server the connection has, for the log.
func (b *Bus) serverName(nc *nats.Conn) string {
	if b.server != nil {
		return "embedded"
	}
	return ServerURL(nc)
}

// ServerURL returns the URL of the server that the connection has, without secrets;
// "" if it has none.
func ServerURL(nc *nats.Conn) string {
	u, err := url.Parse(nc.ConnectedUrl())
	if err != nil {
		return ""
	}
	return redacted(u)
}

// ClientOptions returns the options by which any client connects as cfg says:
// name, credentials and TLS. An error names the variable.
func ClientOptions(cfg Config) ([]nats.Option, error) {
	options := []nats.Option{nats.Name("bridge")}
	add := func(variable, value string, option func() nats.Option) {
		if value == "" {
			return
		}
		options = append(options, func(o *nats.Options) error {
			if err := option()(o); err != nil {
				return fmt.Errorf("BRIDGE_%s: %w", variable, err)
			}
			return nil
		})
	}
	if cfg.CredsFile != "" { // read at every connect, so look now
		if _, err := os.Stat(cfg.CredsFile); err != nil {
			return nil, fmt.Errorf("BRIDGE_NATS_CREDS_FILE: %w", err)
		}
		options = append(options, nats.UserCredentials(cfg.CredsFile))
	}
	if cfg.NKeyFile != "" {
		nkey, err := nats.NkeyOptionFromSeed(cfg.NKeyFile)
		if err != nil {
			return nil, fmt.Errorf("BRIDGE_NATS_NKEY_FILE: %w", err)
		}
		options = append(options, nkey)
	}
	add("NATS_USER", cfg.User, func() nats.Option { return nats.UserInfo(cfg.User, cfg.Password) })
	add("NATS_TLS_CA_FILE", cfg.TLSCA, func() nats.Option { return nats.RootCAs(cfg.TLSCA) })
	add("NATS_TLS_CERT_FILE", cfg.TLSCertFile, func() nats.Option { return nats.ClientCert(cfg.TLSCertFile, cfg.TLSKeyFile) })
	return options, nil
}

// redacted returns the URL without its password or, where it has no password, its
// user, which for NATS is a token.
func redacted(u *url.URL) string {
	if _, user := u.User.Password(); u.User != nil && !user {
		hidden := *u
		hidden.User = url.User("xxxxx")
		return hidden.String()
	}
	return u.Redacted()
}

// RedactURL returns a comma-separated list of NATS URLs without secrets. The error
// says which item is not a URL, but does not quote it.
func RedactURL(list string) (string, error) {
	if list == "" {
		return "", nil
	}
	servers := strings.Split(list, ",")
	for i, server := range servers {
		server = strings.TrimSpace(server)
		if !strings.Contains(server, "://") {
			server = "nats://" + server
		}
		u, err := url.Parse(server)
		if err != nil || u.Hostname() == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) {
			return "", fmt.Errorf("BRIDGE_NATS_URL: item %d is not a URL like nats://host:4222", i+1)
		}
		servers[i] = redacted(u)
	}
	return strings.Join(servers, ","), nil
}

// JetStream returns the connection's JetStream context.
func (b *Bus) JetStream() jetstream.JetStream { return b.js }

// Connected reports whether there is a connection to NATS now.
func (b *Bus) Connected() bool { return b.nc.IsConnected() }

// Stream returns the name of the stream of events.
func (b *Bus) Stream() string { return b.cfg.Stream }

// Close lets what was sent go out, closes the connection and stops the
// embedded server. The context bounds the wait.
func (b *Bus) Close(ctx context.Context) error {
	var err error
	closed := make(chan struct{})
	b.nc.SetClosedHandler(func(*nats.Conn) { close(closed) })
	if b.nc.IsConnected() && b.nc.Drain() == nil {
		select {
		case <-closed:
		case <-ctx.Done():
			err = fmt.Errorf("draining the NATS connection: %w", ctx.Err())
		}
	}
	b.nc.Close()
	if b.server != nil {
		b.server.stop()
	}
	return err
}
