//go:build linux

package udp

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"vswitch/internal/wire"
)

const (
	// messagesPerReceive balances system calls against cache: sixteen small datagrams
	// amortise the call, sixteen full trains (1 MiB) are about what L2 holds.
	messagesPerReceive = 16
	// receiveBytes holds the largest train; nothing is ever cut short.
	receiveBytes = 64 << 10
	// controlBytes holds UDP_GRO's and the TOS' control messages, 24 each on 64 bits.
	controlBytes = 64
)

const _ = uint(receiveBytes - MaxDatagramBytes)

// mmsghdr is struct mmsghdr (recvmmsg(2)).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// receiver holds what recvmmsg fills. The kernel writes through pointers in
// hdrs, all of which point into the receiver itself or its buffer.
type receiver struct {
	hdrs  [messagesPerReceive]mmsghdr
	iovs  [messagesPerReceive]unix.Iovec
	names [messagesPerReceive]unix.RawSockaddrInet6 // the larger of the two families
	ctls  [messagesPerReceive][controlBytes / 8]uint64
	buf   []byte
	msgs  [messagesPerReceive]Message
}

// Message is one received message, borrowed from its Conn until the next Receive.
type Message struct {
	From Addr
	// TOS is the IPv4 type of service or IPv6 traffic class, the same for the whole train.
	TOS uint8
	// Data is the payload: datagrams end to end, each SegmentBytes long, the last
	// maybe shorter. Empty for an empty datagram.
	Data []byte
	// SegmentBytes is at least 1.
	SegmentBytes int
	// Truncated: the kernel had more than the buffer holds; Data is not to be used.
	Truncated bool
}

func newReceiver() *receiver {
	r := &receiver{buf: make([]byte, messagesPerReceive*receiveBytes)}
	for i := range r.hdrs {
		r.iovs[i].Base = &r.buf[i*receiveBytes]
		r.iovs[i].SetLen(receiveBytes)
		h := &r.hdrs[i].hdr
		h.Iov = &r.iovs[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Control = (*byte)(unsafe.Pointer(&r.ctls[i]))
	}
	return r
}

// Receive takes what the socket has, up to Capacity messages, and returns how
// many; Message gives them. 0 means nothing is pending. Transient errors of the
// socket are counted; an error means it is dead.
func (c *Conn) Receive() (int, error) {
	r := c.rx
	if r == nil {
		return 0, nil
	}
	for i := range r.hdrs {
		h := &r.hdrs[i].hdr
		h.Namelen = uint32(unsafe.Sizeof(r.names[i]))
		h.SetControllen(controlBytes)
		h.Flags = 0
	}
	var n uintptr
	var errno unix.Errno
	for range 2 { // a pending soft error is reported once, then cleared
		n, _, errno = unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(c.fd),
			uintptr(unsafe.Pointer(&r.hdrs[0])), messagesPerReceive, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			for i := range int(n) {
				r.read(i)
			}
			return int(n), nil
		case unix.EAGAIN:
			return 0, nil
		case unix.EBADF, unix.ENOTSOCK, unix.EFAULT, unix.EINVAL:
			if c.isClosed() {
				return 0, ErrClosed
			}
			return 0, fmt.Errorf("udp: receive at %v: %w", c.local, os.NewSyscallError("recvmmsg", errno))
		case unix.EINTR:
		default:
			c.counters.receiveErrors.Add(1)
			c.ReadErrors()
		}
	}
	return 0, nil
}

func (c *Conn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// Capacity is the most messages one Receive returns; fewer mean the socket is drained.
func (c *Conn) Capacity() int { return messagesPerReceive }

// Message is message i of the last Receive, borrowed.
func (c *Conn) Message(i int) *Message { return &c.rx.msgs[i] }

// read decodes message i.
func (r *receiver) read(i int) {
	h, m := &r.hdrs[i], &r.msgs[i]
	m.From = readName(&r.names[i])
	m.Data = r.buf[i*receiveBytes:][:h.n]
	m.Truncated = h.hdr.Flags&unix.MSG_TRUNC != 0
	m.TOS, m.SegmentBytes = 0, max(1, int(h.n))

	ctl := unsafe.Slice((*byte)(unsafe.Pointer(&r.ctls[i])), controlBytes)[:h.hdr.Controllen]
	for len(ctl) >= unix.SizeofCmsghdr {
		hdr, data, rest, err := unix.ParseOneSocketControlMessage(ctl)
		if err != nil {
			return
		}
		switch {
		case hdr.Level == unix.IPPROTO_UDP && hdr.Type == unix.UDP_GRO && len(data) >= 2:
			if n := int(controlInt(data)); n > 0 {
				m.SegmentBytes = n
			}
		case hdr.Level == unix.IPPROTO_IP && hdr.Type == unix.IP_TOS && len(data) >= 1:
			m.TOS = data[0]
		case hdr.Level == unix.IPPROTO_IPV6 && hdr.Type == unix.IPV6_TCLASS && len(data) >= 4:
			m.TOS = uint8(controlInt(data))
		}
		ctl = rest
	}
}

// controlInt reads a control message's value, an int or a __u16 by its length.
func controlInt(data []byte) uint32 {
	if len(data) >= 4 {
		return binary.NativeEndian.Uint32(data)
	}
	return uint32(binary.NativeEndian.Uint16(data))
}

// readName decodes a socket address of either family.
func readName(n *unix.RawSockaddrInet6) Addr {
	if n.Family == unix.AF_INET {
		n4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(n))
		return Addr{wire.AddrFrom4(n4.Addr[:]), networkOrder(n4.Port)}
	}
	return Addr{wire.Addr(n.Addr), networkOrder(n.Port)}
}

// networkOrder converts a port between host and network order.
func networkOrder(port uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], port)
	return binary.BigEndian.Uint16(b[:])
}
