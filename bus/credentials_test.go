package bus_test

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/natstest"
)

func TestCredentials(t *testing.T) {
	cert, pool, certFile, keyFile := newCertificate(t)
	nkeyFile, nkey := newNKey(t)
	for _, test := range []struct {
		name   string
		server func(*server.Options)
		client func(*bus.Config)
	}{
		{
			"password",
			func(o *server.Options) { o.Username, o.Password = "bridge", "secret" },
			func(c *bus.Config) { c.User, c.Password = "bridge", "secret" },
		},
		{
			"nkey",
			func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: nkey}} },
			func(c *bus.Config) { c.NKeyFile = nkeyFile },
		},
		{
			"TLS",
			func(o *server.Options) { o.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}} },
			func(c *bus.Config) { c.TLSCA = certFile },
		},
		{
			"TLS with a client certificate",
			func(o *server.Options) {
				o.TLSVerify = true
				o.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
			},
			func(c *bus.Config) { c.TLSCA, c.TLSCertFile, c.TLSKeyFile = certFile, certFile, keyFile },
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel() // a refusal takes a second to show
			cfg := external(natstest.Server(t, test.server))
			refused := open(t, cfg)
			test.client(&cfg)
			mustPublish(t, openReady(t, cfg), newEvent(t, 1))
			waitProblem(t, refused, "not connected to NATS: ")
		})
	}
}

// newCertificate returns a certificate that is its own authority, for both ends.
func newCertificate(t *testing.T) (cert tls.Certificate, pool *x509.CertPool, certFile, keyFile string) {
	t.Helper()
	certFile, keyFile = natstest.WriteCertificate(t, t.TempDir(), 1)
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(cert.Leaf)
	return cert, pool, certFile, keyFile
}

// newNKey returns the file of a user's seed, and the public key.
func newNKey(t *testing.T) (file, public string) {
	t.Helper()
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}
	if public, err = pair.PublicKey(); err != nil {
		t.Fatal(err)
	}
	return writeFile(t, "user.nk", seed), public
}

func writeFile(t *testing.T, name string, data []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
