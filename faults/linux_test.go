//go:build faults && linux

package faults

import (
	"os"
	"syscall"
)

// dieWithTest has the kernel kill the process when the test ends, however that
// ends.
func dieWithTest() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// mountSmall mounts a file system of that many bytes, in memory. It needs root.
func mountSmall(dir string, size string) error {
	return syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size)
}

func unmount(dir string) error { return syscall.Unmount(dir, syscall.MNT_DETACH) }

// fill takes all the room that is left in the file system with one file.
func fill(file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	size := int64(0)
	for step := int64(16 << 20); step >= 4<<10; {
		if syscall.Fallocate(int(f.Fd()), 0, size, step) == nil {
			size += step
		} else {
			step /= 2
		}
	}
	return nil
}
