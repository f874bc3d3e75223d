// Command image packs a static binary as a container image FROM scratch, without
// a container engine: an archive that docker load, ctr images import and kind
// load image-archive take.
package main

import (
	"archive/tar"
	"bytes"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// contents is what goes into an image.
type contents struct {
	binary, path       string
	user               string
	title, description string
	version, revision  string
	created            string
}

func main() {
	log.SetFlags(0)
	var c contents
	flag.StringVar(&c.binary, "binary", "", "static Linux binary")
	flag.StringVar(&c.path, "path", "/bridge", "where it is in the image")
	flag.StringVar(&c.user, "user", "65532:65532", "user and group that run it")
	flag.StringVar(&c.title, "title", "bridge", "name, for the label")
	flag.StringVar(&c.description, "description", "webhooks of identity, fraud and custody providers as CloudEvents on NATS JetStream", "one line, for the label")
	flag.StringVar(&c.version, "version", "dev", "version, for the label")
	flag.StringVar(&c.revision, "revision", "", "commit, for the label")
	flag.StringVar(&c.created, "created", "", "time of the commit, RFC 3339")
	ref := flag.String("ref", "bridge:dev", "name and tag")
	output := flag.String("output", "", "archive to write")
	flag.Parse()
	if err := c.pack(*ref, *output); err != nil {
		log.Fatal(err)
	}
}

func (c contents) pack(ref, output string) error {
	tag, err := name.NewTag(ref)
	if err != nil {
		return err
	}
	at, err := time.Parse(time.RFC3339, c.created)
	if err != nil {
		return fmt.Errorf("-created: %w", err)
	}
	program, err := os.ReadFile(c.binary)
	if err != nil {
		return err
	}
	layer, err := layerOf(c.path, program, at)
	if err != nil {
		return err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		OS: "linux", Architecture: runtime.GOARCH, Created: v1.Time{Time: at},
		RootFS:  rootFS(image),
		History: []v1.History{{CreatedBy: "make image", Created: v1.Time{Time: at}}},
		Config: v1.Config{
			User: c.user, Entrypoint: []string{c.path}, WorkingDir: "/",
			ExposedPorts: map[string]struct{}{"8080/tcp": {}, "9090/tcp": {}},
			Labels: map[string]string{
				"org.opencontainers.image.title":       c.title,
				"org.opencontainers.image.description": c.description,
				"org.opencontainers.image.version":     c.version,
				"org.opencontainers.image.revision":    c.revision,
				"org.opencontainers.image.created":     at.UTC().Format(time.RFC3339),
				"org.opencontainers.image.licenses":    "Apache-2.0",
			},
		},
	})
	if err != nil {
		return err
	}
	if err := tarball.WriteToFile(output, tag, image); err != nil {
		return err
	}
	info, err := os.Stat(output)
	if err != nil {
		return err
	}
	digest, err := image.Digest()
	fmt.Printf("%s: %s, %d bytes, %s\n", output, tag, info.Size(), digest)
	return err
}

func rootFS(image v1.Image) v1.RootFS {
	config, err := image.ConfigFile()
	if err != nil {
		log.Fatal(err)
	}
	return config.RootFS
}

// layerOf returns a layer of the program and what a process expects of a system.
func layerOf(path string, program []byte, at time.Time) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		header tar.Header
		body   []byte
	}{
		{tar.Header{Name: strings.TrimPrefix(path, "/"), Mode: 0o755}, program},
		{tar.Header{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755}, nil},
		{tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("nonroot:x:65532:65532:nonroot:/:/sbin/nologin\n")},
		{tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, nil},
	} {
		f.header.Size, f.header.ModTime = int64(len(f.body)), at
		if err := w.WriteHeader(&f.header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.body); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b.Bytes())), nil
	})
}
