package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hookbus/bridge/internal/natstest"
)

// quarantineOf starts a bridge and sends it bodies that are no events.
func quarantineOf(t *testing.T, bodies ...string) (environ []string) {
	t.Helper()
	return quarantineWith(t, environment(t, "BRIDGE_WALDO_SECRETS=secret"), bodies...)
}

func quarantineWith(t *testing.T, environ []string, bodies ...string) []string {
	t.Helper()
	r := serve(t, environ)
	t.Cleanup(func() { r.stop(t) })
	for _, body := range bodies {
		file := filepath.Join(t.TempDir(), "body")
		if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, out, errs := command(t, environ, "send", "waldo", "--file", file); code != 0 || !strings.Contains(out, "quarantined") {
			t.Fatalf("exit %d: %s%s", code, out, errs)
		}
	}
	return environ
}

func TestQuarantineCommands(t *testing.T) {
	environ := quarantineOf(t, "not json\x1b[2J", `{"event":"flag"}`)
	for _, test := range []struct {
		args []string
		code int
		want []string // in what is printed
	}{
		{[]string{"ls"}, 0, []string{"SEQ", "1    waldo     body_not_json", "2    waldo     identity_missing"}},
		{[]string{"ls", "--reason", "body_not_json"}, 0, []string{"body_not_json"}},
		{[]string{"ls", "--provider", "dfns"}, 0, []string{"There is nothing like that in the quarantine."}},
		{[]string{"ls", "--reason", "typo"}, 2, []string{"--reason typo: it is one of body_not_json type_missing"}},
		{[]string{"ls", "--reason", ""}, 2, []string{"--reason has no value"}},
		{[]string{"ls", "--json"}, 0, []string{`"sequence":1`, `"reason":"identity_missing"`}},
		{[]string{"show", "1"}, 0, []string{"body_not_json", "not json", "User-Agent"}},
		{[]string{"show", "2", "--json"}, 0, []string{`"body":"{\"event\":\"flag\"}"`}},
		{[]string{"show", "7"}, 1, []string{"there is no 7 in the quarantine"}},
		{[]string{"show", "0"}, 1, []string{"there is no 0 in the quarantine"}},
		{[]string{"retry"}, 2, []string{"say which"}},
		{[]string{"retry", "1", "--all"}, 2, []string{"exclude each other"}},
		{[]string{"retry", "--all"}, 1, []string{"1  failed  normalize: body is not a JSON object", "2 of 2 are still in the quarantine"}},
		{[]string{"retry", "--reason", "nothing"}, 2, []string{"--reason nothing"}},
		{[]string{"retry", "--reason", "schema_violation"}, 0, []string{"There is nothing to retry."}},
		{[]string{"rm", "7", "--yes"}, 1, []string{"there is no 7"}},
		{[]string{"rm", "1"}, 2, []string{"     1  waldo body_not_json", "say --yes"}},
		{[]string{"rm", "1", "--yes"}, 0, []string{"1 removed"}},
		{[]string{"ls"}, 0, []string{"identity_missing"}},
		{[]string{"rm", "--all", "--yes"}, 0, []string{"1 removed"}},
		{[]string{"ls"}, 0, []string{"There is nothing in the quarantine."}},
		{[]string{"rm", "--all", "--yes"}, 0, []string{"There is nothing to remove."}},
		{[]string{"rm", "--all", "--yes", "--json"}, 0, []string{`{"removed":0}`}},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			code, out, errs := command(t, environ, append([]string{"quarantine"}, test.args...)...)
			if code != test.code {
				t.Errorf("exit %d, want %d", code, test.code)
			}
			for _, want := range test.want {
				if !strings.Contains(out+errs, want) {
					t.Errorf("%q is not in:\n%s%s", want, out, errs)
				}
			}
			if body := "not json"; test.args[0] != "show" && strings.Contains(out+errs, body) {
				t.Errorf("a body is shown unasked:\n%s%s", out, errs)
			}
		})
	}
}

