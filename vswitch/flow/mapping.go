package flow

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mapping is shared memory and the descriptor it lives in.
type mapping struct {
	mem []byte
	fd  int
}

// sealed is what no holder of the descriptor can undo: a mapping whose file shrinks
// under it kills the process that touches it.
const sealed = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// newMapping makes n zero bytes of shared memory. Pages are taken as they are
// touched: records are used from the first on, so a table costs what its
// connections do.
func newMapping(n int) (mapping, error) {
	fd, err := unix.MemfdCreate("vswitch-flows", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return mapping{}, os.NewSyscallError("memfd_create", err)
	}
	if err := unix.Ftruncate(fd, int64(n)); err != nil {
		return mapping{}, errors.Join(os.NewSyscallError("ftruncate", err), unix.Close(fd))
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, sealed); err != nil {
		return mapping{}, errors.Join(os.NewSyscallError("seal", err), unix.Close(fd))
	}
	m, err := mapFD(fd, n)
	if err != nil {
		return mapping{}, errors.Join(err, unix.Close(fd))
	}
	return m, nil
}

// openMapping maps what fd holds, whatever it is, if no other process has it.
// It takes fd only if it succeeds.
func openMapping(fd int) (mapping, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return mapping{}, os.NewSyscallError("fstat", err)
	}
	if seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		if err := checkFile(fd, &st, st.Size); err != nil {
			return mapping{}, fmt.Errorf("neither shared memory that is sealed against shrinking nor a file as safe: %w", err)
		}
	}
	if st.Size < headerBytes || st.Size > int64(mappingBytes(MaxConnections)) {
		return mapping{}, fmt.Errorf("%d bytes, want %d to %d", st.Size, mappingBytes(1), mappingBytes(MaxConnections))
	}
	return mapFD(fd, int(st.Size))
}

// mapFD maps n bytes and claims them for this process. The claim is a lock of the
// kernel's, so it ends with the process however that ends.
func mapFD(fd, n int) (mapping, error) {
	claim := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &claim); err != nil {
		return mapping{}, fmt.Errorf("%w: %w", ErrInUse, os.NewSyscallError("fcntl", err))
	}
	mem, err := share(fd, n)
	if err != nil {
		return mapping{}, os.NewSyscallError("mmap", err)
	}
	return mapping{mem: mem, fd: fd}, nil
}

// release gives up the mapping, the claim and the descriptor; the memory lives on
// while another descriptor of it does.
func (m *mapping) release() error {
	return errors.Join(m.giveBack(), unix.Close(m.fd))
}

// giveBack is release, but for the descriptor.
func (m *mapping) giveBack() error {
	claim := unix.Flock_t{Type: unix.F_UNLCK}
	return errors.Join(unshare(m.mem), unix.FcntlFlock(uintptr(m.fd), unix.F_SETLK, &claim))
}

// written gives the bounds of the parts of mem, from off on, that were ever
// written to: the rest is zero, and reading it would take memory for it.
func (m *mapping) written(off int) (parts [][2]int) {
	for off < len(m.mem) {
		from, err := unix.Seek(m.fd, int64(off), unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return parts
		}
		if err != nil { // a kernel that can't tell: all of it
			return append(parts, [2]int{off, len(m.mem)})
		}
		to, err := unix.Seek(m.fd, from, unix.SEEK_HOLE)
		if err != nil {
			to = int64(len(m.mem))
		}
		parts = append(parts, [2]int{int(from), int(to)})
		off = int(to)
	}
	return parts
}
