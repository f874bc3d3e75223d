//go:build e2e

// Package e2e applies the manifests to a cluster and does to them what operators
// and clusters do, while a sender outside sends webhooks all the time. After
// each, every webhook that was answered 200 has to be in the stream exactly once.
//
// It works with any cluster of two nodes that kubectl reaches: `make e2e-k8s`.
package e2e

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/normalize"
)

var (
	kubectlFlag   = flag.String("kubectl", "kubectl", "kubectl to run")
	imageFlag     = flag.String("image", "bridge:e2e", "image of the bridge; the same with -next after its tag is what it is changed to")
	natsImageFlag = flag.String("nats-image", "nats:2.15.2-alpine", "image of NATS")
	volumesFlag   = flag.String("volumes", "", "folder for volumes, in a cluster without a provisioner whose nodes share this disk")
	rateFlag      = flag.Float64("rate", 50, "webhooks a second")
	keepFlag      = flag.Bool("keep", false, "leave everything in the cluster")
	onlyFlag      = flag.String("only", "", "only the scenarios whose names match this regular expression")
)

// settleWithin is for what failed to be sent again and taken.
const settleWithin = 2 * time.Minute

// scenario is something that is done to the deployments.
type scenario struct {
	name string
	// none says that no request may fail.
	none bool
	// some says that some have to: without what the manifests do, requests are lost.
	some bool
	do   func(*suite)
}

var scenarios = []scenario{
	{name: "nothing", none: true, do: func(s *suite) { s.quiet(10 * time.Second) }},
	{name: "rolling restart", none: true, do: (*suite).restart},
	{name: "image change", none: true, do: (*suite).changeImage},
	{name: "bad image, undone", none: true, do: (*suite).badImage},
	{name: "secrets rotated", none: true, do: (*suite).rotate},
	{name: "node drained", none: true, do: (*suite).drain},
	{name: "NATS leader's pod deleted", do: (*suite).deleteLeader},
	{name: "rolling restart of NATS", do: (*suite).restartNATS},
	{name: "all bridge pods deleted", do: (*suite).deleteAll},
	{name: "control: no graceful end", some: true, do: (*suite).ungraceful},
}

// suite is one run.
type suite struct {
	*cluster
	sender *sender
	next   uint64 // sequence to read
	stored map[digest]int
	rows   []string
}

func TestKubernetes(t *testing.T) {
	only, err := regexp.Compile(*onlyFlag)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "bridge-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &suite{cluster: &cluster{t: t, dir: dir}, stored: make(map[digest]int)}
	s.remove() // of a run that was broken off
	if !*keepFlag {
		t.Cleanup(s.remove)
	}
	began := time.Now()
	s.install()
	t.Logf("applied and ready after %v", time.Since(began).Round(time.Second))

	urls := make(map[string]string)
	for _, target := range targets {
		urls[target.namespace] = s.url(target, s.lastNode())
	}
	s.sender = newSender(*rateFlag, urls, s.current())
	done := make(chan struct{})
	go func() { defer close(done); s.sender.run() }()
	stop := sync.OnceFunc(func() { close(s.sender.stop) })
	defer func() {
		stop()
		close(s.sender.giveUp)
		<-done
	}()
	s.eventually(time.Minute, "the first webhooks are answered", func() bool { return s.sender.requests(production.namespace) > 50 })
	for _, target := range targets {
		s.sender.take(target.namespace)
	}

	for _, scenario := range scenarios {
		if !only.MatchString(scenario.name) {
			continue
		}
		began := time.Now()
		scenario.do(s)
		took := time.Since(began)
		s.quiet(3 * time.Second)
		s.judge(scenario, took)
	}
	stop()
	s.settle(time.Now())
	<-done // the copies, too
	s.judge(scenario{name: "all, read once more"}, time.Since(began))
	t.Logf("\n%s", s.table())
}

// current is what a provider signs with: the newest of its secrets.
func (s *suite) current() map[string]string {
	secrets := make(map[string]string)
	for provider, list := range s.secrets {
		secrets[provider] = list[len(list)-1]
	}
	return secrets
}

// quiet lets the sender go on for a while.
func (s *suite) quiet(d time.Duration) { time.Sleep(d) }

// settle waits until all that was sent before a time is answered 200.
func (s *suite) settle(before time.Time) {
	s.t.Helper()
	for deadline := time.Now().Add(settleWithin); ; s.quiet(500 * time.Millisecond) {
		open := s.sender.unsettled(before)
		if len(open) == 0 {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%d not answered 200 within %v, though sent again:\n%s", len(open), settleWithin, strings.Join(open[:min(len(open), 10)], "\n"))
		}
	}
}

