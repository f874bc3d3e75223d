package examples_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/internal/oteltest"
)

const within = 60 * time.Second

// process is a program that runs until it is stopped.
type process struct {
	cmd *exec.Cmd
	mu  sync.Mutex
	out bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

func begin(t *testing.T, dir string, environ []string, name string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(name, args...)}
	p.cmd.Dir, p.cmd.Env = dir, append(os.Environ(), environ...)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cmd.Process.Kill(); p.cmd.Wait() })
	return p
}

// stop asks it to stop and waits until it has.
func (p *process) stop(t *testing.T) {
	t.Helper()
	p.cmd.Process.Signal(syscall.SIGTERM)
	ended := make(chan error, 1)
	go func() { ended <- p.cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("%v:\n%s", err, p.output())
		}
	case <-time.After(within):
		t.Fatalf("does not stop:\n%s", p.output())
	}
}

func (p *process) says(t *testing.T, times int, text string) {
	t.Helper()
	natstest.Eventually(t, within, fmt.Sprintf("%q %d times", text, times), func() bool {
		n := strings.Count(p.output(), text)
		if n > times {
			t.Fatalf("%q %d times, want %d:\n%s", text, n, times, p.output())
		}
		return n == times
	})
}

// bridge is a running bridge, and how its command line is used.
type bridge struct {
	t       *testing.T
	program string
	environ []string
	nats    string
}

func startBridge(t *testing.T, environ ...string) *bridge {
	t.Helper()
	dir := t.TempDir()
	b := &bridge{t: t, program: filepath.Join(dir, "bridge")}
	if out, err := exec.Command("go", "build", "-o", b.program, "github.com/hookbus/bridge/cmd/bridge").CombinedOutput(); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	address := func() string { return fmt.Sprintf("127.0.0.1:%d", natstest.FreePort(t)) }
	nats, admin := address(), address()
	b.nats = "nats://" + nats
	b.environ = append([]string{
		"BRIDGE_LISTEN_ADDR=" + address(), "BRIDGE_ADMIN_ADDR=" + admin, "BRIDGE_EMBEDDED_LISTEN=" + nats,
		"BRIDGE_DATA_DIR=" + filepath.Join(dir, "data"), "BRIDGE_TRUSTHUB_SECRETS=secret", "BRIDGE_SCHEMA_MODE=quarantine",
	}, environ...)
	serving := begin(t, dir, b.environ, b.program)
	natstest.Eventually(t, within, "the bridge is ready", func() bool {
		response, err := http.Get("http://" + admin + "/readyz")
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	t.Cleanup(func() { http.DefaultClient.CloseIdleConnections(); serving.stop(t) })
	return b
}

// run runs a command of the bridge and returns what it prints.
func (b *bridge) run(more []string, args ...string) string {
	b.t.Helper()
	cmd := exec.Command(b.program, args...)
	cmd.Env = append(append(os.Environ(), b.environ...), more...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.t.Fatalf("bridge %v: %v:\n%s", args, err, out)
	}
	return string(out)
}

// send sends a session's status as Trusthub does.
func (b *bridge) send(session, status string) {
	b.t.Helper()
	file := filepath.Join(b.t.TempDir(), "body")
	body := fmt.Sprintf(`{"sessionId":%q,"status":%q}`, session, status)
	if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
		b.t.Fatal(err)
	}
	b.run(nil, "send", "trusthub", "--file", file)
}

// tour tries a service as a new user would: live events, one that fails too
// often, a bad consumer that gets an hour of events again, and an event out of
// the quarantine.
func tour(t *testing.T, start func(environ ...string) *process, b *bridge) {
	environ := []string{"NATS_URL=" + b.nats, "FAIL=bad"}
	service := start(environ...)
	service.says(t, 1, "consuming WEBHOOKS as onboarding")

	b.send("s-1", "AUTO_APPROVED")
	service.says(t, 1, "handled com.trusthub.onboarding.auto_approved subject=s-1 outcome=approved")
	b.send("s-2", "MANUAL_REJECTED")
	service.says(t, 1, "handled com.trusthub.onboarding.manual_rejected subject=s-2 outcome=rejected")

	// It fails five times and is put aside; others go on meanwhile.
	b.send("bad", "AUTO_APPROVED")
	b.send("s-3", "AUTO_APPROVED")
	service.says(t, 1, "handled com.trusthub.onboarding.auto_approved subject=s-3 outcome=approved")
	service.says(t, 1, "given up after 5 attempts: cannot handle bad")

	// The service is down while events come.
	service.stop(t)
	service.says(t, 1, "stopped")
	b.send("s-4", "AUTO_APPROVED")
	again := start(environ...)
	again.says(t, 1, "handled com.trusthub.onboarding.auto_approved subject=s-4 outcome=approved")
	if strings.Contains(again.output(), "subject=s-1") {
		t.Error("it began from the start")
	}

	// Its consumer is set back: each event comes once more, and is known.
	again.stop(t)
	b.run(nil, "replay", "--consumer", "onboarding", "--from-seq", "1", "--yes")
	back := start(append(environ, "FAIL=")...)
	back.says(t, 4, "known ")
	back.says(t, 1, "handled com.trusthub.onboarding.auto_approved subject=bad outcome=approved")

	// A schema was too strict: what it kept out is retried and arrives.
	b.send("s-5", "AUTO_APPROVED")
	file := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(file, []byte(`{"sessionId":"s-6","status":"AUTO_APPROVED","externalId":`+fmt.Sprintf("%q", strings.Repeat("x", 600))+`}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := b.run(nil, "send", "trusthub", "--file", file); !strings.Contains(out, "quarantined") {
		t.Fatal(out)
	}
	if out := b.run([]string{"BRIDGE_SCHEMA_MODE=mark"}, "quarantine", "retry", "--all"); !strings.Contains(out, "accepted") {
		t.Fatal(out)
	}
	back.says(t, 1, "handled com.trusthub.onboarding.auto_approved subject=s-6 outcome=approved")
	back.stop(t)
}

func buildService(t *testing.T) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "service")
	if out, err := exec.Command("go", "build", "-o", program, "./go").CombinedOutput(); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	return program
}

// The service's span is below the one in which the bridge has published.
func TestGoServiceContinuesTrace(t *testing.T) {
	c := oteltest.New(t)
	otel := []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + c.URL, "OTEL_BSP_SCHEDULE_DELAY=20"}
	b := startBridge(t, otel...)
	service := begin(t, ".", append(otel, "NATS_URL="+b.nats), buildService(t))
	b.send("s-1", "AUTO_APPROVED")
	service.says(t, 1, "handled com.trusthub.onboarding.auto_approved subject=s-1 outcome=approved")
	service.stop(t)
	natstest.Eventually(t, within, "the service's span is below the bridge's", func() bool {
		var publish, process oteltest.Span
		for _, s := range c.Spans() {
			switch s.Service + " " + s.Name {
			case "bridge publish":
				publish = s
			case "onboarding process com.trusthub.onboarding.auto_approved":
				process = s
			}
		}
		return publish.Span != nil && process.Span != nil && process.Kind == tracepb.Span_SPAN_KIND_CONSUMER &&
			bytes.Equal(process.TraceId, publish.TraceId) && bytes.Equal(process.ParentSpanId, publish.SpanId)
	})
}

func TestGoService(t *testing.T) {
	b := startBridge(t)
	program := buildService(t)
	tour(t, func(environ ...string) *process { return begin(t, ".", environ, program) }, b)
}
