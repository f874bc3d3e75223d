package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/hookbus/bridge/internal/binding"
	"github.com/hookbus/bridge/normalize"
)

type devCmd struct{}

// Help says how it differs from serve.
func (devCmd) Help() string {
	return "Like serve, but on loopback addresses, without TLS, and with generated secrets where none are set. Every provider's samples are sent over HTTP, signed as the provider would, and shown as a subscriber receives them; then it keeps running."
}

func (devCmd) Run(c *cli) error {
	cfg, err := loadConfig(c.environ)
	if err != nil {
		return err
	}
	for variable, addr := range map[string]*string{"LISTEN_ADDR": &cfg.ListenAddr, "ADMIN_ADDR": &cfg.AdminAddr} {
		if !cfg.explicit[variable] {
			*addr = "127.0.0.1" + *addr
		}
	}
	cfg.TLSCertFile, cfg.TLSKeyFile = "", "" // a certificate is for another name than localhost
	if !cfg.explicit["LOG_LEVEL"] {
		cfg.LogLevel = slog.LevelWarn // the events are what there is to see
	}
	secrets := make(map[string]string)
	for _, p := range normalize.Providers() {
		source := cfg.secrets[p.Name]
		if source.empty() {
			source.value = newSecret(p.Scheme)
			cfg.secrets[p.Name] = source
		}
		list, err := source.read()
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return configError{source.variable + "_FILE: holds no secret"}
		}
		secrets[p.Name] = list[0]
	}

	ctx, stop := signal.NotifyContext(c.ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	b, err := start(ctx, cfg, c.stderr)
	if err != nil {
		return err
	}
	failed := tour(ctx, c, b, secrets)
	if failed == nil {
		failed = b.wait(ctx)
	}
	stop()
	return errors.Join(failed, b.stop())
}

// tourTimeout bounds the wait for what should be there within milliseconds.
const tourTimeout = 10 * time.Second

// tour sends every sample and shows what a subscriber receives.
func tour(ctx context.Context, c *cli, b *bridge, secrets map[string]string) error {
	w := c.stdout
	if err := ready(ctx, b.bus, tourTimeout); err != nil {
		return err
	}
	nc, err := c.connect(b.cfg)
	if err != nil {
		return err
	}
	defer nc.Close()
	subscription, err := nc.SubscribeSync(b.cfg.SubjectPrefix + ".>")
	if err != nil {
		return err
	}
	if err := nc.Flush(); err != nil {
		return err
	}
	base := "http://" + reachable(b.webhooksAddr)
	fmt.Fprintf(w, "Webhooks at %s/webhooks/{provider}, NATS at %s, metrics at http://%s/metrics\n\n", base, b.cfg.shownURL(), reachable(b.adminAddr))

	send := func(p normalize.Provider, name string, body []byte) (delivery, error) {
		d, err := deliver(ctx, base+"/webhooks/"+p.Name, p, secrets[p.Name], body, time.Now())
		if err != nil {
			return d, err
		}
		fmt.Fprintf(w, "POST /webhooks/%s  %s  ->  %d %s%s (%v)\n", p.Name, name, d.Status, d.Result, d.Reason, d.Took.Round(100*time.Microsecond))
		if !d.accepted() {
			return d, fmt.Errorf("%s %s was not accepted", p.Name, name)
		}
		return d, nil
	}
	var again func() (delivery, error)
	var stored string
	for _, p := range normalize.Providers() {
		for _, sample := range p.Samples() {
			body := p.Fresh(sample.Body, time.Now())
			d, err := send(p, sample.Name, body)
			if err != nil {
				return err
			}
			msg, err := receive(ctx, subscription, d.ID)
			if err != nil {
				return fmt.Errorf("%s %s was answered %d %s%s, but: %w", p.Name, sample.Name, d.Status, d.Result, d.Reason, err)
			}
			ce, err := binding.Decode(msg.Header, msg.Data)
			if err != nil {
				return err
			}
			fmt.Fprintf(w, "  NATS  %s\n", eventLine(msg.Subject, ce))
			again, stored = func() (delivery, error) { return send(p, sample.Name, body) }, d.ID
		}
	}
	fmt.Fprintf(w, "\nThe last one once more, as a provider's retry:\n")
	d, err := again()
	if err != nil {
		return err
	}
	if d.Result != "duplicate" || d.ID != stored {
		return fmt.Errorf("the redelivery was not recognised: %v", d)
	}
	fmt.Fprintf(w, "  NATS  nothing: event %.12s is stored already\n", d.ID)

	fmt.Fprintf(w, "\nStill running; Ctrl-C ends it. To try next, in another terminal:\n\n")
	fmt.Fprintf(w, "  nats --server %s sub '%s.>'\n", b.cfg.shownURL(), b.cfg.SubjectPrefix)
	fmt.Fprintf(w, "  go run ./cmd/bridge tail --since 1h\n")
	for _, p := range normalize.Providers() {
		fmt.Fprintf(w, "  go run ./cmd/bridge send %s --url %s --secret %s\n", p.Name, base, secrets[p.Name])
	}
	return nil
}

// receive waits for the event with that id.
func receive(ctx context.Context, s *nats.Subscription, id string) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, tourTimeout)
	defer cancel()
	for {
		msg, err := s.NextMsgWithContext(ctx)
		if err != nil {
			return nil, fmt.Errorf("no event %s came from NATS: %w", id, err)
		}
		if msg.Header.Get("ce-id") == id {
			return msg, nil
		}
	}
}
