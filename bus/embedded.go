package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/nats-io/nats-server/v2/server"
)

// maxHeaders is what the headers of one message may take (nats-server's own
// limit is 64 KiB).
const maxHeaders = 64 << 10

// embedded is a NATS server in this process. Its directory is locked as long
// as it runs: two servers on one store destroy acknowledged messages.
type embedded struct {
	*server.Server
	lock *flock.Flock
}

// serverConfig is what an embedded server is made of.
type serverConfig struct {
	name           string
	dir            string
	listen         string // host:port; empty: only for this process
	user, password string
	maxBody        int64
}

// startEmbedded starts the server that takes the place of an external one.
func startEmbedded(ctx context.Context, cfg Config, log *slog.Logger) (_ *embedded, err error) {
	if cfg.EmbeddedListen == "" {
		return nil, errors.New("BRIDGE_EMBEDDED_LISTEN: no address")
	}
	lock, err := lockDir(ctx, cfg.DataDir, cfg.LockWait)
	if err != nil {
		return nil, fmt.Errorf("BRIDGE_DATA_DIR: %w", err)
	}
	// Tried before the store is opened, so that the error is plain.
	l, err := net.Listen("tcp", cfg.EmbeddedListen)
	if err != nil {
		lock.Unlock()
		return nil, fmt.Errorf("BRIDGE_EMBEDDED_LISTEN: %w", err)
	}
	l.Close()
	s, cut, err := startServer(serverConfig{
		name: "bridge", dir: cfg.DataDir, listen: cfg.EmbeddedListen,
		user: cfg.User, password: cfg.Password, maxBody: cfg.MaxBody,
	}, log)
	if err != nil {
		lock.Unlock()
		return nil, fmt.Errorf("embedded NATS server: %w", err)
	}
	if cut > 0 {
		log.Error("events may be lost: some of what the data directory holds could not be read", "dir", cfg.DataDir, "bytes", cut)
	}
	return &embedded{Server: s, lock: lock}, nil
}

// startServer returns a server that takes connections and syncs every write, and how
// many bytes of its messages it could not read. Its directory must be locked.
func startServer(cfg serverConfig, log *slog.Logger) (_ *server.Server, cut int64, err error) {
	o := &server.Options{
		ServerName: cfg.name,
		DontListen: cfg.listen == "",
		Username:   cfg.user,
		Password:   cfg.password,
		JetStream:  true,
		StoreDir:   cfg.dir,
		SyncAlways: true,
		// How large a stream may get, its own limit says.
		JetStreamMaxStore: 1 << 62,
		MaxPayload:        int32(cfg.maxBody) + maxHeaders,
		MaxPending:        max(server.MAX_PENDING_SIZE, 2*(cfg.maxBody+maxHeaders)),
		NoSigs:            true,
	}
	if cfg.listen != "" {
		host, portText, err := net.SplitHostPort(cfg.listen)
		if err != nil {
			return nil, 0, err
		}
		if o.Port, err = strconv.Atoi(portText); err != nil {
			return nil, 0, fmt.Errorf("port %q is not a number", portText)
		}
		if o.Port == 0 {
			o.Port = server.RANDOM_PORT
		}
		o.Host = host
	}
	s, err := server.NewServer(o)
	if err != nil {
		return nil, 0, err
	}
	kept, err := keep(cfg.dir)
	if err != nil {
		return nil, 0, fmt.Errorf("keeping what %s holds: %w", cfg.dir, err)
	}
	serverLog := &serverLogger{log: log.With("component", "nats-server"), fatal: make(chan string, 1)}
	s.SetLoggerV2(serverLog, false, false, false)
	s.Start()
	select {
	case reason := <-serverLog.fatal:
		err = errors.New(reason)
	default:
		if !s.ReadyForConnections(10 * time.Second) {
			err = errors.New("not ready after 10 s")
		}
	}
	if err == nil {
		err = kept.missing()
	}
	if err == nil {
		cut = kept.cut()
		err = kept.release()
	}
	if err != nil {
		s.Shutdown()
		s.WaitForShutdown()
		return nil, 0, errors.Join(err, kept.putBack())
	}
	return s, cut, nil
}

func (e *embedded) stop() {
	e.Shutdown()
	e.WaitForShutdown()
	e.lock.Unlock()
}

// failed returns the error of a write or sync after which the stream takes
// nothing until the server starts anew. A batch that failed in the middle has
// left messages that the stream counts as stored, and delivers, though they may
// not be synced: while there is such an error, a message may be in the stream and
// not be stored. Without an embedded server the error is nil.
func (e *embedded) failed(stream string) error {
	if e == nil {
		return nil
	}
	health := e.Healthz(&server.HealthzOptions{Account: server.DEFAULT_GLOBAL_ACCOUNT, Stream: stream})
	if health.Error != "" {
		return errors.New(health.Error)
	}
	return nil
}

// lockDir makes dir and takes its lock, waiting for another process to let it
// go.
func lockDir(ctx context.Context, dir string, wait time.Duration) (*flock.Flock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock := flock.New(filepath.Join(dir, "bridge.lock"))
	ok, err := lock.TryLock()
	if !ok && err == nil {
		ctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		ok, err = lock.TryLockContext(ctx, 50*time.Millisecond)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("%s is held by another process (waited %v)", dir, wait)
	case err != nil || !ok:
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return lock, nil
}

// serverLogger writes the server's log as ours. A fatal error is kept instead
// of ending the process. It is called under the server's locks and must not
// call the server.
type serverLogger struct {
	log   *slog.Logger
	fatal chan string
}

var _ server.Logger = (*serverLogger)(nil)

func (l *serverLogger) Noticef(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l *serverLogger) Errorf(format string, v ...any)  { l.log.Error(fmt.Sprintf(format, v...)) }
func (l *serverLogger) Debugf(format string, v ...any)  {}
func (l *serverLogger) Tracef(format string, v ...any)  {}
func (l *serverLogger) Warnf(format string, v ...any) {
	if strings.HasPrefix(format, "Maximum payloads over") {
		return // MAX_BODY_BYTES asks for it
	}
	l.log.Warn(fmt.Sprintf(format, v...))
}
func (l *serverLogger) Fatalf(format string, v ...any) {
	reason := strings.TrimSpace(fmt.Sprintf(format, v...))
	l.log.Error(reason)
	select {
	case l.fatal <- reason:
	default:
	}
}
