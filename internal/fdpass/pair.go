package fdpass

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Pair makes the two ends of a SOCK_SEQPACKET connection: one for this process, and one
// for a child to be born with (exec.Cmd.ExtraFiles), after which this process closes it, or
// the child's end would not be seen.
func Pair() (*net.UnixConn, *os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("fdpass: socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "pair")
	conn, err := ConnOf(pair[0])
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return conn, theirs, nil
}

// ConnOf makes a connection of a descriptor, such as the one that a child was born with.
// It takes the descriptor, also when it fails.
func ConnOf(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "connection")
	defer f.Close() // FileConn has a duplicate
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("fdpass: descriptor %d: %w", fd, err)
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("fdpass: descriptor %d is no unix socket", fd), c.Close())
	}
	return conn, nil
}
