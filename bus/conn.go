package bus

import (
	"cmp"
	"errors"
	"net"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
)

// dialer connects as the client does, but lets what several goroutines send at the
// same time go out with one system call. The client writes as soon as the first of
// them has handed over its message, and the server wakes up for each.
type dialer struct{ net.Dialer }

var _ nats.CustomDialer = dialer{}

func (d dialer) Dial(network, address string) (net.Conn, error) {
	conn, err := d.Dialer.Dial(network, address)
	if err != nil {
		return nil, err
	}
	return gathering(conn), nil
}

const (
	dialTimeout  = time.Second // of each address that a name has
	writeTimeout = time.Second // of one write to the connection
	mostGathered = 128 << 10   // bytes, which a slow link takes in that time; one message may be more
)

// gatheringConn is a connection whose Write returns before the bytes are sent, except
// while the client connects, which it does under a deadline. After an error all later
// writes return that error, and nothing more can be read, unless it was the server that
// closed the connection: then what it had sent before can.
type gatheringConn struct {
	net.Conn
	mu      sync.Mutex
	gathers bool
	changed sync.Cond
	next    []byte // to be written
	free    []byte // for what comes next
	writing bool
	err     error
	gaveUp  bool // closed for that error
}

func gathering(conn net.Conn) *gatheringConn {
	c := &gatheringConn{Conn: conn}
	c.changed.L = &c.mu
	return c
}

// Write waits only while too much is gathered already.
func (c *gatheringConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.gathers {
		return c.Conn.Write(p)
	}
	for c.err == nil && len(c.next) > 0 && len(c.next)+len(p) > mostGathered {
		c.changed.Wait()
	}
	if c.err != nil {
		return 0, c.err
	}
	c.next = append(c.next, p...)
	if !c.writing {
		c.writing = true
		go c.write()
	}
	return len(p), nil
}

func (c *gatheringConn) write() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.next) > 0 && c.err == nil {
		// Let those who are about to send add theirs. If nobody is, this returns at once.
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
		out := c.next
		c.next = c.free[:0]
		c.changed.Broadcast() // there is room
		c.mu.Unlock()
		c.Conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		_, err := c.Conn.Write(out)
		c.mu.Lock()
		c.free = nil
		if cap(out) <= mostGathered {
			c.free = out
		}
		c.err = err
	}
	c.writing = false
	c.changed.Broadcast()
	if c.err != nil && !errors.Is(c.err, syscall.EPIPE) && !errors.Is(c.err, syscall.ECONNRESET) {
		c.gaveUp = true
		c.Conn.Close()
	}
}

// Read returns the error of the write for which the connection was closed, if it was.
func (c *gatheringConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.gaveUp {
			err = c.err
		}
	}
	return n, err
}

// SetDeadline ends the gathering of writes; with the zero time it begins it.
func (c *gatheringConn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gathers = t.IsZero()
	return c.Conn.SetDeadline(t)
}

// SetWriteDeadline does nothing: every write has one.
func (c *gatheringConn) SetWriteDeadline(time.Time) error { return nil }

// Close lets what was gathered go out.
func (c *gatheringConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.writing {
		c.changed.Wait()
	}
	c.err = cmp.Or(c.err, net.ErrClosed)
	return c.Conn.Close()
}
