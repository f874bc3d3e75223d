package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
)

func TestMain(m *testing.M) { natstest.Main(m) }

// output is what a command has printed so far.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// command runs `bridge args` to its end.
func command(t *testing.T, environ []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs output
	code = run(t.Context(), args, environ, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// running is a command that goes on until it is stopped.
type running struct {
	stdout, stderr output
	cancel         context.CancelFunc
	code           chan int
}

func launch(t *testing.T, environ []string, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{cancel: cancel, code: make(chan int, 1)}
	go func() { r.code <- run(ctx, args, environ, strings.NewReader(""), &r.stdout, &r.stderr) }()
	t.Cleanup(func() {
		cancel()
		http.DefaultClient.CloseIdleConnections()
	})
	return r
}

// stop ends it as a signal would and returns its exit code.
func (r *running) stop(t *testing.T) int {
	t.Helper()
	r.cancel()
	select {
	case code := <-r.code:
		return code
	case <-time.After(30 * time.Second):
		t.Fatalf("does not stop:\n%s", r.stderr.String())
		return 0
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", natstest.FreePort(t))
}

// environment returns the variables of a bridge on ports of its own.
func environment(t *testing.T, more ...string) []string {
	t.Helper()
	return append([]string{
		"BRIDGE_LISTEN_ADDR=" + freeAddr(t), "BRIDGE_ADMIN_ADDR=" + freeAddr(t),
		"BRIDGE_EMBEDDED_LISTEN=" + freeAddr(t), "BRIDGE_DATA_DIR=" + t.TempDir(),
		"BRIDGE_SHUTDOWN_TIMEOUT=5s",
	}, more...)
}

func value(environ []string, name string) string {
	for _, v := range environ {
		if rest, ok := strings.CutPrefix(v, name+"="); ok {
			return rest
		}
	}
	return ""
}

// serve starts `bridge serve` and waits until it is ready.
func serve(t *testing.T, environ []string) *running {
	t.Helper()
	r := launch(t, environ, "serve")
	natstest.Eventually(t, 20*time.Second, "bridge serve is ready", func() bool {
		select {
		case code := <-r.code:
			t.Fatalf("exit %d: %s", code, r.stderr.String())
		default:
		}
		response, err := http.Get("http://" + value(environ, "BRIDGE_ADMIN_ADDR") + "/readyz")
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	return r
}

// scrape returns the metrics.
func scrape(t *testing.T, environ []string) string {
	t.Helper()
	response, err := http.Get("http://" + value(environ, "BRIDGE_ADMIN_ADDR") + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestDev(t *testing.T) {
	environ := environment(t)
	r := launch(t, environ, "dev")
	natstest.Eventually(t, 30*time.Second, "the tour is over", func() bool {
		select {
		case code := <-r.code:
			t.Fatalf("exit %d: %s%s", code, r.stdout.String(), r.stderr.String())
		default:
		}
		return strings.Contains(r.stdout.String(), "send waldo")
	})
	out := r.stdout.String()
	for _, p := range normalize.Providers() {
		for _, sample := range p.Samples() {
			if !strings.Contains(out, "POST /webhooks/"+p.Name+"  "+sample.Name+"  ->  200 accepted") {
				t.Errorf("%s %s was not accepted", p.Name, sample.Name)
			}
			if !strings.Contains(out, "  "+normalize.Subject("webhooks", p.Name, sample.Kind)+"  ") {
				t.Errorf("%s %s was not received", p.Name, sample.Name)
			}
		}
	}
	if !strings.Contains(out, "200 duplicate") {
		t.Error("no duplicate was shown")
	}
	// The lines that it says to try next do work.
	lines := regexp.MustCompile(`(?m)^  go run \./cmd/bridge (send .*)$`).FindAllStringSubmatch(out, -1)
	if len(lines) != len(normalize.Providers()) {
		t.Fatalf("%d lines to try next", len(lines))
	}
	for _, line := range lines {
		if code, stdout, stderr := command(t, environ, strings.Fields(line[1])...); code != 0 || !strings.Contains(stdout, "200 accepted") {
			t.Errorf("bridge %s: exit %d %s%s", line[1], code, stdout, stderr)
		}
	}
	if r.stderr.String() != "" {
		t.Errorf("on stderr: %s", r.stderr.String())
	}
	if code := r.stop(t); code != 0 {
		t.Errorf("exit %d: %s", code, r.stderr.String())
	}
}

func TestDevWithTLS(t *testing.T) {
	dir := t.TempDir()
	natstest.WriteCertificate(t, dir, 1)
	r := launch(t, environment(t, "BRIDGE_TLS_CERT_FILE="+filepath.Join(dir, "tls.crt"), "BRIDGE_TLS_KEY_FILE="+filepath.Join(dir, "tls.key")), "dev")
	natstest.Eventually(t, 30*time.Second, "the tour is over", func() bool { return strings.Contains(r.stdout.String(), "send waldo") })
	if code := r.stop(t); code != exitDone {
		t.Errorf("exit %d: %s", code, r.stderr.String())
	}
}

func TestDevIsRefused(t *testing.T) {
	code, stdout, stderr := command(t, environment(t, "BRIDGE_MAX_BODY_BYTES=100"), "dev")
	if code != exitFailed || !strings.Contains(stdout, "413 body_too_large") || !strings.Contains(stderr, "was not accepted") {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
}

func TestDevWithEmptySecretsFile(t *testing.T) {
	code, _, stderr := command(t, environment(t, "BRIDGE_WALDO_SECRETS_FILE="+file(t, "\n")), "dev")
	if code != exitFailed || !strings.Contains(stderr, "BRIDGE_WALDO_SECRETS_FILE: holds no secret") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

// A file that changes between the first reading and the watch is not missed.
func TestWatchReadsOnceMore(t *testing.T) {
	secrets := file(t, "old")
	content := make(chan string, 1)
	ctx, cancel := context.WithCancel(t.Context())
	wait, err := watch(ctx, map[string][]func() error{secrets: {func() error {
		text, err := os.ReadFile(secrets)
		content <- string(text)
		return err
	}}}, nil, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	defer wait()
	defer cancel()
	select {
	case got := <-content:
		if got != "old" {
			t.Errorf("read %q", got)
		}
	case <-time.After(10 * time.Second):
		t.Error("not read")
	}
}

// A relative name, and a folder that has two names.
func TestWatchByAnyName(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := errors.Join(os.Mkdir("d", 0o755), os.Symlink("d", "link")); err != nil {
		t.Fatal(err)
	}
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("bare", "old")
	write("d/one", "old")
	var reads [3]atomic.Int32
	reload := make(map[string][]func() error)
	for i, name := range []string{"bare", "d/one", "link/one"} {
		reload[name] = []func() error{func() error { reads[i].Add(1); return nil }}
	}
	ctx, cancel := context.WithCancel(t.Context())
	wait, err := watch(ctx, reload, nil, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	defer wait()
	defer cancel()
	write("bare", "new")
	write("d/one", "new")
	natstest.Eventually(t, 10*time.Second, "all are read again", func() bool {
		return reads[0].Load() >= 2 && reads[1].Load() >= 2 && reads[2].Load() >= 2
	})
}

func TestServeWithoutSecret(t *testing.T) {
	code, _, stderr := command(t, environment(t), "serve")
	if code != exitFailed {
		t.Errorf("exit %d", code)
	}
	for _, want := range []string{"BRIDGE_DATASPIKE_SECRETS", "BRIDGE_DFNS_SECRETS", "BRIDGE_OSAPHER_SECRETS", "BRIDGE_TRUSTHUB_SECRETS", "BRIDGE_WALDO_SECRETS", "bridge dev"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q is not in %q", want, stderr)
		}
	}
}

// Every problem at once, by its variable, and never a secret.
func TestWrongConfiguration(t *testing.T) {
	for name, c := range map[string]struct {
		environ []string
		want    []string
	}{
		"values that cannot be read": {
			[]string{"BRIDGE_MAX_BODY_BYTES=lots", "BRIDGE_STREAM_MAX_AGE=1 month", "BRIDGE_MAX_IN_FLIGHT=1.5", "BRIDGE_MANAGE_STREAMS=perhaps", "BRIDGE_LOG_LEVEL=loud"},
			[]string{"BRIDGE_MAX_BODY_BYTES: ", "BRIDGE_STREAM_MAX_AGE: ", "BRIDGE_MAX_IN_FLIGHT: ", "BRIDGE_MANAGE_STREAMS: ", "BRIDGE_LOG_LEVEL: "},
		},
		"values that cannot be": {
			[]string{"BRIDGE_LISTEN_ADDR=8080", "BRIDGE_STREAM=a.b", "BRIDGE_SUBJECT_PREFIX=a.>", "BRIDGE_STREAM_REPLICAS=9", "BRIDGE_NATS_URL=nats://x", "BRIDGE_STATE_WINDOW=1h", "BRIDGE_PUBLISH_TIMEOUT=9s", "BRIDGE_MAX_IN_FLIGHT_BYTES=1KiB", "BRIDGE_LOG_FORMAT=xml", "BRIDGE_NATS_USER=u", "BRIDGE_TLS_CERT_FILE=/c", "BRIDGE_SHUTDOWN_DELAY=-1s", "BRIDGE_MAX_BODY_BYTES=3GiB"},
			[]string{"BRIDGE_LISTEN_ADDR: ", "BRIDGE_STREAM: ", "BRIDGE_SUBJECT_PREFIX: ", "BRIDGE_STREAM_REPLICAS: ", "BRIDGE_DEDUPE_WINDOW: ", "BRIDGE_PUBLISH_TIMEOUT: ", "BRIDGE_MAX_IN_FLIGHT_BYTES: ", "BRIDGE_LOG_FORMAT: ", "BRIDGE_NATS_USER: ", "BRIDGE_TLS_CERT_FILE: ", "BRIDGE_SHUTDOWN_DELAY: ", "BRIDGE_MAX_BODY_BYTES: "},
		},
		"values that look right": {
			[]string{"BRIDGE_LOG_LEVEL=loud", "BRIDGE_MAX_BODY_BYTES=1,5MiB", "BRIDGE_LISTEN_ADDR=:", "BRIDGE_ADMIN_ADDR=:99999", "BRIDGE_EMBEDDED_LISTEN=127.0.0.1:nats", "BRIDGE_NATS_URL=nats://a,http://b", "BRIDGE_STREAM=KV_x", "BRIDGE_QUARANTINE_STREAM=OBJ_x", "BRIDGE_SUBJECT_PREFIX=_INBOX", "BRIDGE_TLS_CERT_FILE=/no/cert", "BRIDGE_TLS_KEY_FILE=/no/key", "BRIDGE_NATS_CREDS_FILE=/no/creds"},
			[]string{"BRIDGE_LOG_LEVEL: ", "BRIDGE_MAX_BODY_BYTES: ", "BRIDGE_LISTEN_ADDR: ", "BRIDGE_ADMIN_ADDR: ", "BRIDGE_EMBEDDED_LISTEN: ", "BRIDGE_NATS_URL: item 2 ", "BRIDGE_STREAM: ", "BRIDGE_QUARANTINE_STREAM: ", "BRIDGE_SUBJECT_PREFIX: ", "BRIDGE_TLS_CERT_FILE: ", "BRIDGE_TLS_KEY_FILE: ", "BRIDGE_NATS_CREDS_FILE: "},
		},
		"an empty item": {
			[]string{"BRIDGE_NATS_URL=nats://a,"},
			[]string{"BRIDGE_NATS_URL: item 2 "},
		},
		"the embedded server": {
			[]string{"BRIDGE_EMBEDDED_LISTEN=0.0.0.0:4222", "BRIDGE_STREAM_REPLICAS=3", "BRIDGE_QUARANTINE_STREAM=WEBHOOKS", "BRIDGE_QUARANTINE_PREFIX=webhooks.q"},
			[]string{"BRIDGE_EMBEDDED_LISTEN: ", "BRIDGE_STREAM_REPLICAS: ", "BRIDGE_QUARANTINE_STREAM: ", "BRIDGE_QUARANTINE_PREFIX: "},
		},
		"secrets": {
			[]string{"BRIDGE_MAX_IN_FLIGHT=x", "BRIDGE_STREAM=a.b", "BRIDGE_DATASPIKE_SECRETS=whsec_5ecre7", "BRIDGE_WALDO_SECRETS=5ecre7,,x", "BRIDGE_DFNS_SECRETS_FILE=/no/such/file", "BRIDGE_TRUSTHUB_SECRETS= ", "BRIDGE_OSAPHER_SECRETS_FILE=" + file(t, "\n \n")},
			[]string{"BRIDGE_MAX_IN_FLIGHT: ", "BRIDGE_STREAM: ", "BRIDGE_DATASPIKE_SECRETS: slot 0", "BRIDGE_WALDO_SECRETS: slot 1", "BRIDGE_DFNS_SECRETS_FILE: ", "BRIDGE_TRUSTHUB_SECRETS: slot 0", "BRIDGE_OSAPHER_SECRETS_FILE: "},
		},
		"secrets that are no text": {
			[]string{
				"BRIDGE_STREAM=a.b", "BRIDGE_DFNS_SECRETS_FILE=" + file(t, "\xef\xbb\xbf\n"),
				"BRIDGE_TRUSTHUB_SECRETS_FILE=" + file(t, "5\x00e\x00c\x00"), "BRIDGE_OSAPHER_SECRETS_FILE=" + file(t, "\xff\xfe5\x00e\x00"),
			},
			[]string{"BRIDGE_DFNS_SECRETS_FILE: unusable signing secret: none given", "BRIDGE_TRUSTHUB_SECRETS_FILE: /", "BRIDGE_OSAPHER_SECRETS_FILE: /"},
		},
		"secrets in both": {
			[]string{"BRIDGE_DATASPIKE_SECRETS=ab", "BRIDGE_DATASPIKE_SECRETS_FILE=" + file(t, "5ecre7")},
			[]string{"BRIDGE_DATASPIKE_SECRETS and BRIDGE_DATASPIKE_SECRETS_FILE: slot 1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, stderr := command(t, append(environment(t), c.environ...), "serve")
			if code != exitFailed {
				t.Errorf("exit %d", code)
			}
			for _, want := range c.want {
				if !strings.Contains(stderr, "\n  "+want) {
					t.Errorf("no %q in:\n%s", want, stderr)
				}
			}
			if strings.Contains(stderr, "5ecre7") {
				t.Errorf("a secret in:\n%s", stderr)
			}
		})
	}
}

func file(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestUsage(t *testing.T) {
	for args, want := range map[string]string{
		"frobnicate":                    "unexpected argument",
		"send":                          "expected",
		"send stripe":                   "must be one of",
		"send dfns --count 0":           "--count",
		"send dfns --file x --type y":   "exclude each other",
		"send dfns":                     "BRIDGE_DFNS_SECRETS",
		"send dfns --type z --secret s": "wallet.transfer.requested",
		"send dfns --secret s --url x":  "--url",
		"tail --since soon":             "--since",
		"tail --since=-1h":              "--since",
		"serve --port 1":                "unknown flag",
		"replay --consumer= --since 1h": "--consumer has no value",
		"replay --id= --id x":           "--id has no value",
		"status --admin=":               "--admin has no value",
		"status --admin x,,y":           "--admin has no value",
	} {
		code, _, stderr := command(t, environment(t), strings.Fields(args)...)
		if code != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("bridge %s: exit %d: %s", args, code, stderr)
		}
	}
	for _, args := range []string{"--help", "serve --help", "dev --help", "send --help", "tail --help", "replay --help", "version --help", "version", "version --json", "asyncapi --json"} {
		code, stdout, stderr := command(t, nil, strings.Fields(args)...)
		if code != exitDone || stdout == "" || stderr != "" {
			t.Errorf("bridge %s: exit %d: %s%s", args, code, stdout, stderr)
		}
	}
}

func TestNoNATS(t *testing.T) {
	environ := environment(t)
	if code, _, stderr := command(t, environ, "tail"); code != exitFailed || !strings.Contains(stderr, "no connection to NATS at nats://"+value(environ, "BRIDGE_EMBEDDED_LISTEN")) {
		t.Errorf("tail: exit %d: %s", code, stderr)
	}
	if code, _, stderr := command(t, environ, "send", "waldo", "--secret", "s"); code != exitFailed || !strings.Contains(stderr, "connection refused") {
		t.Errorf("send: exit %d: %s", code, stderr)
	}
	plain := natstest.Server(t, func(o *server.Options) { o.JetStream = false })
	if code, _, stderr := command(t, []string{"BRIDGE_NATS_URL=" + plain.ClientURL()}, "tail"); code != exitFailed || !strings.Contains(stderr, "JetStream does not answer") {
		t.Errorf("tail: exit %d: %s", code, stderr)
	}
	s := natstest.Server(t)
	if code, _, stderr := command(t, []string{"BRIDGE_NATS_URL=" + s.ClientURL()}, "tail"); code != exitFailed || !strings.Contains(stderr, "no stream WEBHOOKS") {
		t.Errorf("tail: exit %d: %s", code, stderr)
	}
}

func TestSendAndTail(t *testing.T) {
	environ := environment(t, "BRIDGE_DFNS_SECRETS=one, two", "BRIDGE_WALDO_SECRETS=w", "BRIDGE_LOG_LEVEL=debug")
	r := serve(t, environ)
	tail := launch(t, environ, "tail", "--since", "1h", "--json", "--filter", "webhooks.dfns.>")
	send := func(want int, args ...string) string {
		t.Helper()
		code, stdout, stderr := command(t, environ, append([]string{"send"}, args...)...)
		if code != want {
			t.Fatalf("bridge send %v: exit %d: %s%s", args, code, stdout, stderr)
		}
		return stdout
	}
	if out := send(exitDone, "dfns", "--count", "3"); strings.Count(out, "200 accepted") != 3 {
		t.Errorf("three new events: %s", out)
	}
	if out := send(exitDone, "dfns", "--count", "3", "--repeat", "--type", "wallet.transfer.requested"); strings.Count(out, "200 accepted") != 1 || strings.Count(out, "200 duplicate") != 2 {
		t.Errorf("one event three times: %s", out)
	}
	if out := send(exitDone, "dfns", "--type", "co.dfns.wallet.signature.requested", "--secret", "two", "--url", "http://"+value(environ, "BRIDGE_LISTEN_ADDR"), "--json"); !json.Valid([]byte(out)) {
		t.Errorf("not JSON: %s", out)
	}
	body := file(t, "{\"event\":\"flag\",\n \"flag\":true,\"customerId\":\"c\"}")
	send(exitDone, "waldo", "--file", body)
	if out := send(exitFailed, "waldo", "--secret", "wrong"); !strings.Contains(out, "401 signature_mismatch") {
		t.Errorf("wrong secret: %s", out)
	}
	if out := send(exitFailed, "osapher", "--secret", "x"); !strings.Contains(out, "404 unknown_provider") {
		t.Errorf("provider without secret: %s", out)
	}
	js, err := jetstream.New(natstest.Connect(t, "nats://"+value(environ, "BRIDGE_EMBEDDED_LISTEN")))
	if err != nil {
		t.Fatal(err)
	}
	// A copy of the stream has no subjects of its own.
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "COPY", Mirror: &jetstream.StreamSource{Name: "WEBHOOKS"}}); err != nil {
		t.Fatal(err)
	}
	ofCopy := launch(t, append(environ, "BRIDGE_STREAM=COPY"), "tail", "--since", "1h", "--filter", "webhooks.dfns.>")
	natstest.Eventually(t, 10*time.Second, "tail has printed the five events of the copy", func() bool { return strings.Count(ofCopy.stdout.String(), "\n") >= 5 })
	if code := ofCopy.stop(t); code != exitDone {
		t.Errorf("tail of a copy: exit %d: %s", code, ofCopy.stderr.String())
	}
	if code, _, stderr := command(t, environ, "tail", "--filter", "other.>"); code != exitUsage || !strings.Contains(stderr, "the stream has webhooks.>") {
		t.Errorf("a filter outside of the stream: exit %d: %s", code, stderr)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "REPLAY_x", Subjects: []string{"replay.x.>"}}); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := command(t, append(environ, "BRIDGE_STREAM=REPLAY_x"), "tail", "--provider", "dfns"); code != exitUsage || !strings.Contains(stderr, "--provider dfns: the stream has replay.x.>") {
		t.Errorf("a provider in a replay: exit %d: %s", code, stderr)
	}
	natstest.Eventually(t, 10*time.Second, "tail has printed the five events", func() bool { return strings.Count(tail.stdout.String(), "\n") >= 5 })
	for line := range strings.Lines(tail.stdout.String()) {
		var ce struct {
			Type string
			Data json.RawMessage
		}
		if err := json.Unmarshal([]byte(line), &ce); err != nil || !strings.HasPrefix(ce.Type, "co.dfns.") || len(ce.Data) == 0 {
			t.Errorf("%v: %s", err, line)
		}
	}
	if code := tail.stop(t); code != exitDone {
		t.Errorf("tail: exit %d: %s", code, tail.stderr.String())
	}
	if code := r.stop(t); code != exitDone {
		t.Errorf("serve: exit %d: %s", code, r.stderr.String())
	}
}

// What answers is no bridge.
func TestSendElsewhere(t *testing.T) {
	var got atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got.Add(1)
		switch r.URL.Path {
		case "/moved":
			http.Redirect(w, r, "/plain", http.StatusMovedPermanently)
		case "/broken":
			w.WriteHeader(http.StatusBadGateway)
			fmt.Fprint(w, `{"status":200,"provider":"x","result":"accepted"}`)
		case "/escapes":
			w.WriteHeader(http.StatusBadGateway)
			fmt.Fprint(w, `{"reason":"\u001b[2J"}`)
		}
	}))
	defer s.Close()
	for path, want := range map[string]string{"/moved": "waldo  301", "/broken": "waldo  502", "/escapes": "waldo  502", "/plain": "waldo  200  ("} {
		code, stdout, _ := command(t, environment(t), "send", "waldo", "--secret", "s", "--url", s.URL+path)
		if code != exitFailed || !strings.HasPrefix(stdout, want) || strings.Contains(stdout, "\x1b") {
			t.Errorf("%s: exit %d: %q", path, code, stdout)
		}
	}
	if n := got.Load(); n != 4 {
		t.Errorf("%d requests", n)
	}
}

// What is stored before a restart is known after it; a second process on the
// same directory is refused.
func TestRestart(t *testing.T) {
	environ := environment(t, "BRIDGE_DFNS_SECRETS=s")
	first := serve(t, environ)
	sendOne := func() string {
		_, stdout, stderr := command(t, environ, "send", "dfns", "--repeat")
		return stdout + stderr
	}
	if out := sendOne(); !strings.Contains(out, "200 accepted") {
		t.Fatal(out)
	}
	other := append(environment(t, "BRIDGE_DFNS_SECRETS=s", "BRIDGE_SHUTDOWN_TIMEOUT=100ms"), "BRIDGE_DATA_DIR="+value(environ, "BRIDGE_DATA_DIR"))
	if code, _, stderr := command(t, other, "serve"); code != exitFailed || !strings.Contains(stderr, "held by another process") {
		t.Errorf("a second process: exit %d: %s", code, stderr)
	}
	if code := first.stop(t); code != exitDone {
		t.Fatalf("exit %d: %s", code, first.stderr.String())
	}
	second := serve(t, environ)
	if out := sendOne(); !strings.Contains(out, "200 duplicate") {
		t.Error(out)
	}
	if code := second.stop(t); code != exitDone {
		t.Errorf("exit %d: %s", code, second.stderr.String())
	}
}

// Two bridges on one stream: an event sent to one and repeated to the other.
func TestTwoBridges(t *testing.T) {
	s := natstest.Server(t)
	shared := []string{"BRIDGE_NATS_URL=" + s.ClientURL(), "BRIDGE_DFNS_SECRETS=s", "BRIDGE_TRUSTHUB_SECRETS=s"}
	a, b := environment(t, shared...), environment(t, shared...)
	first := launch(t, a, "serve") // both start at once
	second := serve(t, b)
	natstest.Eventually(t, 10*time.Second, "both answer", func() bool {
		code, _, _ := command(t, a, "send", "dfns")
		return code == exitDone
	})
	before := count(t, s.ClientURL())
	for _, p := range []string{"dfns", "trusthub"} {
		_, one, _ := command(t, a, "send", p, "--repeat")
		_, two, _ := command(t, b, "send", p, "--repeat")
		if !strings.Contains(one, "200 accepted") || !strings.Contains(two, "200 duplicate") {
			t.Errorf("%s: %s%s", p, one, two)
		}
	}
	if n := count(t, s.ClientURL()) - before; n != 2 {
		t.Errorf("%d stored", n)
	}
	for _, r := range []*running{first, second} {
		if code := r.stop(t); code != exitDone {
			t.Errorf("exit %d: %s", code, r.stderr.String())
		}
	}
}

func count(t *testing.T, url string) uint64 {
	t.Helper()
	js, err := jetstream.New(natstest.Connect(t, url))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), "WEBHOOKS")
	if err != nil {
		t.Fatal(err)
	}
	return stream.CachedInfo().State.Msgs
}

// NATS may come up after the bridge.
func TestNATSComesLater(t *testing.T) {
	addr := freeAddr(t)
	environ := environment(t, "BRIDGE_NATS_URL=nats://"+addr, "BRIDGE_WALDO_SECRETS=s")
	r := launch(t, environ, "serve")
	admin := "http://" + value(environ, "BRIDGE_ADMIN_ADDR")
	status := func(path string) int {
		response, err := http.Get(admin + path)
		if err != nil {
			return 0
		}
		response.Body.Close()
		return response.StatusCode
	}
	natstest.Eventually(t, 10*time.Second, "it lives and is not ready", func() bool {
		return status("/livez") == http.StatusOK && status("/readyz") == http.StatusServiceUnavailable
	})
	if code, stdout, _ := command(t, environ, "send", "waldo"); code != exitFailed || !strings.Contains(stdout, "503 bus_unavailable") {
		t.Errorf("exit %d: %s", code, stdout)
	}
	natstest.Server(t, func(o *server.Options) {
		_, port, _ := net.SplitHostPort(addr)
		o.Port, _ = strconv.Atoi(port)
	})
	natstest.Eventually(t, 20*time.Second, "it is ready", func() bool { return status("/readyz") == http.StatusOK })
	if code, stdout, _ := command(t, environ, "send", "waldo"); code != exitDone {
		t.Errorf("exit %d: %s", code, stdout)
	}
	if code := r.stop(t); code != exitDone {
		t.Errorf("exit %d: %s", code, r.stderr.String())
	}
}

// A secret that is exchanged as Kubernetes does it: a new directory, and a
// symlink that is moved over.
func TestSecretsFileIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	generation := func(name, content string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "waldo"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(name, filepath.Join(dir, "..tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	generation("..1", "first\n\n")
	if err := os.Symlink(filepath.Join("..data", "waldo"), filepath.Join(dir, "waldo")); err != nil {
		t.Fatal(err)
	}
	environ := environment(t, "BRIDGE_WALDO_SECRETS_FILE="+filepath.Join(dir, "waldo"))
	r := serve(t, environ)
	works := func(secret string) bool {
		code, _, _ := command(t, environ, "send", "waldo", "--secret", secret)
		return code == exitDone
	}
	if !works("first") || works("second") {
		t.Fatal("the first secret is not the one")
	}
	generation("..2", " first \nsecond\n")
	natstest.Eventually(t, 10*time.Second, "the second secret works", func() bool { return works("second") })
	if !works("first") {
		t.Error("the first secret works no more")
	}
	generation("..3", "\n") // a mistake: what was read before stays
	natstest.Eventually(t, 10*time.Second, "the mistake is logged", func() bool { return strings.Contains(r.stderr.String(), "cannot be used") })
	if !works("second") {
		t.Error("a file without a secret has taken the secrets away")
	}
	successful := `bridge_last_reload_successful{file="` + filepath.Join(dir, "waldo") + `"} `
	if text := scrape(t, environ); !strings.Contains(text, successful+"0\n") {
		t.Errorf("the mistake is not in the metrics:\n%s", text)
	}
	generation("..4", "third\n")
	natstest.Eventually(t, 10*time.Second, "the first secret works no more", func() bool { return works("third") && !works("first") })
	if text := scrape(t, environ); !strings.Contains(text, successful+"1\n") {
		t.Errorf("the file that can be used is not in the metrics:\n%s", text)
	}
	if code := r.stop(t); code != exitDone {
		t.Errorf("exit %d: %s", code, r.stderr.String())
	}
}

// A byte order mark was taken for a part of the first secret.
func TestSecretsFileWithByteOrderMark(t *testing.T) {
	environ := environment(t, "BRIDGE_WALDO_SECRETS_FILE="+file(t, "\ufeffsecret\r\n"))
	r := serve(t, environ)
	if code, stdout, stderr := command(t, environ, "send", "waldo", "--secret", "secret"); code != exitDone {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
	r.stop(t)
}

// Files that change beside it, and a file that several providers share.
func TestSharedSecretsFile(t *testing.T) {
	dir := t.TempDir()
	secrets := filepath.Join(dir, "secrets")
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("secrets", "old")
	environ := environment(t, "BRIDGE_WALDO_SECRETS_FILE="+secrets, "BRIDGE_DFNS_SECRETS_FILE="+secrets, "BRIDGE_OSAPHER_SECRETS_FILE="+secrets)
	r := serve(t, environ)
	for i := range 100 {
		write("bridge.log", fmt.Sprint(i))
	}
	write("secrets", "new")
	natstest.Eventually(t, 10*time.Second, "all take the new secret and not the old one", func() bool {
		for _, p := range []string{"waldo", "dfns", "osapher"} {
			if code, _, _ := command(t, environ, "send", p, "--secret", "new"); code != exitDone {
				return false
			}
			if code, _, _ := command(t, environ, "send", p, "--secret", "old"); code == exitDone {
				return false
			}
		}
		return true
	})
	if n := strings.Count(r.stderr.String(), "file read again") + strings.Count(r.stderr.String(), "cannot be used"); n > 2 { // at most once more, half written
		t.Errorf("read again %d times", n)
	}
	r.stop(t)
}

// A password in a URL is shown nowhere.
func TestPasswordInURL(t *testing.T) {
	for _, url := range []string{"nats://user:sekrit@127.0.0.1:1", "user:sekrit@127.0.0.1:1", "user:sekrit%zz@127.0.0.1:1", "nats://127.0.0.1:1,nats://user:sekrit%zz@127.0.0.1:1"} {
		for _, args := range []string{"tail", "serve"} {
			if args == "serve" && !strings.Contains(url, "%zz") {
				continue // it waits for NATS
			}
			code, stdout, stderr := command(t, environment(t, "BRIDGE_NATS_URL="+url, "BRIDGE_WALDO_SECRETS=s"), args)
			if code != exitFailed || strings.Contains(stdout+stderr, "sekrit") {
				t.Errorf("%s with %s: exit %d: %s%s", args, url, code, stdout, stderr)
			}
		}
	}
}

// A URL whose user has no password holds a token.
func TestTokenInURL(t *testing.T) {
	if code, _, stderr := command(t, environment(t, "BRIDGE_NATS_URL=nats://sekrit@127.0.0.1:1"), "tail"); code != exitFailed || strings.Contains(stderr, "sekrit") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	s := natstest.Server(t, func(o *server.Options) { o.Authorization = "sekrit" })
	environ := environment(t, "BRIDGE_NATS_URL="+strings.Replace(s.ClientURL(), "://", "://sekrit@", 1), "BRIDGE_WALDO_SECRETS=s")
	r := serve(t, environ)
	code, stdout, stderr := command(t, environ, "status")
	if all := stdout + stderr + r.stdout.String() + r.stderr.String(); code != exitDone || strings.Contains(all, "sekrit") || !strings.Contains(all, "nats://xxxxx@") {
		t.Errorf("exit %d: %s", code, all)
	}
	r.stop(t)
}

func TestUnknownVariableIsAWarning(t *testing.T) {
	environ := environment(t, "BRIDGE_WALDO_SECRETS=s", "BRIDGE_STRAEM=X")
	r := serve(t, environ)
	if !strings.Contains(r.stderr.String(), "BRIDGE_STRAEM") {
		t.Errorf("no warning in %s", r.stderr.String())
	}
	r.stop(t)
}

func TestAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, variable := range []string{"BRIDGE_LISTEN_ADDR", "BRIDGE_ADMIN_ADDR", "BRIDGE_EMBEDDED_LISTEN"} {
		environ := append(environment(t, "BRIDGE_WALDO_SECRETS=s"), variable+"="+l.Addr().String())
		if code, _, stderr := command(t, environ, "serve"); code != exitFailed || !strings.Contains(stderr, variable) || !strings.Contains(stderr, "in use") {
			t.Errorf("%s: exit %d: %s", variable, code, stderr)
		}
	}
}

// A request that is in flight when the bridge is told to stop gets its answer.
func TestShutdownFinishesRequests(t *testing.T) {
	environ := environment(t, "BRIDGE_WALDO_SECRETS=s")
	r := serve(t, environ)
	waldo, _ := normalize.ByName("waldo")
	body := waldo.Fresh(waldo.Samples()[0].Body, time.Now())
	header, signature, err := waldo.Scheme.Sign("s", body, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", value(environ, "BRIDGE_LISTEN_ADDR"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answer := make([]byte, 1024)
	fmt.Fprintf(c, "POST /webhooks/waldo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n%s: %s\r\n\r\n", len(body), header, signature)
	if n, err := c.Read(answer); err != nil || !strings.HasPrefix(string(answer[:n]), "HTTP/1.1 100") { // the handler reads
		t.Fatalf("%v: %s", err, answer[:n])
	}
	r.cancel()
	natstest.Eventually(t, 10*time.Second, "the bridge shuts down", func() bool {
		return strings.Contains(r.stderr.String(), "shutting down")
	})
	if _, err := c.Write(body); err != nil {
		t.Fatal(err)
	}
	n, err := c.Read(answer)
	if err != nil || !strings.HasPrefix(string(answer[:n]), "HTTP/1.1 200") {
		t.Errorf("%v: %s", err, answer[:n])
	}
	if code := r.stop(t); code != exitDone {
		t.Errorf("exit %d: %s", code, r.stderr.String())
	}
}

// An ordinary client sees the events of the embedded server.
func TestEmbeddedServerTakesClients(t *testing.T) {
	environ := environment(t, "BRIDGE_WALDO_SECRETS=s", "BRIDGE_NATS_USER=u", "BRIDGE_NATS_PASSWORD=p")
	r := serve(t, environ)
	addr := "nats://" + value(environ, "BRIDGE_EMBEDDED_LISTEN")
	if nc, err := nats.Connect(addr); err == nil {
		nc.Close()
		t.Error("no password was asked for")
	}
	nc := natstest.Connect(t, addr, nats.UserInfo("u", "p"))
	events, err := nc.SubscribeSync("webhooks.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	command(t, environ, "send", "waldo")
	if _, err := events.NextMsg(10 * time.Second); err != nil {
		t.Error(err)
	}
	r.stop(t)
}
