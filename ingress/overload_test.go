package ingress_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/ingress"
	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/normalize"
)

// crowd opens many connections at once, each of which sends the text and then
// nothing, and returns when the server has taken them all.
func crowd(t *testing.T, r *rig, n int, text string) []net.Conn {
	t.Helper()
	before := r.conns.Load()
	var conns []net.Conn
	for range n {
		c := dial(t, r.url)
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	natstest.Eventually(t, 10*time.Second, "the server has them all", func() bool { return r.conns.Load() >= before+int64(n) })
	return conns
}

// A thousand strangers who send slowly, or stop, take nothing that others need.
func TestThousandSlowClients(t *testing.T) {
	const clients = 1000
	for _, test := range []struct{ name, text string }{
		{"half a request line", "POST /webhooks/wal"},
		{"headers without an end", "POST /webhooks/waldo HTTP/1.1\r\nHost: x\r\nX-Slow: "},
		{"bodies without an end", "POST /webhooks/waldo HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n{"},
		{"chunks without an end", "POST /webhooks/waldo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := oneServer(t, func(_ *bus.Config, l *ingress.Limits) { l.MaxInFlight = 4 })
			crowd(t, r, clients, test.text)
			begun := time.Now()
			eachProvider(t, func(t *testing.T, p normalize.Provider) {
				r.send(r.signed(p, r.fresh(p))).expect(t, http.StatusOK, "accepted")
			})
			if took := time.Since(begun); took > 2*time.Second {
				t.Errorf("the fast ones took %v", took)
			}
		})
	}
}

// readStatus reads one response and returns its status; 0 if the connection was
// closed without one.
func readStatus(t *testing.T, c net.Conn, within time.Duration) int {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err, ok := err.(net.Error); ok && err.Timeout() {
		t.Fatalf("nothing within %v", within)
	}
	if err != nil {
		return 0
	}
	response.Body.Close()
	return response.StatusCode
}

func TestHeaderLimit(t *testing.T) {
	r := oneServer(t)
	waldo := provider(t, "waldo")
	for _, test := range []struct {
		name   string
		bytes  int
		status int
	}{
		{"as a provider and its proxies send", 8 << 10, http.StatusOK},
		{"too many", 32 << 10, http.StatusRequestHeaderFieldsTooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			body := r.fresh(waldo)
			header, value, err := waldo.Scheme.Sign(secrets(waldo)[0], body, start)
			if err != nil {
				t.Fatal(err)
			}
			c := dial(t, r.url)
			fmt.Fprintf(c, "POST /webhooks/waldo HTTP/1.1\r\nHost: x\r\n%s: %s\r\nX-Pad: %s\r\nContent-Length: %d\r\n\r\n%s", header, value, strings.Repeat("x", test.bytes), len(body), body)
			if got := readStatus(t, c, 5*time.Second); got != test.status {
				t.Errorf("got %d, want %d", got, test.status)
			}
		})
	}
}

// Who does not end the headers in time is hung up on.
func TestHeaderTimeout(t *testing.T) {
	t.Parallel()
	r := oneServer(t)
	begun := time.Now()
	for _, c := range crowd(t, r, 10, "POST /webhooks/waldo HTTP/1.1\r\nHost: x\r\nX-Slow: ") {
		if got := readStatus(t, c, 7*time.Second); got != 0 && got != http.StatusRequestTimeout {
			t.Errorf("got %d", got)
		}
	}
	if took := time.Since(begun); took < 4*time.Second {
		t.Errorf("hung up after %v: a slow line needs longer", took)
	}
}

// Who drips bytes into a body has no more time than who sends none.
func TestDrippedBody(t *testing.T) {
	t.Parallel()
	r := oneServer(t, func(_ *bus.Config, l *ingress.Limits) { l.PublishTimeout = 5500 * time.Millisecond }) // 1.5 s are left
	c := dial(t, r.url)
	begun := time.Now()
	fmt.Fprintf(c, "POST /webhooks/waldo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
	ended := make(chan struct{})
	var drip sync.WaitGroup
	drip.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
				if _, err := c.Write([]byte("x")); err != nil {
					return
				}
			}
		}
	})
	got := readStatus(t, c, 5*time.Second)
	close(ended)
	drip.Wait()
	if got != http.StatusServiceUnavailable {
		t.Errorf("got %d", got)
	}
	if took := time.Since(begun); took < time.Second || took > 4*time.Second {
		t.Errorf("it took %v, want 1.5 s", took)
	}
}

