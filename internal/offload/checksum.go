// Package offload does in software what a network card's segmentation and
// checksum offloads do: it finishes partial checksums, cuts super-frames into
// packets of wire size, merges such packets into super-frames, and verifies
// checksums.
//
// Between two TAPs of one node none of this is needed, since offload metadata
// passes through untouched; the package is for the edges, where frames meet the
// tunnel, the netstack, a capture file or a TAP without offload. It is pure: no
// file descriptor, no allocation, no state beyond the caller's structs. Metadata
// comes from pods and is never trusted: what contradicts the frame is
// drop.BadOffload.
package offload

import (
	"encoding/binary"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// Where each protocol keeps its checksum, from the start of its header.
const (
	tcpChecksum  = 16 // RFC 9293 section 3.1
	udpChecksum  = 6  // RFC 768
	icmpChecksum = 2  // RFC 792, RFC 4443 section 2.1
	sctpChecksum = 8  // RFC 9260 section 3.1
	ipv4Checksum = 10 // RFC 791 section 3.1
)

// Complete finishes the frame's partial checksum in place and clears
// frame.NeedsCsum; a frame without one is left as it is. A super-frame gets the
// checksum it has as one large packet.
//
// The metadata says where to write two bytes, and guards have judged the frame
// before, so the place is restricted: the checksum field of the frame's own
// transport header, or anywhere behind that header (a tunnel inside the pod leaves
// its inner checksum to us). Anything else could rewrite an address or a port
// after it was judged, and is drop.BadOffload.
func Complete(f *frame.Frame) drop.Reason {
	if f.VNet.Flags&frame.NeedsCsum == 0 {
		return drop.None
	}
	var h wire.Headers
	if r := wire.Parse(f.Bytes(), &h); r != drop.None {
		return r
	}
	return CompleteParsed(f, &h)
}

// CompleteParsed is Complete for a frame whose headers the caller has parsed.
func CompleteParsed(f *frame.Frame, h *wire.Headers) drop.Reason {
	if f.VNet.Flags&frame.NeedsCsum == 0 {
		return drop.None
	}
	field, sum, r := Finished(f, h)
	if r != drop.None {
		return r
	}
	binary.BigEndian.PutUint16(f.Bytes()[field:], sum)
	f.VNet.Flags &^= frame.NeedsCsum
	f.VNet.CsumStart, f.VNet.CsumOffset = 0, 0
	return drop.None
}

// Finished is where the partial checksum of a frame lies and what it comes to; the
// frame stays as it is. It must have one (frame.NeedsCsum).
func Finished(f *frame.Frame, h *wire.Headers) (field int, sum uint16, r drop.Reason) {
	start := int(f.VNet.CsumStart)
	field = start + int(f.VNet.CsumOffset)
	if h.EtherType == wire.TypeARP || h.Fragment || field+2 > h.End {
		return 0, 0, drop.BadOffload
	}
	if !hasOwnPartial(&f.VNet, h) && start < h.PayloadOff {
		return 0, 0, drop.BadOffload
	}
	// The field itself holds the pseudo-header's sum and takes part.
	return field, nonZero(^wire.Fold(wire.Sum(f.Bytes()[start:h.End], 0))), drop.None
}

// hasOwnPartial reports whether v leaves open the checksum of the transport
// header that h found, and no other.
func hasOwnPartial(v *frame.VNet, h *wire.Headers) bool {
	if v.Flags&frame.NeedsCsum == 0 || !h.HasL4 || int(v.CsumStart) != h.L4Off {
		return false
	}
	switch h.Proto {
	case wire.ProtoTCP:
		return v.CsumOffset == tcpChecksum
	case wire.ProtoUDP:
		return v.CsumOffset == udpChecksum
	case wire.ProtoICMP, wire.ProtoICMPv6:
		return v.CsumOffset == icmpChecksum
	}
	return false
}

// Partial gives the metadata of a packet whose transport checksum field holds
// nothing but the sum of its pseudo-header, which is what a kernel that leaves the
// rest to a device writes there; ok is false for any other packet. One in 65,536
// complete packets looks the same, and is as good with that metadata.
func Partial(b []byte, h *wire.Headers) (v frame.VNet, ok bool) {
	if !h.HasL4 || h.Fragment {
		return v, false
	}
	offset := tcpChecksum
	switch h.Proto {
	case wire.ProtoTCP:
	case wire.ProtoUDP:
		offset = udpChecksum
	default:
		return v, false
	}
	if binary.BigEndian.Uint16(b[h.L4Off+offset:]) != wire.Fold(wire.PseudoSum(h, h.End-h.L4Off)) {
		return v, false
	}
	v.Flags = frame.NeedsCsum
	v.CsumStart, v.CsumOffset = uint16(h.L4Off), uint16(offset)
	return v, true
}

// nonZero gives zero its other one's complement form: a zero field means "no
// checksum" to UDP (RFC 768), and both forms mean the same elsewhere.
func nonZero(sum uint16) uint16 {
	if sum == 0 {
		return 0xffff
	}
	return sum
}

// Verify checks the IPv4 header checksum and the transport checksum of a frame
// whose headers are h, and returns drop.BadChecksum where one is wrong. It finds
// nothing wrong where there is nothing to check: a partial checksum of the
// frame's own transport header, a fragment, ARP, a protocol not understood, and a
// UDP datagram over IPv4 without checksum. frame.DataValid is not believed.
func Verify(f *frame.Frame, h *wire.Headers) drop.Reason {
	if h.EtherType == wire.TypeIPv4 && !validIPv4Header(f.Bytes(), h) {
		return drop.BadChecksum
	}
	if hasOwnPartial(&f.VNet, h) {
		return drop.None
	}
	return VerifyTransport(f.Bytes(), h)
}

func validIPv4Header(b []byte, h *wire.Headers) bool {
	end := h.L3Off + int(b[h.L3Off]&0xf)*4
	return wire.Fold(wire.Sum(b[h.L3Off:end], 0)) == 0xffff
}

// VerifyTransport checks the transport checksum of the packet b, which stands
// complete, with headers h. See Verify.
func VerifyTransport(b []byte, h *wire.Headers) drop.Reason {
	if !h.HasL4 || h.Fragment {
		return drop.None
	}
	l4 := b[h.L4Off:h.End]
	var sum uint64
	switch h.Proto {
	case wire.ProtoTCP:
		sum = wire.PseudoSum(h, len(l4))
	case wire.ProtoUDP:
		if binary.BigEndian.Uint16(l4[udpChecksum:]) == 0 {
			if h.V6 { // RFC 8200 section 8.1: never zero
				return drop.BadChecksum
			}
			return drop.None
		}
		l4 = l4[:binary.BigEndian.Uint16(l4[4:])] // bounded by Parse
		sum = wire.PseudoSum(h, len(l4))
	case wire.ProtoICMP: // no pseudo-header
	case wire.ProtoICMPv6:
		sum = wire.PseudoSum(h, len(l4))
	case wire.ProtoSCTP:
		if binary.LittleEndian.Uint32(l4[sctpChecksum:]) != wire.SCTPChecksum(l4) {
			return drop.BadChecksum
		}
		return drop.None
	default:
		return drop.None
	}
	if wire.Fold(wire.Sum(l4, sum)) != 0xffff {
		return drop.BadChecksum
	}
	return drop.None
}
