package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/ingress"
	"github.com/hookbus/bridge/normalize"
	"github.com/hookbus/bridge/signature"
)

// secretSource is where a provider's secrets come from: a variable, a file, or
// both.
type secretSource struct {
	variable, value string
	file            string
}

func (s secretSource) empty() bool { return s.value == "" && s.file == "" }

// read returns the secrets, the variable's first. They may still be unusable;
// an empty one stands for an empty item.
func (s secretSource) read() ([]string, error) {
	var secrets []string
	if s.value != "" {
		secrets = strings.Split(s.value, ",")
	}
	if s.file != "" {
		content, err := os.ReadFile(s.file)
		if err != nil {
			return nil, fmt.Errorf("%s_FILE: %w", s.variable, err)
		}
		text := strings.TrimPrefix(string(content), "\ufeff") // a byte order mark, as some editors write it
		if strings.Contains(text, "\x00") {
			return nil, fmt.Errorf("%s_FILE: %s is no text; UTF-16 is not read", s.variable, s.file)
		}
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); line != "" {
				secrets = append(secrets, line)
			}
		}
	}
	return secrets, nil
}

func (s secretSource) verifier(scheme signature.Scheme, tolerance time.Duration) (*signature.Verifier, error) {
	secrets, err := s.read()
	if err != nil {
		return nil, err
	}
	v, err := scheme.NewVerifier(secrets, tolerance)
	if err != nil {
		name := s.variable
		switch {
		case s.value == "":
			name += "_FILE"
		case s.file != "":
			name += " and " + s.variable + "_FILE"
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return v, nil
}

// verifier verifies with the secrets read last.
type verifier struct {
	load    func() (*signature.Verifier, error)
	current atomic.Pointer[signature.Verifier]
}

var _ ingress.Verifier = (*verifier)(nil)

func (v *verifier) Verify(h http.Header, body []byte, now time.Time) (int, error) {
	return v.current.Load().Verify(h, body, now)
}

// reload reads the secrets anew; what cannot be used leaves the old ones.
func (v *verifier) reload() error {
	next, err := v.load()
	if err == nil {
		v.current.Store(next)
	}
	return err
}

// inUse tells how many secrets are in use, which shows that a new one was read.
func (v *verifier) inUse(provider string) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "bridge_secrets",
		Help:        "Secrets in use; in a rotation the old and the new.",
		ConstLabels: prometheus.Labels{"provider": provider},
	}, func() float64 { return float64(v.current.Load().Slots()) })
}

// endpoints returns the providers that have a secret, and how to reload those
// whose secrets are in a file. No secret at all, or one that cannot be used,
// is a configError.
func (c *config) endpoints() (endpoints []ingress.Endpoint, reload map[string][]func() error, err error) {
	var problems configError
	reload = make(map[string][]func() error)
	for _, p := range normalize.Providers() {
		source := c.secrets[p.Name]
		if source.empty() {
			continue
		}
		v := &verifier{load: func() (*signature.Verifier, error) {
			return source.verifier(p.Scheme, c.ReplayTolerance)
		}}
		if err := v.reload(); err != nil {
			problems = append(problems, err.Error())
			continue
		}
		endpoints = append(endpoints, ingress.Endpoint{Provider: p, Verifier: v})
		if source.file != "" {
			file := filepath.Clean(source.file)
			reload[file] = append(reload[file], v.reload)
		}
	}
	if len(problems) > 0 {
		return nil, nil, problems
	}
	if len(endpoints) == 0 {
		return nil, nil, noSecrets()
	}
	return endpoints, reload, nil
}

func noSecrets() error {
	var b strings.Builder
	b.WriteString("no provider has a secret, so no webhook could be verified. Set at least one of\n")
	for _, p := range normalize.Providers() {
		fmt.Fprintf(&b, "  %s%s_SECRETS\n", envPrefix, strings.ToUpper(p.Name))
	}
	b.WriteString("to the secrets that the provider shows you, or the same with _FILE to a file that holds them.\nTo try the bridge without any, run: bridge dev")
	return configError{strings.ReplaceAll(b.String(), "\n", "\n  ")}
}
