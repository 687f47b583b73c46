package wire

import (
	"encoding/binary"

	"vswitch/vswitch/drop"
)

// maxExtensionHeaders bounds the walk over IPv6 extension headers. RFC 8200
// section 4.1 names each at most once but Destination Options twice, seven in
// all; eight leaves one spare.
const maxExtensionHeaders = 8

// Headers is what Parse found: where each header starts and the fields the
// switch decides by. Offsets count from the first byte of the Ethernet header.
type Headers struct {
	EtherType uint16
	V6        bool
	Proto     uint8 // transport protocol, after any extension headers
	TTL       uint8 // or hop limit
	TOS       uint8 // or traffic class
	TCPFlags  uint8 // TCP only
	ICMPType  uint8 // ICMP and ICMPv6 only
	ICMPCode  uint8

	L3Off      int // IP header
	L4Off      int // transport header
	PayloadOff int // behind the transport header; equals L4Off where HasL4 is false
	End        int // end of the IP packet; what follows is Ethernet padding

	Src, Dst         Addr
	SrcPort, DstPort uint16 // TCP, UDP, SCTP; ICMP echo: both hold the identifier

	HasL4        bool // the whole transport header is present and understood
	Fragment     bool // any fragment, first ones included
	LaterFrag    bool // a fragment with a non-zero offset: no transport header
	DontFragment bool // IPv4 DF; always true for IPv6
	FragID       uint32
	FragOffset   uint16 // bytes
	MoreFrags    bool
}

// IsEcho reports whether the packet is an ICMP or ICMPv6 echo request or reply.
func (h *Headers) IsEcho() bool {
	if !h.HasL4 {
		return false
	}
	switch h.Proto {
	case ProtoICMP:
		return !h.V6 && (h.ICMPType == ICMPEcho || h.ICMPType == ICMPEchoReply)
	case ProtoICMPv6:
		return h.V6 && (h.ICMPType == ICMPv6Echo || h.ICMPType == ICMPv6EchoReply)
	}
	return false
}

// ICMP and ICMPv6 message types (RFC 792, RFC 4443, RFC 4861).
const (
	ICMPEchoReply    = 0
	ICMPUnreachable  = 3
	ICMPRedirect     = 5
	ICMPEcho         = 8
	ICMPTimeExceeded = 11
	ICMPParamProblem = 12

	ICMPv6Unreachable     = 1
	ICMPv6TooBig          = 2
	ICMPv6TimeExceeded    = 3
	ICMPv6ParamProblem    = 4
	ICMPv6Echo            = 128
	ICMPv6EchoReply       = 129
	ICMPv6MLDQuery        = 130
	ICMPv6MLDReport       = 131
	ICMPv6MLDDone         = 132
	ICMPv6RouterSolicit   = 133
	ICMPv6RouterAdvert    = 134
	ICMPv6NeighborSolicit = 135
	ICMPv6NeighborAdvert  = 136
	ICMPv6Redirect        = 137
	ICMPv6MLDv2Report     = 143
)

// IsICMPError reports whether the packet is an ICMP or ICMPv6 error message,
// which quotes the packet that caused it (RFC 1122 section 3.2.2, RFC 4443 section 2.1).
func (h *Headers) IsICMPError() bool {
	if !h.HasL4 {
		return false
	}
	if h.Proto == ProtoICMPv6 {
		return h.ICMPType < 128
	}
	return h.Proto == ProtoICMP && (h.ICMPType == ICMPUnreachable || h.ICMPType == ICMPRedirect ||
		h.ICMPType == 4 || h.ICMPType == ICMPTimeExceeded || h.ICMPType == ICMPParamProblem)
}