// The embedded server is found also if it listens everywhere.
func TestQuarantineOfAServerThatListensEverywhere(t *testing.T) {
	for _, host := range []string{"", "0.0.0.0", "[::]"} {
		environ := environment(t, "BRIDGE_WALDO_SECRETS=secret", "BRIDGE_NATS_USER=u", "BRIDGE_NATS_PASSWORD=p",
			fmt.Sprintf("BRIDGE_EMBEDDED_LISTEN=%s:%d", host, natstest.FreePort(t)))
		quarantineWith(t, environ, "not json")
		if code, out, errs := command(t, environ, "quarantine", "retry", "--all"); code != 1 || !strings.Contains(out+errs, "1 of 1 are still in the quarantine") {
			t.Errorf("%q: exit %d: %s%s", host, code, out, errs)
		}
	}
}

func TestStatus(t *testing.T) {
	environ := quarantineOf(t, "not json")
	if code, _, errs := command(t, environ, "send", "waldo"); code != 0 {
		t.Fatal(errs)
	}
	code, out, errs := command(t, environ, "status")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, errs)
	}
	for _, want := range []string{
		"ready, index", "accepted 1, quarantined 1", "\nWEBHOOKS ", "\nWEBHOOKS_QUARANTINE ", "\nKV_webhooks-dedupe ", "\nOBJ_WEBHOOKS_BODIES ",
		"\nwaldo      1 ", "\ndfns       0 ", "\nbridge-indexer ", "\nwaldo body_not_json  1\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in:\n%s", want, out)
		}
	}
	code, out, errs = command(t, environ, "status", "--json", "--admin", "127.0.0.1:1")
	var st overview
	if err := json.Unmarshal([]byte(out), &st); err != nil || code != 0 {
		t.Fatalf("exit %d, %v: %s%s", code, err, out, errs)
	}
	if len(st.Bridges) != 1 || !strings.Contains(st.Bridges[0].Problem, "refused") {
		t.Errorf("a bridge that is not there: %+v", st.Bridges)
	}
	if p := st.Providers[4]; p.Name != "waldo" || p.Events != 1 || time.Since(p.Last) > time.Minute {
		t.Errorf("got %+v", p)
	}
}

// Without NATS the bridges say what is wrong.
func TestStatusWithoutNATS(t *testing.T) {
	for name, test := range map[string]struct {
		spool string
		code  int // of /readyz
		want  string
	}{
		"a spool":  {t.TempDir(), http.StatusOK, ", 0 in the spool"},
		"no spool": {"", http.StatusServiceUnavailable, "  not ready: not connected to NATS"},
	} {
		t.Run(name, func(t *testing.T) {
			environ := environment(t, "BRIDGE_NATS_URL=nats://"+freeAddr(t), "BRIDGE_WALDO_SECRETS=s", "BRIDGE_SPOOL_DIR="+test.spool)
			r := launch(t, environ, "serve")
			natstest.Eventually(t, 20*time.Second, "it answers", func() bool { return status(environ, "/readyz") == test.code })
			code, out, errs := command(t, environ, "status")
			if code != exitFailed || !strings.Contains(errs, "no connection to NATS at") || !strings.Contains(out, test.want) || !strings.Contains(out, "not connected to NATS") {
				t.Errorf("exit %d: %s%s", code, out, errs)
			}
			code, out, errs = command(t, environ, "status", "--json")
			var st overview
			if err := json.Unmarshal([]byte(out), &st); err != nil || code != exitFailed {
				t.Fatalf("--json: exit %d, %v: %s%s", code, err, out, errs)
			}
			if !strings.Contains(st.Problem, "no connection to NATS at") || len(st.Bridges) != 1 || st.Bridges[0].Problem != "" {
				t.Errorf("got %+v", st)
			}
			r.stop(t)
		})
	}
}
