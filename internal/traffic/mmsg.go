package traffic

import (
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a generator of small packets needs and package net hasn't got: many
// datagrams in one system call (sendmmsg(2), recvmmsg(2)), and blocking sockets,
// which leave no poller between the packet and the program.

// mmsghdr is struct mmsghdr.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// datagrams is a batch of buffers for either call.
type datagrams struct {
	fd   int
	msgs []mmsghdr
	iovs []unix.Iovec
}

// newDatagrams makes a batch of count buffers of size bytes. They share memory
// when shared, as those of a sender may.
func newDatagrams(fd, count, size int, shared []byte) *datagrams {
	d := &datagrams{fd: fd, msgs: make([]mmsghdr, count), iovs: make([]unix.Iovec, count)}
	for i := range d.msgs {
		b := shared
		if b == nil {
			b = make([]byte, size)
		}
		d.iovs[i].Base = &b[0]
		d.iovs[i].SetLen(size)
		d.msgs[i].hdr.Iov = &d.iovs[i]
		d.msgs[i].hdr.SetIovlen(1)
	}
	return d
}

// send sends the whole batch, or as much as the socket takes, and returns how many.
func (d *datagrams) send() (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(d.fd), uintptr(unsafe.Pointer(&d.msgs[0])), uintptr(len(d.msgs)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// receive waits for a datagram, takes what else is there, and returns how many
// they are and their length in all.
func (d *datagrams) receive() (count int, bytes uint64, err error) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(d.fd), uintptr(unsafe.Pointer(&d.msgs[0])), uintptr(len(d.msgs)),
		unix.MSG_WAITFORONE, 0, 0)
	if errno != 0 {
		return 0, 0, errno
	}
	for i := range n {
		bytes += uint64(d.msgs[i].len)
	}
	return int(n), bytes, nil
}

// blockingSocket makes a socket of a kind for an address, and calls use with
// the address as system calls take it.
func blockingSocket(kind int, a netip.AddrPort, use func(fd int, a unix.Sockaddr) error) (int, error) {
	family, sa := unix.AF_INET, unix.Sockaddr(nil)
	if addr := a.Addr().Unmap(); addr.Is4() {
		sa = &unix.SockaddrInet4{Addr: addr.As4(), Port: int(a.Port())}
	} else {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Addr: addr.As16(), Port: int(a.Port())}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	if err := use(fd, sa); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// setTimeout bounds every blocking call on a socket; it fails with EAGAIN then.
func setTimeout(fd int, which int, d int64) error {
	tv := unix.NsecToTimeval(d)
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, which, &tv)
}
