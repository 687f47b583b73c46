package gateway

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// hostConn is a TCP connection of the host that goroutines may wait for: one that a
// listener accepted (*net.TCPConn), or one that connectHost made (dialed).
type hostConn interface {
	syscall.Conn
	SetDeadline(time.Time) error
	CloseWrite() error
	SetLinger(sec int) error
	Close() error
}

// dialed is a connection that connectHost made.
type dialed struct{ *os.File }

// CloseWrite tells the other side that nothing more will come.
func (d dialed) CloseWrite() error {
	return d.control(func(fd int) error { return unix.Shutdown(fd, unix.SHUT_WR) })
}

// SetLinger is that of net.TCPConn.
func (d dialed) SetLinger(sec int) error {
	return d.control(func(fd int) error { return setLinger(fd, sec) })
}

func (d dialed) control(f func(fd int) error) error {
	raw, err := d.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

func setLinger(fd, sec int) error {
	l := unix.Linger{}
	if sec >= 0 {
		l = unix.Linger{Onoff: 1, Linger: int32(sec)}
	}
	return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &l)
}

// connectHost connects the host to an address and marks the connection (mark). The
// descriptor is the caller's, non-blocking, and not known to the Go runtime. Errors
// are those of connect(2), os.ErrDeadlineExceeded after timeout or when ctx ends.
//
// It does what net.Dialer does, but asks whether the connection is there before it has
// the runtime's poller wait: to an address of the host itself it is by the time that
// connect(2) has returned.
func connectHost(ctx context.Context, to netip.AddrPort, timeout time.Duration) (int, error) {
	family := unix.AF_INET
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	setHostOptions(fd)
	sa := sockaddrOf(to)
	done, err := connected(fd, sa)
	if !done && err == nil {
		done, err = connected(fd, sa)
	}
	if !done && err == nil {
		err = await(ctx, fd, sa, timeout)
	}
	if err == nil && toItself(fd, to) {
		err = unix.ECONNREFUSED
	}
	if err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("connect", err)
	}
	return fd, nil
}

// await waits until a connection is there: by a duplicate, since the runtime's poller
// lets go of a descriptor only when that is closed.
func await(ctx context.Context, fd int, to unix.Sockaddr, timeout time.Duration) error {
	twin, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	d := os.NewFile(uintptr(twin), "tcp")
	defer d.Close()
	raw, err := d.SyscallConn()
	if err != nil {
		return err
	}
	if err := d.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { d.SetWriteDeadline(time.Unix(1, 0)) })()
	werr := raw.Write(func(fd uintptr) (done bool) {
		done, err = connected(int(fd), to)
		return done || err != nil
	})
	return errors.Join(err, werr)
}

// connected begins a connection, or asks again for one that is under way: whether it is
// there, or why it never will be.
func connected(fd int, to unix.Sockaddr) (bool, error) {
	switch err := unix.Connect(fd, to); err {
	case nil, unix.EISCONN:
		return true, nil
	case unix.EINPROGRESS, unix.EALREADY, unix.EINTR:
		return false, nil
	default:
		return false, err
	}
}

// toItself reports whether a socket has met itself: where nobody listens at a port of
// this host that the kernel gives to clients, it may choose the same for the client.
func toItself(fd int, to netip.AddrPort) bool {
	at, err := unix.Getsockname(fd)
	return err == nil && addrPortOf(at) == to
}

// setHostOptions gives a socket what net gives its own: keep-alive, no delay. It is
// marked as well. None of it can fail on a TCP socket.
func setHostOptions(fd int) {
	setLinger(fd, 0)
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepAliveIdle/time.Second))
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepAliveInterval/time.Second))
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAliveCount)
}
