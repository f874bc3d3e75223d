package bus_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/natstest"
)

// What is put is there under its names: one batch with the embedded server,
// messages of their own with any other.
func TestPut(t *testing.T) {
	for _, test := range []struct {
		name    string
		cfg     bus.Config
		batched bool
	}{{"embedded", embedded(t), true}, {"external", external(natstest.Server(t)), false}} {
		t.Run(test.name, func(t *testing.T) {
			b := openReady(t, test.cfg)
			entries := make([]bus.Entry, 100)
			for i := range entries {
				entries[i] = bus.Entry{Name: fmt.Sprint("name", i), Value: []byte(fmt.Sprint("value", i))}
			}
			put := make(chan error, 1)
			if test.batched {
				waiting, release := b.HoldBucket()
				go func() { put <- b.Put(t.Context(), entries...) }()
				natstest.Eventually(t, within, "all wait", func() bool { return waiting() == len(entries) })
				release()
			} else {
				put <- b.Put(t.Context(), entries...)
			}
			if err := <-put; err != nil {
				t.Fatal(err)
			}
			stream, err := b.JetStream().Stream(t.Context(), "KV_"+test.cfg.Bucket)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				kept, err := b.State().Bucket().Get(t.Context(), e.Name)
				if err != nil || string(kept.Value()) != string(e.Value) {
					t.Fatalf("%s: %v, %v", e.Name, kept, err)
				}
				msg, err := stream.GetMsg(t.Context(), kept.Revision())
				if err != nil || (msg.Header.Get("Nats-Batch-Id") != "") != test.batched {
					t.Fatalf("%s: %v, %v", e.Name, msg, err)
				}
			}
			if err := b.JetStream().DeleteStream(t.Context(), "KV_"+test.cfg.Bucket); err != nil {
				t.Fatal(err)
			}
			if err := b.Put(t.Context(), entries[0]); !errors.Is(err, bus.ErrUnavailable) && !errors.Is(err, bus.ErrNoBucket) {
				t.Errorf("without a bucket: %v", err)
			}
		})
	}
}
