//go:build !race

package lasting

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
