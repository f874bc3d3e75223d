package monitoring_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/hookbus/bridge/ingress"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
	"github.com/hookbus/bridge/signature"
)

// bridge is a bridge in a process of its own, with a spool, a certificate and a
// file of secrets.
type bridge struct {
	webhooks, admin string
	nats            *server.Server
	client          *http.Client
}

func secret(p normalize.Provider) string {
	if p.Scheme.Key == signature.HexAfterWhsec {
		return "whsec_" + strings.Repeat("5e", 32)
	}
	return "secret-of-" + p.Name
}

func startBridge(t *testing.T) *bridge {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "bridge")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, "github.com/hookbus/bridge/cmd/bridge").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	certFile, keyFile := natstest.WriteCertificate(t, dir, 1)
	b := &bridge{
		webhooks: fmt.Sprintf("127.0.0.1:%d", natstest.FreePort(t)),
		admin:    fmt.Sprintf("127.0.0.1:%d", natstest.FreePort(t)),
		nats:     natstest.Server(t),
		client:   &http.Client{Timeout: within, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}},
	}
	t.Cleanup(b.client.CloseIdleConnections)
	env := []string{
		"BRIDGE_LISTEN_ADDR=" + b.webhooks, "BRIDGE_ADMIN_ADDR=" + b.admin, "BRIDGE_NATS_URL=" + b.nats.ClientURL(),
		"BRIDGE_SPOOL_DIR=" + filepath.Join(dir, "spool"), "BRIDGE_STREAM_MAX_BYTES=64MiB",
		"BRIDGE_TLS_CERT_FILE=" + certFile, "BRIDGE_TLS_KEY_FILE=" + keyFile,
	}
	for _, p := range normalize.Providers() {
		file := filepath.Join(dir, p.Name)
		if err := os.WriteFile(file, []byte(secret(p)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		env = append(env, "BRIDGE_"+strings.ToUpper(p.Name)+"_SECRETS_FILE="+file)
	}
	start(t, "bridge", env, path, "serve")
	natstest.Eventually(t, within, "the bridge stores events in NATS", func() bool {
		response, err := http.Get("http://" + b.admin + "/readyz")
		if err != nil {
			return false
		}
		defer response.Body.Close()
		var ready ingress.Readiness
		return json.NewDecoder(response.Body).Decode(&ready) == nil && ready.Ready && strings.Contains(ready.Durability, "one server")
	})
	return b
}

func (b *bridge) post(t *testing.T, provider string, header http.Header, body []byte) (result string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+b.webhooks+"/webhooks/"+provider, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header = header
	response, err := b.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var answer struct{ Result, Reason string }
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	return answer.Result + answer.Reason
}

// signed sends a body as the provider would.
func (b *bridge) signed(t *testing.T, p normalize.Provider, secret string, body []byte) (result string) {
	t.Helper()
	name, value, err := p.Scheme.Sign(secret, body, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	header := make(http.Header)
	header.Set(name, value)
	return b.post(t, p.Name, header, body)
}

// counts says how much was sent.
type counts struct{ requests int }

// sendAll sends webhooks of which every result comes that there is while NATS
// answers.
func (b *bridge) sendAll(t *testing.T) (sent counts) {
	t.Helper()
	want := func(got, want string) {
		t.Helper()
		sent.requests++
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	for _, p := range normalize.Providers() {
		for _, sample := range p.Samples() {
			body := p.Fresh(sample.Body, time.Now())
			want(b.signed(t, p, secret(p), body), "accepted")
			if sample.Kind != "flag" { // a state is stored again when in doubt
				want(b.signed(t, p, secret(p), body), "duplicate")
			}
			want(b.post(t, p.Name, make(http.Header), body), "signature_missing")
		}
	}
	waldo, _ := normalize.ByName("waldo")
	for i := range 5 {
		body := fmt.Appendf(nil, `{"event":"flag","flag":"yes","customerId":"c%d","uri":"https://app.waldo.ai/customers/c%d"}`, i, i)
		want(b.signed(t, waldo, secret(waldo), body), "accepted") // and marked
		want(b.signed(t, waldo, "another", body), "signature_mismatch")
	}
	dfns, _ := normalize.ByName("dfns")
	osapher, _ := normalize.ByName("osapher")
	want(b.signed(t, osapher, secret(osapher), []byte(`no`)), "quarantined")
	want(b.signed(t, osapher, secret(osapher), []byte(`{"no":"type"}`)), "quarantined")
	want(b.post(t, dfns.Name, make(http.Header), []byte(`{}`)), "signature_missing")
	want(b.post(t, "stripe", make(http.Header), []byte(`{}`)), "unknown_provider")
	return sent
}

// stopNATS stops the server, and sends a webhook that then waits in the spool.
func (b *bridge) stopNATS(t *testing.T) {
	t.Helper()
	b.nats.Shutdown()
	b.nats.WaitForShutdown()
	p, _ := normalize.ByName("trusthub")
	if got := b.signed(t, p, secret(p), p.Fresh(p.Samples()[0].Body, time.Now())); got != "spooled" {
		t.Fatalf("%s, want spooled", got)
	}
}
