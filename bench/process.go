package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a program under test.
type process struct {
	cmd *exec.Cmd
	log *bytes.Buffer
}

// start starts a program that ends with this one.
func start(path string, environ []string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(path, args...), log: &bytes.Buffer{}}
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = environ, p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return p, p.cmd.Start()
}

func (p *process) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	killed := time.AfterFunc(20*time.Second, func() { p.cmd.Process.Kill() })
	defer killed.Stop()
	p.cmd.Wait()
}

// tick is the unit of /proc, USER_HZ, which is 100 on every Linux.
const tick = 10 * time.Millisecond

// cpu returns the time that a process has used, and with pid 0 all processors
// have, without what was idle.
func cpu(pid int) (time.Duration, error) {
	file, from, to := "/proc/stat", 1, 4
	if pid != 0 {
		file, from, to = fmt.Sprintf("/proc/%d/stat", pid), 13, 15
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	if i := strings.LastIndex(line, ") "); i >= 0 { // the name may hold anything
		line = "pid name " + line[i+2:]
	}
	total := time.Duration(0)
	for _, field := range strings.Fields(line)[from:to] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		total += time.Duration(n) * tick
	}
	return total, nil
}

// peak returns the most memory that a process has had at a time, in MiB.
func peak(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("no VmHWM of %d", pid)
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// natsServers starts one server, or a cluster of three, and returns their URLs.
func natsServers(binary, dir string, n int, syncAlways bool) (urls []string, servers []*process, err error) {
	var addrs, routes []string
	for range n {
		addr, err := freeAddr()
		if err != nil {
			return nil, nil, err
		}
		route, err := freeAddr()
		if err != nil {
			return nil, nil, err
		}
		addrs, routes = append(addrs, addr), append(routes, route)
	}
	for i, addr := range addrs {
		home := filepath.Join(dir, strconv.Itoa(i))
		if err := os.MkdirAll(home, 0o700); err != nil {
			return nil, servers, err
		}
		config := fmt.Sprintf("server_name: s%d\nlisten: %q\njetstream { store_dir: %q", i, addr, home)
		if syncAlways {
			config += ", sync_interval: always"
		}
		config += " }\n"
		if n > 1 {
			config += fmt.Sprintf("cluster { name: bench, listen: %q, routes: [nats://%s] }\n", routes[i], strings.Join(routes, ", nats://"))
		}
		file := filepath.Join(home, "nats.conf")
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			return nil, servers, err
		}
		p, err := start(binary, os.Environ(), "--config", file)
		if err != nil {
			return nil, servers, err
		}
		servers, urls = append(servers, p), append(urls, "nats://"+addr)
	}
	return urls, servers, nil
}
