package bus

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/hookbus/bridge/internal/natstest"
)

// dialed returns both ends of a connection.
func dialed(t *testing.T) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = (dialer{}).Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

// What is sent while a write is under way goes out with the next.
func TestGatheringConnGathers(t *testing.T) {
	t.Parallel()
	client, server := net.Pipe()
	c := gathering(client)
	c.SetDeadline(time.Time{})
	c.Write([]byte("12"))
	room := make([]byte, 10)
	if _, err := io.ReadFull(server, room[:1]); err != nil { // the first is being written
		t.Fatal(err)
	}
	for _, message := range []string{"3", "4", "5"} {
		c.Write([]byte(message))
	}
	for _, want := range []string{"2", "345"} {
		if n, err := server.Read(room); err != nil || string(room[:n]) != want {
			t.Errorf("read %q, want %q; %v", room[:n], want, err)
		}
	}
	c.Close()
}

// What many send arrives whole, and in the order of each, also what was not yet
// written when the connection was closed.
func TestGatheringConnKeepsOrder(t *testing.T) {
	t.Parallel()
	c, server := dialed(t)
	c.SetDeadline(time.Time{})
	const senders, lines = 20, 500
	go func() {
		var wg sync.WaitGroup
		for s := range senders {
			wg.Go(func() {
				for n := range lines {
					if _, err := fmt.Fprintf(c, "%d %d\n", s, n); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		c.Close()
	}()
	var next [senders]int
	scanner := bufio.NewScanner(server)
	for scanner.Scan() {
		var s, n int
		if _, err := fmt.Sscanf(scanner.Text(), "%d %d", &s, &n); err != nil || n != next[s] {
			t.Fatalf("%q, want the line %d of that sender; %v", scanner.Text(), next[s], err)
		}
		next[s]++
	}
	for s, n := range next {
		if n != lines {
			t.Errorf("%d lines of sender %d, want %d", n, s, lines)
		}
	}
}

// A message larger than what is gathered goes out, too.
func TestGatheringConnTakesLargeMessages(t *testing.T) {
	t.Parallel()
	client, server := net.Pipe()
	c := gathering(client)
	c.SetDeadline(time.Time{})
	sent := bytes.Repeat([]byte("x"), 3*mostGathered)
	go func() {
		c.Write([]byte("small"))
		c.Write(sent)
		c.Write([]byte("small"))
		c.Close()
	}()
	got, err := io.ReadAll(server)
	if want := "small" + string(sent) + "small"; err != nil || string(got) != want {
		t.Errorf("%d bytes, want %d; %v", len(got), len(want), err)
	}
}

// What a server says before it closes the connection is read, whatever was being
// sent.
func TestGatheringConnReadsTheLastWord(t *testing.T) {
	t.Parallel()
	c, server := dialed(t)
	io.WriteString(server, "no")
	server.(*net.TCPConn).CloseWrite()
	server.(*net.TCPConn).CloseRead()
	c.SetDeadline(time.Time{})
	c.Write([]byte("anything"))
	if got, err := io.ReadAll(c); string(got) != "no" {
		t.Errorf("%q, %v", got, err)
	}
	server.Close()
	natstest.Eventually(t, 5*time.Second, "writes fail", func() bool {
		_, err := c.Write([]byte("anything"))
		return err != nil
	})
}

// While the client connects, a write has its own error.
func TestGatheringConnWhileConnecting(t *testing.T) {
	t.Parallel()
	client, server := net.Pipe()
	c := gathering(client)
	server.Close()
	if _, err := c.Write([]byte("CONNECT")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("%v, want %v", err, io.ErrClosedPipe)
	}
}

// Who waits for room has it as soon as what was gathered is being written.
func TestGatheringConnHasRoomAgain(t *testing.T) {
	t.Parallel()
	client, server := net.Pipe()
	defer server.Close()
	c := gathering(client)
	c.SetDeadline(time.Time{})
	message := make([]byte, mostGathered)
	c.Write(message)
	// The first is being written: one byte of it was read.
	if _, err := io.ReadFull(server, message[:1]); err != nil {
		t.Fatal(err)
	}
	c.Write(message)
	done := make(chan error)
	go func() {
		_, err := c.Write(message[:1])
		done <- err
	}()
	if _, err := io.ReadFull(server, message[1:]); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("%v, though there was room", err)
	}
	go io.Copy(io.Discard, server)
	c.Close()
}

// A server that takes nothing is given up. Until then no more is kept than the
// bound, and whoever waits, or comes later, is told.
func TestGatheringConnGivesUp(t *testing.T) {
	t.Parallel()
	client, server := net.Pipe()
	defer server.Close()
	c := gathering(client)
	c.SetDeadline(time.Time{})
	taken, message := 0, make([]byte, 64<<10)
	var err error
	for err == nil {
		var n int
		n, err = c.Write(message)
		taken += n
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, want a timeout", err)
	}
	// What is being written, and what is gathered meanwhile.
	if taken > 2*mostGathered {
		t.Errorf("%d bytes were taken, want at most %d", taken, 2*mostGathered)
	}
	if _, err := c.Write(message); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a later write: %v, want a timeout", err)
	}
	if _, err := c.Read(message); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a read: %v, want a timeout", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestGatheringConnIsClosed(t *testing.T) {
	t.Parallel()
	client, server := net.Pipe()
	defer server.Close()
	c := gathering(client)
	c.SetDeadline(time.Time{})
	c.Close()
	if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v, want %v", err, net.ErrClosed)
	}
}
