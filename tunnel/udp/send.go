//go:build linux

package udp

import (
	"net/netip"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"vswitch/vswitch/drop"
)

// Sending is staged: Stage collects datagrams, Flush hands them to the kernel in
// one sendmmsg. A datagram with the same destination and TOS as the one before,
// and no larger than the first of its train, rides in the same message: the
// kernel carries a train through its stack as one packet and cuts it last
// (UDP_SEGMENT). Buffers are gathered, so a super-frame's payload is read where
// it lies and only headers are written.
//
// The kernel may refuse a train (EIO: the egress device can't checksum;
// EINVAL: broken kernels, 6.6.44 for one) and still take its datagrams one by
// one. That depends on the route, so it is remembered per destination.

const (
	maxMessages = 64
	// maxStaged datagrams wait at most: four super-frames of 64 KiB at an MTU of 1500.
	maxStaged = 256
	// scratchBytes is for headers: maxStaged VXLAN packets with long TCP options.
	scratchBytes = 32 << 10
)

// Dest is where datagrams go: an encoded socket address, and what the kernel
// has refused to it. It may be shared by Conns of several workers.
type Dest struct {
	name    unix.RawSockaddrInet6
	nameLen uint32
	addr    netip.AddrPort
	noGSO   atomic.Bool
}

// NewDest encodes an address. Zones are not supported.
func NewDest(ap netip.AddrPort) *Dest {
	d := &Dest{addr: ap}
	ip := ap.Addr().Unmap()
	if ip.Is4() {
		n := (*unix.RawSockaddrInet4)(unsafe.Pointer(&d.name))
		*n = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: networkOrder(ap.Port()), Addr: ip.As4()}
		d.nameLen = unix.SizeofSockaddrInet4
		return d
	}
	d.name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: networkOrder(ap.Port()), Addr: ip.As16()}
	d.nameLen = unix.SizeofSockaddrInet6
	return d
}

// TakesTrains reports whether trains go to d: it is so until the kernel refuses one,
// or SetTrains says otherwise.
func (d *Dest) TakesTrains() bool { return !d.noGSO.Load() }

// SetTrains says whether trains may go to d. It may be called while workers send.
func (d *Dest) SetTrains(may bool) { d.noGSO.Store(!may) }

// AddrPort is the address as given.
func (d *Dest) AddrPort() netip.AddrPort { return d.addr }

// sender holds what sendmmsg reads.
type sender struct {
	hdrs [maxMessages]mmsghdr
	msgs [maxMessages]train
	ctls [maxMessages][controlBytes / 8]uint64
	n    int // messages staged

	iovs  [2 * maxStaged]unix.Iovec
	niovs int
	parts [maxStaged]part
	nPart int // datagrams staged

	scratch  [scratchBytes]byte
	nScratch int
}

// train is one staged message.
type train struct {
	to      *Dest
	tos     uint8
	ended   bool // a shorter datagram closed it
	segment int  // bytes of the first datagram
	bytes   int
	first   int // of its datagrams, in parts
	n       int // datagrams
}

// part is one staged datagram.
type part struct {
	iov, n int // in iovs
	lost   *drop.Reason
}

// Scratch returns n bytes for headers of the next datagram to be staged, valid
// until that is flushed. One call per Stage at most; n up to 1024. It may flush.
func (c *Conn) Scratch(n int) []byte {
	if c.tx.nScratch+n > scratchBytes {
		c.Flush()
	}
	from := c.tx.nScratch
	c.tx.nScratch += n
	return c.tx.scratch[from:c.tx.nScratch:c.tx.nScratch]
}

// Stage adds a datagram that consists of head and body, one of which may be
// empty. Both are borrowed until Flush. If it turns out that the datagram can't be
// sent, *lost gets the reason, at the latest in Flush. Datagrams of one Conn to one
// destination keep their order. Stage flushes when its arrays are full.
func (c *Conn) Stage(to *Dest, tos uint8, head, body []byte, lost *drop.Reason) {
	t := &c.tx
	size := len(head) + len(body)
	if size > MaxDatagramBytes {
		*lost = drop.TooBig
		return
	}
	m := c.lastTrain()
	if m == nil || !c.gso || !m.takes(to, tos, size) {
		m = &t.msgs[t.n]
		*m = train{to: to, tos: tos, segment: size, first: t.nPart}
		t.n++
	}
	m.n++
	m.bytes += size
	m.ended = size < m.segment || size == 0

	p := &t.parts[t.nPart]
	t.nPart++
	*p = part{iov: t.niovs, lost: lost}
	for _, b := range [2][]byte{head, body} {
		if len(b) > 0 {
			t.iovs[t.niovs].Base = &b[0]
			t.iovs[t.niovs].SetLen(len(b))
			t.niovs++
			p.n++
		}
	}
	// Room for one more must be left, since that datagram's scratch may be written already.
	if t.n == maxMessages || t.nPart == maxStaged {
		c.Flush()
	}
}

func (c *Conn) lastTrain() *train {
	if c.tx.n == 0 {
		return nil
	}
	return &c.tx.msgs[c.tx.n-1]
}

func (m *train) takes(to *Dest, tos uint8, size int) bool {
	return m.to == to && m.tos == tos && !m.ended && size <= m.segment && size > 0 &&
		m.n < MaxTrain && m.bytes+size <= MaxDatagramBytes && !to.noGSO.Load()
}

