//go:build faults

package faults

import (
	"math/rand/v2"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A bridge that stands still for a while with webhooks on their way into its
// spool goes on as if nothing had been: what was written in that time is neither
// refused nor passes the spool.
func TestFrozenBridge(t *testing.T) {
	c := startServer(t)
	b := startBridge(t, c, "a", "BRIDGE_SPOOL_DIR="+filepath.Join(workspace(t), "spool"))
	if err := b.cut(refused); err != nil {
		t.Fatal(err)
	}
	s := newSender(mix{}, seed, b)
	t.Cleanup(s.client.CloseIdleConnections)
	m := &maker{random: rand.New(rand.NewPCG(seed, 1))}
	var makes sync.Mutex
	next := func() *occurrence {
		makes.Lock()
		defer makes.Unlock()
		return m.sequence().report()
	}
	if d := s.deliver(next(), original, -1); d.result != "spooled" {
		t.Fatal(d)
	}
	for _, stands := range []time.Duration{1500 * time.Millisecond, 2500 * time.Millisecond, 4 * time.Second} {
		stop := make(chan struct{})
		var senders sync.WaitGroup
		for range 32 {
			senders.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if d := s.deliver(next(), original, -1); d.result != "spooled" {
						t.Errorf("stood still for %v: %v", stands, d)
						return
					}
				}
			})
		}
		before, err := b.spooled()
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "webhooks go into the spool", func() bool { n, err := b.spooled(); return err == nil && n > before+100 })
		b.signal(syscall.SIGSTOP)
		time.Sleep(stands) // how long the fault lasts
		b.signal(syscall.SIGCONT)
		before, _ = b.spooled()
		eventually(t, 10*time.Second, "it goes on", func() bool { n, err := b.spooled(); return err == nil && n > before+100 })
		close(stop)
		senders.Wait()
	}
	if t.Failed() {
		t.Log(b.tail(t))
	}
}
