package bus

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
)

// slowStore takes messages as a server whose disk is slow: it stores all that have
// come, one after the other, and then acknowledges them.
type slowStore struct {
	jetstream.JetStream
	sync time.Duration

	mu      sync.Mutex
	come    []slowAck
	storing bool
}

type slowAck struct {
	msg *nats.Msg
	ok  chan *jetstream.PubAck
	err chan error
}

func (a slowAck) Ok() <-chan *jetstream.PubAck { return a.ok }
func (a slowAck) Err() <-chan error            { return a.err }
func (a slowAck) Msg() *nats.Msg               { return a.msg }

func (s *slowStore) PublishMsgAsync(msg *nats.Msg, _ ...jetstream.PublishOpt) (jetstream.PubAckFuture, error) {
	a := slowAck{msg, make(chan *jetstream.PubAck, 1), make(chan error, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.come = append(s.come, a)
	if !s.storing {
		s.storing = true
		go s.store()
	}
	return a, nil
}

func (s *slowStore) store() {
	for {
		s.mu.Lock()
		all := s.come
		s.come = nil
		s.storing = len(all) > 0
		s.mu.Unlock()
		if len(all) == 0 {
			return
		}
		for _, a := range all {
			time.Sleep(s.sync)
			if _, err := s.PublishMsg(context.Background(), a.msg); err != nil {
				a.err <- err
			}
		}
		for _, a := range all {
			a.ok <- nil
		}
	}
}

// Many webhooks at the same moment are all kept by a disk that takes some
// milliseconds for each, and none of them twice.
func TestSpoolBurstOnASlowDisk(t *testing.T) {
	t.Parallel()
	s, err := OpenSpool(t.Context(), SpoolConfig{Dir: t.TempDir(), MaxBytes: 1 << 30, MaxBody: 1 << 20, LockWait: time.Second}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.store.js = &slowStore{JetStream: s.store.js, sync: 5 * time.Millisecond}
	const requests = 300 // 1.5 s
	errs := make(chan error, requests)
	var wg sync.WaitGroup
	for i := range requests {
		wg.Go(func() {
			errs <- s.Put(t.Context(), Spooled{Rejected: &Rejected{Provider: "waldo", Reason: "body_not_json", Body: fmt.Append(nil, i)}})
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	info, err := s.store.stream.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.State.Msgs != requests || s.Problem() != "" {
		t.Errorf("%d stored, want %d; problem %q", info.State.Msgs, requests, s.Problem())
	}
}
