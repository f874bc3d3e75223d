package main

import (
	"crypto/tls"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/hookbus/bridge/internal/natstest"
)

func TestCertificateIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	natstest.WriteCertificate(t, dir, 1)
	environ := environment(t, "BRIDGE_WALDO_SECRETS=s", "BRIDGE_TLS_CERT_FILE="+filepath.Join(dir, "tls.crt"), "BRIDGE_TLS_KEY_FILE="+filepath.Join(dir, "tls.key"))
	r := serve(t, environ)
	serial := func() int64 {
		c, err := tls.Dial("tcp", value(environ, "BRIDGE_LISTEN_ADDR"), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	if n := serial(); n != 1 {
		t.Fatalf("certificate %d", n)
	}
	client := &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	response, err := client.Get("https://" + value(environ, "BRIDGE_LISTEN_ADDR") + "/webhooks/waldo")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusMethodNotAllowed || response.ProtoMajor != 2 {
		t.Errorf("got %d by %s", response.StatusCode, response.Proto)
	}
	if _, _, stderr := command(t, environ, "send", "waldo"); !strings.Contains(stderr, "x509") {
		t.Errorf("send does not speak TLS by itself: %s", stderr)
	}
	natstest.WriteCertificate(t, dir, 2)
	natstest.Eventually(t, 10*time.Second, "the new certificate is served", func() bool { return serial() == 2 })
	// Of the two files the first to change did not fit the other.
	natstest.Eventually(t, 10*time.Second, "both files count as read", func() bool {
		return len(regexp.MustCompile(`(?m)^bridge_last_reload_successful\{file=".*"\} 1$`).FindAllString(scrape(t, environ), -1)) == 2
	})
	if text := scrape(t, environ); !regexp.MustCompile(`(?m)^bridge_certificate_expiry_timestamp_seconds 1\.[0-9]+e\+09$`).MatchString(text) {
		t.Errorf("no end of the certificate in:\n%s", text)
	}
	if code := r.stop(t); code != exitDone {
		t.Errorf("exit %d: %s", code, r.stderr.String())
	}
}
