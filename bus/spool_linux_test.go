package bus_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/natstest"
)

// smallDisk returns a directory on a file system of its own of so many MiB, which only
// root can mount.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", size)); err != nil {
		t.Skipf("no file system can be mounted here: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, 0) })
	return dir
}

// fillDisk takes all the room that is left with one file.
func fillDisk(t *testing.T, dir string) string {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err = nil; err == nil; {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return f.Name()
}

// A full disk is said, loses nothing, and passes when there is room again.
func TestSpoolOnAFullDisk(t *testing.T) {
	dir := smallDisk(t, 24)
	cfg := spoolConfig(filepath.Join(dir, "spool"))
	s := openSpool(t, cfg)
	defer s.Close()
	stored := 0
	put := func() error {
		err := s.Put(t.Context(), bus.Spooled{Event: entityEvent(t, strings.Repeat("x", 1000), stored)})
		if err == nil {
			stored++
		}
		return err
	}
	for range 10 {
		if err := put(); err != nil {
			t.Fatal(err)
		}
	}
	filler := fillDisk(t, dir)
	var err error
	for range 1000 {
		if err = put(); err != nil {
			break
		}
	}
	if !errors.Is(err, bus.ErrUnavailable) {
		t.Fatalf("on a full disk: %v", err)
	}
	var got handed
	stop := s.run(func(context.Context, bus.Spooled) error { return errors.New("not yet") })
	natstest.Eventually(t, within, "the problem is said", func() bool { return strings.Contains(s.Problem(), "no space left") })
	stop()
	stop = s.run(got.take)
	defer func() { stop() }()
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	natstest.Eventually(t, within, "no problem", func() bool { return s.Problem() == "" })
	if err := put(); err != nil {
		t.Error(err)
	}
	// The write that failed may be there or not; what was acknowledged is.
	natstest.Eventually(t, within, "the spool is empty", func() bool { return s.Len() == 0 })
	if n := len(got.get()); n < stored {
		t.Errorf("%d handed over, want %d", n, stored)
	}
}

// A spool that has filled its own disk is emptied all the same.
func TestSpoolThatFilledItsDisk(t *testing.T) {
	dir := smallDisk(t, 24)
	s := openSpool(t, spoolConfig(filepath.Join(dir, "spool")))
	defer s.Close()
	stored := 0
	for range 1000 {
		e := entityEvent(t, fmt.Sprint(stored, strings.Repeat("x", 30_000)), stored)
		if err := s.Put(t.Context(), bus.Spooled{Event: e}); err != nil {
			break
		}
		stored++
	}
	if stored < 100 || stored == 1000 {
		t.Fatalf("%d stored", stored)
	}
	var got handed
	stop := s.run(got.take)
	defer stop()
	natstest.Eventually(t, within, "the spool is empty", func() bool { return s.Len() == 0 })
	natstest.Eventually(t, within, "no problem", func() bool { return s.Problem() == "" })
	if n := len(got.get()); n < stored {
		t.Errorf("%d handed over, want %d", n, stored)
	}
	mustPut(t, s, bus.Spooled{Event: newEvent(t, 1)})
}

// A spool of several files, of which each is written anew when half of it has left, is
// emptied on a disk that another has filled. Without room for that nats-server 2.15.2
// ends the process when it opens the store.
func TestSpoolLeavesAFullDisk(t *testing.T) {
	dir := smallDisk(t, 64)
	cfg := spoolConfig(filepath.Join(dir, "spool"))
	cfg.MaxBytes = 1 << 30
	s := openSpool(t, cfg)
	defer s.Close()
	const stored = 20 << 10 / 30
	putLarge(t, s, stored)
	fillDisk(t, dir)
	var got handed
	var most atomic.Bool // have left
	stop := s.run(func(ctx context.Context, item bus.Spooled) error {
		if !most.Load() && of(item, "0246") {
			return errors.New("not yet")
		}
		return got.take(ctx, item)
	})
	defer stop()
	natstest.Eventually(t, within, "most have left", func() bool { return s.Len() < stored/2 })
	most.Store(true)
	natstest.Eventually(t, within, "the spool is empty", func() bool { return s.Len() == 0 })
	if s.Warning() != "" {
		t.Error(s.Warning())
	}
	if n := len(got.get()); n < stored {
		t.Errorf("%d handed over, want %d", n, stored)
	}
}

// Without room for what the server may write when it opens the store, it is not opened
// until there is.
func TestSpoolWithoutRoomToOpen(t *testing.T) {
	dir := smallDisk(t, 64)
	cfg := spoolConfig(filepath.Join(dir, "spool"))
	cfg.MaxBytes = 1 << 30
	s := openSpool(t, cfg)
	const stored = 20 << 10 / 30
	putLarge(t, s, stored)
	// A file of which half has left, as after a removal that failed on the full disk.
	first := filepath.Join(cfg.Dir, "jetstream", "$G", "streams", "SPOOL", "msgs", "1.blk")
	before, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	var got handed
	stop := s.run(func(ctx context.Context, item bus.Spooled) error {
		if of(item, "0246") {
			return errors.New("not yet")
		}
		return got.take(ctx, item)
	})
	natstest.Eventually(t, within, "most have left", func() bool { return s.Len() < stored/2 })
	stop()
	s.Close()
	for file, content := range map[string][]byte{first: before, filepath.Join(filepath.Dir(first), "index.db"): nil} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(cfg.Dir, "ballast")); err != nil {
		t.Fatal(err)
	}
	filler := fillDisk(t, dir)
	s = openSpool(t, cfg)
	defer s.Close()
	if !strings.Contains(s.Problem(), "no space left") {
		t.Errorf("problem %q", s.Problem())
	}
	stop = s.run(got.take)
	defer func() { stop() }()
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	natstest.Eventually(t, within, "the spool is empty", func() bool { return s.Len() == 0 })
	if s.Warning() != "" {
		t.Error(s.Warning())
	}
	if n := len(got.get()); n < stored {
		t.Errorf("%d handed over, want %d", n, stored)
	}
}

// putLarge puts events of 30 KB, each about an entity of its own.
func putLarge(t *testing.T, s *spool, n int) {
	t.Helper()
	for n := range n {
		body := fmt.Sprintf(`{"id":"%d","event_type":"DOCVER","payload":{"applicant_id":"%d","x":%q}}`, n, n, strings.Repeat("x", 30_000))
		mustPut(t, s, bus.Spooled{Event: eventOf(t, "dataspike", body)})
	}
}

// of reports whether the entity's name ends with one of the digits.
func of(item bus.Spooled, digits string) bool {
	subject := item.Event.CloudEvent.Subject()
	return strings.Contains(digits, subject[len(subject)-1:])
}
