// Package lastingtest gives tests files that package lasting takes.
package lastingtest

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Tmpfs is a directory on a tmpfs, which goes with the test. /dev/shm is one on every
// Linux with a C library; where this user can't write to it the test is skipped.
func Tmpfs(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "vswitch-test")
	if err != nil {
		t.Skipf("no tmpfs that this user can write to: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// File opens a file, or makes it with a mode. The descriptor is the caller's to close, or
// to give away.
func File(t *testing.T, path string, mode uint32) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, mode)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}