// Parse reads an Ethernet frame's headers into h. For ARP it stops behind the
// EtherType. It verifies IPv4's header checksum, since a router must not forward
// a packet where it is wrong (RFC 1812 section 5.2.2), but no transport
// checksum: those stay as they are, good or bad, for the receiver to judge.
func Parse(b []byte, h *Headers) drop.Reason {
	*h = Headers{}
	if len(b) < EthernetBytes {
		return drop.Truncated
	}
	h.EtherType = binary.BigEndian.Uint16(b[12:])
	h.L3Off = EthernetBytes
	switch h.EtherType {
	case TypeIPv4:
		return parseIPv4(b, h)
	case TypeIPv6:
		return parseIPv6(b, h)
	case TypeARP:
		h.L4Off, h.PayloadOff, h.End = h.L3Off, h.L3Off, len(b)
		return drop.None
	}
	return drop.UnknownType
}

// parseIPv4 reads from h.L3Off:
//
//	 0               8               16              24
//	+-------+-------+---------------+-------------------------------+
//	|Version|  IHL  |  TOS          |         Total length          |
//	+-------+-------+---------------+-----+-------------------------+
//	|        Identification         |0DFMF|    Fragment offset / 8  |
//	+---------------+---------------+-----+-------------------------+
//	|      TTL      |   Protocol    |        Header checksum        |
//	+---------------+---------------+-------------------------------+
//	|                        Source, destination                    |
//	+---------------------------------------------------------------+
func parseIPv4(b []byte, h *Headers) drop.Reason {
	ip := b[h.L3Off:]
	if len(ip) < IPv4Bytes {
		return drop.Truncated
	}
	if ip[0]>>4 != 4 {
		return drop.BadVersion
	}
	hdrBytes := int(ip[0]&0xf) * 4
	total := int(binary.BigEndian.Uint16(ip[2:]))
	if hdrBytes < IPv4Bytes || total < hdrBytes {
		return drop.BadHeader
	}
	if total > len(ip) {
		return drop.Truncated
	}
	if Fold(Sum(ip[:hdrBytes], 0)) != 0xffff {
		return drop.BadChecksum
	}
	h.readIPv4(ip)
	h.End = h.L3Off + total
	h.L4Off = h.L3Off + hdrBytes
	return parseTransport(b, h)
}

func (h *Headers) readIPv4(ip []byte) {
	h.TOS = ip[1]
	h.FragID = uint32(binary.BigEndian.Uint16(ip[4:]))
	frag := binary.BigEndian.Uint16(ip[6:])
	h.DontFragment = frag&0x4000 != 0
	h.MoreFrags = frag&0x2000 != 0
	h.FragOffset = frag & 0x1fff << 3
	h.Fragment = h.MoreFrags || h.FragOffset != 0
	h.LaterFrag = h.FragOffset != 0
	h.TTL = ip[8]
	h.Proto = ip[9]
	h.Src = AddrFrom4(ip[12:])
	h.Dst = AddrFrom4(ip[16:])
}

// parseIPv6 reads from h.L3Off and walks the extension headers (RFC 8200 section 4).
func parseIPv6(b []byte, h *Headers) drop.Reason {
	ip := b[h.L3Off:]
	if len(ip) < IPv6Bytes {
		return drop.Truncated
	}
	if ip[0]>>4 != 6 {
		return drop.BadVersion
	}
	h.End = h.L3Off + IPv6Bytes + int(binary.BigEndian.Uint16(ip[4:]))
	if h.End > len(b) {
		return drop.Truncated
	}
	h.V6 = true
	h.DontFragment = true
	h.TOS = ip[0]<<4 | ip[1]>>4
	h.TTL = ip[7]
	h.Src = Addr(ip[8:24])
	h.Dst = Addr(ip[24:40])
	// An IPv4-mapped address would pass for the IPv4 address from here on. It
	// never belongs on a wire (RFC 4291 section 2.5.5.2, RFC 6890).
	if h.Src.Is4() {
		return drop.MartianSource
	}
	if h.Dst.Is4() {
		return drop.MartianTarget
	}
	return walkExtensions(b, h, ip[6])
}