// Flush sends everything staged. It makes at most one further attempt when the
// socket is full; what then remains is lost with drop.EgressFull.
func (c *Conn) Flush() {
	t := &c.tx
	for i := range t.n {
		c.seal(i)
	}
	retried, asked := false, -1
	for i := 0; i < t.n; {
		sent, errno := c.sendmmsg(&t.hdrs[i], t.n-i)
		if errno == 0 {
			i += sent
			continue
		}
		m := &t.msgs[i]
		switch {
		case errno == unix.EINTR:
			continue
		case !isFull(errno) && asked != i:
			// It may be about an earlier datagram: an ICMP error that came since
			// is reported once, to whoever calls first.
			asked = i
			c.ReadErrors()
			continue
		case isFull(errno):
			c.counters.sendFull.Add(1)
			if !retried {
				retried = true
				continue
			}
			for ; i < t.n; i++ {
				c.lose(&t.msgs[i], drop.EgressFull)
			}
			continue
		case m.n > 1 && (errno == unix.EINVAL || errno == unix.EIO || errno == unix.EMSGSIZE):
			c.sendSingly(i, errno)
		default:
			c.lose(m, reasonOf(errno))
		}
		i++
	}
	t.n, t.niovs, t.nPart, t.nScratch = 0, 0, 0, 0
}

// seal fills in the message header of train i.
func (c *Conn) seal(i int) {
	m := &c.tx.msgs[i]
	h := &c.tx.hdrs[i].hdr
	first, last := &c.tx.parts[m.first], &c.tx.parts[m.first+m.n-1]
	c.setHeader(h, m, i, first.iov, last.iov+last.n-first.iov)
	if m.n > 1 {
		segment := uint16(m.segment)
		c.addControl(h, i, unix.IPPROTO_UDP, unix.UDP_SEGMENT, unsafe.Pointer(&segment), 2)
	}
}

// setHeader points h at n buffers from iov on; control message block i holds the TOS.
func (c *Conn) setHeader(h *unix.Msghdr, m *train, i, iov, n int) {
	h.Name = (*byte)(unsafe.Pointer(&m.to.name))
	h.Namelen = m.to.nameLen
	h.Iov = &c.tx.iovs[min(iov, len(c.tx.iovs)-1)] // an empty datagram has none
	h.SetIovlen(n)
	h.Control = nil
	h.SetControllen(0)
	if m.tos != 0 {
		level, typ := unix.IPPROTO_IP, unix.IP_TOS
		if c.v6 {
			level, typ = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
		}
		tos := int32(m.tos)
		c.addControl(h, i, level, typ, unsafe.Pointer(&tos), 4)
	}
}

// addControl appends a control message of n bytes of data, at most 8.
func (c *Conn) addControl(h *unix.Msghdr, i, level, typ int, data unsafe.Pointer, n int) {
	block := unsafe.Slice((*byte)(unsafe.Pointer(&c.tx.ctls[i])), controlBytes)
	at := int(h.Controllen)
	m := (*unix.Cmsghdr)(unsafe.Pointer(&block[at]))
	m.Level, m.Type = int32(level), int32(typ)
	m.SetLen(unix.CmsgLen(n))
	copy(block[at+unix.CmsgLen(0):], unsafe.Slice((*byte)(data), n))
	h.Control = &block[0]
	h.SetControllen(at + unix.CmsgSpace(n))
}

// sendSingly sends train i, which the kernel refused, datagram by datagram. Where
// the first, of full size, passes, it was the train that the kernel did not
// like, and no more are tried to that destination. Where it does not (it exceeds
// the route's MTU, say), the train was innocent.
func (c *Conn) sendSingly(i int, refusal unix.Errno) {
	t := &c.tx
	m := &t.msgs[i]
	for k := range m.n {
		p := &t.parts[m.first+k]
		c.setHeader(&t.hdrs[i].hdr, m, i, p.iov, p.n)
		_, errno := c.sendmmsg(&t.hdrs[i], 1)
		if errno != 0 {
			c.ReadErrors()
			*p.lost = reasonOf(errno)
			continue
		}
		if k == 0 && !m.to.noGSO.Swap(true) {
			c.counters.gsoRefused.Add(1)
			c.log.Warn("udp: kernel refuses trains, packets to this peer are sent alone",
				"peer", m.to.addr, "err", refusal)
		}
	}
}

func (c *Conn) lose(m *train, reason drop.Reason) {
	for k := range m.n {
		*c.tx.parts[m.first+k].lost = reason
	}
}

func (c *Conn) sendmmsg(first *mmsghdr, n int) (sent int, errno unix.Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(c.fd),
		uintptr(unsafe.Pointer(first)), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
	return int(r), errno
}

// isFull reports whether the kernel has no room now.
func isFull(errno unix.Errno) bool {
	return errno == unix.EAGAIN || errno == unix.ENOBUFS || errno == unix.ENOMEM
}

// reasonOf names the drop behind a refused send.
func reasonOf(errno unix.Errno) drop.Reason {
	switch {
	case isFull(errno):
		return drop.EgressFull
	case errno == unix.EMSGSIZE:
		return drop.TooBig
	case errno == unix.EINVAL, errno == unix.EIO, errno == unix.EPERM:
		return drop.EgressRefused
	}
	return drop.EgressDown // no route, device down, socket closed
}
