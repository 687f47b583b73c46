package wire

import (
	"encoding/binary"

	"vswitch/vswitch/drop"
)

// ParseQuoted reads the packet that an ICMP error quotes. It stands without an
// Ethernet header, offsets count from the first byte of b, and it is cut short:
// RFC 792 keeps the IP header and 8 bytes, enough for the ports alone. HasL4
// means here that the ports, or the echo identifier, could be read.
func ParseQuoted(b []byte, h *Headers) drop.Reason {
	*h = Headers{}
	if len(b) == 0 {
		return drop.Truncated
	}
	var reason drop.Reason
	switch b[0] >> 4 {
	case 4:
		if len(b) < IPv4Bytes {
			return drop.Truncated
		}
		h.EtherType = TypeIPv4
		h.L4Off = int(b[0]&0xf) * 4
		if h.L4Off < IPv4Bytes {
			return drop.BadHeader
		}
		if h.L4Off > len(b) {
			return drop.Truncated
		}
		h.readIPv4(b)
		h.End = len(b)
	case 6:
		if len(b) < IPv6Bytes {
			return drop.Truncated
		}
		h.EtherType = TypeIPv6
		h.V6 = true
		h.End = len(b)
		h.TTL = b[7]
		h.Src = Addr(b[8:24])
		h.Dst = Addr(b[24:40])
		if h.Src.Is4() || h.Dst.Is4() {
			return drop.BadHeader // would pass for the tuple of an IPv4 flow, see parseIPv6
		}
		reason = walkQuotedExtensions(b, h)
	default:
		return drop.BadVersion
	}
	if reason != drop.None {
		return reason
	}
	h.PayloadOff = h.L4Off
	l4 := b[h.L4Off:]
	if h.LaterFrag || len(l4) < 8 {
		return drop.None
	}
	switch h.Proto {
	case ProtoTCP, ProtoUDP, ProtoSCTP:
		h.SrcPort = binary.BigEndian.Uint16(l4)
		h.DstPort = binary.BigEndian.Uint16(l4[2:])
		h.HasL4 = true
	case ProtoICMP, ProtoICMPv6:
		h.ICMPType, h.ICMPCode = l4[0], l4[1]
		h.HasL4 = true
		if h.IsEcho() {
			id := binary.BigEndian.Uint16(l4[4:])
			h.SrcPort, h.DstPort = id, id
		}
	}
	return drop.None
}

// walkQuotedExtensions finds the transport header with the walk that whole
// packets use; a transport header cut short is no fault here.
func walkQuotedExtensions(b []byte, h *Headers) drop.Reason {
	reason := walkExtensions(b, h, b[6])
	if h.L4Off != 0 {
		h.HasL4 = false
		return drop.None
	}
	return reason
}
