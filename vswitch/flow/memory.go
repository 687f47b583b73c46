//go:build !race

package flow

import "golang.org/x/sys/unix"

// allocate maps zeroed memory outside the Go heap. Pages are taken as they are
// touched: records are used from the first on, so a table costs what its
// connections do and the index.
func allocate(n int) (mem []byte, release func() error, err error) {
	mem, err = unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, nil, err
	}
	// Advice only: a lookup among many connections touches three pages at random,
	// and huge ones spare it page walks. A kernel without them says EINVAL.
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE)
	return mem, func() error { return unix.Munmap(mem) }, nil
}
