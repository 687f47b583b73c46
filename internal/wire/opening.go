package wire

import "encoding/binary"

// Opening is the first packet of a conversation: a TCP SYN, an SCTP INIT, a UDP
// datagram without payload, or an echo request.
type Opening struct {
	Src, Dst         Addr // of one family
	Proto            uint8
	SrcPort, DstPort uint16 // ICMP: SrcPort is the identifier
}

// MaxOpeningBytes is the longest that PutOpening writes: an SCTP INIT over IPv6.
const MaxOpeningBytes = IPv6Bytes + SCTPBytes + sctpInitBytes

const (
	openingTTL    = 64
	openingWindow = 65535
	sctpInitBytes = 20 // RFC 9260 section 3.3.2, without parameters
)

// PutOpening writes the IP packet into dst, which must hold MaxOpeningBytes, and
// returns its length; 0 for a protocol other than those. Its checksums are complete.
func PutOpening(dst []byte, o *Opening) int {
	v6 := !o.Src.Is4()
	var l4Bytes, checksumOff int
	switch o.Proto {
	case ProtoTCP:
		l4Bytes, checksumOff = TCPBytes, 16
	case ProtoUDP:
		l4Bytes, checksumOff = UDPBytes, 6
	case ProtoSCTP:
		l4Bytes = SCTPBytes + sctpInitBytes
	case ProtoICMP, ProtoICMPv6:
		l4Bytes, checksumOff = ICMPBytes, 2
	default:
		return 0
	}
	n := putIP(dst, v6, o.Proto, openingTTL, &o.Src, &o.Dst, l4Bytes)
	l4 := dst[n : n+l4Bytes]
	clear(l4)
	if o.Proto == ProtoICMP || o.Proto == ProtoICMPv6 {
		l4[0] = ICMPEcho
		if v6 {
			l4[0] = ICMPv6Echo
		}
		binary.BigEndian.PutUint16(l4[4:], o.SrcPort)
		binary.BigEndian.PutUint16(l4[6:], 1) // sequence number
	} else {
		binary.BigEndian.PutUint16(l4, o.SrcPort)
		binary.BigEndian.PutUint16(l4[2:], o.DstPort)
	}
	switch o.Proto {
	case ProtoTCP:
		l4[12], l4[13] = TCPBytes/4<<4, SYN
		binary.BigEndian.PutUint16(l4[14:], openingWindow)
	case ProtoUDP:
		binary.BigEndian.PutUint16(l4[4:], UDPBytes)
	case ProtoSCTP:
		init := l4[SCTPBytes:]
		init[0] = 1
		binary.BigEndian.PutUint16(init[2:], sctpInitBytes)
		init[7] = 1                                             // initiate tag: not zero
		binary.BigEndian.PutUint32(init[8:], openingWindow)     // advertised receiver window
		init[13], init[15] = 1, 1                               // streams out and in
		binary.LittleEndian.PutUint32(l4[8:], SCTPChecksum(l4)) // over a zero field
		return n + l4Bytes
	}
	putChecksum(l4, checksumOff, v6, o.Proto, &o.Src, &o.Dst)
	return n + l4Bytes
}
