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
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/prometheus/client_golang/prometheus"
)

// lookInterval is how often files are looked at without an event: a change of a link's
// target, or a folder that is replaced by another, causes none.
const lookInterval = 30 * time.Second

// files are read again when they have changed.
type files struct {
	reload     map[string][]func() error
	log        *slog.Logger
	successful *prometheus.GaugeVec
	seen       map[string][sha256.Size]byte
	unread     map[string]int    // looks in a row at which it could not be read
	failed     map[string]string // why it could not be used
}

// watch calls all of a file's functions when its content has changed, until ctx
// ends. It watches the file's directory: Kubernetes exchanges a mounted secret
// by swapping a symlink beside it, ..data. With every tick it looks at all files,
// too. A reload that fails is logged and leaves what was read before; it is tried
// again with the next tick, and when another file was read, as a certificate has
// to fit its key. All are called once at the start, for what has changed since
// they were read first.
func watch(ctx context.Context, reload map[string][]func() error, ticks <-chan time.Time, log *slog.Logger, reg prometheus.Registerer) (wait func(), err error) {
	f, err := newFiles(reload, log, reg)
	if err != nil {
		return nil, err
	}
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
	f.start()
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
				f.changed(filepath.Base(event.Name))
			case <-ticks:
				f.look()
			}
		}
	}()
	return func() { <-done }, nil
}

func newFiles(reload map[string][]func() error, log *slog.Logger, reg prometheus.Registerer) (*files, error) {
	f := &files{
		reload: reload, log: log,
		successful: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "bridge_last_reload_successful",
			Help: "1 if the file could be read and used last; 0: what was read before stays.",
		}, []string{"file"}),
		seen: make(map[string][sha256.Size]byte), unread: make(map[string]int), failed: make(map[string]string),
	}
	return f, reg.Register(f.successful)
}

func (f *files) start() {
	for file := range f.reload {
		f.seen[file], _ = contentOf(file)
		f.call(file)
	}
}

// changed reads the files that an event with this name may be about.
func (f *files) changed(name string) {
	read := false
	for file := range f.reload {
		// By the last name: a folder that has two is watched by one of them.
		if name != filepath.Base(file) && name != "..data" {
			continue
		}
		if content, err := contentOf(file); err == nil { // else it may be in the middle of a replacement
			read = f.update(file, content) || read
		}
	}
	if read {
		f.tryAgain()
	}
}

// look reads the files that have changed without an event. It says which cannot be read
// at two looks in a row: at one, a file may be in the middle of a replacement.
func (f *files) look() {
	for file := range f.reload {
		content, err := contentOf(file)
		if err == nil {
			f.update(file, content)
			continue
		}
		if f.unread[file]++; f.unread[file] == 2 {
			f.successful.WithLabelValues(file).Set(0)
			f.log.Warn("a file cannot be read; what was read before stays", "file", file, "error", err)
		}
	}
	f.tryAgain()
}

// update calls the file's functions, unless it was only touched.
func (f *files) update(file string, content [sha256.Size]byte) (read bool) {
	missed := f.unread[file] > 1
	delete(f.unread, file)
	if content == f.seen[file] && !missed {
		return false
	}
	f.seen[file] = content
	delete(f.failed, file)
	return f.callAgain(file)
}

func (f *files) tryAgain() {
	for file := range f.failed {
		if f.unread[file] == 0 {
			f.callAgain(file)
		}
	}
}

func (f *files) callAgain(file string) (ok bool) {
	if ok = f.call(file); ok {
		f.log.Info("file read again", "file", file)
	}
	return ok
}

func (f *files) call(file string) (ok bool) {
	var errs []error
	for _, reload := range f.reload[file] {
		errs = append(errs, reload())
	}
	err := errors.Join(errs...)
	if err == nil {
		delete(f.failed, file)
		f.successful.WithLabelValues(file).Set(1)
		return true
	}
	f.successful.WithLabelValues(file).Set(0)
	if f.failed[file] != err.Error() {
		f.log.Error("a changed file cannot be used; what was read before stays", "file", file, "error", err)
	}
	f.failed[file] = err.Error()
	return false
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
