package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// spoolStore is the stream and the server that keeps it. Writers and readers have a
// connection each, so that neither wait for the other.
type spoolStore struct {
	server *server.Server
	conns  []*nats.Conn
	js     jetstream.JetStream // writes
	stream jetstream.Stream    // reads and removes
}

// storeTimeout is for what is lost or hangs for good. It runs on while the process stands
// still; the shorter timeouts of those who use the store do not.
const storeTimeout = time.Minute

// connect returns JetStream over a connection of its own.
func (st *spoolStore) connect(log *slog.Logger) (jetstream.JetStream, error) {
	nc, err := nats.Connect("", nats.InProcessServer(st.server), nats.Name("spool"), nats.NoReconnect(), nats.FlusherTimeout(storeTimeout),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			log.Warn("NATS client error", "component", "spool", "error", err)
		}))
	if err != nil {
		return nil, err
	}
	st.conns = append(st.conns, nc)
	return jetstream.New(nc, jetstream.WithDefaultTimeout(storeTimeout), jetstream.WithPublishAsyncTimeout(storeTimeout), jetstream.WithPublishAsyncMaxPending(1<<16))
}

func (st *spoolStore) close() {
	for _, nc := range st.conns {
		nc.Close()
	}
	st.server.Shutdown()
	st.server.WaitForShutdown()
}

// open opens the store anew. It reports whether that worked.
func (s *Spool) open(ctx context.Context) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.close()
	return s.reopen(ctx)
}

// close closes the store. The lock is held.
func (s *Spool) close() {
	if s.store != nil {
		s.store.close()
		s.store = nil
	}
}

func (s *Spool) reopen(ctx context.Context) bool {
	st, err := s.openStore(ctx)
	s.broken.Store(err != nil)
	if err != nil {
		s.problem(fmt.Sprintf("opening %s fails: %v", s.cfg.Dir, err))
		return false
	}
	s.store = st
	s.probed.Store(false)
	state, err := s.state(ctx)
	if err != nil {
		s.broken.Store(true)
		s.problem(fmt.Sprintf("opening %s fails: %v", s.cfg.Dir, err))
		return false
	}
	s.counted(state)
	s.opened.Store(true)
	if n := s.Len(); n > 0 {
		s.log.Info("the spool holds webhooks that wait for the bus", "messages", n)
	}
	if !s.tight.Load() {
		s.problem("")
	}
	return true
}

// problem keeps and logs what is new.
func (s *Spool) problem(reason string) {
	old := s.reason.Load()
	switch {
	case reason == "" && old != nil:
		s.log.Info("the spool works again")
		s.reason.Store(nil)
	case reason != "" && (old == nil || *old != reason):
		s.log.Error("the spool takes nothing", "dir", s.cfg.Dir, "problem", reason)
		s.reason.Store(&reason)
	}
}

func (s *Spool) openStore(ctx context.Context) (_ *spoolStore, err error) {
	if err := cmp.Or(s.makeRoom(), s.roomToOpen()); err != nil {
		return nil, err
	}
	_, err = os.Stat(s.streamDir())
	existed := err == nil
	st := &spoolStore{}
	var cut int64
	st.server, cut, err = startServer(serverConfig{name: "spool", dir: s.cfg.Dir, maxBody: s.cfg.MaxBody}, s.log)
	if err != nil {
		return nil, err
	}
	if cut > 0 {
		s.damaged(fmt.Sprintf("%d bytes could not be read", cut))
	}
	defer func() {
		if err != nil {
			st.close()
		}
	}()
	if st.js, err = st.connect(s.log); err != nil {
		return nil, err
	}
	reader, err := st.connect(s.log)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	if existed {
		// Made anew, it would forget what it held.
		if _, err := reader.Stream(ctx, spoolStream); errors.Is(err, jetstream.ErrStreamNotFound) {
			return nil, errors.New("it holds a stream that cannot be read (the log says why): restore it, or move it away and lose what is in it")
		}
	}
	st.stream, err = reader.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name:        spoolStream,
		Description: "webhooks that wait for the bus",
		Subjects:    []string{anySubject},
		Storage:     jetstream.FileStorage,
		MaxBytes:    s.cfg.MaxBytes,
		Discard:     jetstream.DiscardNew,
		AllowDirect: true,
	})
	if err != nil {
		return nil, err
	}
	return st, nil
}

func (s *Spool) streamDir() string {
	return filepath.Join(s.cfg.Dir, server.JetStreamStoreDir, "$G", "streams", spoolStream)
}

func (s *Spool) damaged(how string) {
	damage := fmt.Sprintf("spool: %s in %s: webhooks that were answered 200 may be lost", how, s.cfg.Dir)
	s.log.Error(damage)
	s.damage.Store(&damage)
}

// probe finds out whether the disk takes writes.
func (s *Spool) probe() {
	err := s.probeDisk()
	s.probed.Store(true)
	s.probes.Add(1)
	switch {
	case err != nil:
		s.broken.Store(true)
		s.problem(err.Error())
	case !s.broken.Load():
		s.problem("")
	}
	s.slow.Store(false)
	s.notify()
}

func (s *Spool) probeDisk() error {
	file, err := os.Create(filepath.Join(s.cfg.Dir, "probe"))
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(make([]byte, probeBytes))
	return cmp.Or(err, file.Sync(), file.Close())
}

// makeRoom looks whether the disk has room. If it is full the spool can still be
// emptied, which needs some room too: for that a file of no other use is kept, and
// removed then. It is made again when there is room for it and for more.
func (s *Spool) makeRoom() error {
	ballast := filepath.Join(s.cfg.Dir, "ballast")
	info, err := os.Stat(ballast)
	kept := err == nil && info.Size() == ballastBytes
	full := error(&fs.PathError{Op: "write", Path: ballast, Err: syscall.ENOSPC})
	if kept || available(s.cfg.Dir) >= ballastBytes+2*probeBytes {
		full = s.probeDisk()
	}
	if full == nil && !kept {
		full = os.WriteFile(ballast, make([]byte, ballastBytes), 0o600)
	}
	if full == nil {
		s.tight.Store(false)
		return nil
	}
	if !errors.Is(full, syscall.ENOSPC) {
		return full
	}
	s.tight.Store(true)
	s.problem(full.Error())
	if err := os.Remove(ballast); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// roomToOpen returns an error if the disk has no room for what the server may write when
// it opens the store: one of its files anew. Without that room it ends the process
// (nats-server 2.15.2, newFileStoreWithCreatedAndMode).
func (s *Spool) roomToOpen() error {
	need := int64(probeBytes)
	files, _ := filepath.Glob(filepath.Join(s.streamDir(), "msgs", "*.blk"))
	for _, file := range files {
		if info, err := os.Stat(file); err == nil {
			need = max(need, info.Size()+probeBytes)
		}
	}
	if free := available(s.cfg.Dir); free < need {
		return fmt.Errorf("%w: %d bytes are free, and %d needed", syscall.ENOSPC, free, need)
	}
	return nil
}
