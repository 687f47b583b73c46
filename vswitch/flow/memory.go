//go:build !race

package flow

import "golang.org/x/sys/unix"

// allocate maps zeroed memory that is this process's own.
func allocate(n int) (mem []byte, release func() error, err error) {
	mem, err = unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, nil, err
	}
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE) // advice only: a kernel without them says EINVAL
	return mem, func() error { return unix.Munmap(mem) }, nil
}
