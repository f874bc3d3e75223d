package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"

	"github.com/fsnotify/fsnotify"
)

// watch calls a file's reload function whenever its directory changes, until
// ctx ends: Kubernetes exchanges a mounted secret by swapping a symlink beside
// it. A reload that fails is logged and leaves what was read before.
func watch(ctx context.Context, reload map[string]func() error, log *slog.Logger) (wait func(), err error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watching files: %w", err)
	}
	for file := range reload {
		if err := w.Add(filepath.Dir(file)); err != nil {
			w.Close()
			return nil, fmt.Errorf("watching %s: %w", filepath.Dir(file), err)
		}
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
				for file, reload := range reload {
					if filepath.Dir(file) != filepath.Dir(event.Name) {
						continue
					}
					if err := reload(); err != nil {
						log.Error("a changed file cannot be used; what was read before stays", "file", file, "error", err)
					} else {
						log.Info("file read again", "file", file)
					}
				}
			}
		}
	}()
	return func() { <-done }, nil
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

func (c *certificate) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.current.Load(), nil
		},
	}
}
