//go:build faults

package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is a program that is started, killed and started again.
type process struct {
	name string
	path string
	args []string
	env  []string // all of it
	log  string   // file to which its output is appended

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
}

// start starts the program, if it does not run.
func (p *process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return nil
	}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(p.path, p.args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = p.env, out, out
	cmd.SysProcAttr = dieWithTest()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", p.name, err)
	}
	exited := make(chan struct{})
	go func() { cmd.Wait(); close(exited) }() // ends with the process
	p.cmd, p.exited = cmd, exited
	return nil
}

// signal sends a signal to the process, if it runs.
func (p *process) signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		p.cmd.Process.Signal(s)
	}
}

// stop sends the signal and returns when the process has ended; after within it
// is killed. SIGKILL ends a stopped process too.
func (p *process) stop(s syscall.Signal, within time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return nil
	}
	p.cmd.Process.Signal(s)
	var err error
	select {
	case <-p.exited:
	case <-time.After(within):
		err = fmt.Errorf("%s has not ended %v after %v", p.name, within, s)
		p.cmd.Process.Kill()
		<-p.exited
	}
	p.cmd = nil
	return err
}

func (p *process) kill() { p.stop(syscall.SIGKILL, 10*time.Second) }

// pid returns the number of the process, 0 if there is none.
func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// waitKilled returns when the process has ended by itself, and an error if it
// was not by SIGKILL.
func (p *process) waitKilled(within time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return errors.New("it does not run")
	}
	select {
	case <-p.exited:
	case <-time.After(within):
		return fmt.Errorf("it still runs after %v", within)
	}
	state := p.cmd.ProcessState
	p.cmd = nil
	if status, ok := state.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		return fmt.Errorf("it ended with %v", state)
	}
	return nil
}

// tail returns the end of the process's log.
func (p *process) tail(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return p.name + ":\n" + string(text[max(0, len(text)-4000):])
}
