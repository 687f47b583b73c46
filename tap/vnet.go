package tap

import (
	"encoding/binary"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// Received metadata comes from the pod's kernel, but a pod that may open packet
// sockets has a say in it (PACKET_VNET_HDR). Whoever later completes a checksum
// or cuts segments by it writes into the frame after the switch has judged its
// headers: a checksum "field" laid over an address or a port would pass every
// guard. So all that is left after sanitize is what a kernel produces for TCP and
// UDP: the checksum starts at the transport header and sits in its place there,
// a super-frame fills its IP packet, and the segment count is bounded. The one
// thing not settled here is where an IPv6 transport header lies behind extension
// headers; the switch, which walks them, compares it with CsumStart.

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
	etherType := binary.BigEndian.Uint16(b[12:])
	if etherType != wire.TypeIPv4 && etherType != wire.TypeIPv6 {
		*v = frame.VNet{} // the switch answers or drops such frames, never completes them
		return drop.None
	}
	proto := checksumProto(v, b, etherType)
	if proto == 0 {
		return drop.BadOffload
	}
	if !v.IsGSO() {
		v.GSOType, v.GSOSize, v.HdrLen = frame.GSONone, 0, 0
		return drop.None
	}
	return sanitizeGSO(v, b, etherType, proto)
}

// checksumProto tells the transport protocol by the place of the checksum field,
// and returns 0 where the two or the headers before them don't agree.
func checksumProto(v *frame.VNet, b []byte, etherType uint16) uint8 {
	start := int(v.CsumStart)
	var proto uint8
	hdrBytes := 0
	switch v.CsumOffset {
	case tcpChecksumOffset:
		proto, hdrBytes = wire.ProtoTCP, wire.TCPBytes
	case udpChecksumOffset:
		proto, hdrBytes = wire.ProtoUDP, wire.UDPBytes
	default:
		return 0
	}
	if start+hdrBytes > len(b) {
		return 0
	}
	if etherType == wire.TypeIPv4 {
		const l3 = wire.EthernetBytes
		fragment := binary.BigEndian.Uint16(b[l3+6:])&0x3fff != 0 // completed before it is cut
		if start < l3+wire.IPv4Bytes || start != l3+int(b[l3]&0xf)*4 || b[l3+9] != proto || fragment {
			return 0
		}
		return proto
	}
	const l3, l4 = wire.EthernetBytes, wire.EthernetBytes + wire.IPv6Bytes
	switch {
	case start < l4:
		return 0
	case b[l3+6] == wire.ProtoTCP || b[l3+6] == wire.ProtoUDP:
		if start != l4 || b[l3+6] != proto {
			return 0
		}
	case b[l3+6] == wire.ProtoFragment, start < l4+8: // an extension header has at least 8 bytes
		return 0
	}
	return proto
}

// sanitizeGSO checks the segmentation part, and computes HdrLen, which the kernel
// relies on when the frame is written to another TAP.
func sanitizeGSO(v *frame.VNet, b []byte, etherType uint16, proto uint8) drop.Reason {
	var ipBytes int
	switch etherType {
	case wire.TypeIPv4:
		ipBytes = int(binary.BigEndian.Uint16(b[wire.EthernetBytes+2:]))
	default:
		ipBytes = wire.IPv6Bytes + int(binary.BigEndian.Uint16(b[wire.EthernetBytes+4:]))
	}
	if ipBytes != len(b)-wire.EthernetBytes {
		return drop.BadOffload
	}
	hdrBytes := int(v.CsumStart)
	minSize, maxSegments := minTCPSegmentBytes, frame.MaxBytes
	switch {
	case v.GSOType.Kind() == frame.GSOTCPv4 && proto == wire.ProtoTCP && etherType == wire.TypeIPv4,
		v.GSOType.Kind() == frame.GSOTCPv6 && proto == wire.ProtoTCP && etherType == wire.TypeIPv6:
		tcpBytes := int(b[hdrBytes+12]>>4) * 4
		if tcpBytes < wire.TCPBytes {
			return drop.BadOffload
		}
		hdrBytes += tcpBytes
	case v.GSOType == frame.GSOUDPL4 && proto == wire.ProtoUDP:
		hdrBytes += wire.UDPBytes
		minSize, maxSegments = 1, maxUDPSegments
	default:
		return drop.BadOffload
	}
	payload := len(b) - hdrBytes
	if payload < 0 || int(v.GSOSize) < minSize || payload > int(v.GSOSize)*maxSegments {
		return drop.BadOffload
	}
	v.HdrLen = uint16(hdrBytes)
	if payload <= int(v.GSOSize) { // one segment: a super-frame in name only
		v.GSOType, v.GSOSize, v.HdrLen = frame.GSONone, 0, 0
	}
	return drop.None
}
