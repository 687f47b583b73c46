// Package lasting is shared memory that outlives the process which maps it: in a memfd,
// for as long as anybody holds its descriptor, or in a file of a tmpfs, for as long as
// the machine runs.
//
// It makes and maps the memory, claims it for one process at a time and says which
// parts were ever written to. What lies in it is its callers' to lay out, and to check when
// another process left it.
package lasting

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Memory is memory that one process has mapped and claimed.
type Memory struct {
	Bytes []byte // from a page's first byte on; gone when the memory is let go of
	fd    int
}

// ErrInUse: another process has the memory.
var ErrInUse = errors.New("another process uses it")

// Sealed is what no holder of a memfd of this package's can undo: memory whose file
// shrinks under it kills the process that touches it.
const Sealed = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// New makes n zero bytes in a memfd with a name that /proc shows. Pages are taken as they
// are touched.
func New(name string, n int) (*Memory, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	if err := unix.Ftruncate(fd, int64(n)); err != nil {
		return nil, errors.Join(os.NewSyscallError("ftruncate", err), unix.Close(fd))
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, Sealed); err != nil {
		return nil, errors.Join(os.NewSyscallError("seal", err), unix.Close(fd))
	}
	m, err := mapFD(fd, n)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return m, nil
}

// Open maps what fd holds, whatever it is: a memfd that is sealed, or a file such as
// Create takes, of least to most bytes. It takes fd only if it succeeds. An error is
// ErrInUse while another process has it.
func Open(fd, least, most int) (*Memory, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		if err := checkFile(fd, &st, st.Size); err != nil {
			return nil, fmt.Errorf("neither shared memory that is sealed against shrinking nor a file as safe: %w", err)
		}
	}
	if st.Size < int64(least) || st.Size > int64(most) {
		return nil, fmt.Errorf("%d bytes, want %d to %d", st.Size, least, most)
	}
	return mapFD(fd, int(st.Size))
}

// mapFD maps n bytes and claims them for this process. The claim is a lock of the
// kernel's, so it ends with the process however that ends.
func mapFD(fd, n int) (*Memory, error) {
	claim := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &claim); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInUse, os.NewSyscallError("fcntl", err))
	}
	mem, err := share(fd, n)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return &Memory{Bytes: mem, fd: fd}, nil
}

// FD is the memory's descriptor, for whoever is to keep it beyond this process's life.
// It is the memory's: Close closes it.
func (m *Memory) FD() int { return m.fd }

// Close gives up the mapping, the claim and the descriptor; the memory lives on
// while another descriptor of it does, or its file.
func (m *Memory) Close() error {
	return errors.Join(m.GiveBack(), unix.Close(m.fd))
}

// GiveBack is Close, but for the descriptor.
func (m *Memory) GiveBack() error {
	claim := unix.Flock_t{Type: unix.F_UNLCK}
	mem := m.Bytes
	m.Bytes = nil
	return errors.Join(unshare(mem), unix.FcntlFlock(uintptr(m.fd), unix.F_SETLK, &claim))
}

// Written gives the bounds of the parts of Bytes, from off on, that were ever
// written to: the rest is zero, and reading it would take memory for it.
func (m *Memory) Written(off int) (parts [][2]int) {
	for off < len(m.Bytes) {
		from, err := unix.Seek(m.fd, int64(off), unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return parts
		}
		if err != nil { // a kernel that can't tell: all of it
			return append(parts, [2]int{off, len(m.Bytes)})
		}
		to, err := unix.Seek(m.fd, from, unix.SEEK_HOLE)
		if err != nil {
			to = int64(len(m.Bytes))
		}
		parts = append(parts, [2]int{int(from), int(to)})
		off = int(to)
	}
	return parts
}
