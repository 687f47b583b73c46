//go:build linux

package vxlan

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"vswitch/internal/wire"
	"vswitch/tunnel/udp"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// Any inner frame that a datagram can bring fits a frame.
const _ = uint(frame.MaxBytes - (udp.MaxDatagramBytes - HeaderBytes))

// Receive appends received frames to the batch until nothing is pending or the
// batch is full. A packet that must not be forwarded is kept, without its bytes,
// with Drop saying why and Peer, where known, whom it came from. An error means
// that the sockets are dead.
func (q *Queue) Receive(b *frame.Batch) error {
	ms := q.t.members.Load()
	// Merged packets take no frame, so the batch alone would not bound a call.
	budget := frame.BatchBytes
	var err error
	for i := range q.links {
		l := q.links[(q.turn+i)%len(q.links)]
		if err = q.drain(l, ms, b, &budget); err != nil {
			break
		}
	}
	q.turn = (q.turn + 1) % len(q.links)
	if budget == frame.BatchBytes { // woken, and nothing came: perhaps an error did
		for _, l := range q.links {
			l.conn.ReadErrors()
		}
	}
	q.coalescer.Flush()
	q.signal()
	return err
}

// drain reads one link.
func (q *Queue) drain(l *link, ms *members, b *frame.Batch, budget *int) error {
	l.drained = false
	for {
		for ; l.next < l.n; l.next, l.off = l.next+1, 0 {
			if !q.readMessage(l, ms, b, budget) {
				return nil
			}
		}
		if l.drained || b.Full() || *budget <= 0 {
			return nil
		}
		n, err := l.conn.Receive()
		if err != nil {
			return err
		}
		l.next, l.n, l.off = 0, n, 0
		l.drained = n < l.conn.Capacity()
	}
}

// readMessage puts the datagrams of the link's current message into the batch,
// and reports false when the batch is full before the message's end.
func (q *Queue) readMessage(l *link, ms *members, b *frame.Batch, budget *int) bool {
	msg := l.conn.Message(l.next)
	m := ms.from(msg.From)
	size := msg.SegmentBytes
	if m != nil && m.AnyPort && size < len(msg.Data) && isUncut(msg.Data) {
		size = len(msg.Data)
	}
	for {
		if b.Full() || *budget <= 0 {
			return false
		}
		data := msg.Data[l.off:min(l.off+size, len(msg.Data))]
		q.readDatagram(data, msg, m, b)
		*budget -= len(data)
		l.off += size
		if l.off >= len(msg.Data) { // an empty datagram is one, too
			return true
		}
	}
}

// readDatagram judges one datagram and puts what it holds into the batch, which
// has room.
func (q *Queue) readDatagram(data []byte, msg *udp.Message, m *member, b *frame.Batch) {
	inner, ingress, reason := q.t.decapsulate(data, msg, m)
	if reason == drop.NotVXLAN && m != nil {
		if reason = q.takeProbe(data, msg, m); reason == drop.None {
			return
		}
	}
	var v frame.VNet
	merges := false
	// What can't be parsed goes on as it is: the switch parses every frame and
	// counts those it can't.
	if reason == drop.None && wire.Parse(inner, &q.h) == drop.None {
		if m.AnyPort {
			v = metadataOf(inner, &q.h, msg.SegmentBytes, q.t.podMTU)
		}
		merges = !q.t.cfg.NoCoalesce
		if merges && q.coalescer.Merge(inner, &q.h, &v, m.ID, ingress) {
			return
		}
	}
	f := b.Next()
	f.VNet = v
	if m != nil {
		f.Peer = m.ID
	}
	f.Ingress = ingress
	f.Drop = reason
	if reason == drop.None {
		copy(f.Space(), inner)
		f.SetLen(len(inner))
	}
	b.Keep()
	if merges {
		q.coalescer.Open(f, &q.h)
	}
}

// decapsulate gives the inner frame, with the outer congestion mark carried over
// in place, or the reason against it. ingress: it came by this node's ingress VNI,
// from a member that has one itself.
func (t *Tunnel) decapsulate(data []byte, msg *udp.Message, m *member) (inner []byte, ingress bool, _ drop.Reason) {
	if msg.Truncated {
		return nil, false, drop.Truncated
	}
	vni, inner, ok := parseHeader(data)
	switch {
	case !ok:
		return nil, false, drop.NotVXLAN
	case m == nil:
		return nil, false, drop.NotMember
	case vni == m.VNI:
	case vni == t.cfg.IngressVNI && vni != 0 && m.IngressVNI != 0:
		ingress = true
	default:
		return nil, false, drop.UnknownVNI
	}
	if len(inner) < wire.EthernetBytes {
		return nil, false, drop.BadInner
	}
	own := t.cfg.MAC
	dst, src := frame.MAC(inner[:6]), frame.MAC(inner[6:12])
	switch {
	case src.IsMulticast() || src.IsZero() || src == own:
		return nil, false, drop.BadInner
	case dst.IsMulticast():
		return nil, false, drop.Multicast
	case dst != own:
		return nil, false, drop.BadInner
	}
	if r := decapsulateECN(msg.TOS, inner); r != drop.None {
		return nil, false, r
	}
	return inner, ingress, drop.None
}

// rawIO reads or writes the event's word without the scheduler's notice.
func rawIO(trap uintptr, fd int, word *[8]byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(trap, uintptr(fd), uintptr(unsafe.Pointer(word)), uintptr(len(word)))
	return int(n), errno
}
