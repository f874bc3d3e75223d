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
)

// watch calls all of a file's functions when its content has changed, until ctx
// ends. It watches the file's directory: Kubernetes exchanges a mounted secret
// by swapping a symlink beside it, ..data. A reload that fails is logged and
// leaves what was read before. All are called once at the start, for what has
// changed since they were read first.
func watch(ctx context.Context, reload map[string][]func() error, log *slog.Logger) (wait func(), err error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watching files: %w", err)
	}
	call := func(file string) (ok bool) {
		var errs []error
		for _, f := range reload[file] {
			errs = append(errs, f())
		}
		err := errors.Join(errs...)
		if err != nil {
			log.Error("a changed file cannot be used; what was read before stays", "file", file, "error", err)
		}
		return err == nil
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
				for file := range reload {
					if event.Name != file && event.Name != filepath.Join(filepath.Dir(file), "..data") {
						continue
					}
					content, err := contentOf(file)
					if err != nil || content == seen[file] {
						continue // not there while it is being replaced, or only touched
					}
					seen[file] = content
					if call(file) {
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

func (c *certificate) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.current.Load(), nil
		},
	}
}
