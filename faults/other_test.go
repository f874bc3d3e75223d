//go:build faults && !linux

package faults

import (
	"errors"
	"syscall"
)

func dieWithTest() *syscall.SysProcAttr { return nil }

func mountSmall(string, string) error { return errors.New("only on Linux") }

func unmount(string) error { return nil }

func fill(string) error { return errors.New("only on Linux") }
