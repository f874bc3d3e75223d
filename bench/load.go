package main

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/rand"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/textproto"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hookbus/bridge/normalize"
)

const bodySize = 1 << 10

// traffic says what is sent.
type traffic struct {
	name     string
	provider string
	// body makes the nth occurrence; pad fills it up to bodySize.
	body func(run string, n int, pad string) string
	// copies is the part of requests that repeat one that has its answer.
	copies float64
}

var (
	named = traffic{name: "named events", provider: "dataspike", body: func(run string, n int, pad string) string {
		return fmt.Sprintf(`{"id":"%s-%d","webhook_id":"8c8e7195-f176-4279-bf46-98eed9acdb35","event_type":"DOCVER","timestamp":"2026-02-03T04:05:06Z","payload":{"id":"fdbeb21d-31a8-4d21-ab5d-b4d2a45df8e5","applicant_id":"%[1]s-%[2]d","status":"verified","document_type":"passport","checks":{"document_mrz":{"status":"verified","errors":[],"data":null},"face_comparison":{"status":"verified","errors":[],"data":null},"liveness":{"status":"verified","errors":[],"data":null}},"organization_id":"%[3]s","created_at":"2026-02-03T04:05:05Z"}}`, run, n, pad)
	}}
	reports = traffic{name: "state reports", provider: "trusthub", body: func(run string, n int, pad string) string {
		return fmt.Sprintf(`{"sessionId":"%s-%d","externalId":"%s","projectId":"test-project","status":"AUTO_APPROVED"}`, run, n, pad)
	}}
	copies10 = traffic{name: "10 % copies", provider: named.provider, body: named.body, copies: 0.1}
	copies50 = traffic{name: "50 % copies", provider: named.provider, body: named.body, copies: 0.5}
)

// requests makes signed requests, ready to be written to a connection, for each
// of so many connections.
func (t traffic) requests(n, connections int, secret string) ([][][]byte, error) {
	p, ok := normalize.ByName(t.provider)
	if !ok {
		return nil, fmt.Errorf("no provider %s", t.provider)
	}
	run, now := rand.Text()[:12], time.Now()
	pad := bytes.Repeat([]byte("x"), max(0, bodySize-len(t.body(run, 100_000, ""))))
	all := make([][][]byte, connections)
	for i := range n {
		mine := &all[i%connections]
		if len(*mine) > 0 && mathrand.Float64() < t.copies {
			*mine = append(*mine, (*mine)[mathrand.IntN(len(*mine))])
			continue
		}
		body := p.Stamp([]byte(t.body(run, i, string(pad))), now)
		header, value, err := p.Scheme.Sign(secret, body, now)
		if err != nil {
			return nil, err
		}
		request := fmt.Appendf(nil, "POST /webhooks/%s HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n%s: %s\r\nContent-Length: %d\r\n\r\n", t.provider, header, value, len(body))
		*mine = append(*mine, append(request, body...))
	}
	return all, nil
}

// load is what a load generator saw.
type load struct {
	took      time.Duration
	latencies []time.Duration
}

// closedLoop sends the requests of each connection one after the other.
func closedLoop(addr string, requests [][][]byte) (load, error) {
	return send(addr, requests, func(int) time.Time { return time.Now() })
}

// openLoop begins so many requests a second, whatever becomes of those before. A
// request that had to wait for a connection is late, and its latency counts from
// when it was due.
func openLoop(addr string, requests [][][]byte, rate float64) (load, error) {
	start := time.Now()
	return send(addr, requests, func(n int) time.Time {
		due := start.Add(time.Duration(float64(n) / rate * float64(time.Second)))
		time.Sleep(time.Until(due))
		return due
	})
}

// send has every connection take the next number, wait for when that is due, and
// send the next of its requests.
func send(addr string, requests [][][]byte, due func(n int) time.Time) (load, error) {
	connections := make([]*connection, len(requests))
	for i := range connections {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return load{}, err
		}
		defer c.Close()
		connections[i] = &connection{Conn: c, reader: bufio.NewReader(c)}
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, len(requests))
	latencies := make([][]time.Duration, len(requests))
	start := time.Now()
	for i, mine := range requests {
		wg.Go(func() {
			latencies[i] = make([]time.Duration, 0, len(mine))
			for _, request := range mine {
				begun := due(int(next.Add(1) - 1))
				if errs[i] = connections[i].do(request); errs[i] != nil {
					return
				}
				latencies[i] = append(latencies[i], time.Since(begun))
			}
		})
	}
	wg.Wait()
	l := load{took: time.Since(start), latencies: slices.Concat(latencies...)}
	slices.Sort(l.latencies)
	return l, cmp.Or(errs...)
}

func (l load) rate() float64 { return float64(len(l.latencies)) / l.took.Seconds() }

func (l load) quantile(q float64) time.Duration {
	return l.latencies[min(int(q*float64(len(l.latencies))), len(l.latencies)-1)]
}

// connection is the least client that keeps a connection open.
type connection struct {
	net.Conn
	reader *bufio.Reader
}

// do sends a request and reads the answer, which has to be 200.
func (c *connection) do(request []byte) error {
	if _, err := c.Write(request); err != nil {
		return err
	}
	status, err := c.reader.ReadSlice('\n')
	if err != nil {
		return err
	}
	ok := bytes.HasPrefix(status, []byte("HTTP/1.1 200 "))
	length := -1
	for {
		line, err := c.reader.ReadSlice('\n')
		if err != nil {
			return err
		}
		if line = bytes.TrimRight(line, "\r\n"); len(line) == 0 {
			break
		}
		if name, value, _ := bytes.Cut(line, []byte(":")); textproto.CanonicalMIMEHeaderKey(string(name)) == "Content-Length" {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return err
			}
		}
	}
	if !ok {
		text := make([]byte, max(0, length))
		io.ReadFull(c.reader, text)
		return fmt.Errorf("not answered 200: %s", text)
	}
	if length < 0 {
		return fmt.Errorf("an answer without a length")
	}
	_, err = c.reader.Discard(length)
	return err
}
