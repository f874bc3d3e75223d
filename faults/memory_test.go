//go:build faults

package faults

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hookbus/bridge/internal/natstest"
)

// peak returns the most memory that the process has had resident, in MiB.
func (p *process) peak() (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("no VmHWM of %s", p.name)
}

// TestMemory shows what a bridge takes at most when many requests come at once, the
// table in docs/reliability.md. A pod has to stand it.
func TestMemory(t *testing.T) {
	if !*memory {
		t.Skip("make memory runs it")
	}
	if _, err := os.Stat("/proc/self/status"); err != nil {
		t.Skip("this system does not say what a process takes")
	}
	dataspike := provider("dataspike")
	valid := func(size int) func(i int) (string, []byte) {
		padding := strings.Repeat("x", size)
		return func(i int) (string, []byte) {
			return secret(dataspike), fmt.Appendf(nil, `{"id":"m-%d","webhook_id":"w","event_type":"DOCVER","timestamp":"2026-02-03T04:05:06Z","payload":{"id":"m-%[1]d","applicant_id":"a-%[1]d","status":"verified","note":%q}}`, i, padding)
		}
	}
	forged := func(size int) func(i int) (string, []byte) {
		of := valid(size)
		return func(i int) (string, []byte) { _, body := of(i); return "00ff", body }
	}
	const large = 8<<20 - 1<<10
	for _, test := range []struct {
		name     string
		requests int
		request  func(i int) (secret string, body []byte)
		frozen   bool
		spool    bool
		embedded bool
	}{
		{name: "idle"},
		{name: "idle, with a spool", spool: true},
		{name: "idle, embedded", embedded: true},
		{name: "4096 requests of 1 KB, NATS frozen", requests: 4096, request: valid(1 << 10), frozen: true},
		{name: "4096 requests of 60 KB, NATS frozen", requests: 4096, request: valid(60 << 10), frozen: true},
		{name: "4096 requests of 60 KB", requests: 4096, request: valid(60 << 10)},
		{name: "4096 requests of 60 KB, embedded", requests: 4096, request: valid(60 << 10), embedded: true},
		{name: "64 forged bodies of 8 MB", requests: 64, request: forged(large)},
		{name: "30 valid bodies of 8 MB", requests: 30, request: valid(large)},
		{name: "30 valid bodies of 8 MB, embedded", requests: 30, request: valid(large), embedded: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := startServer(t)
			environ := []string{"GOMEMLIMIT=680MiB"} // with a limit of 768 MiB, as in deploy/k8s
			if test.spool {
				environ = append(environ, "BRIDGE_SPOOL_DIR="+filepath.Join(workspace(t), "spool"))
			}
			if test.embedded {
				environ = append(environ, "BRIDGE_NATS_URL=", "BRIDGE_EMBEDDED_LISTEN="+address(natstest.FreePort(t)))
			}
			b := startBridge(t, c, "a", environ...)
			if test.frozen {
				c.servers[0].signal(syscall.SIGSTOP)
			}
			client := &http.Client{Transport: &http.Transport{}}
			t.Cleanup(client.CloseIdleConnections)
			var answers sync.Map
			var senders sync.WaitGroup
			start := make(chan struct{})
			for i := range test.requests {
				senders.Go(func() {
					secret, body := test.request(i)
					<-start
					status, result, reason, _, failed := sendAs(client, b.url(dataspike), dataspike, secret, body, time.Now())
					n, _ := answers.LoadOrStore(fmt.Sprint(status, " ", result, reason, failed), new(atomic.Int64))
					n.(*atomic.Int64).Add(1)
				})
			}
			close(start)
			senders.Wait()
			peak, err := b.peak()
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%.0f MiB", peak)
			answers.Range(func(answer, n any) bool { t.Logf("%6d %s", n.(*atomic.Int64).Load(), answer); return true })
			if peak > 768 {
				t.Errorf("%.0f MiB are more than its limit", peak)
			}
		})
	}
}
