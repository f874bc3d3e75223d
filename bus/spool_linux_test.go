package bus_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hookbus/bridge/bus"
	"github.com/hookbus/bridge/internal/natstest"
)

// smallDisk returns a directory on a file system of 8 MiB of its own, which only
// root can mount.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("no file system can be mounted here: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, 0) })
	return dir
}

// A full disk is said, loses nothing, and passes when there is room again.
func TestSpoolOnAFullDisk(t *testing.T) {
	dir := smallDisk(t)
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
	ballast := filepath.Join(dir, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	for err = nil; err == nil; {
		_, err = f.Write(make([]byte, 4096))
	}
	f.Close()
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
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
	if err := os.Remove(ballast); err != nil {
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
	dir := smallDisk(t)
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
