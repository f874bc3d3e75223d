package bus

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/nats-io/nats-server/v2/server"
)

// kept are hard links to all files of a server's streams. A server that cannot read one
// of the files when it starts, even if only for want of a file descriptor, removes the
// whole stream (nats-server 2.15.2): then it is put back.
type kept struct {
	streams, links string
	sizes          map[string]int64 // of the links to files of messages
}

// keep makes the links. First it puts back what an earlier process had lost when it was
// killed.
func keep(dir string) (kept, error) {
	k := kept{
		streams: filepath.Join(dir, server.JetStreamStoreDir, server.DEFAULT_GLOBAL_ACCOUNT, "streams"),
		links:   filepath.Join(dir, "kept"),
		sizes:   make(map[string]int64),
	}
	if err := k.putBack(); err != nil {
		return k, err
	}
	if err := k.release(); err != nil {
		return k, err
	}
	if _, err := os.Stat(k.streams); errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	err := filepath.WalkDir(k.streams, func(path string, d fs.DirEntry, err error) error {
		link := filepath.Join(k.links, strings.TrimPrefix(path, k.streams))
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return os.Mkdir(link, 0o700)
		}
		if blocks, _ := filepath.Match(filepath.Join(k.streams, "*", "msgs", "*.blk"), path); blocks {
			if info, err := d.Info(); err == nil {
				k.sizes[link] = info.Size()
			}
		}
		return os.Link(path, link)
	})
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrPermission) { // the file system has no links
		err = k.release()
	}
	return k, err
}

// cut returns how many bytes the server has cut off files of messages, without a word,
// because it could not read them. A file that it has written anew or removed is another.
func (k kept) cut() (bytes int64) {
	for link, size := range k.sizes {
		if info, err := os.Stat(link); err == nil {
			bytes += size - info.Size()
		}
	}
	return bytes
}

// removed returns the streams that have links and are not there any more.
func (k kept) removed() (names []string, err error) {
	entries, err := os.ReadDir(k.links)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		_, before := os.Stat(filepath.Join(k.links, e.Name(), server.JetStreamMetaFile))
		_, now := os.Stat(filepath.Join(k.streams, e.Name(), server.JetStreamMetaFile))
		if before == nil && errors.Is(now, fs.ErrNotExist) {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// missing returns an error if the server has removed streams.
func (k kept) missing() error {
	names, err := k.removed()
	if err == nil && len(names) > 0 {
		err = fmt.Errorf("it holds a stream that cannot be read (%s; the log says why): restore it, or move it away and lose what is in it", strings.Join(names, ", "))
	}
	return err
}

// putBack puts removed streams back. No server may run. One that has just stopped may
// still remove the directories above a stream, once each, if they are empty.
func (k kept) putBack() error {
	names, err := k.removed()
	attempts := 2*len(names) + 1
	for _, name := range names {
		stream := filepath.Join(k.streams, name)
		var failed error
		for range attempts {
			failed = errors.Join(os.RemoveAll(stream), os.MkdirAll(k.streams, 0o700), os.Rename(filepath.Join(k.links, name), stream))
			if !errors.Is(failed, fs.ErrNotExist) {
				break
			}
		}
		err = errors.Join(err, failed)
	}
	return err
}

// release removes the links.
func (k kept) release() error { return os.RemoveAll(k.links) }
