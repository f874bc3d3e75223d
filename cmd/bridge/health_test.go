package main

import (
	"strings"
	"testing"
)

func TestHealth(t *testing.T) {
	environ := environment(t, "BRIDGE_WALDO_SECRETS=secret")
	if code, _, errs := command(t, environ, "health"); code != 1 || !strings.Contains(errs, "no bridge answers") {
		t.Errorf("without a bridge: exit %d: %s", code, errs)
	}
	r := serve(t, environ)
	if code, out, errs := command(t, environ, "health"); code != 0 || !strings.HasPrefix(out, "ready, index 0 behind") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	if code, out, _ := command(t, environ, "health", "--json"); code != 0 || !strings.Contains(out, `"ready":true`) {
		t.Errorf("exit %d: %s", code, out)
	}
	if code, _, errs := command(t, environ, "health", "--admin", value(environ, "BRIDGE_LISTEN_ADDR")); code != 1 || !strings.Contains(errs, "not answered by a bridge") {
		t.Errorf("another listener: exit %d: %s", code, errs)
	}
	if _, _, errs := command(t, environ, "health", "--admin", "http://user:sekrit@"+value(environ, "BRIDGE_LISTEN_ADDR")); strings.Contains(errs, "sekrit") {
		t.Errorf("a password: %s", errs)
	}
	r.stop(t)
}
