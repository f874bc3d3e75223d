package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/internal/natstest"
)

// What is stored before the servers know the consumer is shown.
func TestTailThroughANewConsumer(t *testing.T) {
	s := natstest.Server(t)
	nc := natstest.Connect(t, s.ClientURL())
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "WEBHOOKS", Subjects: []string{"webhooks.>"}})
	if err != nil {
		t.Fatal(err)
	}
	store := func(subject string) {
		t.Helper()
		if _, err := js.Publish(t.Context(), subject, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	store("webhooks.before")
	natstest.UnknownOnce(t, s, "WEBHOOKS")
	tail := launch(t, []string{"BRIDGE_NATS_URL=" + s.ClientURL()}, "tail")
	natstest.Eventually(t, 20*time.Second, "tail has its consumer", func() bool {
		info, err := stream.Info(t.Context())
		return err == nil && info.State.Consumers > 0
	})
	store("webhooks.after")
	natstest.Eventually(t, 20*time.Second, "the event is shown", func() bool { return strings.Contains(tail.stdout.String(), "webhooks.after") })
	tail.stop(t)
	if strings.Contains(tail.stdout.String(), "webhooks.before") {
		t.Errorf("shown: %s", tail.stdout.String())
	}
}

// Events that are not in their message, or are none, do not end tail, and what it
// prints as JSON is JSON.
func TestTailOddMessages(t *testing.T) {
	environ := environment(t, "BRIDGE_DATASPIKE_SECRETS=whsec_0102", "BRIDGE_MAX_BODY_BYTES=8MiB", "BRIDGE_MAX_IN_FLIGHT_BYTES=64MiB")
	r := serve(t, environ)
	defer r.stop(t)
	file := filepath.Join(t.TempDir(), "large")
	// The embedded server takes what MAX_BODY_BYTES allows: the message is made
	// as a bridge in front of another server would.
	if err := os.WriteFile(file, []byte(`{"id":"a","event_type":"DOCVER","timestamp":"2026-01-01T00:00:00Z","payload":{"applicant_id":"x"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := command(t, environ, "send", "dataspike", "--file", file); code != 0 {
		t.Fatal(out, errs)
	}
	nc := natstest.Connect(t, "nats://"+value(environ, "BRIDGE_EMBEDDED_LISTEN"))
	event := func(more ...string) nats.Header {
		h := nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"odd\x1b[2J"}, "ce-type": {"io.dataspike.docver"}, "ce-source": {"urn:x"}, "ce-datacontenttype": {"application/json"}}
		for i := 0; i < len(more); i += 2 {
			h[more[i]] = []string{more[i+1]}
		}
		return h
	}
	for _, m := range []*nats.Msg{
		{Subject: "webhooks.dataspike.docver", Data: []byte("plain")},
		{Subject: "webhooks.dataspike.docver", Header: event(), Data: []byte("no JSON")},
		{Subject: "webhooks.dataspike.docver", Header: event(), Data: []byte("\"\xff\"")},
		{Subject: "webhooks.dataspike.docver", Header: event("ce-dataref", "nats-object:WEBHOOKS_BODIES/none")},
		{Subject: "webhooks.dataspike.docver", Header: event("ce-id", "last"), Data: []byte("{}")},
	} {
		if _, err := nc.RequestMsg(m, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"tail", "--since", "1h"}, {"tail", "--since", "1h", "--json"}} {
		where := "seq=6"
		if args[len(args)-1] == "--json" {
			where = `"sequence":"6"`
		}
		tail := launch(t, environ, args...)
		natstest.Eventually(t, 20*time.Second, "the last event is shown", func() bool { return strings.Contains(tail.stdout.String(), where) })
		tail.stop(t)
		lines := strings.Split(strings.TrimSpace(tail.stdout.String()), "\n")
		if len(lines) != 6 || strings.Contains(tail.stdout.String(), "\x1b") {
			t.Errorf("%v: %d lines:\n%q", args, len(lines), tail.stdout.String())
		}
		if last := lines[len(lines)-1]; !strings.Contains(last, where) {
			t.Errorf("%v: no %s: %s", args, where, last)
		}
		for _, line := range lines {
			if args[len(args)-1] == "--json" && !(json.Valid([]byte(line)) && utf8.ValidString(line)) {
				t.Errorf("no JSON: %s", line)
			}
		}
	}
	for _, args := range [][]string{{"--outcome", "nonsense"}, {"--provider", "nobody"}, {"--filter", "webhooks..x"}, {"--provider", "dfns", "--filter", "webhooks.>"}} {
		if code, _, errs := command(t, environ, append([]string{"tail"}, args...)...); code != exitUsage {
			t.Errorf("%v: exit %d: %s", args, code, errs)
		}
	}
}
