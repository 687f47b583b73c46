package vswitch

import (
	"encoding/binary"

	"vswitch/internal/offload"
	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// An IPv4 packet that is larger than its egress port's MTU and may be fragmented
// (DF is not set) is cut as RFC 791 section 3.2 says. That is rare, since a
// pod's MTU is the tunnel's: a narrower path between two nodes, or a narrower pod,
// makes it happen. IPv6 routers never fragment (RFC 8200 section 4.5).

// maxIPv4HeaderBytes is the most that the header length field can say.
const maxIPv4HeaderBytes = 60

// canCut reports whether a packet that is too large can be made to fit. A TCP
// super-frame can, by smaller segments; one of datagrams can't, as their
// bounds mean something to the receiver: it is answered as if DF were set.
func canCut(f *frame.Frame, h *wire.Headers) bool {
	if h.V6 || h.DontFragment {
		return false
	}
	return !f.VNet.IsGSO() || h.Proto == wire.ProtoTCP
}

// cut stages a packet in pieces of at most mtuBytes: the first in its own frame,
// the others in spares. The packet is final but for its length.
func (w *worker) cut(in, out *port, f *frame.Frame, h *wire.Headers, mtuBytes int) drop.Reason {
	if f.VNet.IsGSO() {
		f.VNet.GSOSize = uint16(mtuBytes - (h.PayloadOff - h.L3Off))
		w.stage(out, f)
		return drop.None
	}
	if r := offload.CompleteParsed(f, h); r != drop.None {
		return r
	}
	f.VNet = frame.VNet{}

	// b stays as it is until the batch ends, but for what Transmit may write in
	// front of the payload: the headers of the other pieces are made first.
	b := f.Bytes()
	var head [frame.EthernetBytes + maxIPv4HeaderBytes]byte
	headBytes := copy(head[:], b[:h.L3Off+wire.IPv4Bytes])
	headBytes += copyOptions(head[headBytes:], b[h.L3Off+wire.IPv4Bytes:h.L4Off])
	head[h.L3Off] = 0x40 | uint8((headBytes-h.L3Off)/4)

	at := h.L4Off + (mtuBytes-(h.L4Off-h.L3Off))&^7
	putFragment(b[h.L3Off:h.L4Off], at-h.L3Off, int(h.FragOffset), true)
	f.SetLen(at)
	w.stage(out, f)
	for at < h.End {
		piece := w.spare(out)
		if piece == nil {
			w.flush(in)
			piece = w.spare(out) // heldFrames leaves some
		}
		n := min((mtuBytes-(headBytes-h.L3Off))&^7, h.End-at)
		p := piece.frame
		p.Reset()
		p.SetLen(headBytes + n)
		p.Peer, p.Hash, p.Ingress = f.Peer, f.Hash, f.Ingress
		copy(p.Bytes(), head[:headBytes])
		copy(p.Bytes()[headBytes:], b[at:at+n])
		offset := int(h.FragOffset) + at - h.L4Off
		at += n
		putFragment(p.Bytes()[h.L3Off:headBytes], headBytes-h.L3Off+n, offset, h.MoreFrags || at < h.End)
		out.spares[w.id].set(piece, spareLeaving)
		w.stage(out, p)
	}
	return drop.None
}

// putFragment writes what differs between the pieces into an IPv4 header.
func putFragment(ip []byte, totalBytes, offset int, more bool) {
	binary.BigEndian.PutUint16(ip[2:], uint16(totalBytes))
	field := uint16(offset / 8)
	if more {
		field |= 0x2000
	}
	binary.BigEndian.PutUint16(ip[6:], field)
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], ^wire.Fold(wire.Sum(ip, 0)))
}

// copyOptions copies the options that every fragment carries, those with the copied
// flag (RFC 791 section 3.1), padded to a whole number of words, and returns
// their length. It ends at the first malformed one.
func copyOptions(to, options []byte) int {
	n := 0
	for len(options) > 0 && options[0] != 0 {
		size := 1
		if options[0] != 1 {
			if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
				break
			}
			size = int(options[1])
			if options[0]&0x80 != 0 {
				n += copy(to[n:], options[:size])
			}
		}
		options = options[size:]
	}
	for ; n%4 != 0; n++ {
		to[n] = 0
	}
	return n
}
