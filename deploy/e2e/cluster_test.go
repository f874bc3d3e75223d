//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/normalize"
	"github.com/hookbus/bridge/signature"
)

// target is one of the two deployments under test, each in a namespace of its own.
type target struct {
	namespace string
	workload  string // kind/name
	overlay   string
	components,
	patches string
}

// Both write into the NATS cluster of the first.
var (
	production = target{namespace: "bridge", workload: "deployment/bridge", overlay: "with-nats", components: "priority"}
	spool      = target{namespace: "bridge-spool", workload: "statefulset/bridge", overlay: "spool"}
	targets    = []target{production, spool}
)

const nats3 = "statefulset/nats"

// cluster is Kubernetes, as kubectl reaches it.
type cluster struct {
	t        *testing.T
	dir      string // of what is applied
	password string // of the user consumer
	secrets  map[string][]string
}

// kubectl runs kubectl and returns what it printed.
func (c *cluster) try(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 12*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, *kubectlFlag, args...)
	var out, errs bytes.Buffer
	command.Stdin, command.Stdout, command.Stderr = strings.NewReader(stdin), &out, &errs
	if err := command.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

func (c *cluster) kubectl(args ...string) string {
	c.t.Helper()
	return c.apply("", args...)
}

func (c *cluster) apply(stdin string, args ...string) string {
	c.t.Helper()
	out, err := c.try(stdin, args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// object reads one object, or a list of them, into v.
func (c *cluster) object(v any, args ...string) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(c.kubectl(append(append([]string{"get"}, args...), "-o", "json")...)), v); err != nil {
		c.t.Fatal(err)
	}
}

// install applies both overlays with secrets of their own, and waits until all
// is ready.
func (c *cluster) install() {
	c.t.Helper()
	random := func() string {
		b := make([]byte, 16)
		rand.Read(b)
		return hex.EncodeToString(b)
	}
	passwords := map[string]string{}
	for _, user := range []string{"ROUTE", "BRIDGE", "CONSUMER", "OPERATOR", "SYS"} {
		passwords["NATS_"+user+"_PASSWORD"] = random()
	}
	c.password = passwords["NATS_CONSUMER_PASSWORD"]
	c.secrets = make(map[string][]string)
	for _, p := range normalize.Providers() {
		c.secrets[p.Name] = []string{newSecret(p)}
	}
	for _, t := range targets {
		// The namespace comes first: what follows needs it.
		c.apply("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: "+t.namespace+"\n", "apply", "-f", "-")
		c.secret(t, "bridge-nats", map[string]string{
			"BRIDGE_NATS_URL": "nats://nats." + production.namespace + ":4222", "BRIDGE_NATS_USER": "bridge", "BRIDGE_NATS_PASSWORD": passwords["NATS_BRIDGE_PASSWORD"],
		})
		c.provide(t)
	}
	c.secret(production, "nats-passwords", passwords)
	c.volumes()
	for _, t := range targets {
		c.kubectl("apply", "-k", c.kustomization(t))
	}
	c.ready(nats3)
	for _, t := range targets {
		c.rolledOut(t)
	}
}

// kustomization writes one on top of an overlay: with the images under test and
// a port that a sender outside can reach.
func (c *cluster) kustomization(t target) string {
	c.t.Helper()
	dir := filepath.Join(c.dir, t.namespace)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		c.t.Fatal(err)
	}
	manifests, err := filepath.Abs("../k8s")
	if err == nil {
		manifests, err = filepath.Rel(dir, manifests)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	image := func(s string) (name, tag string) {
		name, tag, _ = strings.Cut(s, ":")
		return name, tag
	}
	bridge, bridgeTag := image(*imageFlag)
	nats, natsTag := image(*natsImageFlag)
	var b strings.Builder
	fmt.Fprintf(&b, "namespace: %s\nresources:\n- %s/overlays/%s\n", t.namespace, manifests, t.overlay)
	if t.components != "" {
		fmt.Fprintf(&b, "components:\n- %s/components/%s\n", manifests, t.components)
	}
	fmt.Fprintf(&b, "images:\n- {name: bridge, newName: %s, newTag: %q}\n- {name: nats, newName: %s, newTag: %q}\n", bridge, bridgeTag, nats, natsTag)
	b.WriteString("patches:\n- target: {kind: Service, name: ^bridge$}\n  patch: '[{\"op\":\"add\",\"path\":\"/spec/type\",\"value\":\"NodePort\"}]'\n")
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(b.String()), 0o644); err != nil {
		c.t.Fatal(err)
	}
	return dir
}

