package tap

import (
	"encoding/binary"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// Received metadata comes from the pod's kernel, but a pod that may open packet
// sockets has a say in it (PACKET_VNET_HDR). Whoever later completes a checksum,
// the receiving kernel included, writes two bytes into the frame after the switch
// has judged its headers: a "checksum field" laid over an address or a port would
// pass every guard. So what is left after sanitize is what a kernel produces for
// TCP and UDP. The checksum is the frame's own, in its place, or that of a packet
// tunnelled inside it, behind all that the switch judges. A super-frame fills its
// IP packet and has its own checksum open; its segments are bounded in number.
//
// Extension headers are not walked here. Behind them, CsumStart is only known to
// lie beyond the fixed header; the switch walks them and can compare.

const (
	tcpChecksumOffset = 16 // RFC 9293 section 3.1
	udpChecksumOffset = 6  // RFC 768

	// minTCPSegmentBytes is Linux's TCP_MIN_GSO_SIZE: an MSS of 48 with 40 bytes
	// of options.
	minTCPSegmentBytes = 8
	// maxUDPSegments is Linux's UDP_MAX_SEGMENTS (128 since 6.9, 64 before).
	maxUDPSegments = 128
)

// sanitize checks received metadata v against the frame b, at least an Ethernet
// header long, and clears what has no meaning.
func sanitize(v *frame.VNet, b []byte) drop.Reason {
	v.Flags &= frame.NeedsCsum | frame.DataValid
	if v.Flags&frame.NeedsCsum == 0 {
		if v.IsGSO() {
			return drop.BadOffload // virtio 1.2 section 5.1.6.2 wants both
		}
		*v = frame.VNet{Flags: v.Flags}
		return drop.None
	}
	v.Flags = frame.NeedsCsum // valid and yet to be computed: the latter holds
	var ip ipHeader
	switch binary.BigEndian.Uint16(b[12:]) {
	case wire.TypeIPv4:
		ip.readIPv4(b)
	case wire.TypeIPv6:
		ip.readIPv6(b)
	default:
		*v = frame.VNet{} // the switch answers or drops such frames, never completes them
		return drop.None
	}
	if !checksumInPlace(v, b, &ip) {
		return drop.BadOffload
	}
	if !v.IsGSO() {
		v.GSOType, v.GSOSize, v.HdrLen = frame.GSONone, 0, 0
		return drop.None
	}
	return sanitizeGSO(v, b, &ip)
}

// ipHeader is the little of an IP header that metadata is held against.
type ipHeader struct {
	v6       bool
	fragment bool
	extended bool  // IPv6 extension headers follow; proto is the first of them
	proto    uint8 // as it stands in the fixed header
	end      int   // from the Ethernet header; zero: no header there
	bytes    int   // length of the packet as the header says
}

func (ip *ipHeader) readIPv4(b []byte) {
	const l3 = wire.EthernetBytes
	if len(b) < l3+wire.IPv4Bytes || b[l3]&0xf < wire.IPv4Bytes/4 {
		return
	}
	ip.end = l3 + int(b[l3]&0xf)*4
	ip.bytes = int(binary.BigEndian.Uint16(b[l3+2:]))
	ip.fragment = binary.BigEndian.Uint16(b[l3+6:])&0x3fff != 0
	ip.proto = b[l3+9]
}

func (ip *ipHeader) readIPv6(b []byte) {
	const l3 = wire.EthernetBytes
	if len(b) < l3+wire.IPv6Bytes {
		return
	}
	ip.v6 = true
	ip.end = l3 + wire.IPv6Bytes
	ip.bytes = wire.IPv6Bytes + int(binary.BigEndian.Uint16(b[l3+4:]))
	ip.proto = b[l3+6]
	switch ip.proto {
	case wire.ProtoHopByHop, wire.ProtoRouting, wire.ProtoDstOpts, wire.ProtoAH:
		ip.extended = true
	case wire.ProtoFragment:
		ip.fragment = true
	}
}

// checksumInPlace reports whether v points at the checksum of a TCP or UDP header
// that the frame holds whole. No kernel leaves a checksum open in a fragment.
func checksumInPlace(v *frame.VNet, b []byte, ip *ipHeader) bool {
	start, l4Bytes := int(v.CsumStart), wire.UDPBytes
	switch v.CsumOffset {
	case tcpChecksumOffset:
		l4Bytes = wire.TCPBytes
	case udpChecksumOffset:
	default:
		return false
	}
	if ip.end == 0 || ip.fragment || start+l4Bytes > len(b) {
		return false
	}
	if start == ip.end {
		return ip.proto == checksumProto(v)
	}
	return start >= ip.end+innerGap(ip)
}

// checksumProto tells the protocol by the place of its checksum.
func checksumProto(v *frame.VNet) uint8 {
	if v.CsumOffset == tcpChecksumOffset {
		return wire.ProtoTCP
	}
	return wire.ProtoUDP
}

// innerGap is how far behind the fixed IP header another checksum may start: all
// of the transport header, or one extension header of the least length.
func innerGap(ip *ipHeader) int {
	switch ip.proto {
	case wire.ProtoTCP:
		return wire.TCPBytes
	case wire.ProtoSCTP:
		return wire.SCTPBytes
	}
	return wire.UDPBytes
}

// sanitizeGSO checks the segmentation part, and computes HdrLen, which the kernel
// relies on when the frame is written to another TAP.
func sanitizeGSO(v *frame.VNet, b []byte, ip *ipHeader) drop.Reason {
	if ip.bytes != len(b)-wire.EthernetBytes || int(v.CsumStart) != ip.end && !ip.extended {
		return drop.BadOffload
	}
	hdrBytes := int(v.CsumStart)
	minSize, maxSegments := minTCPSegmentBytes, frame.MaxBytes
	proto, kind := checksumProto(v), v.GSOType.Kind()
	switch {
	case proto == wire.ProtoTCP && (kind == frame.GSOTCPv4 && !ip.v6 || kind == frame.GSOTCPv6 && ip.v6):
		tcpBytes := int(b[hdrBytes+12]>>4) * 4
		if tcpBytes < wire.TCPBytes {
			return drop.BadOffload
		}
		hdrBytes += tcpBytes
	case proto == wire.ProtoUDP && v.GSOType == frame.GSOUDPL4: // no ECN bit
		hdrBytes += wire.UDPBytes
		minSize, maxSegments = 1, maxUDPSegments
	default:
		return drop.BadOffload
	}
	payload, size := len(b)-hdrBytes, int(v.GSOSize)
	if payload < 0 || size < minSize || payload > size*maxSegments {
		return drop.BadOffload
	}
	v.HdrLen = uint16(hdrBytes)
	if payload <= size { // one segment: a super-frame in name only
		v.GSOType, v.GSOSize, v.HdrLen = frame.GSONone, 0, 0
	}
	return drop.None
}
