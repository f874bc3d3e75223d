package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// slowDown starts this program anew with every system call, also of the programs
// that it starts, made slower by filters of 4000 instructions each, which allow
// all. System calls cost that much where a sandbox or a hypervisor takes part in
// them, and then what counts is how many of them a request takes.
func slowDown(filters int) error {
	program := make([]unix.SockFilter, 4000)
	// What depends on an argument is run for every call.
	program[0] = unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 16}
	for i := range program[1:] {
		program[i+1] = unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_MUL | unix.BPF_K, K: 3}
	}
	program[len(program)-1] = unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}

	runtime.LockOSThread() // the filters are this thread's, until it is the program
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	for range filters {
		if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&filter))); errno != 0 {
			return fmt.Errorf("seccomp: %w", errno)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return syscall.Exec(self, slices.Concat(os.Args, []string{"-slow=0"}), os.Environ())
}
