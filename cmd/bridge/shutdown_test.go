package main

import (
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/hookbus/bridge/internal/natstest"
)

// status returns the answer of the admin listener, 0 if there is none.
func status(environ []string, path string) int {
	response, err := http.Get("http://" + value(environ, "BRIDGE_ADMIN_ADDR") + path)
	if err != nil {
		return 0
	}
	response.Body.Close()
	return response.StatusCode
}

// With a spool the bridge works without NATS, also over a restart.
func TestSpoolOutlivesTheProcess(t *testing.T) {
	addr := freeAddr(t)
	environ := environment(t, "BRIDGE_NATS_URL=nats://"+addr, "BRIDGE_TRUSTHUB_SECRETS=s", "BRIDGE_SPOOL_DIR="+t.TempDir())
	r := serve(t, environ)
	const sent = 3
	for range sent {
		if code, stdout, _ := command(t, environ, "send", "trusthub"); code != exitDone || !strings.Contains(stdout, "200 spooled") {
			t.Errorf("exit %d: %s", code, stdout)
		}
	}
	if code := r.stop(t); code != exitDone || !strings.Contains(r.stderr.String(), `"msg":"webhooks stay in the spool","messages":3`) {
		t.Errorf("exit %d: %s", code, r.stderr.String())
	}
	s := natstest.Server(t, func(o *server.Options) {
		_, port, _ := net.SplitHostPort(addr)
		o.Port, _ = strconv.Atoi(port)
	})
	r = serve(t, environ)
	natstest.Eventually(t, 20*time.Second, "what was in the spool is stored", func() bool { return strings.Contains(r.stderr.String(), `"messages":3`) && stream(s) == sent })
	if code := r.stop(t); code != exitDone {
		t.Errorf("exit %d: %s", code, r.stderr.String())
	}
}

// stream returns how many messages the stream of events has.
func stream(s *server.Server) uint64 {
	js, err := s.Jsz(&server.JSzOptions{Accounts: true, Streams: true})
	if err != nil {
		return 0
	}
	for _, a := range js.AccountDetails {
		for _, stream := range a.Streams {
			if stream.Name == "WEBHOOKS" {
				return stream.State.Msgs
			}
		}
	}
	return 0
}

// After the signal it says that it is not ready and serves on for the delay; a
// connection that is kept open is closed with its next answer.
func TestShutdownDelay(t *testing.T) {
	environ := environment(t, "BRIDGE_WALDO_SECRETS=s", "BRIDGE_SHUTDOWN_DELAY=3s")
	r := serve(t, environ)
	r.cancel()
	natstest.Eventually(t, 2*time.Second, "it is not ready", func() bool { return status(environ, "/readyz") == http.StatusServiceUnavailable })
	if code, stdout, _ := command(t, environ, "send", "waldo"); code != exitDone || !strings.Contains(stdout, "200 accepted") {
		t.Errorf("exit %d: %s", code, stdout)
	}
	response, err := http.Post("http://"+value(environ, "BRIDGE_LISTEN_ADDR")+"/webhooks/waldo", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if !response.Close {
		t.Error("the connection stays open")
	}
	if code := r.stop(t); code != exitDone {
		t.Errorf("exit %d: %s", code, r.stderr.String())
	}
}

// A request that does not end is cut off when the shutdown timeout has passed.
func TestShutdownTimeout(t *testing.T) {
	environ := environment(t, "BRIDGE_WALDO_SECRETS=s", "BRIDGE_SHUTDOWN_TIMEOUT=300ms")
	r := serve(t, environ)
	c, err := net.Dial("tcp", value(environ, "BRIDGE_LISTEN_ADDR"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answer := make([]byte, 1024)
	fmt.Fprint(c, "POST /webhooks/waldo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n")
	if n, err := c.Read(answer); err != nil || !strings.HasPrefix(string(answer[:n]), "HTTP/1.1 100") {
		t.Fatalf("%v: %s", err, answer[:n])
	}
	if code := r.stop(t); code != exitFailed || !strings.Contains(r.stderr.String(), "requests in flight were cut off") {
		t.Errorf("exit %d: %s", code, r.stderr.String())
	}
}

func TestSpoolDirectoryIsNotTheDataDirectory(t *testing.T) {
	environ := environment(t, "BRIDGE_WALDO_SECRETS=s")
	environ = append(environ, "BRIDGE_SPOOL_DIR="+value(environ, "BRIDGE_DATA_DIR")+"/../"+"x", "BRIDGE_DATA_DIR="+value(environ, "BRIDGE_DATA_DIR")+"/../x")
	code, _, stderr := command(t, environ, "serve")
	if code != exitFailed || !strings.Contains(stderr, "BRIDGE_SPOOL_DIR: must not be BRIDGE_DATA_DIR") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
