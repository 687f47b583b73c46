package fdpass

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketMode lets the owner alone connect.
const socketMode = 0o600

// bind listens on a unix socket at path with mode 0600. A socket file that nobody
// listens on is replaced, since a killed daemon leaves one; where somebody does, the
// error is ErrInUse; a file that is no socket is left alone. Closing the listener
// removes the file.
func bind(network, path string) (*net.UnixListener, error) {
	// Two starters must not take each other's fresh file for a stale one. The
	// lock goes with the descriptor.
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return nil, &os.PathError{Op: "lock", Path: dir.Name(), Err: err}
	}
	if err := removeStale(network, path); err != nil {
		return nil, err
	}
	// bind(2) gives the file the mode of the unbound socket (net/unix/af_unix.c,
	// unix_bind_bsd): there is no moment at which it is open to others.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmodErr error
		err := c.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), socketMode) })
		return errors.Join(err, chmodErr)
	}}
	l, err := lc.Listen(context.Background(), network, path)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// removeStale removes the socket at path if a connection to it is refused.
func removeStale(network, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%w and is not a socket", fs.ErrExist)
	}
	c, err := net.Dial(network, path)
	if err == nil {
		c.Close()
		return ErrInUse
	}
	// EPROTOTYPE: a socket of another type, with somebody behind it.
	if errors.Is(err, unix.EPROTOTYPE) {
		return ErrInUse
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// CheckPeer says who is at the other end of c and refuses all but root and the
// user that this process runs as.
func CheckPeer(c *net.UnixConn) (Cred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Cred{}, err
	}
	var u *unix.Ucred
	var optErr error
	err = raw.Control(func(fd uintptr) {
		u, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, optErr); err != nil {
		return Cred{}, fmt.Errorf("ask for peer credentials: %w", err)
	}
	cred := Cred{PID: u.Pid, UID: u.Uid, GID: u.Gid}
	if cred.UID != 0 && cred.UID != uint32(os.Geteuid()) {
		return cred, fmt.Errorf("user %d may not use this socket", cred.UID)
	}
	return cred, nil
}
