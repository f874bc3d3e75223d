package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/fsnotify/fsnotify"
	"github.com/prometheus/client_golang/prometheus"
)

// watch calls all of a file's functions when its content has changed, until ctx
// ends. It watches the file's directory: Kubernetes exchanges a mounted secret
// by swapping a symlink beside it, ..data. A reload that fails is logged and
// leaves what was read before; it is tried again when another file was read, as
// a certificate has to fit its key. All are called once at the start, for what
// has changed since they were read first.
func watch(ctx context.Context, reload map[string][]func() error, log *slog.Logger, reg prometheus.Registerer) (wait func(), err error) {
	successful := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "bridge_last_reload_successful",
		Help: "1 if the file could be used when it was read last; 0: what was read before stays.",
	}, []string{"file"})
	if err := reg.Register(successful); err != nil {
		return nil, err
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watching files: %w", err)
	}
	failed := make(map[string]bool)
	call := func(file string) (ok bool) {
		var errs []error
		for _, f := range reload[file] {
			errs = append(errs, f())
		}
		err := errors.Join(errs...)
		failed[file] = err != nil
		if err != nil {
			successful.WithLabelValues(file).Set(0)
			log.Error("a changed file cannot be used; what was read before stays", "file", file, "error", err)
			return false
		}
		successful.WithLabelValues(file).Set(1)
		return true
	}
	seen := make(map[string][sha256.Size]byte)
	for file := range reload {
		if err := w.Add(filepath.Dir(file)); err != nil {
			w.Close()
			return nil, fmt.Errorf("watching %s: %w", filepath.Dir(file), err)
		}
		seen[file], _ = contentOf(file)
		call(file)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer w.Close()
		for {
			select {
			case <-ctx.Done():
				return
			case err := <-w.Errors:
				log.Warn("watching files", "error", err)
			case event := <-w.Events:
				read := false
				for file := range reload {
					// By the last name: a folder that has two is watched by one of them.
					if name := filepath.Base(event.Name); name != filepath.Base(file) && name != "..data" {
						continue
					}
					content, err := contentOf(file)
					if err != nil || content == seen[file] {
						continue // not there while it is being replaced, or only touched
					}
					seen[file] = content
					if call(file) {
						read = true
						log.Info("file read again", "file", file)
					}
				}
				for file := range reload {
					if read && failed[file] && call(file) {
						log.Info("file read again", "file", file)
					}
				}
			}
		}
	}()
	return func() { <-done }, nil
}

func contentOf(file string) ([sha256.Size]byte, error) {
	content, err := os.ReadFile(file)
	return sha256.Sum256(content), err
}

// certificate is a TLS certificate that can be read again.
type certificate struct {
	certFile, keyFile string
	current           atomic.Pointer[tls.Certificate]
}

func (c *certificate) reload() error {
	cert, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err == nil {
		c.current.Store(&cert)
	}
	return err
}

// expiry tells until when the certificate is valid.
func (c *certificate) expiry() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "bridge_certificate_expiry_timestamp_seconds",
		Help: "When the certificate of the webhook listener ends, in Unix time.",
	}, func() float64 { return float64(c.current.Load().Leaf.NotAfter.Unix()) })
}

func (c *certificate) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.current.Load(), nil
		},
	}
}
