//go:build linux

package udp

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The socket's error queue (IP_RECVERR, ip(7)): what ICMP errors say about
// datagrams sent, and what a device refused. Each entry names the destination that the
// datagram had and, where it was too large, the MTU of the link it did not fit
// (RFC 1191 section 4, RFC 4443 section 3.2). Everything else it says, a
// port that nobody listens at, say, is read and forgotten: UDP is retried by who
// uses it.

// errorsPerRead bounds the time for a flood of ICMP errors, which the socket's
// receive buffer bounds as well.
const errorsPerRead = 16

// errorQueue is what one message of the queue is read into.
type errorQueue struct {
	pathMTU func(to Addr, mtuBytes int)
	hdr     unix.Msghdr
	iov     unix.Iovec
	name    unix.RawSockaddrInet6
	control [32]uint64 // struct sock_extended_err and a socket address, beside the TOS
	payload [1]byte    // the datagram in question, which is not of interest
}

// ReadErrors empties the error queue. Receive and Flush do so when they meet an
// error. A socket that is readable with nothing to receive has an error waiting that
// they did not meet, and wakes its reader until this has been called.
func (c *Conn) ReadErrors() {
	q := &c.errs
	for range errorsPerRead {
		q.iov.Base = &q.payload[0]
		q.iov.SetLen(len(q.payload))
		q.hdr = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&q.name)), Namelen: uint32(unsafe.Sizeof(q.name)), Iov: &q.iov}
		q.hdr.SetIovlen(1)
		q.hdr.Control = (*byte)(unsafe.Pointer(&q.control))
		q.hdr.SetControllen(int(unsafe.Sizeof(q.control)))
		_, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&q.hdr)), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if errno != 0 {
			return
		}
		if mtu := q.mtu(); mtu > 0 && q.hdr.Namelen > 0 {
			c.counters.tooBig.Add(1)
			if q.pathMTU != nil {
				q.pathMTU(readName(&q.name), mtu)
			}
		}
	}
}

// mtu is what the message just read says of the path's MTU; 0: nothing. The
// control message holds a struct sock_extended_err (include/uapi/linux/errqueue.h):
//
//	0         4        5      6      7     8        12
//	+---------+--------+------+------+-----+--------+--------+
//	| errno   | origin | type | code | pad | info   | data   |
//	+---------+--------+------+------+-----+--------+--------+
func (q *errorQueue) mtu() int {
	const structBytes, infoOff = 16, 8
	ctl := unsafe.Slice((*byte)(unsafe.Pointer(&q.control)), unsafe.Sizeof(q.control))[:q.hdr.Controllen]
	for len(ctl) >= unix.SizeofCmsghdr {
		hdr, data, rest, err := unix.ParseOneSocketControlMessage(ctl)
		if err != nil {
			return 0
		}
		isError := hdr.Level == unix.IPPROTO_IP && hdr.Type == unix.IP_RECVERR ||
			hdr.Level == unix.IPPROTO_IPV6 && hdr.Type == unix.IPV6_RECVERR
		if isError && len(data) >= structBytes && unix.Errno(binary.NativeEndian.Uint32(data)) == unix.EMSGSIZE {
			return int(binary.NativeEndian.Uint32(data[infoOff:]))
		}
		ctl = rest
	}
	return 0
}
