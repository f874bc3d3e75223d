package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/internal/natstest"
	"github.com/hookbus/bridge/replay"
)

func TestReplayUsage(t *testing.T) {
	for args, want := range map[string]string{
		"":                                     "nothing says what to replay",
		"--rate 5":                             "nothing says what to replay",
		"--since soon":                         `--since "soon"`,
		"--since=-1h":                          "--since",
		"--until yesterday":                    `--until "yesterday"`,
		"--from-seq x":                         "--from-seq",
		"--from-seq=-1":                        "--from-seq",
		"--resume a --since 1h":                "--resume continues",
		"--resume a --name b":                  "--resume continues",
		"--resume a --keep 1h":                 "--resume continues",
		"--resume a --to-seq 1":                "--resume continues",
		"--consumer c":                         "--consumer needs --since or --from-seq",
		"--consumer c --since 1h":              "--yes is needed",
		"--consumer c --since 1h --rate 1":     "the server sets back a consumer's place",
		"--consumer c --since 1h --type t":     "the server sets back a consumer's place",
		"--consumer c --since 1h --id i":       "the server sets back a consumer's place",
		"--consumer c --since 1h --until 1m":   "the server sets back a consumer's place",
		"--consumer c --since 1h --subject s":  "the server sets back a consumer's place",
		"--consumer c --since 1h --filter a.>": "the server sets back a consumer's place",
		"--consumer c --since 1h --name n":     "the server sets back a consumer's place",
		"--consumer c --resume n":              "the server sets back a consumer's place",
	} {
		code, _, stderr := command(t, environment(t), append([]string{"replay"}, strings.Fields(args)...)...)
		if code != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("bridge replay %s: exit %d: %s", args, code, stderr)
		}
	}
	// Found by the package, and only with a connection.
	environ := []string{"BRIDGE_NATS_URL=" + natstest.Server(t).ClientURL()}
	for args, want := range map[string]string{
		"--since 2999-01-01T00:00:00Z":               "future",
		"--since 1h --until 2h":                      "begin at",
		"--since 1h --from-seq 1":                    "two beginnings",
		"--until 1h --to-seq 1":                      "two ends",
		"--from-seq 2 --to-seq 1":                    "begin at sequence 2",
		"--filter webhooks..x":                       `"webhooks..x"`,
		"--from-seq 1 --name A.b":                    `"A.b"`,
		"--from-seq 1 --rate=-1":                     "rate",
		"--from-seq 1 --keep 1ms":                    "1ms",
		"--resume *":                                 `"*"`,
		"--consumer c --yes --since 1h --from-seq 1": "one of the two",
	} {
		code, _, stderr := command(t, environ, append([]string{"replay"}, strings.Fields(args)...)...)
		if code != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("bridge replay %s: exit %d: %s", args, code, stderr)
		}
	}
}

func TestReplayWithoutNATS(t *testing.T) {
	replayAll := []string{"replay", "--from-seq", "1"}
	environ := environment(t)
	if code, _, stderr := command(t, environ, replayAll...); code != exitFailed || !strings.Contains(stderr, "no connection to NATS at") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	plain := natstest.Server(t, func(o *server.Options) { o.JetStream = false })
	if code, _, stderr := command(t, []string{"BRIDGE_NATS_URL=" + plain.ClientURL()}, replayAll...); code != exitFailed || !strings.Contains(stderr, "JetStream does not answer") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	s := natstest.Server(t)
	for _, args := range [][]string{replayAll, {"replay", "--from-seq", "1", "--dry-run"}, {"replay", "--consumer", "c", "--from-seq", "1", "--yes"}} {
		if code, _, stderr := command(t, []string{"BRIDGE_NATS_URL=" + s.ClientURL()}, args...); code != exitFailed || !strings.Contains(stderr, "no such stream: WEBHOOKS") {
			t.Errorf("exit %d: %s", code, stderr)
		}
	}
}

