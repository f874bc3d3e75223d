package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/hookbus/bridge/internal/natstest"
)

// Who may not read is told so, and not that nobody answers.
func TestNoPermission(t *testing.T) {
	s := natstest.Server(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"$JS.API.>"}},
		}}}
	})
	environ := environment(t, "BRIDGE_NATS_URL="+s.ClientURL(), "BRIDGE_NATS_USER=u", "BRIDGE_NATS_PASSWORD=p")
	for _, args := range [][]string{{"status"}, {"quarantine", "ls"}, {"tail"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			code, _, errs := command(t, environ, args...)
			if code != 1 || !strings.Contains(errs, "may not") {
				t.Errorf("exit %d: %s", code, errs)
			}
		})
	}
}

// What the user of status may not do says nothing about the bridges.
func TestNoPermissionIsNotTheBridges(t *testing.T) {
	s := natstest.Server(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "bridge", Password: "p"}, {Username: "u", Password: "p", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"$JS.API.>"}},
		}}}
	})
	environ := slices.Clip(environment(t, "BRIDGE_NATS_URL="+s.ClientURL(), "BRIDGE_NATS_PASSWORD=p", "BRIDGE_WALDO_SECRETS=s"))
	r := serve(t, append(environ, "BRIDGE_NATS_USER=bridge"))
	code, out, errs := command(t, append(environ, "BRIDGE_NATS_USER=u"), "status")
	if code != exitFailed || !strings.Contains(errs, "may not") || !strings.Contains(out, "  ready, ") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	r.stop(t)
}
