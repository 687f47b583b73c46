package gateway

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socketKind is what a host socket carries.
type socketKind uint8

const (
	udp4 socketKind = iota
	udp6
	echo4 // ping sockets (Linux 3.0): the kernel writes identifier and checksum
	echo6
	socketKinds
)

func kindOf(echo, v6 bool) socketKind {
	k := udp4
	if echo {
		k = echo4
	}
	if v6 {
		k++
	}
	return k
}

func (k socketKind) v6() bool   { return k == udp6 || k == echo6 }
func (k socketKind) echo() bool { return k >= echo4 }

const (
	hostSocketBytes = 1 << 20 // asked for; net.core.[rw]mem_max may grant less
	// datagramBytes holds what UDP_GRO merges: no more than one IP packet's length.
	datagramBytes = 65536
	// drainDatagrams bounds how long one socket keeps its goroutine's buffer.
	drainDatagrams = 64
)

// hostSocket is an unconnected datagram socket of the host with one goroutine
// that reads it. Any goroutine may send. It must not be closed from its own
// goroutine: Close waits until no call on the descriptor is under way.
type hostSocket struct {
	kind socketKind
	by   *entrance // whose listener it is; nil: opened for pods
	file *os.File
	raw  syscall.RawConn

	mu sync.RWMutex
	// peers is guarded by mu. It tells sessions of this socket apart by the remote
	// address; echo has port zero.
	peers map[netip.AddrPort]*session
}

// openHostSocket opens a socket for pods.
func openHostSocket(kind socketKind) (*hostSocket, error) {
	family, proto := unix.AF_INET, 0
	switch kind {
	case udp6:
		family = unix.AF_INET6
	case echo4:
		proto = unix.IPPROTO_ICMP
	case echo6:
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	level, opt := unix.IPPROTO_IP, unix.IP_RECVERR
	if kind.v6() {
		level, opt = unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	}
	if err := unix.SetsockoptInt(fd, level, opt, 1); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set IP_RECVERR: %w", err)
	}
	if kind.v6() {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("set IPV6_V6ONLY: %w", err)
		}
	}
	return newHostSocket(fd, kind)
}

// newHostSocket takes over a socket.
func newHostSocket(fd int, kind socketKind) (*hostSocket, error) {
	// Sizes and merging are improvements: without them the socket still works.
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, hostSocketBytes)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, hostSocketBytes)
	if !kind.echo() {
		unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1) // Linux 5.0
	}
	var err error
	s := &hostSocket{kind: kind, file: os.NewFile(uintptr(fd), "datagram"), peers: make(map[netip.AddrPort]*session)}
	if s.raw, err = s.file.SyscallConn(); err != nil {
		s.file.Close()
		return nil, fmt.Errorf("socket: %w", err)
	}
	return s, nil
}

func (s *hostSocket) close() { s.file.Close() }