// secret applies a Secret.
func (c *cluster) secret(t target, name string, data map[string]string) {
	c.t.Helper()
	text, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Secret", "metadata": map[string]string{"name": name, "namespace": t.namespace}, "stringData": data,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.apply(string(text), "apply", "-f", "-")
}

// provide applies the providers' secrets as they are now.
func (c *cluster) provide(t target) {
	c.t.Helper()
	files := make(map[string]string)
	for provider, secrets := range c.secrets {
		files[provider] = strings.Join(secrets, "\n") + "\n"
	}
	c.secret(t, "bridge-providers", files)
}

func newSecret(p normalize.Provider) string {
	b := make([]byte, 32)
	rand.Read(b)
	if p.Scheme.Key == signature.HexAfterWhsec {
		return "whsec_" + hex.EncodeToString(b)
	}
	return hex.EncodeToString(b)
}

// volumes makes volumes in a folder that all nodes share, for a cluster without
// a provisioner.
func (c *cluster) volumes() {
	if *volumesFlag == "" {
		return
	}
	c.t.Helper()
	var nodes struct {
		Items []struct{ Metadata struct{ Name string } }
	}
	c.object(&nodes, "nodes")
	var names []string
	for _, n := range nodes.Items {
		names = append(names, n.Metadata.Name)
	}
	for i := range 5 {
		folder := filepath.Join(*volumesFlag, strconv.Itoa(i))
		if err := os.MkdirAll(folder, 0o755); err != nil {
			c.t.Fatal(err)
		}
		c.apply(fmt.Sprintf(`apiVersion: v1
kind: PersistentVolume
metadata: {name: bridge-e2e-%d}
spec:
  capacity: {storage: 20Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  local: {path: %s}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [%s]}]}]}}
`, i, folder, strings.Join(names, ", ")), "apply", "-f", "-")
	}
}

// remove deletes all that install applied.
func (c *cluster) remove() {
	for _, t := range targets {
		c.try("", "delete", "namespace", t.namespace, "--ignore-not-found", "--wait=true", "--timeout=5m")
	}
	c.try("", "delete", "priorityclass", "bridge", "--ignore-not-found")
	if *volumesFlag != "" {
		for i := range 5 {
			c.try("", "delete", "pv", fmt.Sprintf("bridge-e2e-%d", i), "--ignore-not-found", "--timeout=1m")
			os.RemoveAll(filepath.Join(*volumesFlag, strconv.Itoa(i)))
		}
	}
}

// ready waits until a workload of the production namespace is as it is to be.
func (c *cluster) ready(workload string) {
	c.t.Helper()
	c.kubectl("rollout", "status", workload, "-n", production.namespace, "--timeout=10m")
}

// rolledOut waits until a rollout is done and no pod of an old one is left.
func (c *cluster) rolledOut(t target) {
	c.t.Helper()
	c.kubectl("rollout", "status", t.workload, "-n", t.namespace, "--timeout=5m")
	c.eventually(2*time.Minute, t.namespace+" has its two pods, and they are ready", func() bool {
		pods := c.pods(t)
		ready := 0
		for _, p := range pods {
			if p.ready() {
				ready++
			}
		}
		return ready >= 2 && ready == len(pods)
	})
}

type pod struct {
	Metadata struct {
		Name, UID         string
		DeletionTimestamp *time.Time
	}
	Spec   struct{ NodeName string }
	Status struct {
		Conditions        []struct{ Type, Status string }
		ContainerStatuses []struct {
			RestartCount int
			State        struct {
				Waiting struct{ Reason string }
			}
		}
	}
}

func (p pod) ready() bool {
	for _, condition := range p.Status.Conditions {
		if condition.Type == "Ready" {
			return condition.Status == "True" && p.Metadata.DeletionTimestamp == nil
		}
	}
	return false
}

// waiting tells what keeps a container from starting.
func (p pod) waiting() string {
	for _, s := range p.Status.ContainerStatuses {
		return s.State.Waiting.Reason
	}
	return ""
}

func (c *cluster) pods(t target) []pod {
	c.t.Helper()
	var list struct{ Items []pod }
	c.object(&list, "pods", "-n", t.namespace, "-l", "app.kubernetes.io/name=bridge")
	return list.Items
}

