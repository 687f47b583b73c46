package wire

import "encoding/binary"

// The packets a router writes itself. Each function fills dst, which must be
// large enough, with an IP packet and returns its length; Ethernet headers are
// the caller's, except for ARP, which has no IP.

const (
	// MaxICMPv4ErrorBytes bounds an ICMP error (RFC 1812 section 4.3.2.3).
	MaxICMPv4ErrorBytes = 576
	// MaxICMPv6ErrorBytes bounds an ICMPv6 error (RFC 4443 section 2.4 c).
	MaxICMPv6ErrorBytes = 1280

	answerTTL = 64  // RFC 1700's default, Linux's too
	ndTTL     = 255 // RFC 4861 section 11.2
)

// putIP writes an IP header without options before l4Bytes of transport. The
// fields not named are zero; DF is set, as nothing here needs fragmenting.
func putIP(dst []byte, v6 bool, proto, ttl uint8, src, dstAddr *Addr, l4Bytes int) int {
	if v6 {
		clear(dst[:IPv6Bytes])
		dst[0] = 6 << 4
		binary.BigEndian.PutUint16(dst[4:], uint16(l4Bytes))
		dst[6], dst[7] = proto, ttl
		copy(dst[8:], src[:])
		copy(dst[24:], dstAddr[:])
		return IPv6Bytes
	}
	clear(dst[:IPv4Bytes])
	dst[0] = 4<<4 | IPv4Bytes/4
	binary.BigEndian.PutUint16(dst[2:], uint16(IPv4Bytes+l4Bytes))
	binary.BigEndian.PutUint16(dst[6:], 0x4000)
	dst[8], dst[9] = ttl, proto
	copy(dst[12:], src[12:])
	copy(dst[16:], dstAddr[12:])
	binary.BigEndian.PutUint16(dst[10:], ^Fold(Sum(dst[:IPv4Bytes], 0)))
	return IPv4Bytes
}

// putChecksum completes a transport checksum at off over l4, whose field must be
// zero. IPv4's ICMP has no pseudo-header (RFC 792).
func putChecksum(l4 []byte, off int, v6 bool, proto uint8, src, dst *Addr) {
	var sum uint64
	if v6 || proto != ProtoICMP {
		sum = PseudoSum(&Headers{V6: v6, Proto: proto, Src: *src, Dst: *dst}, len(l4))
	}
	binary.BigEndian.PutUint16(l4[off:], ^Fold(Sum(l4, sum)))
}

// PutICMPError writes an ICMP or ICMPv6 error of the given type and code about
// the packet in frame b, from the address from to the packet's source. info is
// the second word of the message: the MTU in bytes for "fragmentation needed"
// and "packet too big", else zero.
func PutICMPError(dst, b []byte, h *Headers, from Addr, icmpType, code uint8, info uint32) int {
	quoted := b[h.L3Off:h.End]
	proto, ipBytes, limit := uint8(ProtoICMP), IPv4Bytes, MaxICMPv4ErrorBytes
	if h.V6 {
		proto, ipBytes, limit = ProtoICMPv6, IPv6Bytes, MaxICMPv6ErrorBytes
	}
	quoted = quoted[:min(len(quoted), limit-ipBytes-ICMPBytes)]
	l4Bytes := ICMPBytes + len(quoted)
	n := putIP(dst, h.V6, proto, answerTTL, &from, &h.Src, l4Bytes)
	l4 := dst[n : n+l4Bytes]
	l4[0], l4[1] = icmpType, code
	l4[2], l4[3] = 0, 0
	binary.BigEndian.PutUint32(l4[4:], info)
	copy(l4[ICMPBytes:], quoted)
	putChecksum(l4, 2, h.V6, proto, &from, &h.Src)
	return n + l4Bytes
}

// PutUDP writes a datagram with its checksum.
func PutUDP(dst []byte, src *Addr, srcPort uint16, to *Addr, toPort uint16, payload []byte) int {
	v6, l4Bytes := !src.Is4(), UDPBytes+len(payload)
	n := putIP(dst, v6, ProtoUDP, answerTTL, src, to, l4Bytes)
	l4 := dst[n : n+l4Bytes]
	binary.BigEndian.PutUint16(l4, srcPort)
	binary.BigEndian.PutUint16(l4[2:], toPort)
	binary.BigEndian.PutUint16(l4[4:], uint16(l4Bytes))
	l4[6], l4[7] = 0, 0
	copy(l4[UDPBytes:], payload)
	putChecksum(l4, 6, v6, ProtoUDP, src, to)
	if l4[6] == 0 && l4[7] == 0 { // RFC 768: zero says that there is none
		l4[6], l4[7] = 0xff, 0xff
	}
	return n + l4Bytes
}

