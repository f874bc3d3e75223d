package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/hookbus/bridge/normalize"
	"github.com/hookbus/bridge/signature"
)

type sendCmd struct {
	Provider string `arg:"" enum:"${providers}" help:"One of ${providers}."`
	File     string `help:"Send this body, byte for byte, instead of a sample (- for standard input). Where the provider signs a time in the body, that is set to now." placeholder:"FILE"`
	Type     string `help:"Send the sample of this event type or name." placeholder:"TYPE"`
	URL      string `help:"The bridge's address, with or without the path (BRIDGE_LISTEN_ADDR by default)." placeholder:"URL"`
	Secret   string `help:"Secret to sign with (the first of BRIDGE_<PROVIDER>_SECRETS by default)." placeholder:"SECRET"`
	Count    int    `help:"How many to send." default:"1" placeholder:"N"`
	Repeat   bool   `help:"Send the same event every time; without it each is a new event, with ids and times of its own."`
	JSON     bool   `help:"Print JSON, a line for each."`
}

// sendTimeout is how long a provider waits.
const sendTimeout = 10 * time.Second

func (s *sendCmd) Run(c *cli) error {
	if s.Count < 1 {
		return usageError("--count must be at least 1")
	}
	if s.File != "" && s.Type != "" {
		return usageError("--file and --type exclude each other")
	}
	cfg, err := loadConfig(c.environ)
	if err != nil {
		return err
	}
	provider, _ := normalize.ByName(s.Provider)
	body, err := s.body(provider, c.stdin)
	if err != nil {
		return err
	}
	secret, err := s.secret(cfg.secrets[provider.Name])
	if err != nil {
		return err
	}
	address, err := s.address(cfg)
	if err != nil {
		return err
	}
	prepare := provider.Fresh
	if s.Repeat || s.File != "" {
		prepare = provider.Stamp
	}
	refused := 0
	for range s.Count {
		now := time.Now()
		r, err := deliver(c.ctx, address, provider, secret, prepare(body, now), now)
		if err != nil {
			return err
		}
		if !r.accepted() {
			refused++
		}
		if s.JSON {
			err = printJSON(c.stdout, r)
		} else {
			_, err = fmt.Fprintln(c.stdout, harmless(r.String()))
		}
		if err != nil {
			return err
		}
	}
	if refused > 0 {
		return fmt.Errorf("%d of %d not accepted", refused, s.Count)
	}
	return nil
}

func (s *sendCmd) body(p normalize.Provider, stdin io.Reader) ([]byte, error) {
	switch s.File {
	case "":
	case "-":
		return io.ReadAll(stdin)
	default:
		return os.ReadFile(s.File)
	}
	var known []string
	for _, sample := range p.Samples() {
		if s.Type == "" || s.Type == sample.Kind || s.Type == p.TypePrefix+sample.Kind || s.Type == sample.Name {
			return sample.Body, nil
		}
		known = append(known, sample.Name+" ("+p.TypePrefix+sample.Kind+")")
	}
	return nil, usageError(fmt.Sprintf("no sample of %s has the type %q; there are:\n  %s", p.Name, s.Type, strings.Join(known, "\n  ")))
}

func (s *sendCmd) secret(source secretSource) (string, error) {
	if s.Secret != "" {
		return s.Secret, nil
	}
	secrets, err := source.read()
	if err != nil {
		return "", err
	}
	if len(secrets) == 0 {
		return "", usageError(fmt.Sprintf("no secret: give --secret or set %s", source.variable))
	}
	return secrets[0], nil
}

// address completes the URL with what it lacks.
func (s *sendCmd) address(cfg *config) (string, error) {
	if s.URL == "" {
		scheme := "http://"
		if cfg.TLSCertFile != "" {
			scheme = "https://"
		}
		return scheme + reachable(cfg.ListenAddr) + "/webhooks/" + s.Provider, nil
	}
	u, err := url.Parse(s.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return "", usageError(fmt.Sprintf("--url %q is not an http or https URL", s.URL))
	}
	if strings.Trim(u.Path, "/") == "" {
		u.Path = "/webhooks/" + s.Provider
	}
	return u.String(), nil
}

// delivery is the answer to a webhook that was sent.
type delivery struct {
	Provider string `json:"provider"`
	Status   int    `json:"status"`
	told
	Took time.Duration `json:"took_ns"`
}

// told is what a bridge answers; another server may answer anything.
type told struct {
	Result string `json:"result,omitempty"`
	ID     string `json:"id,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// accepted reports whether a bridge has taken the webhook.
func (d delivery) accepted() bool { return d.Status == http.StatusOK && d.Result != "" }

func (d delivery) String() string {
	return strings.TrimRight(fmt.Sprintf("%s  %d %s%s  %s", d.Provider, d.Status, d.Result, d.Reason, d.ID), " ") + fmt.Sprintf("  (%v)", d.Took.Round(100*time.Microsecond))
}

// asProvider is a client that follows no redirect.
var asProvider = http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// deliver signs the body and sends it as the provider would.
func deliver(ctx context.Context, address string, p normalize.Provider, secret string, body []byte, now time.Time) (delivery, error) {
	d := delivery{Provider: p.Name}
	header, value, err := p.Scheme.Sign(secret, body, now)
	if err != nil {
		return d, fmt.Errorf("signing: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return d, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set(header, value)
	response, err := asProvider.Do(request)
	if err != nil {
		return d, err
	}
	defer response.Body.Close()
	d.Status = response.StatusCode
	answer, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return d, err
	}
	d.Took = time.Since(now)
	json.Unmarshal(answer, &d.told)
	return d, nil
}

// newSecret makes a secret in the form that the scheme wants.
func newSecret(s signature.Scheme) string {
	if s.Key == signature.HexAfterWhsec {
		b := make([]byte, 32)
		rand.Read(b)
		return "whsec_" + hex.EncodeToString(b)
	}
	return "dev-" + rand.Text()
}

// printJSON prints v on one line; on a terminal without what the terminal would obey.
func printJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	text := b.String()
	if terminal(w) {
		text = harmless(text)
	}
	_, err := io.WriteString(w, text)
	return err
}
