//go:build faults

package faults

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hookbus/bridge/normalize"
)

// mix says what a sender sends.
type mix struct {
	rate       float64 // new occurrences a second
	copies     float64 // part of them that is sent twice
	sequences  float64 // part that is a report of a state
	unreadable float64
	oversized  time.Duration // time between two; 0: none
}

// The rate is a little above what a run has to reach.
var usual = mix{rate: 156, copies: 0.15, sequences: 0.15, unreadable: 0.01, oversized: 4 * time.Second}

const (
	patience    = 10 * time.Second // of a provider, with one request
	maxInFlight = 3000
)

// retryAfter is when a provider tries again: a day's schedule, made short.
var retryAfter = []time.Duration{time.Second, 3 * time.Second, 6 * time.Second, 10 * time.Second}

// sender behaves as the providers do, in front of two replicas. It is an open
// loop: how fast answers come does not change what is offered.
type sender struct {
	mix     mix
	bridges []*bridge
	client  *http.Client
	maker   *maker
	random  *rand.Rand

	inFlight atomic.Int64
	skipped  int // too many in flight
	started  time.Time
	took     time.Duration
	stop     chan struct{}
	wg       sync.WaitGroup

	mu        sync.Mutex
	all       []*occurrence
	sequences map[string]*sequence // by marker
	ready     []*sequence          // whose next report may be sent
}

func newSender(m mix, seed uint64, bridges ...*bridge) *sender {
	random := rand.New(rand.NewPCG(seed, 2))
	return &sender{
		mix: m, bridges: bridges, random: random, maker: &maker{random: random},
		client:    &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: maxInFlight, IdleConnTimeout: 20 * time.Second}},
		stop:      make(chan struct{}),
		sequences: make(map[string]*sequence),
	}
}

// run sends for that time, and returns when all answers have come.
func (s *sender) run(d time.Duration) {
	s.started = time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	begun, big := 0, 0
	for elapsed := time.Duration(0); elapsed < d; elapsed = time.Since(s.started) {
		<-tick.C
		for due := int(elapsed.Seconds() * s.mix.rate); begun < due; begun++ {
			if s.inFlight.Load() >= maxInFlight {
				s.skipped++
				continue
			}
			if s.mix.oversized > 0 && elapsed > time.Duration(big)*s.mix.oversized {
				big++
				s.begin(s.maker.oversized())
				continue
			}
			s.one()
		}
	}
	s.took = time.Since(s.started)
	close(s.stop)
	s.wg.Wait()
	s.client.CloseIdleConnections()
}

// pause waits, and reports false if the run ends first.
func (s *sender) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-s.stop:
		return false
	}
}

// plan is how an occurrence is sent more than once.
type plan struct {
	atOnce bool
	late   time.Duration // after the answer; 0: not
}

func (s *sender) plan(longest time.Duration) (p plan) {
	if s.random.Float64() < s.mix.copies {
		if p.atOnce = s.random.IntN(2) == 0; !p.atOnce {
			p.late = time.Second + time.Duration(s.random.Int64N(int64(longest)))
		}
	}
	return p
}

// one begins one occurrence of the mix.
func (s *sender) one() {
	switch n := s.random.Float64(); {
	case n < s.mix.unreadable:
		s.begin(s.maker.unreadable())
	case n < s.mix.unreadable+s.mix.sequences:
		s.step()
	default:
		s.begin(s.maker.named())
	}
}

func (s *sender) begin(o *occurrence) {
	p := s.plan(20 * time.Second)
	s.mu.Lock()
	s.all = append(s.all, o)
	s.mu.Unlock()
	s.wg.Go(func() {
		var copies sync.WaitGroup
		if p.atOnce {
			copies.Go(func() { s.deliver(o, atOnce, -1) })
		}
		d := s.deliver(o, original, -1)
		for i := 0; !d.ok() && retries[o.provider.Name] && i < len(retryAfter) && s.pause(retryAfter[i]); i++ {
			d = s.deliver(o, retry, -1)
		}
		copies.Wait()
		if d.ok() && p.late > 0 && s.pause(p.late) {
			s.deliver(o, late, -1)
		}
	})
}