func walkExtensions(b []byte, h *Headers, next uint8) drop.Reason {
	off := h.L3Off + IPv6Bytes
	for range maxExtensionHeaders + 1 {
		var extBytes int
		switch next {
		case ProtoHopByHop, ProtoRouting, ProtoDstOpts:
			if h.End-off < 8 {
				return drop.Truncated
			}
			extBytes = (int(b[off+1]) + 1) * 8
		case ProtoAH: // RFC 4302 section 2.2: length in 4-byte words, minus 2
			if h.End-off < 8 {
				return drop.Truncated
			}
			extBytes = (int(b[off+1]) + 2) * 4
		case ProtoFragment:
			if h.End-off < 8 {
				return drop.Truncated
			}
			extBytes = 8
			f := binary.BigEndian.Uint16(b[off+2:])
			h.FragOffset = f &^ 7
			h.MoreFrags = f&1 != 0
			h.Fragment = true
			h.LaterFrag = h.FragOffset != 0
			h.FragID = binary.BigEndian.Uint32(b[off+4:])
		default:
			h.Proto, h.L4Off = next, off
			return parseTransport(b, h)
		}
		if off+extBytes > h.End {
			return drop.Truncated
		}
		next = b[off]
		off += extBytes
		if h.LaterFrag {
			h.Proto, h.L4Off = next, off
			return parseTransport(b, h)
		}
	}
	return drop.TooManyHeaders
}

// maxDatagramBytes bounds what fragments are pieces of (RFC 791 section 3.1, RFC 8200
// section 4.5). An offset beyond it, as of a piece that is cut again, would not fit its field.
const maxDatagramBytes = 65535

// parseTransport reads the fields the switch decides by. A first fragment may
// be too short for the transport header: it is refused, since nothing could
// judge it (RFC 1858 section 3, RFC 7112). So is one that ends where no datagram does.
func parseTransport(b []byte, h *Headers) drop.Reason {
	h.PayloadOff = h.L4Off
	if h.LaterFrag {
		if int(h.FragOffset)+h.End-h.L4Off > maxDatagramBytes {
			return drop.BadHeader
		}
		return drop.None
	}
	l4 := b[h.L4Off:h.End]
	var hdrBytes int
	switch h.Proto {
	case ProtoTCP:
		if len(l4) < TCPBytes {
			return drop.Truncated
		}
		hdrBytes = int(l4[12]>>4) * 4
		if hdrBytes < TCPBytes {
			return drop.BadHeader
		}
		if hdrBytes > len(l4) {
			return drop.Truncated
		}
		h.TCPFlags = l4[13]
	case ProtoUDP:
		if len(l4) < UDPBytes {
			return drop.Truncated
		}
		hdrBytes = UDPBytes
		// A fragment's length field speaks of the whole datagram.
		if n := int(binary.BigEndian.Uint16(l4[4:])); n < UDPBytes || !h.Fragment && n > len(l4) {
			return drop.BadHeader
		}
	case ProtoSCTP:
		if len(l4) < SCTPBytes {
			return drop.Truncated
		}
		hdrBytes = SCTPBytes
	case ProtoICMP, ProtoICMPv6:
		if (h.Proto == ProtoICMPv6) != h.V6 {
			return drop.None // carried like an unknown protocol
		}
		if len(l4) < ICMPBytes {
			return drop.Truncated
		}
		h.ICMPType, h.ICMPCode = l4[0], l4[1]
		h.HasL4 = true
		h.PayloadOff = h.L4Off + ICMPBytes
		if h.IsEcho() {
			id := binary.BigEndian.Uint16(l4[4:])
			h.SrcPort, h.DstPort = id, id
		}
		return drop.None
	default:
		return drop.None
	}
	h.SrcPort = binary.BigEndian.Uint16(l4)
	h.DstPort = binary.BigEndian.Uint16(l4[2:])
	h.HasL4 = true
	h.PayloadOff = h.L4Off + hdrBytes
	return drop.None
}
