// Package unixcall is the client's end of a unix socket (unix(7)) for a process that
// makes one exchange and waits for nothing else, such as a CNI plugin.
//
// Its system calls block their thread. Package net would wait in the runtime's poller:
// that takes an epoll instance and its descriptors to set up, and, for a goroutine that
// is bound to its thread, two changes of threads for each thing waited for.
package unixcall

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is a connection. One goroutine at a time uses it.
type Conn struct {
	stop func() bool // of the context's watch

	mu sync.Mutex
	fd int // -1: closed; guarded by mu against the context's end
}

// Dial connects to the socket of that kind, unix.SOCK_STREAM or SOCK_SEQPACKET, at path.
// When ctx ends, what waits fails. The error of the system call is within.
func Dial(ctx context.Context, kind int, path string) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	c := &Conn{fd: fd}
	if err := c.connect(ctx, path); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "connect", Path: path, Err: err}
	}
	c.stop = context.AfterFunc(ctx, c.shutdown)
	return c, nil
}

// connect waits for a place in the listener's queue, at most until ctx's deadline.
func (c *Conn) connect(ctx context.Context, path string) error {
	if deadline, ok := ctx.Deadline(); ok {
		left := unix.NsecToTimeval(int64(max(time.Until(deadline), time.Microsecond)))
		if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &left); err != nil {
			return err
		}
	}
	return again(func() error { return unix.Connect(c.fd, &unix.SockaddrUnix{Name: path}) })
}

// shutdown wakes what waits on the connection.
func (c *Conn) shutdown() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd >= 0 {
		_ = unix.Shutdown(c.fd, unix.SHUT_RDWR)
	}
}

// Close closes the connection.
func (c *Conn) Close() error {
	c.stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	fd := c.fd
	c.fd = -1
	if fd < 0 {
		return os.ErrClosed
	}
	return unix.Close(fd)
}

// Read implements io.Reader. Of a SOCK_SEQPACKET socket it reads one packet.
func (c *Conn) Read(b []byte) (n int, err error) {
	err = again(func() error { n, err = unix.Read(c.fd, b); return err })
	switch {
	case err != nil:
		return 0, os.NewSyscallError("read", err)
	case n == 0 && len(b) > 0:
		return 0, io.EOF
	}
	return n, nil
}

// Write implements io.Writer, for SOCK_STREAM.
func (c *Conn) Write(b []byte) (int, error) {
	for done := 0; done < len(b); {
		n := 0
		// A daemon that has gone is an error, not a signal.
		err := again(func() (err error) { n, err = unix.SendmsgN(c.fd, b[done:], nil, nil, unix.MSG_NOSIGNAL); return err })
		if err != nil {
			return done, os.NewSyscallError("sendmsg", err)
		}
		done += n
	}
	return len(b), nil
}

// WritePacket sends one packet of a SOCK_SEQPACKET socket with duplicates of fds beside
// it (SCM_RIGHTS).
func (c *Conn) WritePacket(text []byte, fds []int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	return os.NewSyscallError("sendmsg", again(func() error { return unix.Sendmsg(c.fd, text, rights, nil, unix.MSG_NOSIGNAL) }))
}

// again repeats a system call that a signal interrupted.
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