// PutTCPReset writes the segment that resets the connection of the TCP packet in
// frame b, in the name of its destination (RFC 9293 section 3.5.2, group 1). The
// packet must not be a reset itself.
func PutTCPReset(dst, b []byte, h *Headers) int {
	n := putIP(dst, h.V6, ProtoTCP, answerTTL, &h.Dst, &h.Src, TCPBytes)
	in, l4 := b[h.L4Off:h.End], dst[n:n+TCPBytes]
	clear(l4)
	copy(l4, in[2:4])
	copy(l4[2:], in[:2])
	l4[12] = TCPBytes / 4 << 4
	if h.TCPFlags&ACK != 0 {
		copy(l4[4:8], in[8:12])
		l4[13] = RST
	} else {
		length := uint32(h.End - h.PayloadOff)
		if h.TCPFlags&SYN != 0 {
			length++
		}
		if h.TCPFlags&FIN != 0 {
			length++
		}
		binary.BigEndian.PutUint32(l4[8:], binary.BigEndian.Uint32(in[4:])+length)
		l4[13] = RST | ACK
	}
	putChecksum(l4, 16, h.V6, ProtoTCP, &h.Dst, &h.Src)
	return n + TCPBytes
}

// PutTCPAck writes a segment that carries an acknowledgment and nothing else.
func PutTCPAck(dst []byte, src *Addr, srcPort uint16, to *Addr, toPort uint16, seq, ack uint32) int {
	v6 := !src.Is4()
	n := putIP(dst, v6, ProtoTCP, answerTTL, src, to, TCPBytes)
	l4 := dst[n : n+TCPBytes]
	clear(l4)
	binary.BigEndian.PutUint16(l4, srcPort)
	binary.BigEndian.PutUint16(l4[2:], toPort)
	binary.BigEndian.PutUint32(l4[4:], seq)
	binary.BigEndian.PutUint32(l4[8:], ack)
	l4[12], l4[13] = TCPBytes/4<<4, ACK
	putChecksum(l4, 16, v6, ProtoTCP, src, to)
	return n + TCPBytes
}

// PutNeighborAdvert writes the answer to the neighbour solicitation with headers
// h: target is at mac (RFC 4861 section 4.4; flags router, solicited, override).
// To a solicitation without source, that is a probe for duplicates, the answer
// goes to all nodes and is not "solicited" (section 7.2.4).
func PutNeighborAdvert(dst []byte, h *Headers, target Addr, mac [6]byte) int {
	const routerSolicitedOverride = 0xe0
	const routerOverride = 0xa0
	const length = 24 + 8
	to, flags := h.Src, byte(routerSolicitedOverride)
	if to == (Addr{}) {
		to, flags = Addr{0: 0xff, 1: 0x02, 15: 1}, routerOverride
	}
	n := putIP(dst, true, ProtoICMPv6, ndTTL, &target, &to, length)
	l4 := dst[n : n+length]
	clear(l4)
	l4[0] = ICMPv6NeighborAdvert
	l4[4] = flags
	copy(l4[8:], target[:])
	l4[24], l4[25] = 2, 1 // target link-layer address, 8 bytes
	copy(l4[26:], mac[:])
	putChecksum(l4, 2, true, ProtoICMPv6, &target, &to)
	return n + length
}

// ARPOp reads the operation of an ARP packet: 1 request, 2 reply.
func ARPOp(arp []byte) uint16 { return binary.BigEndian.Uint16(arp[6:]) }

// TurnARP makes the ARP request in arp, at least ARPBytes long, its own answer:
// its target address is at mac (RFC 826, "packet reception").
func TurnARP(arp []byte, mac [6]byte) {
	var asked [4]byte
	copy(asked[:], arp[24:28])
	binary.BigEndian.PutUint16(arp[6:], 2)
	copy(arp[18:28], arp[8:18]) // the asker becomes the target
	copy(arp[8:14], mac[:])
	copy(arp[14:18], asked[:])
}

// ICMPIntact reports whether the ICMP checksum of the packet in frame b is right.
func ICMPIntact(b []byte, h *Headers) bool {
	l4 := b[h.L4Off:h.End]
	var sum uint64
	if h.V6 {
		sum = PseudoSum(h, len(l4))
	}
	return Fold(Sum(l4, sum)) == 0xffff
}

// TurnEcho makes the echo request in frame b its own reply (RFC 792, RFC 4443
// section 4.2). The checksum is computed anew: the caller has verified it.
func TurnEcho(b []byte, h *Headers) {
	ip, l4 := b[h.L3Off:], b[h.L4Off:h.End]
	h.Src, h.Dst = h.Dst, h.Src
	if h.V6 {
		l4[0] = ICMPv6EchoReply
		ip[7] = answerTTL
		copy(ip[8:24], h.Src[:])
		copy(ip[24:40], h.Dst[:])
	} else {
		l4[0] = ICMPEchoReply
		ip[8] = answerTTL
		copy(ip[12:16], h.Src[12:])
		copy(ip[16:20], h.Dst[12:])
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], ^Fold(Sum(b[h.L3Off:h.L4Off], 0)))
	}
	PutICMPChecksum(b, h)
}

// PutICMPChecksum computes the ICMP checksum of the packet in frame b anew.
func PutICMPChecksum(b []byte, h *Headers) {
	l4 := b[h.L4Off:h.End]
	l4[2], l4[3] = 0, 0
	putChecksum(l4, 2, h.V6, h.Proto, &h.Src, &h.Dst)
}
