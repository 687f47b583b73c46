// Package sockdiag lists the sockets of a network namespace that wait for what
// comes from outside, by sock_diag(7).
//
// The descriptor belongs to the namespace it was opened in, wherever it is then
// used: a process without privilege, outside, can follow what listens inside. The
// kernel tells of sockets that go, not of those that come, so whoever wants to know
// asks again.
package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Listener is a TCP socket that listens, or a UDP socket that is bound and has no
// peer.
type Listener struct {
	Addr netip.Addr // unspecified: any of its family, and of IPv4 if V4
	Port uint16
	UDP  bool
	V4   bool // an IPv6 socket that takes IPv4 as well (not IPV6_V6ONLY)
}

// Open opens a descriptor for List in the namespace of the calling thread. The
// kernel needs CONFIG_INET_DIAG and CONFIG_INET_UDP_DIAG.
func Open() (fd int, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return -1, fmt.Errorf("sockdiag: socket: %w", err)
	}
	return fd, nil
}

// States of include/net/tcp_states.h, as bits.
const (
	listening   = 1 << 10 // TCP_LISTEN
	unconnected = 1 << 7  // TCP_CLOSE: a UDP socket without a peer
)

// List is what waits now, in no order, a socket of several addresses or options
// as often as there are. buf is room to read in, 32 KiB or so.
func List(fd int, buf []byte) ([]Listener, error) {
	var all []Listener
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			var err error
			if all, err = list(fd, buf, family, proto, all); err != nil {
				return nil, fmt.Errorf("sockdiag: family %d, protocol %d: %w", family, proto, err)
			}
		}
	}
	return all, nil
}

// The request: struct nlmsghdr and struct inet_diag_req_v2 (include/uapi/linux/inet_diag.h).
//
//	 0       4       6       8       12      16
//	+-------+-------+-------+-------+-------+--------+-------+-----+-----+--------+---------+
//	| bytes | type  | flags | seq   | pid   | family | proto | ext | pad | states | id (48) |
//	+-------+-------+-------+-------+-------+--------+-------+-----+-----+--------+---------+
const (
	headerBytes  = unix.SizeofNlMsghdr
	requestBytes = headerBytes + 8 + sockIDBytes
	sockIDBytes  = 48
	// struct inet_diag_msg: family, state, timer, retrans; id; five words.
	messageBytes = 4 + sockIDBytes + 20

	sockDiagByFamily = 20 // SOCK_DIAG_BY_FAMILY
	attrV6Only       = 11 // INET_DIAG_SKV6ONLY
)

func list(fd int, buf []byte, family, proto uint8, all []Listener) ([]Listener, error) {
	if err := drain(fd, buf); err != nil {
		return all, err
	}
	if err := ask(fd, family, proto); err != nil {
		return all, err
	}
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0) // never waits: a dump is written as it is read
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return all, err
		}
		done := false
		if all, done, err = parse(buf[:n], all); done || err != nil {
			return all, err
		}
	}
}

func ask(fd int, family, proto uint8) error {
	var q [requestBytes]byte
	ne := binary.NativeEndian
	ne.PutUint32(q[0:], requestBytes)
	ne.PutUint16(q[4:], sockDiagByFamily)
	ne.PutUint16(q[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	q[16], q[17] = family, proto
	states := uint32(listening)
	if proto == unix.IPPROTO_UDP {
		states = unconnected
	}
	ne.PutUint32(q[20:], states)
	return unix.Sendto(fd, q[:], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// drain reads what another process asked for that ended before it had the answer.
func drain(fd int, buf []byte) error {
	for {
		switch _, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT); err {
		case nil, unix.EINTR:
		case unix.EAGAIN:
			return nil
		default:
			return err
		}
	}
}

var errTruncated = errors.New("the kernel's answer is cut short")

// parse reads the messages of one datagram.
func parse(b []byte, all []Listener) (_ []Listener, done bool, err error) {
	ne := binary.NativeEndian
	for len(b) >= headerBytes {
		n := int(ne.Uint32(b))
		if n < headerBytes || n > len(b) {
			return all, false, errTruncated
		}
		body := b[headerBytes:n]
		switch ne.Uint16(b[4:]) {
		case unix.NLMSG_DONE:
			return all, true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return all, false, errTruncated
			}
			if errno := -int32(ne.Uint32(body)); errno != 0 {
				return all, false, unix.Errno(errno)
			}
		case sockDiagByFamily:
			l, ok := parseListener(body)
			if !ok {
				return all, false, errTruncated
			}
			all = append(all, l)
		}
		b = b[min(len(b), (n+3)&^3):]
	}
	return all, false, nil
}

// parseListener reads a struct inet_diag_msg and the attributes behind it.
func parseListener(b []byte) (l Listener, ok bool) {
	if len(b) < messageBytes {
		return l, false
	}
	v6 := b[0] == unix.AF_INET6
	l.UDP = b[1] != 10 // TCP_LISTEN
	l.Port = binary.BigEndian.Uint16(b[4:])
	if !v6 {
		l.Addr = netip.AddrFrom4([4]byte(b[8:]))
		return l, true
	}
	l.Addr = netip.AddrFrom16([16]byte(b[8:]))
	if l.Addr.Is4In6() {
		l.Addr = l.Addr.Unmap()
		return l, true
	}
	l.V4 = true
	for at := b[messageBytes:]; len(at) >= 4; {
		n := int(binary.NativeEndian.Uint16(at))
		if n < 4 || n > len(at) {
			return l, false
		}
		if binary.NativeEndian.Uint16(at[2:]) == attrV6Only && n > 4 {
			l.V4 = at[4] == 0
		}
		at = at[min(len(at), (n+3)&^3):]
	}
	return l, true
}
