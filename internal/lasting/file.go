package lasting

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Memory can live in a file of a tmpfs, so that it outlives everybody who has it open
// and goes with the boot. Such a file can't be sealed as a memfd is: only its mode keeps
// others from shortening it, and a file system that is full kills the process that
// touches a page for the first time (SIGBUS, mmap(2)). So there is to be room for all of
// it when it is made or opened, and for spareBytes.

// spareBytes is left for others, such as the memories that the process has made before
// and will use up yet.
const spareBytes = 16 << 20

// ErrUnsuitable: the file system is no tmpfs, or has too little room left.
var ErrUnsuitable = errors.New("no place for lasting memory")

// Create makes n zero bytes in fd, a file that must be empty, of this user alone
// and on a tmpfs with room for it (else ErrUnsuitable). It takes fd if it succeeds.
func Create(fd, n int) (*Memory, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if st.Size != 0 {
		return nil, fmt.Errorf("it has %d bytes, want an empty one", st.Size)
	}
	if err := checkFile(fd, &st, int64(n)); err != nil {
		return nil, err
	}
	if err := unix.Ftruncate(fd, int64(n)); err != nil {
		return nil, os.NewSyscallError("ftruncate", err)
	}
	return mapFD(fd, n)
}

// checkFile says why a file is not to be mapped as n bytes.
func checkFile(fd int, st *unix.Stat_t, n int64) error {
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Uid != uint32(os.Geteuid()) || st.Mode&0o077 != 0 {
		return fmt.Errorf("a file of user %d with mode %o; want a regular one of this user alone", st.Uid, st.Mode)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return os.NewSyscallError("fstatfs", err)
	}
	if fs.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("%w: its file system, type %#x, is no tmpfs", ErrUnsuitable, fs.Type)
	}
	const blockBytes = 512 // st_blocks', stat(2)
	// No size given to the mount is no limit.
	if missing, room := n-st.Blocks*blockBytes, int64(fs.Bavail)*fs.Bsize; fs.Blocks != 0 && missing+spareBytes > room {
		return fmt.Errorf("%w: %d bytes are to come, %d are for others, and the tmpfs has %d left", ErrUnsuitable, missing, spareBytes, room)
	}
	return nil
}
