package ingress_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/ingress"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
	"github.com/hookbus/bridge/signature"
)

// lossy stands between the bridge and its NATS server. It can lose an
// acknowledgement of the stream of events, alone or with the connection.
type lossy struct {
	url     string
	lose    atomic.Int32 // acknowledgements still to be lost
	cut     atomic.Bool  // the connection too
	lost    atomic.Int32
	workers sync.WaitGroup
}

func newLossy(t *testing.T, s *server.Server) *lossy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &lossy{url: "nats://" + l.Addr().String()}
	p.workers.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			upstream, err := net.Dial("tcp", s.Addr().String())
			if err != nil {
				client.Close()
				continue
			}
			hangUp := func() { client.Close(); upstream.Close() }
			p.workers.Go(func() { defer hangUp(); io.Copy(upstream, client) })
			p.workers.Go(func() { defer hangUp(); p.answers(client, bufio.NewReader(upstream)) })
		}
	})
	t.Cleanup(func() { // after the bridge and before the server have ended
		l.Close()
		p.workers.Wait()
	})
	return p
}

// answers passes on what the server says, frame by frame.
func (p *lossy) answers(client io.Writer, server *bufio.Reader) {
	for {
		frame, err := server.ReadBytes('\n')
		if err != nil {
			return
		}
		if fields := bytes.Fields(frame); len(fields) > 2 && (string(fields[0]) == "MSG" || string(fields[0]) == "HMSG") {
			size, err := strconv.Atoi(string(fields[len(fields)-1]))
			if err != nil {
				return
			}
			payload := make([]byte, size+len("\r\n"))
			if _, err := io.ReadFull(server, payload); err != nil {
				return
			}
			if bytes.HasPrefix(payload, []byte(`{"stream":"WEBHOOKS",`)) && p.lose.Load() > 0 {
				p.lose.Add(-1)
				p.lost.Add(1)
				if p.cut.Load() {
					return
				}
				continue
			}
			frame = append(frame, payload...)
		}
		if _, err := client.Write(frame); err != nil {
			return
		}
	}
}

// The stream has stored the event and its acknowledgement does not come: the
// next attempt, or the provider's, finds it there.
func TestAcknowledgementIsLost(t *testing.T) {
	s := natstest.Server(t)
	p := newLossy(t, s)
	r := newRig(t, p.url, func(c *bus.Config, l *ingress.Limits) {
		c.PublishTimeout = 900 * time.Millisecond
		l.PublishTimeout = c.PublishTimeout
	}).ready()
	direct, err := jetstream.New(natstest.Connect(t, s.ClientURL()))
	if err != nil {
		t.Fatal(err)
	}
	r.js = direct
	for _, cut := range []bool{false, true} {
		name := "alone"
		if cut {
			name = "with the connection"
		}
		t.Run(name, func(t *testing.T) {
			p.cut.Store(cut)
			eachProvider(t, func(t *testing.T, provider normalize.Provider) {
				before, lost := r.stored("WEBHOOKS"), p.lost.Load()
				body := r.fresh(provider)
				p.lose.Store(1)
				a := r.send(r.signed(provider, body))
				for tries := 0; a.Status == http.StatusServiceUnavailable && a.Reason == "bus_unavailable" && tries < 20; tries++ {
					natstest.Eventually(t, 10*time.Second, "the connection is back", func() bool { return r.bus.State().Ready() })
					a = r.send(r.signed(provider, body))
				}
				if a.Status != http.StatusOK || a.Result != "accepted" && a.Result != "duplicate" {
					t.Fatalf("got %d %s", a.Status, a.text)
				}
				if n := p.lost.Load() - lost; n != 1 {
					t.Fatalf("%d acknowledgements were lost, want 1", n)
				}
				again := r.send(r.signed(provider, body))
				again.expect(t, http.StatusOK, "duplicate")
				if again.ID != a.ID {
					t.Errorf("ids %s and %s", a.ID, again.ID)
				}
				if n := r.stored("WEBHOOKS") - before; n != 1 {
					t.Errorf("%d messages stored, want 1", n)
				}
				r.message("WEBHOOKS", a.ID)
			})
		})
	}
}

