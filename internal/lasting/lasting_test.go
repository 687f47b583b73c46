//go:build !race

// With the race detector memory lies on the heap of its process, where nobody finds it
// again.

package lasting

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"vswitch/internal/lasting/lastingtest"
)

func TestMemoryIsFoundAgain(t *testing.T) {
	const n = 1 << 20
	page := os.Getpagesize()
	path := filepath.Join(lastingtest.Tmpfs(t), "memory")
	for _, tt := range []struct {
		name  string
		make  func() (*Memory, error)
		again func(*Memory) (fd int, err error) // a descriptor that outlives the memory's own
	}{
		{
			"in a memfd", func() (*Memory, error) { return New("test", n) },
			func(m *Memory) (int, error) { return unix.FcntlInt(uintptr(m.FD()), unix.F_DUPFD_CLOEXEC, 0) },
		},
		{
			"in a file", func() (*Memory, error) { return Create(lastingtest.File(t, path, 0o600), n) },
			func(*Memory) (int, error) { return lastingtest.File(t, path, 0), nil },
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := tt.make()
			if err != nil {
				t.Fatal(err)
			}
			if parts := m.Written(0); len(parts) != 0 {
				t.Errorf("parts %v of untouched memory were written to", parts)
			}
			m.Bytes[0], m.Bytes[n/2] = 1, 2
			fd, err := tt.again(m)
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			for _, size := range [][2]int{{n + 1, 2 * n}, {1, n - 1}} {
				if _, err := Open(fd, size[0], size[1]); err == nil {
					t.Errorf("%d bytes were opened as %d to %d", n, size[0], size[1])
				}
			}
			if m, err = Open(fd, n, n); err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if m.Bytes[0] != 1 || m.Bytes[n/2] != 2 {
				t.Error("what was written is not there")
			}
			touched := 0
			for _, p := range m.Written(0) {
				touched += p[1] - p[0]
			}
			if touched < 2*page || touched > n/2 && page == 4096 {
				t.Errorf("%d bytes count as written to, want some pages", touched)
			}
			if parts := m.Written(n - page); len(parts) != 0 {
				t.Errorf("the end was never written to, but %v", parts)
			}
		})
	}
}

func TestWhatMayShrinkIsNotMapped(t *testing.T) {
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, 4096); err != nil {
		t.Fatal(err)
	}
	if m, err := Open(fd, 1, 4096); err == nil {
		t.Errorf("%+v of a memfd without seals", m)
	}
	if _, err := Open(-1, 1, 4096); !errors.Is(err, unix.EBADF) {
		t.Errorf("no descriptor: %v", err)
	}
}
