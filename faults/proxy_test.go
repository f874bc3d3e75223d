//go:build faults

package faults

import (
	"fmt"
	"net"
	"sync"
	"testing"
)

// link is what becomes of the bytes that pass a proxy.
type link int

const (
	open    link = iota
	silent       // nothing passes and nothing is closed; what came in passes later
	deaf         // only the answers are held back
	refused      // every connection is closed, new ones are refused
)

// proxy is a TCP connection's way from one process to another, which can be cut.
type proxy struct {
	port   int
	target string

	mu       sync.Mutex
	changed  *sync.Cond
	state    link
	closed   bool
	listener net.Listener
	conns    map[net.Conn]bool
	wg       sync.WaitGroup
}

// newProxy forwards what comes to the port to the target, until the end of the
// test.
func newProxy(t *testing.T, port int, target string) *proxy {
	t.Helper()
	p := &proxy{port: port, target: target, conns: make(map[net.Conn]bool)}
	p.changed = sync.NewCond(&p.mu)
	if err := p.listen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.mu.Lock()
		p.closed = true
		p.closeAll()
		p.changed.Broadcast()
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func address(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// listen is called with the lock held, or before anybody else knows p.
func (p *proxy) listen() error {
	l, err := net.Listen("tcp", address(p.port))
	if err != nil {
		return err
	}
	p.listener = l
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(c) })
		}
	})
	return nil
}

// closeAll is called with the lock held.
func (p *proxy) closeAll() {
	if p.listener != nil {
		p.listener.Close()
		p.listener = nil
	}
	for c := range p.conns {
		// Reset, so that nothing of what was sent arrives later.
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	clear(p.conns)
}

// set changes the link.
func (p *proxy) set(state link) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.state == state {
		return nil
	}
	p.state = state
	p.changed.Broadcast()
	if state == refused {
		p.closeAll()
		return nil
	}
	if p.listener == nil {
		return p.listen()
	}
	return nil
}

// add keeps a connection for closeAll, unless there is no link.
func (p *proxy) add(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.state == refused {
		c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

func (p *proxy) drop(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.Close()
	delete(p.conns, c)
}

func (p *proxy) serve(client net.Conn) {
	if !p.add(client) {
		return
	}
	defer p.drop(client)
	p.pass(false)
	server, err := net.Dial("tcp", p.target)
	if err != nil || !p.add(server) {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { defer p.drop(client); p.forward(client, server, true) })
	defer p.drop(server)
	p.forward(server, client, false)
}

func (p *proxy) forward(to, from net.Conn, answers bool) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			p.pass(answers)
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			p.pass(answers) // an end does not pass a silent link either
			return
		}
	}
}

// pass returns when the link lets bytes through, or will never again.
func (p *proxy) pass(answers bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed && (p.state == silent || p.state == deaf && answers) {
		p.changed.Wait()
	}
}
