//go:build linux

package vxlan

import (
	"vswitch/internal/offload"
	"vswitch/internal/wire"
	"vswitch/tunnel/udp"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// The VXLAN header of a frame that goes as it is lies in the frame's headroom,
// so that head and frame are one buffer.
const _ = uint(frame.HeadroomBytes - HeaderBytes)

// Transmit sends frames to the members in their Peer fields, in order. Frames
// are borrowed for the call; their Ethernet addresses, and a partial checksum, are
// rewritten in place. A frame that was not sent, or of a super-frame not all of
// it, gets its Drop set.
func (q *Queue) Transmit(fs []*frame.Frame) {
	ms := q.t.members.Load()
	var m *member
	for _, f := range fs {
		if m == nil || m.ID != f.Peer {
			m = ms.byID[f.Peer]
		}
		if m == nil {
			f.Drop = drop.NoPeer
			continue
		}
		if r := q.encapsulate(f, m); r != drop.None {
			f.Drop = r
		}
	}
	for _, l := range q.links {
		l.conn.Flush()
	}
}

// link is the socket of a family; SetPeer made sure that there is one.
func (q *Queue) link(v6 bool) *link {
	for _, l := range q.links {
		if l.v6 == v6 {
			return l
		}
	}
	return nil
}

// encapsulate stages one frame.
func (q *Queue) encapsulate(f *frame.Frame, m *member) drop.Reason {
	l := q.link(m.v6)
	if l == nil {
		return drop.EgressDown
	}
	b := f.Bytes()
	if len(b) < wire.EthernetBytes {
		return drop.Truncated
	}
	vni := m.VNI
	if f.Ingress {
		if vni = m.IngressVNI; vni == 0 {
			return drop.NoPeer
		}
	}
	copy(b, m.MAC[:])
	copy(b[6:], q.t.cfg.MAC[:])
	dest, tos := m.dest(f.Hash), innerTOS(b)&ecnMask

	if f.VNet.IsGSO() || f.VNet.Flags&frame.NeedsCsum != 0 {
		if r := wire.Parse(b, &q.h); r != drop.None {
			return r
		}
		if f.VNet.IsGSO() {
			return q.encapsulateSuper(f, l, dest, tos, vni)
		}
		if r := offload.CompleteParsed(f, &q.h); r != drop.None {
			return r
		}
	}
	if len(b) > l.maxBytes {
		return drop.TooBig
	}
	packet := f.WithHeadroom(HeaderBytes)
	putHeader(packet, vni)
	l.conn.Stage(dest, tos, packet, nil, &f.Drop)
	return drop.None
}

// encapsulateSuper stages the segments of a super-frame: headers in the
// socket's scratch, payload where it lies.
func (q *Queue) encapsulateSuper(f *frame.Frame, l *link, dest *udp.Dest, tos uint8, vni uint32) drop.Reason {
	s := &q.segments
	if r := s.Reset(f, &q.h); r != drop.None {
		return r
	}
	if s.MaxBytes() > l.maxBytes {
		return drop.TooBig
	}
	for i := range s.Len() {
		head := l.conn.Scratch(HeaderBytes + s.HeaderBytes())
		putHeader(head, vni)
		payload := s.At(i, head[HeaderBytes:])
		l.conn.Stage(dest, tos, head, payload, &f.Drop)
		if f.Drop != drop.None {
			break // the rest would be lost on the receiver, who misses what went before
		}
	}
	return drop.None
}
