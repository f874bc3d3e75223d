package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// watched returns a file that is read by read, and what is told of it.
func watched(t *testing.T, file string, read func() error) (f *files, log *output, successful func() bool) {
	t.Helper()
	log = new(output)
	registry := prometheus.NewRegistry()
	f, err := newFiles(map[string][]func() error{file: {read}}, slog.New(slog.NewTextHandler(log, nil)), registry)
	if err != nil {
		t.Fatal(err)
	}
	f.start()
	return f, log, func() bool {
		t.Helper()
		families, err := registry.Gather()
		if err != nil || len(families) != 1 {
			t.Fatalf("%v: %v", families, err)
		}
		return families[0].GetMetric()[0].GetGauge().GetValue() == 1
	}
}

func mkdir(t *testing.T, name string) {
	t.Helper()
	if err := os.MkdirAll(name, 0o755); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// link makes the name a link to target, in one step if it is one already.
func link(t *testing.T, target, name string) {
	t.Helper()
	if err := errors.Join(os.Symlink(target, name+".new"), os.Rename(name+".new", name)); err != nil {
		t.Fatal(err)
	}
}

// Changes that no event tells of.
func TestWatchWithoutEvents(t *testing.T) {
	for name, test := range map[string]struct{ before, after func(t *testing.T) }{
		"a link's target is written": {
			func(t *testing.T) { write(t, "store/file", "first"); link(t, "../store/file", "etc/file") },
			func(t *testing.T) { write(t, "store/file", "second") },
		},
		"a link's target is another link, which is moved": {
			func(t *testing.T) {
				write(t, "store/1", "first")
				link(t, "../store/1", "live/file")
				link(t, "../live/file", "etc/file")
			},
			func(t *testing.T) { write(t, "store/2", "second"); link(t, "../store/2", "live/file") },
		},
		"the folder has another's place": {
			func(t *testing.T) { write(t, "etc/file", "first"); write(t, "store/file", "second") },
			func(t *testing.T) {
				if err := errors.Join(os.Rename("etc", "old"), os.Rename("store", "etc")); err != nil {
					t.Fatal(err)
				}
			},
		},
		"the folder goes and comes back": {
			func(t *testing.T) { write(t, "etc/file", "first") },
			func(t *testing.T) {
				if err := os.RemoveAll("etc"); err != nil {
					t.Fatal(err)
				}
				mkdir(t, "etc")
				write(t, "etc/file", "second")
			},
		},
		"the folder is a link, which is moved": {
			func(t *testing.T) {
				write(t, "store/file", "first")
				write(t, "live/file", "second")
				if err := os.Remove("etc"); err != nil {
					t.Fatal(err)
				}
				link(t, "store", "etc")
			},
			func(t *testing.T) { link(t, "live", "etc") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			for _, folder := range []string{"etc", "store", "live"} {
				mkdir(t, folder)
			}
			test.before(t)
			content := make(chan string, 1)
			reload := map[string][]func() error{"etc/file": {func() error {
				text, err := os.ReadFile("etc/file")
				content <- string(text)
				return err
			}}}
			ticks := make(chan time.Time)
			ctx, cancel := context.WithCancel(t.Context())
			wait, err := watch(ctx, reload, ticks, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
			if err != nil {
				cancel()
				t.Fatal(err)
			}
			defer wait()
			defer cancel()
			if got := <-content; got != "first" {
				t.Fatalf("read %q", got)
			}
			test.after(t)
			ticks <- time.Now()
			select {
			case got := <-content:
				if got != "second" {
					t.Errorf("read %q", got)
				}
			case <-time.After(10 * time.Second):
				t.Error("not read again")
			}
		})
	}
}

// A file that is away for a moment is being replaced; for longer it is missed.
func TestWatchTellsOfAFileThatCannotBeRead(t *testing.T) {
	for name, take := range map[string]func(file string) error{
		"removed":    os.Remove,
		"unreadable": func(file string) error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o755)) }, // root may read any file
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "file")
			write(t, file, "5ecre7")
			reads := 0
			f, log, successful := watched(t, file, func() error { reads++; return nil })
			away := func() {
				t.Helper()
				if err := take(file); err != nil {
					t.Fatal(err)
				}
			}
			back := func() {
				t.Helper()
				if err := os.RemoveAll(file); err != nil {
					t.Fatal(err)
				}
				write(t, file, "5ecre7")
			}
			for range 2 {
				away()
				f.changed("file")
				f.look()
				f.changed("file")
				back()
				f.look()
			}
			if log.String() != "" || !successful() || reads != 1 {
				t.Errorf("away for a moment, it was read %d times: %s", reads, log)
			}
			away()
			for range 5 {
				f.look()
			}
			if text := log.String(); strings.Count(text, "level=WARN") != 1 || strings.Count(text, "\n") != 1 || !strings.Contains(text, file+": ") || strings.Contains(text, "5ecre7") {
				t.Errorf("logged:\n%s", text)
			}
			if successful() || reads != 1 {
				t.Errorf("counts as read, and was read %d times", reads)
			}
			back()
			f.look()
			f.look()
			if !successful() || reads != 2 || !strings.Contains(log.String(), "file read again") {
				t.Errorf("back again, it was read %d times: %s", reads, log)
			}
		})
	}
}

// What failed for another reason than the file's content does not wait for a change.
func TestWatchTriesAgain(t *testing.T) {
	missing := errors.New("the key is missing")
	f, log, successful := watched(t, file(t, "content"), func() error { return missing })
	f.look()
	f.look()
	if successful() || strings.Count(log.String(), "the key is missing") != 1 {
		t.Errorf("logged:\n%s", log)
	}
	missing = nil
	f.look()
	if !successful() || strings.Count(log.String(), "file read again") != 1 {
		t.Errorf("logged:\n%s", log)
	}
}