// send sends one datagram, or with segmentBytes non-zero several of that size in
// one call. TTL zero leaves the host's default. It does not block.
func (s *hostSocket) send(p []byte, to netip.AddrPort, ttl uint8, segmentBytes uint16) error {
	var oob [2 * controlBytes]byte
	n := 0
	if ttl != 0 {
		level, typ := unix.IPPROTO_IP, unix.IP_TTL
		if s.kind.v6() {
			level, typ = unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT
		}
		n += putControl(oob[n:], level, typ, 4)
		binary.NativeEndian.PutUint32(oob[unix.CmsgLen(0):], uint32(ttl))
	}
	if segmentBytes != 0 {
		at := n
		n += putControl(oob[n:], unix.SOL_UDP, unix.UDP_SEGMENT, 2)
		binary.NativeEndian.PutUint16(oob[at+unix.CmsgLen(0):], segmentBytes)
	}
	sa := sockaddrOf(to)
	var err error
	for range 2 {
		// Control, not Write: it lets several workers send at once.
		if cerr := s.raw.Control(func(fd uintptr) {
			_, err = unix.SendmsgN(int(fd), p, oob[:n], sa, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		}); cerr != nil {
			return cerr
		}
		// With IP_RECVERR a send may report an earlier datagram's fate, once. The
		// error queue has it too, with the address it is about.
		if err == nil || !isAsyncError(err) {
			break
		}
	}
	return err
}

// isAsyncError reports whether err may be about another datagram than the one in
// hand: what ICMP errors are turned into (net/ipv4/icmp.c, icmp_err_convert).
func isAsyncError(err error) bool {
	switch err {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.EPROTO,
		unix.ENOPROTOOPT, unix.EMSGSIZE, unix.EACCES, unix.EOPNOTSUPP, unix.ENONET:
		return true
	}
	return false
}

// received is one recvmsg.
type received struct {
	payload      []byte
	from         netip.AddrPort
	segmentBytes int // payload is several datagrams of this size; zero: one
}

var datagramPool = sync.Pool{New: func() any { return new([datagramBytes]byte) }}

// serve reads the socket until it is closed. Both functions are called from this
// goroutine alone, and what they are given is borrowed.
func (s *hostSocket) serve(onDatagram func(*received), onError func(*hostError)) {
	for {
		err := s.raw.Read(func(fd uintptr) bool { return s.drain(int(fd), onDatagram, onError) })
		switch {
		case err == nil:
		case errors.Is(err, os.ErrClosed):
			return
		default:
			// The runtime's poller takes an event of EPOLLERR alone, an ICMP error while
			// the send buffer is full, for a descriptor that can't be polled. It passes
			// with the next event; until then look by ourselves now and then.
			time.Sleep(10 * time.Millisecond)
			if s.raw.Control(func(fd uintptr) { s.drain(int(fd), onDatagram, onError) }) != nil {
				return
			}
		}
	}
}

// drain reads what is there; false: nothing is left, wait for more. The buffer is
// held only here, so that an idle socket costs a goroutine and no more.
func (s *hostSocket) drain(fd int, onDatagram func(*received), onError func(*hostError)) bool {
	buf := datagramPool.Get().(*[datagramBytes]byte)
	defer datagramPool.Put(buf)
	var oob [2 * controlBytes]byte
	for range drainDatagrams {
		n, oobn, _, from, err := unix.Recvmsg(fd, buf[:], oob[:], unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			if s.by == nil {
				drainErrors(fd, buf[:], onError)
			}
			return false
		case err != nil:
			continue // a pending error, now cleared; its details are in the error queue
		}
		onDatagram(&received{payload: buf[:n], from: addrPortOf(from), segmentBytes: groBytes(oob[:oobn])})
	}
	return true
}

// hostError is an ICMP error about a datagram of ours.
type hostError struct {
	to       netip.AddrPort // whom the datagram was for
	from     netip.Addr     // who sent the error
	icmpType uint8
	code     uint8
	info     uint32 // the MTU in bytes, for "fragmentation needed" and "packet too big"
	payload  []byte // the datagram's first bytes
}

// Origins of an extended error (include/uapi/linux/errqueue.h).
const (
	originICMP  = 2
	originICMP6 = 3
)

// drainErrors reads the socket's error queue (ip(7), IP_RECVERR). The control
// message is a struct sock_extended_err and behind it the offender's address:
//
//	0       4        5      6      7     8       12      16
//	+-------+--------+------+------+-----+-------+-------+----------
//	| errno | origin | type | code | pad | info  | data  | sockaddr
//	+-------+--------+------+------+-----+-------+-------+----------
func drainErrors(fd int, buf []byte, onError func(*hostError)) {
	var oob [512]byte
	for {
		n, oobn, _, to, err := unix.Recvmsg(fd, buf, oob[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			return
		}
		for rest := oob[:oobn]; len(rest) > 0; {
			h, data, more, err := unix.ParseOneSocketControlMessage(rest)
			if err != nil {
				break
			}
			rest = more
			v4 := h.Level == unix.IPPROTO_IP && h.Type == unix.IP_RECVERR
			v6 := h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_RECVERR
			if !v4 && !v6 || len(data) < 16+16 || data[4] != originICMP && data[4] != originICMP6 {
				continue
			}
			e := hostError{to: addrPortOf(to), icmpType: data[5], code: data[6], info: binary.NativeEndian.Uint32(data[8:]), payload: buf[:n]}
			if v4 {
				e.from = netip.AddrFrom4([4]byte(data[16+4:]))
			} else if len(data) >= 16+24 {
				e.from = netip.AddrFrom16([16]byte(data[16+8:]))
			}
			onError(&e)
		}
	}
}

// controlBytes is room for one control message of up to eight bytes, aligned.
const controlBytes = 24

const _ = uint(controlBytes - unix.SizeofCmsghdr - 8)

// putControl writes a control message's header and returns its whole length.
func putControl(b []byte, level, typ, dataBytes int) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0])) // b holds it: see controlBytes
	h.Level, h.Type = int32(level), int32(typ)
	h.SetLen(unix.CmsgLen(dataBytes))
	return unix.CmsgSpace(dataBytes)
}

// groBytes is the segment size that UDP_GRO reports; zero: nothing was merged.
func groBytes(oob []byte) int {
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return 0
		}
		if h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(data) >= 2 {
			return int(binary.NativeEndian.Uint16(data))
		}
		oob = rest
	}
	return 0
}

func sockaddrOf(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrPortOf(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