// A connection that nothing comes on is closed. The server's minute is made
// shorter here.
func TestIdleTimeout(t *testing.T) {
	t.Parallel()
	r := oneServer(t)
	server := httptest.NewUnstartedServer(nil)
	server.Config = ingress.NewServer(r.handler, discard())
	server.Config.IdleTimeout /= 100
	server.Start()
	defer server.Close()
	c := dial(t, server.URL)
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if got := readStatus(t, c, 5*time.Second); got != http.StatusNotFound {
		t.Fatalf("got %d", got)
	}
	begun := time.Now()
	if got := readStatus(t, c, 5*time.Second); got != 0 {
		t.Errorf("got %d", got)
	}
	if took := time.Since(begun); took < 300*time.Millisecond {
		t.Errorf("closed after %v", took)
	}
}

// With the house full, whoever comes is told so at once and when to come again,
// and waits for nobody.
func TestFullHouse(t *testing.T) {
	const places, others = 100, 200
	r := oneServer(t)
	waldo := provider(t, "waldo")
	verifier, err := waldo.Scheme.NewVerifier(secrets(waldo), tolerance)
	if err != nil {
		t.Fatal(err)
	}
	stage := held{make(chan struct{}), make(chan struct{})}
	h, err := ingress.New([]ingress.Endpoint{{Provider: waldo, Verifier: verifier}}, stage, r.bus, nil, nil,
		ingress.Limits{MaxBody: 1 << 20, MaxInFlight: places, MaxInFlightBytes: 64 << 20, PublishTimeout: 3 * time.Second}, time.Now, discard(), newRegistry(), nil)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(nil)
	server.Config = ingress.NewServer(h, discard())
	server.Start()
	defer server.Close()
	r.url = server.URL

	inside := make(chan answer, places)
	for range places {
		request := r.signed(waldo, r.fresh(waldo))
		go func() { inside <- r.send(request) }()
		<-stage.come
	}
	refused := make([]answer, others)
	begun := time.Now()
	var wg sync.WaitGroup
	for i := range refused {
		request := r.signed(waldo, r.fresh(waldo))
		wg.Go(func() { refused[i] = r.send(request) })
	}
	wg.Wait()
	took := time.Since(begun)
	for _, a := range refused {
		a.expect(t, http.StatusServiceUnavailable, "overloaded")
		if a.Header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
	}
	if took > 2*time.Second {
		t.Errorf("%d refusals took %v", others, took)
	}
	close(stage.leave)
	for range places {
		(<-inside).expect(t, http.StatusOK, "accepted")
	}
	for range places { // the places are free again, all of them
		request := r.signed(waldo, r.fresh(waldo))
		go func() { inside <- r.send(request) }()
		<-stage.come
		(<-inside).expect(t, http.StatusOK, "accepted")
	}
}

// However a request ends, the bytes it held are given back: at last a body
// comes that needs all there are.
func TestBytesAreGivenBack(t *testing.T) {
	const largest = 64 << 10
	waldo := provider(t, "waldo")
	// A body of the largest size needs its room and, while it grows into that,
	// what it had before; then a second one for the compact form.
	r := oneServer(t, func(_ *bus.Config, l *ingress.Limits) { l.MaxBody, l.MaxInFlightBytes = largest, 2*largest+1 })
	whole := func() answer { return r.send(r.signed(waldo, r.padded(waldo, largest-1))) }
	whole().expect(t, http.StatusOK, "accepted")

	var wg sync.WaitGroup
	for range 20 { // some of them find no room: that too must hold nothing
		tooLarge := r.signed(waldo, []byte(strings.Repeat("x", 3*largest)))
		tooLarge.ContentLength = -1 // which is found out by reading
		for _, request := range []*http.Request{
			tooLarge,
			r.signedWith(waldo, "abcd", r.padded(waldo, 20_000)),     // forged
			r.signed(waldo, []byte("not JSON")),                      // quarantined
			r.signed(waldo, r.padded(waldo, largest)),                // the largest
			r.request(waldo, []byte(strings.Repeat("x", largest/2))), // not signed
		} {
			wg.Go(func() { r.send(request) })
		}
		c := dial(t, r.url)
		fmt.Fprintf(c, "POST /webhooks/waldo HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n%s", strings.Repeat("x", 30_000))
		c.Close() // breaks off
	}
	wg.Wait()
	natstest.Eventually(t, 5*time.Second, "there is room for the largest", func() bool { return whole().Status == http.StatusOK })
}