// step sends the next report of a sequence, or the first of a new one. A
// sequence goes on only if every delivery of the report was answered 200: what
// has become of another is not known, and may come late. It goes on at the
// replica that has a report of it in its spool.
func (s *sender) step() {
	p := s.plan(10 * time.Second)
	s.mu.Lock()
	var q *sequence
	if len(s.ready) > 0 && s.random.IntN(4) > 0 {
		q, s.ready = s.ready[0], s.ready[1:]
	} else {
		q = s.maker.sequence()
		s.sequences[q.marker] = q
	}
	o := q.report()
	s.all = append(s.all, o)
	s.mu.Unlock()
	s.wg.Go(func() {
		var copied delivery
		var copies sync.WaitGroup
		if p.atOnce {
			copies.Go(func() { copied = s.deliver(o, atOnce, q.pinned) })
		}
		d := s.deliver(o, original, q.pinned)
		copies.Wait()
		if !d.ok() || p.atOnce && !copied.ok() {
			return
		}
		for _, d := range []delivery{d, copied} {
			if d.result == "spooled" {
				at := s.number(d.bridge)
				if q.pinned >= 0 && q.pinned != at {
					return // in two spools
				}
				q.pinned = at
			}
		}
		if p.late > 0 {
			if !s.pause(p.late) {
				return
			}
			d := s.deliver(o, late, q.pinned)
			if !d.ok() {
				return
			}
			if d.result == "spooled" {
				q.pinned = s.number(d.bridge)
			}
		}
		if q.next < len(q.states) {
			s.mu.Lock()
			s.ready = append(s.ready, q)
			s.mu.Unlock()
		}
	})
}

func (s *sender) number(name string) int {
	for i, b := range s.bridges {
		if b.name == name {
			return i
		}
	}
	return -1
}

// deliver sends once, to the pinned replica or to any. As a service in front of
// replicas does, it goes to another one when the connection is refused.
func (s *sender) deliver(o *occurrence, why string, pinned int) delivery {
	s.inFlight.Add(1)
	defer s.inFlight.Add(-1)
	at := pinned
	if at < 0 {
		at = rand.IntN(len(s.bridges))
	}
	d := s.post(o, why, s.bridges[at])
	if d.status == 0 && d.err == refusedConnection && pinned < 0 && len(s.bridges) > 1 {
		d = s.post(o, why, s.bridges[(at+1)%len(s.bridges)])
	}
	return d
}

const refusedConnection = "connection refused"

func (s *sender) post(o *occurrence, why string, b *bridge) (d delivery) {
	d = delivery{why: why, at: time.Now(), bridge: b.name}
	body := o.provider.Stamp(o.body(why), d.at)
	d.body = sha256.Sum256(body)
	defer func() {
		d.took = time.Since(d.at)
		o.mu.Lock()
		o.deliveries = append(o.deliveries, d)
		o.mu.Unlock()
	}()
	d.status, d.result, d.reason, d.id, d.err = send(s.client, b.url(o.provider), o.provider, body, d.at)
	return d
}

// send signs the body as the provider does, sends it, and returns the answer. A
// request that has none has an err.
func send(client *http.Client, url string, p normalize.Provider, body []byte, now time.Time) (status int, result, reason, id, failed string) {
	return sendAs(client, url, p, secret(p), body, now)
}

// sendAs signs with that secret.
func sendAs(client *http.Client, url string, p normalize.Provider, secret string, body []byte, now time.Time) (status int, result, reason, id, failed string) {
	fail := func(err error) (int, string, string, string, string) {
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			return 0, "", "", "", refusedConnection
		case errors.Is(err, context.DeadlineExceeded):
			return 0, "", "", "", "timed out"
		}
		return 0, "", "", "", err.Error()
	}
	header, value, err := p.Scheme.Sign(secret, body, now)
	if err != nil {
		return fail(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return fail(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set(header, value)
	response, err := client.Do(request)
	if err != nil {
		return fail(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return fail(err)
	}
	var answer struct{ Result, Reason, ID string }
	json.Unmarshal(text, &answer)
	return response.StatusCode, answer.Result, answer.Reason, answer.ID, ""
}

// sendAgain sends what was not answered 200, a few at a time.
func (s *sender) sendAgain() {
	places := make(chan struct{}, 16)
	for _, o := range s.all {
		if !o.answered() {
			places <- struct{}{}
			s.wg.Go(func() { s.deliver(o, again, -1); <-places })
		}
	}
	s.wg.Wait()
}
