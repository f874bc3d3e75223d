package bus

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"testing"
)

// A server that wants a certificate says so after the handshake, by TLS 1.3, in an
// alert that the NATS client hands on as it is. Where the alert was read before the
// connection broke, bridge_nats_refused stayed 0.
func TestAlertIsRefusal(t *testing.T) {
	t.Parallel()
	s := httptest.NewUnstartedServer(nil)
	s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	c, err := tls.Dial("tcp", s.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); !refusal(err) {
		t.Errorf("%v is no refusal", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil || refusal(err) {
		t.Errorf("%v is a refusal", err)
	}
}
