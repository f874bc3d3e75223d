//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hookbus/bridge/normalize"
)

const (
	patience = 10 * time.Second // of a provider, with one request
	copies   = 0.1              // part that is sent twice
)

// digest is a body's, without the time of signing that some hold.
type digest [sha256.Size]byte

func digestOf(p normalize.Provider, body []byte) digest {
	return sha256.Sum256(p.Stamp(body, time.Unix(0, 0)))
}

// sent is one webhook and what became of it.
type sent struct {
	to       string
	provider string
	at       time.Time
	answers  []string
	ok       bool
}

// sender sends webhooks of all providers to both deployments for as long as it
// runs, in an open loop. What is not answered 200 is counted and sent again.
type sender struct {
	rate    float64 // of both together
	url     map[string]string
	clients []*http.Client
	stop    chan struct{} // nothing new is sent
	giveUp  chan struct{} // nor is anything sent again
	wg      sync.WaitGroup

	mu      sync.Mutex
	secrets map[string]string // that are signed with
	all     map[digest]*sent
	count   map[string]*counts // by deployment, since they were taken
	open    int                // not answered 200 yet
	faults  []string
}

// counts is what happened during a scenario.
type counts struct {
	sent, requests, failed int
	reasons                map[string]int
	failures               []string      // the first few
	gap                    time.Duration // the longest without a 200
	last                   time.Time
	slowest                time.Duration
}

func newCounts() *counts {
	return &counts{reasons: make(map[string]int), last: time.Now()}
}

func newSender(rate float64, urls map[string]string, secrets map[string]string) *sender {
	s := &sender{rate: rate, url: urls, secrets: secrets, stop: make(chan struct{}), giveUp: make(chan struct{}), all: make(map[digest]*sent), count: make(map[string]*counts)}
	for name := range urls {
		s.count[name] = newCounts()
	}
	// Half of the requests come over connections that stay open, as a load
	// balancer's do, half over new ones. What is idle for as long as a bridge
	// serves on before it ends is closed by the client (docs/operations.md).
	s.clients = []*http.Client{
		{Transport: &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: 4 * time.Second}},
		{Transport: &http.Transport{DisableKeepAlives: true}},
	}
	return s
}

// run sends until it is stopped, and returns when all is answered 200 or given up.
func (s *sender) run() {
	names := slices.Sorted(maps.Keys(s.url))
	providers := normalize.Providers()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	begun, start := 0, time.Now()
	for {
		select {
		case <-s.stop:
			s.wg.Wait()
			return
		case <-tick.C:
		}
		for due := int(time.Since(start).Seconds() * s.rate); begun < due; begun++ {
			p := providers[begun/len(names)%len(providers)]
			samples := p.Samples()
			body := p.Fresh(samples[begun/(len(names)*len(providers))%len(samples)].Body, time.Now())
			s.begin(names[begun%len(names)], p, body)
		}
	}
}

func (s *sender) begin(to string, p normalize.Provider, body []byte) {
	w := &sent{to: to, provider: p.Name, at: time.Now()}
	s.mu.Lock()
	s.all[digestOf(p, body)] = w
	s.count[to].sent++
	s.open++
	s.mu.Unlock()
	twice := rand.Float64() < copies
	s.wg.Go(func() {
		// A provider tries again for hours; a run has no hours.
		for wait := time.Second; !s.deliver(w, p, body) && s.pause(wait); wait = min(2*wait, 8*time.Second) {
		}
		if twice && s.pause(time.Second) {
			s.deliver(w, p, body)
		}
	})
}

func (s *sender) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-s.giveUp:
		return false
	}
}

// deliver sends once and reports whether the answer was 200.
func (s *sender) deliver(w *sent, p normalize.Provider, body []byte) bool {
	begun := time.Now()
	answer, ok := s.post(w.to, p, body)
	took := time.Since(begun)
	s.mu.Lock()
	defer s.mu.Unlock()
	w.answers = append(w.answers, fmt.Sprintf("%s +%v %s", begun.Format("15:04:05.000"), took.Round(time.Millisecond), answer))
	c := s.count[w.to]
	c.requests++
	c.slowest = max(c.slowest, took)
	if !ok {
		c.failed++
		c.reasons[answer]++
		if len(c.failures) < 10 {
			c.failures = append(c.failures, w.provider+" "+w.answers[len(w.answers)-1])
		}
		return false
	}
	if !w.ok {
		w.ok = true
		s.open--
	}
	c.gap = max(c.gap, time.Since(c.last))
	c.last = time.Now()
	return true
}

func (s *sender) post(to string, p normalize.Provider, body []byte) (answer string, ok bool) {
	s.mu.Lock()
	secret := s.secrets[p.Name]
	s.mu.Unlock()
	now := time.Now()
	body = p.Stamp(body, now)
	header, value, err := p.Scheme.Sign(secret, body, now)
	if err != nil {
		return err.Error(), false
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url[to]+"/webhooks/"+p.Name, bytes.NewReader(body))
	if err != nil {
		return err.Error(), false
	}
	request.GetBody = nil // the client is not to hide a failure by trying again
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set(header, value)
	response, err := s.clients[rand.IntN(len(s.clients))].Do(request)
	if err != nil {
		return shortened(err.Error()), false
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return shortened(err.Error()), false
	}
	var a struct{ Result, Reason string }
	json.Unmarshal(text, &a)
	return fmt.Sprintf("%d %s%s", response.StatusCode, a.Result, a.Reason), response.StatusCode == http.StatusOK
}

// shortened leaves the addresses out, which differ from request to request.
func shortened(text string) string {
	if i := strings.LastIndex(text, ": "); i >= 0 {
		return text[i+2:]
	}
	return text
}

// use signs with other secrets from now on.
func (s *sender) use(secrets map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets = secrets
}

// take returns what was counted of a deployment and begins anew.
func (s *sender) take(to string) *counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.count[to]
	c.gap = max(c.gap, time.Since(c.last))
	s.count[to] = newCounts()
	return c
}

// requests returns how many a deployment has been sent since they were taken.
func (s *sender) requests(to string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count[to].requests
}

// unsettled returns what was sent before a time and has not been answered 200.
func (s *sender) unsettled(before time.Time) (webhooks []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == 0 {
		return nil
	}
	for _, w := range s.all {
		if !w.ok && w.at.Before(before) {
			webhooks = append(webhooks, fmt.Sprintf("%s of %s\n  %s", w.provider, w.to, strings.Join(w.answers, "\n  ")))
		}
	}
	return webhooks
}
