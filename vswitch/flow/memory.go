//go:build !race

package flow

import "golang.org/x/sys/unix"

// share maps the first n bytes of fd.
func share(fd, n int) ([]byte, error) {
	mem, err := unix.Mmap(fd, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err == nil {
		// Advice only: it counts where the administrator allows huge pages for shared
		// memory (transparent_hugepage/shmem_enabled).
		_ = unix.Madvise(mem, unix.MADV_HUGEPAGE)
	}
	return mem, err
}

func unshare(mem []byte) error { return unix.Munmap(mem) }

// allocate maps zeroed memory that is this process's own.
func allocate(n int) (mem []byte, release func() error, err error) {
	mem, err = unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, nil, err
	}
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE) // advice only: a kernel without them says EINVAL
	return mem, func() error { return unix.Munmap(mem) }, nil
}
