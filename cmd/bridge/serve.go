package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.opentelemetry.io/otel/trace"

	"github.com/hookbus/bridge/asyncapi"
	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/dedupe"
	"github.com/hookbus/bridge/ingress"
)

type serveCmd struct{}

func (serveCmd) Run(cli *cli) error {
	cfg, err := loadConfig(cli.environ)
	var problems, more configError
	if err == nil || errors.As(err, &problems) {
		problems = append(problems, cfg.missing()...)
	}
	if len(problems) > 0 { // every one at once
		if _, _, err := cfg.endpoints(); errors.As(err, &more) {
			problems = append(problems, more...)
		}
		return append(problems, cfg.traces.problems()...)
	}
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(cli.ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	b, err := start(ctx, cfg, cli.stderr)
	if err != nil {
		return err
	}
	failed := b.wait(ctx)
	stop() // a second signal ends the process at once
	return errors.Join(failed, b.stop())
}

// bridge is the running service; start and stop show the order of its parts.
type bridge struct {
	cfg     *config
	log     *slog.Logger
	level   slog.LevelVar
	tracing *tracing // nil: off
	bus     *bus.Bus
	spool   *bus.Spool // nil: none
	handler *ingress.Handler
	admin   *ingress.Admin
	servers struct{ admin, public *http.Server }

	webhooksAddr, adminAddr string

	failed    chan error // a listener has failed
	stopBus   func()
	stopIndex func()
	stopSpool func()
	stopWatch func()
}

// start brings everything up: NATS, streams, indexer, admin listener, public
// listener. An external NATS need not be reachable yet.
func start(ctx context.Context, cfg *config, stderr io.Writer) (_ *bridge, err error) {
	b := &bridge{cfg: cfg, failed: make(chan error, 2)}
	b.level.Set(cfg.LogLevel)
	log := cfg.logger(stderr, &b.level)
	b.log = log
	for _, variable := range cfg.unknown {
		log.Warn("unknown variable has no effect", "variable", variable)
	}
	endpoints, reload, err := cfg.endpoints()
	var problems configError
	if errors.As(err, &problems); len(cfg.traces.problems()) > 0 {
		return nil, append(problems, cfg.traces.problems()...)
	}
	if err != nil {
		return nil, err
	}
	var cert *certificate
	var tlsConfig *tls.Config
	if cfg.TLSCertFile != "" {
		cert = &certificate{certFile: cfg.TLSCertFile, keyFile: cfg.TLSKeyFile}
		if err := cert.reload(); err != nil {
			return nil, configError{envPrefix + "TLS_CERT_FILE: " + err.Error()}
		}
		for _, file := range []string{filepath.Clean(cfg.TLSCertFile), filepath.Clean(cfg.TLSKeyFile)} {
			reload[file] = append(reload[file], cert.reload)
		}
		tlsConfig = cert.config()
	}

	// What has started is stopped if what follows fails.
	var undo []func()
	defer func() {
		if err != nil {
			for i := range undo {
				undo[len(undo)-1-i]()
			}
		}
	}()
	var tracer trace.Tracer
	if cfg.traces.on() {
		if b.tracing, err = startTracing(ctx, log); err != nil {
			return nil, err
		}
		undo = append(undo, func() { b.tracing.stop(context.Background()) })
		tracer = b.tracing.tracer
	}
	listen := func(variable, addr string) (net.Listener, error) {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("%s%s: %w", envPrefix, variable, err)
		}
		undo = append(undo, func() { l.Close() })
		return l, nil
	}
	adminListener, err := listen("ADMIN_ADDR", cfg.AdminAddr)
	if err != nil {
		return nil, err
	}
	publicListener, err := listen("LISTEN_ADDR", cfg.ListenAddr)
	if err != nil {
		return nil, err
	}
	b.adminAddr, b.webhooksAddr = adminListener.Addr().String(), publicListener.Addr().String()

	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo())
	for _, e := range endpoints {
		registry.MustRegister(e.Verifier.(*verifier).inUse(e.Provider.Name))
	}
	if cert != nil {
		registry.MustRegister(cert.expiry())
	}
	if b.bus, err = bus.Open(ctx, cfg.busConfig(), log, registry); err != nil {
		return nil, err
	}
	undo = append(undo, func() { b.bus.Close(context.Background()) })
	deduper, err := dedupe.New(b.bus, cfg.windows(), registry)
	if err != nil {
		return nil, err
	}
	indexer, err := dedupe.NewIndexer(b.bus, deduper, log, registry)
	if err != nil {
		return nil, err
	}
	var spool ingress.Spool
	if cfg.SpoolDir != "" {
		if b.spool, err = bus.OpenSpool(ctx, cfg.spoolConfig(), log, registry); err != nil {
			return nil, err
		}
		undo = append(undo, b.spool.Close)
		spool = b.spool
	}
	schemas, err := ingress.NewSchemas(cfg.SchemaMode, cfg.SchemaBaseURL, registry)
	if err != nil {
		return nil, err
	}
	document, err := asyncapi.Document(cfg.SubjectPrefix, version)
	if err != nil {
		return nil, err
	}
	b.handler, err = ingress.New(endpoints, deduper, b.bus, spool, schemas, cfg.limits(), time.Now, log, registry, tracer)
	if err != nil {
		return nil, err
	}
	b.admin = ingress.NewAdmin(b.bus.State, indexer.Lag, spool, document, registry, &b.level, log)

	b.stopBus = background(b.bus.Run)
	undo = append(undo, b.stopBus)
	b.stopIndex = background(indexer.Run)
	undo = append(undo, b.stopIndex)
	b.stopSpool = func() {}
	if b.spool != nil {
		b.stopSpool = background(func(ctx context.Context) { b.spool.Run(ctx, b.handler.HandOver) })
		undo = append(undo, b.stopSpool)
	}
	b.stopWatch = func() {}
	if len(reload) > 0 {
		watchCtx, cancel := context.WithCancel(context.Background())
		wait, err := watch(watchCtx, reload, time.Tick(lookInterval), log, registry)
		if err != nil {
			cancel()
			return nil, err
		}
		b.stopWatch = func() { cancel(); wait() }
	}

	b.servers.admin = ingress.NewServer(b.admin, log)
	go b.serve(b.servers.admin, adminListener)
	b.servers.public = ingress.NewServer(b.handler, log)
	b.servers.public.TLSConfig = tlsConfig
	go b.serve(b.servers.public, publicListener)

	var names []string
	for _, e := range endpoints {
		names = append(names, e.Provider.Name)
	}
	log.Info("receiving webhooks", "addr", b.webhooksAddr, "admin", b.adminAddr, "providers", names, "version", version)
	return b, nil
}