// judge compares what was answered with what is stored, and adds a line for each
// deployment to the table.
func (s *suite) judge(what scenario, took time.Duration) {
	s.t.Helper()
	until := time.Now()
	s.settle(until)
	// What is in a spool comes late; what is twice may come later still, and is
	// found at the end.
	if what.do == nil {
		s.next, s.stored = 1, make(map[digest]int)
	}
	never := 0
	missing := func() map[string]int {
		next, err := s.read(s.next, func(msg jetstream.Msg) {
			p, ok := normalize.ByName(msg.Headers().Get("ce-provider"))
			if !ok {
				never++
				return
			}
			s.stored[digestOf(p, msg.Data())]++
		})
		if err != nil {
			s.t.Logf("reading the stream: %v", err)
		}
		s.next = next
		missing := make(map[string]int)
		s.sender.mu.Lock()
		defer s.sender.mu.Unlock()
		for d, w := range s.sender.all {
			if w.ok && w.at.Before(until) && s.stored[d] == 0 {
				missing[w.to]++
			}
		}
		return missing
	}
	var lost map[string]int
	for deadline := time.Now().Add(90 * time.Second); ; s.quiet(time.Second) {
		if lost = missing(); len(lost) == 0 || time.Now().After(deadline) {
			break
		}
	}
	twice := make(map[string]int)
	s.sender.mu.Lock()
	known := 0
	for d, w := range s.sender.all {
		if s.stored[d] > 0 {
			known++
		}
		if s.stored[d] > 1 {
			twice[w.to]++
			s.t.Errorf("%s: stored %d times: %s of %s\n  %s", what.name, s.stored[d], w.provider, w.to, strings.Join(w.answers, "\n  "))
		}
		if lost[w.to] > 0 && w.ok && w.at.Before(until) && s.stored[d] == 0 {
			s.t.Errorf("%s: lost: %s of %s\n  %s", what.name, w.provider, w.to, strings.Join(w.answers, "\n  "))
		}
	}
	s.sender.mu.Unlock()
	if never += len(s.stored) - known; never > 0 {
		s.t.Errorf("%s: %d stored that were never sent so", what.name, never)
	}
	for i, target := range targets {
		c := s.sender.take(target.namespace)
		if what.do == nil { // of the whole run there is only what was lost and stored twice
			s.row(target, what.name, took, "", "", lost[target.namespace], twice[target.namespace], "")
			continue
		}
		reasons := ""
		for _, reason := range slices.Sorted(maps.Keys(c.reasons)) {
			reasons += fmt.Sprintf(" %d× %s", c.reasons[reason], reason)
		}
		s.row(target, what.name, took, fmt.Sprint(c.requests), fmt.Sprint(c.failed), lost[target.namespace], twice[target.namespace],
			fmt.Sprintf("%v%s", c.gap.Round(10*time.Millisecond), reasons))
		for _, failure := range c.failures {
			s.t.Logf("  %s: %s", target.namespace, failure)
		}
		if what.none && c.failed > 0 {
			s.t.Errorf("%s, %s: %d requests failed:%s", what.name, target.namespace, c.failed, reasons)
		}
		if what.some && i == 0 && c.failed == 0 {
			s.t.Errorf("%s, %s: no request failed, so this test would not see that one does", what.name, target.namespace)
		}
	}
}

const format = "| %-24s | %-12s | %5s | %8s | %6s | %4v | %5v | %s\n"

func (s *suite) row(t target, name string, took time.Duration, requests, failed string, lost, twice int, rest string) {
	row := fmt.Sprintf(format, name, t.namespace, took.Round(time.Second), requests, failed, lost, twice, rest)
	s.t.Log(strings.TrimSpace(row))
	s.rows = append(s.rows, row)
}

func (s *suite) table() string {
	return fmt.Sprintf(format, "what", "where", "took", "requests", "failed", "lost", "twice", "longest without a 200, and why requests failed") + strings.Join(s.rows, "")
}

func (s *suite) restart() {
	for _, t := range targets {
		s.kubectl("rollout", "restart", t.workload, "-n", t.namespace)
	}
	for _, t := range targets {
		s.rolledOut(t)
	}
}

func (s *suite) changeImage() {
	for _, t := range targets {
		s.kubectl("set", "image", t.workload, "-n", t.namespace, "bridge="+*imageFlag+"-next")
	}
	for _, t := range targets {
		s.rolledOut(t)
	}
}

