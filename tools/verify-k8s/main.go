// Command verify-k8s renders kustomize folders and decodes all that comes out
// strictly into the types of Kubernetes, Gateway API and the Prometheus
// operator: an unknown or repeated field, a wrong type or an unknown kind is an
// error. It needs no cluster.
//
// A folder may be followed by components, "overlays/production+components/priority":
// they are rendered on top of it, in the namespace bridge.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strings"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	clientgo "k8s.io/client-go/kubernetes/scheme"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// decodedOnly are kinds of which there is no Go module to check against.
var decodedOnly = []string{"apiVersion: jetstream.nats.io/"}

func main() {
	log.SetFlags(0)
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: verify-k8s FOLDER[+COMPONENT...]...")
	}
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgo.AddToScheme, monitoringv1.AddToScheme, gatewayv1.Install} {
		if err := add(scheme); err != nil {
			log.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	failed := false
	for _, folder := range flag.Args() {
		n, err := verify(decoder, folder)
		if err != nil {
			failed = true
			log.Printf("%s: %v", folder, err)
			continue
		}
		log.Printf("%s: %d objects", folder, n)
	}
	if failed {
		os.Exit(1)
	}
}

func verify(decoder runtime.Decoder, folder string) (n int, err error) {
	text, err := render(folder)
	if err != nil {
		return 0, err
	}
	var errs []error
	for reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return n, err
		}
		n++
		if err := placed(document); err != nil {
			errs = append(errs, err)
		}
		if unchecked(document) {
			continue
		}
		if _, _, err := decoder.Decode(document, nil, nil); err != nil {
			errs = append(errs, err)
		}
	}
	if n == 0 {
		return 0, errors.New("renders nothing")
	}
	return n, errors.Join(errs...)
}

func unchecked(document []byte) bool {
	for _, version := range decodedOnly {
		if bytes.Contains(document, []byte(version)) {
			return true
		}
	}
	return false
}

// placed returns an error for what would be created wherever kubectl is set to.
func placed(document []byte) error {
	var o struct {
		Kind     string
		Metadata struct{ Name, Namespace string }
	}
	if err := yaml.Unmarshal(document, &o); err != nil {
		return err
	}
	if o.Metadata.Namespace == "" && o.Kind != "Namespace" && o.Kind != "PriorityClass" {
		return fmt.Errorf("%s/%s has no namespace", o.Kind, o.Metadata.Name)
	}
	return nil
}

func render(folder string) ([]byte, error) {
	parts := strings.Split(folder, "+")
	files := filesys.MakeFsOnDisk()
	at := parts[0]
	if len(parts) > 1 {
		dir, err := os.MkdirTemp("", "verify-k8s-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		if dir, err = filepath.EvalSymlinks(dir); err != nil {
			return nil, err
		}
		var b strings.Builder
		fmt.Fprintf(&b, "namespace: bridge\nresources:\n- %s\ncomponents:\n", relative(dir, parts[0]))
		for _, component := range parts[1:] {
			fmt.Fprintf(&b, "- %s\n", relative(dir, component))
		}
		if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(b.String()), 0o600); err != nil {
			return nil, err
		}
		at = dir
	}
	options := krusty.MakeDefaultOptions()
	rendered, err := krusty.MakeKustomizer(options).Run(files, at)
	if err != nil {
		return nil, err
	}
	return rendered.AsYaml()
}

// relative returns the way from dir to a folder: kustomize takes no other.
func relative(dir, folder string) string {
	absolute, err := filepath.Abs(folder)
	if err != nil {
		return folder
	}
	way, err := filepath.Rel(dir, absolute)
	if err != nil {
		return folder
	}
	return way
}
