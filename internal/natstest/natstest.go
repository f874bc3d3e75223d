// Package natstest runs real NATS servers with JetStream inside the process of
// a test. Begin with [Server]; take [Cluster] where replicas or the loss of a
// server matter. Every server listens on the loopback interface only, keeps its
// store under the test's temporary directory, logs nothing, and has ended
// before the test's cleanup returns.
//
// Only _test files import this package.
package natstest

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"
)

// Main runs the tests of a package, and fails if they leave goroutines behind. On a
// busy machine those of a server and its clients take longer to end than goleak's
// own half a second. A stream that is made while its server stops leaves two of its
// store (nats-server 2.15.2); a server that was not stopped leaves many others.
func Main(m *testing.M) {
	code := m.Run()
	for deadline := time.Now().Add(startTimeout); code == 0; {
		err := goleak.Find(
			goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server.(*fileStore).flushStreamStateLoop"),
			goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server/ats.Register.func1"),
		)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// startTimeout bounds the wait for one server to accept connections.
const startTimeout = 10 * time.Second

// Server starts one server on a free port and returns when it accepts
// connections. Options may be changed by opts before it starts.
func Server(tb testing.TB, opts ...func(*server.Options)) *server.Server {
	tb.Helper()
	o := options(tb, opts...)
	s := start(tb, o)
	tb.Cleanup(func() { stop(s) })
	return s
}

// Connect opens a connection that reconnects for ever and is closed at the end
// of the test. Further options come after these defaults and win over them.
func Connect(tb testing.TB, url string, opts ...nats.Option) *nats.Conn {
	tb.Helper()
	nc, err := nats.Connect(url, append([]nats.Option{
		nats.MaxReconnects(-1),
		nats.ReconnectWait(20 * time.Millisecond),
		nats.ReconnectBufSize(-1),
	}, opts...)...)
	if err != nil {
		tb.Fatalf("natstest: connect to %s: %v", url, err)
	}
	tb.Cleanup(nc.Close)
	return nc
}

// Eventually asks cond every 5 ms until it is true, and ends the test with what
// in the message when it is still false after within. Like [testing.T.Fatal] it
// must be called from the test's own goroutine.
func Eventually(tb testing.TB, within time.Duration, what string, cond func() bool) {
	tb.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			if cond() {
				return
			}
			tb.Fatalf("not within %s: %s", within, what)
		}
	}
}

// CaughtUp reports whether a consumer has acknowledged all that its stream holds.
// The server tells a consumer of a message some time after it has acknowledged it:
// that nothing is pending says little.
func CaughtUp(ctx context.Context, js jetstream.JetStream, stream, consumer string) bool {
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return false
	}
	c, err := s.Consumer(ctx, consumer)
	if err != nil {
		return false
	}
	info := c.CachedInfo()
	return info.NumPending == 0 && info.NumAckPending == 0 && info.AckFloor.Stream >= s.CachedInfo().State.LastSeq
}

// UnknownOnce has the next request for messages of the stream answered as by servers
// of a cluster that have not learned yet where a new consumer is.
func UnknownOnce(tb testing.TB, s *server.Server, stream string) {
	tb.Helper()
	next := "$JS.API.CONSUMER.MSG.NEXT." + stream + ".*"
	nc := Connect(tb, s.ClientURL())
	_, err := nc.Subscribe("unknown", func(request *nats.Msg) {
		s.GlobalAccount().RemoveMapping(next)
		request.RespondMsg(&nats.Msg{Header: nats.Header{"Status": {"503"}}})
	})
	if err == nil {
		err = nc.Flush()
	}
	if err == nil {
		err = s.GlobalAccount().AddMapping(next, "unknown")
	}
	if err != nil {
		tb.Fatalf("natstest: %v", err)
	}
}

func options(tb testing.TB, opts ...func(*server.Options)) *server.Options {
	tb.Helper()
	o := &server.Options{
		Host:      "127.0.0.1",
		Port:      server.RANDOM_PORT,
		JetStream: true,
		StoreDir:  tb.TempDir(),
		NoLog:     true,
		NoSigs:    true,
	}
	for _, opt := range opts {
		opt(o)
	}
	return o
}

// start hands the server a copy of o: it writes into its options.
func start(tb testing.TB, o *server.Options) *server.Server {
	tb.Helper()
	s, err := server.NewServer(o.Clone())
	if err != nil {
		tb.Fatalf("natstest: new server: %v", err)
	}
	s.Start()
	if !s.ReadyForConnections(startTimeout) {
		stop(s)
		tb.Fatalf("natstest: server %s:%d not ready within %s", o.Host, o.Port, startTimeout)
	}
	return s
}

func stop(s *server.Server) {
	s.Shutdown()
	s.WaitForShutdown()
}