// badImage changes to an image that is not there, sees the rollout stall, and
// undoes it.
func (s *suite) badImage() {
	for _, t := range targets {
		s.kubectl("set", "image", t.workload, "-n", t.namespace, "bridge="+*imageFlag+"-missing")
	}
	for _, t := range targets {
		var stuck string
		s.eventually(time.Minute, "a pod cannot get the image", func() bool {
			for _, p := range s.pods(t) {
				if reason := p.waiting(); reason == "ErrImagePull" || reason == "ImagePullBackOff" || reason == "ErrImageNeverPull" {
					stuck = p.Metadata.Name
				}
			}
			return stuck != ""
		})
		if _, err := s.try("", "rollout", "status", t.workload, "-n", t.namespace, "--timeout=5s"); err == nil {
			s.t.Errorf("the rollout of %s to an image that is not there came to an end", t.namespace)
		}
		s.kubectl("rollout", "undo", t.workload, "-n", t.namespace)
		if strings.HasPrefix(t.workload, "statefulset/") { // which waits for its broken pod
			s.kubectl("delete", "pod", stuck, "-n", t.namespace)
		}
		s.rolledOut(t)
	}
}

// rotate gives the bridges a second secret of each provider, signs with it when
// all have it, and takes the first away when none is left that was signed with it.
func (s *suite) rotate() {
	old := s.current()
	for _, p := range normalize.Providers() {
		s.secrets[p.Name] = append(s.secrets[p.Name], newSecret(p))
	}
	s.spread()
	s.quiet(2 * time.Second) // either is right
	s.sender.use(s.current())
	s.quiet(patience)
	for _, p := range normalize.Providers() {
		s.secrets[p.Name] = s.secrets[p.Name][1:]
	}
	s.spread()
	probe := newSender(0, s.sender.url, old)
	for _, p := range normalize.Providers() {
		for _, t := range targets {
			if answer, _ := probe.post(t.namespace, p, p.Fresh(p.Samples()[0].Body, time.Now())); answer != "401 signature_mismatch" {
				s.t.Errorf("signed with the old secret of %s, %s: %s", p.Name, t.namespace, answer)
			}
		}
	}
}

// spread applies the secrets and waits until every pod uses them.
func (s *suite) spread() {
	s.t.Helper()
	for _, t := range targets {
		s.provide(t)
	}
	for _, t := range targets {
		s.eventually(4*time.Minute, "every pod has the secrets", func() bool {
			for _, p := range s.pods(t) {
				for _, provider := range normalize.Providers() {
					n, err := s.metric(t, p, fmt.Sprintf("bridge_secrets{provider=%q}", provider.Name))
					if err != nil || int(n) != len(s.secrets[provider.Name]) {
						return false
					}
				}
			}
			return true
		})
	}
}

func (s *suite) drain() {
	node := s.lastNode()
	moved := 0
	for _, t := range targets {
		for _, p := range s.pods(t) {
			if p.Spec.NodeName == node {
				moved++
			}
		}
	}
	if moved == 0 {
		s.t.Errorf("%s has no pod of the bridge: draining it shows nothing", node)
	}
	defer func() {
		s.kubectl("uncordon", node)
	}()
	s.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=10m")
	s.ready(nats3)
	for _, t := range targets {
		s.rolledOut(t)
	}
}

// deleteLeader leaves the server a second to hand over.
func (s *suite) deleteLeader() {
	leader := s.leader()
	uid := func() string {
		var p pod
		text, err := s.try("", "get", "pod", leader, "-n", production.namespace, "-o", "json")
		if err != nil || json.Unmarshal([]byte(text), &p) != nil || !p.ready() {
			return ""
		}
		return p.Metadata.UID
	}
	old := uid()
	s.kubectl("delete", "pod", leader, "-n", production.namespace, "--now")
	s.eventually(5*time.Minute, leader+" is back", func() bool { now := uid(); return now != "" && now != old })
}

func (s *suite) restartNATS() {
	s.kubectl("rollout", "restart", nats3, "-n", production.namespace)
	s.ready(nats3)
}

// deleteAll leaves the spool's Service without a pod for some seconds. A sender on a
// node may be refused for two minutes more when it uses a port again that was refused:
// the node tracks that connection still, untranslated.
func (s *suite) deleteAll() {
	for _, t := range targets {
		s.kubectl("delete", "pods", "-n", t.namespace, "-l", "app.kubernetes.io/name=bridge", "--wait=false")
	}
	for _, t := range targets {
		s.rolledOut(t)
	}
}

// ungraceful restarts a Deployment whose pods end at once.
func (s *suite) ungraceful() {
	s.kubectl("set", "env", production.workload, "-n", production.namespace, "BRIDGE_SHUTDOWN_DELAY=0s")
	s.kubectl("patch", production.workload, "-n", production.namespace, "--type=json", "-p",
		`[{"op":"replace","path":"/spec/template/spec/terminationGracePeriodSeconds","value":1}]`)
	s.rolledOut(production)
	s.sender.take(production.namespace) // those pods had the delay still
	for range 2 {
		s.kubectl("rollout", "restart", production.workload, "-n", production.namespace)
		s.rolledOut(production)
	}
}