// background runs f and returns what ends it and waits for it.
func background(f func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { f(ctx) })
	return func() { cancel(); wg.Wait() }
}

func (b *bridge) serve(s *http.Server, l net.Listener) {
	serve := s.Serve
	if s.TLSConfig != nil {
		serve = func(l net.Listener) error { return s.ServeTLS(l, "", "") }
	}
	if err := serve(l); !errors.Is(err, http.ErrServerClosed) {
		b.failed <- fmt.Errorf("serving on %s: %w", l.Addr(), err)
	}
}

// wait returns when ctx ends, or with the error of a listener that failed.
func (b *bridge) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-b.failed:
		return err
	}
}

// stop takes everything down so that nothing answered is lost: not ready; serve on
// for the delay, in which connections that are kept open are closed; no new requests;
// finish those in flight; then spool, indexer, NATS, the admin listener and what is
// left of the traces. After the delay the shutdown timeout bounds it.
func (b *bridge) stop() error {
	b.log.Info("shutting down")
	b.admin.Drain()
	b.handler.Drain()
	time.Sleep(b.cfg.ShutdownDelay) // a second signal ends the process
	ctx, cancel := context.WithTimeout(context.Background(), b.cfg.ShutdownTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- b.takeDown(ctx) }()
	select {
	case err := <-done:
		b.log.Info("stopped")
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done: // both at once
		return err
	case <-time.After(shutdownGrace):
		return fmt.Errorf("not stopped after %v", b.cfg.ShutdownTimeout)
	}
}

// shutdownGrace is for what gives up when the shutdown timeout has passed.
const shutdownGrace = 500 * time.Millisecond

func (b *bridge) takeDown(ctx context.Context) error {
	var errs []error
	if err := b.servers.public.Shutdown(ctx); err != nil {
		errs = append(errs, fmt.Errorf("requests in flight were cut off: %w", err))
		b.servers.public.Close()
	}
	b.stopWatch()
	b.stopSpool()
	b.stopIndex()
	b.stopBus()
	if b.spool != nil {
		switch n := b.spool.Len(); {
		case n > 0:
			b.log.Warn("webhooks stay in the spool", "messages", n)
		case n < 0:
			b.log.Warn("webhooks stay in the spool: how many is not known, since it could not be opened")
		}
		b.spool.Close()
	}
	errs = append(errs, b.bus.Close(ctx))
	errs = append(errs, b.servers.admin.Close())
	if b.tracing != nil {
		b.tracing.stop(ctx)
	}
	return errors.Join(errs...)
}