// The bridge itself has stored what is replayed.
func TestReplay(t *testing.T) {
	environ := environment(t, "BRIDGE_DFNS_SECRETS=s", "BRIDGE_WALDO_SECRETS=s")
	bridge := serve(t, environ)
	for _, provider := range []string{"dfns", "waldo"} {
		if code, stdout, stderr := command(t, environ, "send", provider, "--count", "3"); code != exitDone {
			t.Fatalf("exit %d: %s%s", code, stdout, stderr)
		}
	}
	run := func(want int, args ...string) (stdout, stderr string) {
		t.Helper()
		code, stdout, stderr := command(t, environ, append([]string{"replay"}, args...)...)
		if code != want || want == exitDone && stderr != "" {
			t.Fatalf("bridge replay %v: exit %d: %s%s", args, code, stdout, stderr)
		}
		if strings.Contains(stdout+stderr, "customerId") {
			t.Errorf("a body in %s%s", stdout, stderr)
		}
		return stdout, stderr
	}
	summary := func(stdout string) (r replay.Result) {
		t.Helper()
		if err := json.Unmarshal([]byte(stdout), &r); err != nil {
			t.Errorf("%v: %s", err, stdout)
		}
		return r
	}

	if out, _ := run(exitDone, "--since", "1h", "--dry-run"); !strings.Contains(out, "6 scanned, 6 to copy") || !strings.Contains(out, "3  co.dfns.") {
		t.Errorf("a dry run: %s", out)
	}
	if out, _ := run(exitDone, "--since", "1h", "--type", "none"); !strings.Contains(out, "Nothing is selected: 6 scanned, 0 copied, 6 not selected") {
		t.Errorf("nothing selected: %s", out)
	}
	out, _ := run(exitDone, "--since", "1h", "--filter", "webhooks.dfns.>", "--name", "one")
	if !strings.Contains(out, "Replay one, on replay.one.> in stream REPLAY_one: 3 scanned, 3 copied") {
		t.Errorf("a replay: %s", out)
	}
	if out, _ := run(exitDone, "--resume", "one"); out != "Replay one is complete: 3 copies in REPLAY_one\n" {
		t.Errorf("a complete replay: %s", out)
	}
	if r := summary(first(run(exitDone, "--from-seq", "4", "--rate", "1000", "--json"))); r.Copied != 3 || r.First != 4 || r.Last != 6 || r.Name == "" || !r.Complete {
		t.Errorf("%+v", r)
	}
	if _, errs := run(exitFailed, "--from-seq", "1", "--name", "one"); !strings.Contains(errs, "--resume continues it") {
		t.Errorf("a name that is taken: %s", errs)
	}
	if _, errs := run(exitFailed, "--from-seq", "100"); !strings.Contains(errs, "ends at sequence 6") {
		t.Errorf("beyond the end: %s", errs)
	}
	if _, errs := run(exitFailed, "--filter", "quarantine.>"); !strings.Contains(errs, "[webhooks.>]") {
		t.Errorf("a filter outside: %s", errs)
	}
	if _, errs := run(exitFailed, "--resume", "none"); !strings.Contains(errs, "REPLAY_none") {
		t.Errorf("resuming nothing: %s", errs)
	}

	if _, errs := run(exitFailed, "--consumer", "bridge-indexer", "--from-seq", "1", "--yes"); !strings.Contains(errs, "bridge's own") {
		t.Errorf("the indexer: %s", errs)
	}
	js, err := jetstream.New(natstest.Connect(t, "nats://"+value(environ, "BRIDGE_EMBEDDED_LISTEN")))
	if err != nil {
		t.Fatal(err)
	}
	consumer, err := js.CreateConsumer(t.Context(), "WEBHOOKS", jetstream.ConsumerConfig{Durable: "mine", FilterSubject: "webhooks.waldo.>", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	drain := func() (n int) {
		t.Helper()
		batch, err := consumer.FetchNoWait(10)
		if err != nil {
			t.Fatal(err)
		}
		for msg := range batch.Messages() {
			if err := msg.DoubleAck(t.Context()); err != nil {
				t.Fatal(err)
			}
			n++
		}
		return n
	}
	if n := drain(); n != 3 {
		t.Fatalf("%d messages", n)
	}
	if out, _ := run(exitDone, "--consumer", "mine", "--since", "1h", "--dry-run"); !strings.Contains(out, "receives 3 messages") || !strings.Contains(out, "3  ai.waldo.") || strings.Contains(out, "is set back") || drain() != 0 {
		t.Errorf("a dry run: %s", out)
	}
	if out, _ := run(exitDone, "--consumer", "mine", "--from-seq", "5", "--yes"); !strings.Contains(out, "mine is set back to sequence 5.") || drain() != 2 {
		t.Errorf("set back: %s", out)
	}
	if out, _ := run(exitDone, "--consumer", "mine", "--from-seq", "4", "--yes", "--json"); !json.Valid([]byte(out)) || !strings.Contains(out, `"done":true`) || drain() != 3 {
		t.Errorf("set back: %s", out)
	}
	if code := bridge.stop(t); code != exitDone {
		t.Errorf("exit %d: %s", code, bridge.stderr.String())
	}
}

func first(a, _ string) string { return a }

func TestReplayIsInterruptedAndResumed(t *testing.T) {
	environ := environment(t, "BRIDGE_WALDO_SECRETS=s")
	bridge := serve(t, environ)
	if code, stdout, stderr := command(t, environ, "send", "waldo", "--count", "20"); code != exitDone {
		t.Fatalf("exit %d: %s%s", code, stdout, stderr)
	}
	nc := natstest.Connect(t, "nats://"+value(environ, "BRIDGE_EMBEDDED_LISTEN"))
	copies, err := nc.SubscribeSync("replay.one.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	r := launch(t, environ, "replay", "--since", "1h", "--name", "one", "--rate", "10")
	for range 3 {
		if _, err := copies.NextMsg(10 * time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if code := r.stop(t); code != exitFailed || !strings.Contains(r.stderr.String(), "bridge: interrupted; to continue: bridge replay --resume one") {
		t.Errorf("exit %d: %s", code, r.stderr.String())
	}
	if !strings.Contains(r.stdout.String(), "Replay one, on replay.one.>") {
		t.Errorf("no summary: %s", r.stdout.String())
	}
	if code, stdout, stderr := command(t, environ, "replay", "--resume", "one"); code != exitDone || !strings.Contains(stdout, " copied before") {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), "REPLAY_one")
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != 20 {
		t.Errorf("%d copies", n)
	}
	if maxAge := stream.CachedInfo().Config.MaxAge; maxAge != defaultKeep {
		t.Errorf("kept for %v", maxAge)
	}
	bridge.stop(t)
}

func TestConfirm(t *testing.T) {
	for answer, want := range map[string]bool{"yes\n": true, " YES ": true, "y\n": false, "\n": false, "": false, "no\n": false} {
		var out bytes.Buffer
		if got := confirmed(strings.NewReader(answer), &out, "Really?"); got != want || out.String() != "Really? [yes/no] " {
			t.Errorf("%q is %v after %q", answer, got, out.String())
		}
	}
}

func TestReplayProgress(t *testing.T) {
	at := replay.Progress{Result: replay.Result{Scanned: 100, Copied: 90, Elapsed: time.Second}, At: 100, End: 400}
	var line bytes.Buffer
	onTerminal := &progress{w: &line, terminal: true}
	onTerminal.show(at)
	at.At, at.Scanned, at.Elapsed = 200, 200, 2*time.Second
	onTerminal.show(at)
	if !strings.HasSuffix(line.String(), "\r\x1b[Ksequence 200 of 400, 90 copied, 100 a second, 2s left") {
		t.Errorf("%q", line.String())
	}
	line.Reset()
	onTerminal.clear()
	if line.String() != "\r\x1b[K" {
		t.Errorf("%q", line.String())
	}
	line.Reset()
	piped := &progress{w: &line, shown: time.Now().Add(-progressEvery)}
	piped.show(at)
	piped.show(at) // too early
	piped.clear()
	if line.String() != `{"copied":90,"end":400,"left_seconds":0,"rate":100,"scanned":200,"sequence":200}`+"\n" {
		t.Errorf("%q", line.String())
	}
}
