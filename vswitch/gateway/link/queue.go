package link

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"vswitch/internal/offload"
	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// Queue is one worker's side of the link. It satisfies vswitch.Queue.
type Queue struct {
	link *Link
	ring ring
	h    wire.Headers // scratch of Transmit
}

// PollFD is readable while packets wait.
func (q *Queue) PollFD() int { return q.ring.fd }

// Close drops the packets that wait and releases the descriptor. It may be
// called twice.
func (q *Queue) Close() error { return q.ring.close() }

// Receive appends the netstack's packets to b as frames. It never fails: a
// netstack has no way to die under its switch.
func (q *Queue) Receive(b *frame.Batch) error {
	drained := false // the eventfd is not readable though packets may wait
	for {
		for !b.Full() {
			pkt := q.ring.pop()
			if pkt == nil {
				break
			}
			q.link.fill(b.Next(), pkt)
			b.Keep()
			pkt.DecRef()
		}
		if b.Full() {
			if drained {
				q.ring.rearm()
			}
			return nil
		}
		if q.ring.sleep() {
			return nil
		}
		drained = true
	}
}

// fill makes pkt a frame. The destination MAC stays zero: the switch knows it.
func (l *Link) fill(f *frame.Frame, pkt *stack.PacketBuffer) {
	n := frame.EthernetBytes + pkt.Size()
	if n > frame.MaxBytes {
		f.SetLen(0)
		f.Drop = drop.TooBig
		return
	}
	f.SetLen(n)
	b := f.Bytes()
	clear(b[:6])
	copy(b[6:12], l.mac[:])
	binary.BigEndian.PutUint16(b[12:], uint16(pkt.NetworkProtocolNumber))
	views, skip := pkt.AsViewList()
	at := frame.EthernetBytes
	for v := views.Front(); v != nil; v = v.Next() {
		s := v.AsSlice()
		if skip >= len(s) {
			skip -= len(s)
			continue
		}
		at += copy(b[at:], s[skip:])
		skip = 0
	}
	describe(&f.VNet, pkt)
}

// describe translates the netstack's offload metadata. It sets GSO options on
// every TCP packet, those that fit into one segment too.
func describe(v *frame.VNet, pkt *stack.PacketBuffer) {
	gso := &pkt.GSOOptions
	if gso.Type == stack.GSONone || !gso.NeedsCsum {
		return
	}
	l4 := frame.EthernetBytes + len(pkt.NetworkHeader().Slice())
	v.Flags = frame.NeedsCsum
	v.CsumStart = uint16(l4)
	v.CsumOffset = gso.CsumOffset
	if pkt.Data().Size() <= int(gso.MSS) {
		return
	}
	v.GSOSize = gso.MSS
	v.HdrLen = uint16(l4 + len(pkt.TransportHeader().Slice()))
	v.GSOType = frame.GSOTCPv4
	if pkt.NetworkProtocolNumber == header.IPv6ProtocolNumber {
		v.GSOType = frame.GSOTCPv6
	}
}

// Transmit gives frames to the handler or the netstack. What is malformed, or
// has a wrong checksum, gets its Drop set.
func (q *Queue) Transmit(fs []*frame.Frame) {
	for _, f := range fs {
		f.Drop = q.transmit(f)
	}
}

func (q *Queue) transmit(f *frame.Frame) drop.Reason {
	h := &q.h
	if reason := wire.Parse(f.Bytes(), h); reason != drop.None {
		return reason
	}
	if h.EtherType == wire.TypeARP {
		return drop.NotForUs
	}
	// A partial checksum of the packet's own transport header is a local kernel's
	// promise: those bytes never left this machine. Everything else was on a wire
	// once. One that lies deeper, of a tunnel inside the pod, goes out with the
	// payload, so it is finished here.
	if f.VNet.Flags&frame.NeedsCsum != 0 && int(f.VNet.CsumStart) != h.L4Off {
		if reason := offload.CompleteParsed(f, h); reason != drop.None {
			return reason
		}
	}
	if reason := offload.Verify(f, h); reason != drop.None {
		return reason
	}
	f.Drop = drop.None
	if q.link.handler != nil && q.link.handler.Inbound(f, h) {
		return f.Drop
	}
	ep := &q.link.whole
	if h.Fragment {
		ep = &q.link.fragments
	}
	headers := h.L4Off
	if h.HasL4 {
		headers = h.PayloadOff
	}
	ep.deliver(f.Bytes()[h.L3Off:h.End], headers-h.L3Off, h.V6)
	return drop.None
}