// url returns where a sender outside reaches the service, at a node other than
// the given one.
func (c *cluster) url(t target, not string) string {
	c.t.Helper()
	var service struct {
		Spec struct {
			Ports []struct{ NodePort int }
		}
	}
	c.object(&service, "service", "bridge", "-n", t.namespace)
	var nodes struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Addresses []struct{ Type, Address string }
			}
		}
	}
	c.object(&nodes, "nodes")
	for _, n := range nodes.Items {
		for _, a := range n.Status.Addresses {
			if a.Type == "InternalIP" && n.Metadata.Name != not {
				return fmt.Sprintf("http://%s:%d", a.Address, service.Spec.Ports[0].NodePort)
			}
		}
	}
	c.t.Fatal("no node has an address")
	return ""
}

// lastNode is the node that is drained.
func (c *cluster) lastNode() string {
	c.t.Helper()
	var nodes struct {
		Items []struct{ Metadata struct{ Name string } }
	}
	c.object(&nodes, "nodes")
	if len(nodes.Items) < 2 {
		c.t.Fatal("a cluster of two nodes is needed")
	}
	return nodes.Items[len(nodes.Items)-1].Metadata.Name
}

// metric reads a metric of a pod, by what begins its line.
func (c *cluster) metric(t target, p pod, begins string) (float64, error) {
	text, err := c.try("", "get", "--raw", fmt.Sprintf("/api/v1/namespaces/%s/pods/%s:9090/proxy/metrics", t.namespace, p.Metadata.Name))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, begins+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("no %s", begins)
}

// eventually asks until it is true.
func (c *cluster) eventually(within time.Duration, what string, cond func() bool) {
	c.t.Helper()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(within); !cond(); <-tick.C {
		if time.Now().After(deadline) {
			c.t.Fatalf("not within %v: %s", within, what)
		}
	}
}

// read calls f with every message of the stream from the given sequence on, and
// returns the sequence after the last.
func (c *cluster) read(from uint64, f func(jetstream.Msg)) (next uint64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	js, stop, err := c.connect(ctx)
	if err != nil {
		return from, err
	}
	defer stop()
	stream, err := js.Stream(ctx, "WEBHOOKS")
	if err != nil {
		return from, err
	}
	last := stream.CachedInfo().State.LastSeq
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(from, 1)})
	if err != nil {
		return from, err
	}
	if from > last {
		return from, nil
	}
	messages, err := consumer.Messages(jetstream.PullHeartbeat(time.Second))
	if err != nil {
		return from, err
	}
	defer messages.Stop()
	for next = from; next <= last; {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return next, err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return next, err
		}
		f(msg)
		next = meta.Sequence.Stream + 1
	}
	return next, nil
}

// leader returns the pod that leads the stream of events.
func (c *cluster) leader() string {
	c.t.Helper()
	var name string
	c.eventually(time.Minute, "the stream has a leader", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		js, stop, err := c.connect(ctx)
		if err != nil {
			return false
		}
		defer stop()
		if stream, err := js.Stream(ctx, "WEBHOOKS"); err == nil && stream.CachedInfo().Cluster != nil {
			name = stream.CachedInfo().Cluster.Leader
		}
		return name != ""
	})
	return name
}

// connect connects as a consumer to NATS, through the API server.
func (c *cluster) connect(ctx context.Context) (jetstream.JetStream, func(), error) {
	forward := exec.CommandContext(ctx, *kubectlFlag, "port-forward", "-n", production.namespace, "service/nats", ":4222")
	var errs bytes.Buffer
	forward.Stderr = &errs
	out, err := forward.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := forward.Start(); err != nil {
		return nil, nil, err
	}
	end := func() {
		forward.Process.Kill()
		io.Copy(io.Discard, out)
		forward.Wait()
	}
	var port int
	if _, err := fmt.Fscanf(out, "Forwarding from 127.0.0.1:%d ->", &port); err != nil {
		end()
		return nil, nil, errors.Join(err, errors.New(errs.String()))
	}
	conn, err := nats.Connect(fmt.Sprintf("nats://127.0.0.1:%d", port), nats.UserInfo("consumer", c.password), nats.NoReconnect(), nats.Timeout(10*time.Second))
	if err != nil {
		end()
		return nil, nil, err
	}
	stop := func() { conn.Close(); end() }
	js, err := jetstream.New(conn)
	if err != nil {
		stop()
		return nil, nil, err
	}
	return js, stop, nil
}