// The machine's clock jumps by an hour and back. What is signed with a time is
// refused meanwhile, and not as a failure of ours; a name does not know the
// time; and a report that could be a second one is stored.
func TestClockJumps(t *testing.T) {
	r := oneServer(t)
	for _, jump := range []time.Duration{time.Hour, -time.Hour} {
		t.Run(jump.String(), func(t *testing.T) {
			check := func(t *testing.T, p normalize.Provider, body []byte) {
				t.Helper()
				r.setNow(start)
				request, same := r.signed(p, body), r.signed(p, body)
				e, err := p.Event(body, start)
				if err != nil {
					t.Fatal(err)
				}
				before := r.stored("WEBHOOKS")
				r.setNow(start.Add(jump))
				a := r.send(request)
				r.setNow(start)
				back := r.send(same)
				switch {
				case p.Scheme.Time != signature.NoTime:
					a.expect(t, http.StatusUnauthorized, "timestamp_outside_tolerance")
					back.expect(t, http.StatusOK, "accepted")
				case e.Identity.Judged() && !e.Identity.Transition:
					a.expect(t, http.StatusOK, "accepted")
					back.expect(t, http.StatusOK, "accepted")
					if n := r.stored("WEBHOOKS") - before; n != 2 {
						t.Errorf("%d messages stored, want 2", n)
					}
					return
				default:
					a.expect(t, http.StatusOK, "accepted")
					back.expect(t, http.StatusOK, "duplicate")
				}
				if n := r.stored("WEBHOOKS") - before; n != 1 {
					t.Errorf("%d messages stored, want 1", n)
				}
			}
			eachProvider(t, func(t *testing.T, p normalize.Provider) { check(t, p, r.fresh(p)) })
			check(t, provider(t, "waldo"), []byte(fmt.Sprintf(`{"event":"flag","flag":true,"customerId":"c%s"}`, jump)))
		})
	}
}

// A server that is full stores nothing, though there is nothing wrong with the stream.
func TestReadinessWhileTheServerIsFull(t *testing.T) {
	t.Parallel()
	for _, spooled := range []bool{false, true} {
		t.Run(fmt.Sprintf("spool %t", spooled), func(t *testing.T) {
			t.Parallel()
			s := natstest.Server(t, func(o *server.Options) { o.JetStreamMaxStore = 2 << 20 })
			var spool bus.SpoolConfig
			if spooled {
				spool = bus.SpoolConfig{Dir: t.TempDir(), MaxBytes: 64 << 20}
			}
			r := newSpoolRig(t, s.ClientURL(), spool, func(c *bus.Config, _ *ingress.Limits) { c.QuarantineMaxBytes = 1 << 20 }).ready()
			waldo, says := provider(t, "waldo"), "insufficient resources"
			durable := func() bool { _, ready := r.readiness(); return strings.Contains(ready.Durability, "one server") }
			said := func() bool {
				_, ready := r.readiness()
				return strings.Contains(strings.Join(ready.Warnings, "\n"), says)
			}
			if !durable() || said() {
				t.Fatal("it says so before")
			}
			natstest.Eventually(t, 40*time.Second, "it is said", func() bool {
				body := fmt.Appendf(nil, `{"requestId":%q,"customerId":"c","event":"flag","pad":%q}`, rand.Text(), strings.Repeat("x", 60_000))
				if !spooled || r.spool.Len() == 0 {
					r.send(r.signed(waldo, body))
				}
				return said()
			})
			if durable() == spooled {
				_, ready := r.readiness()
				t.Errorf("a 200 is worth: %s", ready.Durability)
			}
			if spooled {
				return
			}
			stream, err := r.js.Stream(t.Context(), "WEBHOOKS")
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Purge(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.send(r.signed(waldo, []byte(`{"requestId":"last","customerId":"c","event":"flag"}`))).expect(t, http.StatusOK, "accepted")
			natstest.Eventually(t, 20*time.Second, "it is said no more", func() bool { return !said() })
		})
	}
}
