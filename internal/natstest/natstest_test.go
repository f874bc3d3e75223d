package natstest_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/internal/natstest"
)

func TestMain(m *testing.M) { natstest.Main(m) }

func TestServerStoresAndReportsItsOptions(t *testing.T) {
	s := natstest.Server(t, func(o *server.Options) { o.SyncAlways = true })
	if !s.JetStreamConfig().SyncAlways {
		t.Error("SyncAlways did not reach JetStream")
	}
	js := newJetStream(t, s.ClientURL())
	createStream(t, js, 1)
	if _, err := js.Publish(t.Context(), "events.one", nil); err != nil {
		t.Fatal(err)
	}
}

func TestClusterSurvivesStopAndRestart(t *testing.T) {
	c := natstest.Cluster(t, 3)
	js := newJetStream(t, c.URL())
	stream := createStream(t, js, 3)
	ports := c.URL()

	publish := func(id int) {
		t.Helper()
		natstest.Eventually(t, 30*time.Second, fmt.Sprintf("message %d is stored", id), func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, err := js.Publish(ctx, "events.one", nil, jetstream.WithMsgID(fmt.Sprint(id)))
			return err == nil
		})
	}

	publish(0)
	down := leaderIndex(t, c)
	c.Stop(down)
	if c.Servers[down].Running() {
		t.Fatal("the stopped server still runs")
	}
	publish(1)
	c.Restart(down)
	publish(2)

	if got := c.URL(); got != ports {
		t.Errorf("client URLs after the restart are %s, want %s", got, ports)
	}
	natstest.Eventually(t, 30*time.Second, "the restarted server has all messages", func() bool {
		return c.Servers[down].JetStreamIsStreamCurrent(server.DEFAULT_GLOBAL_ACCOUNT, "EVENTS")
	})
	info, err := stream.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.State.Msgs != 3 {
		t.Errorf("the stream holds %d messages, want 3", info.State.Msgs)
	}
}

func newJetStream(t *testing.T, url string) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(natstest.Connect(t, url))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func createStream(t *testing.T, js jetstream.JetStream, replicas int) jetstream.Stream {
	t.Helper()
	stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "EVENTS", Subjects: []string{"events.>"}, Replicas: replicas,
	})
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func leaderIndex(t *testing.T, c *natstest.NATSCluster) int {
	t.Helper()
	for i, s := range c.Servers {
		if s.JetStreamIsStreamLeader(server.DEFAULT_GLOBAL_ACCOUNT, "EVENTS") {
			return i
		}
	}
	t.Fatal("the stream has no leader")
	return -1
}
