package vswitch

import (
	"encoding/binary"

	"vswitch/internal/wire"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
)

// A flow's rewrite changes addresses and ports and updates the checksums by what
// changed (RFC 1624), never by computing them anew: a packet that was damaged
// before stays visibly damaged. A partial checksum (frame.NeedsCsum) covers the
// pseudo-header only, so there the ports don't count. A super-frame is rewritten
// as one packet, since all its segments share the header.

// Offsets of checksum fields in the transport headers.
const (
	tcpChecksumOff  = 16
	udpChecksumOff  = 6
	icmpChecksumOff = 2
	sctpChecksumOff = 8
)

// rewrite gives the packet the tuple to. h is brought up to date.
func rewrite(f *frame.Frame, h *wire.Headers, to *flow.Key) {
	b := f.Bytes()
	l4 := b[h.L4Off:h.End]
	partial := f.VNet.Flags&frame.NeedsCsum != 0 && int(f.VNet.CsumStart) == h.L4Off
	switch h.Proto {
	case wire.ProtoTCP:
		rewriteChecksum(l4, tcpChecksumOff, h, to, partial)
		putPorts(l4, to)
	case wire.ProtoUDP:
		if partial || binary.BigEndian.Uint16(l4[udpChecksumOff:]) != 0 {
			rewriteChecksum(l4, udpChecksumOff, h, to, partial)
			if !partial && binary.BigEndian.Uint16(l4[udpChecksumOff:]) == 0 {
				binary.BigEndian.PutUint16(l4[udpChecksumOff:], 0xffff) // RFC 768: zero means none
			}
		}
		putPorts(l4, to)
	case wire.ProtoSCTP:
		if !h.Fragment { // whose ports stay, see rewritesInPieces
			rewriteSCTP(l4, to)
		}
	case wire.ProtoICMP, wire.ProtoICMPv6:
		rewriteEcho(l4, h, to)
	}
	rewriteAddresses(b[h.L3Off:], h.V6, &to.Src, &to.Dst)
	h.Src, h.Dst, h.SrcPort, h.DstPort = to.Src, to.Dst, to.SrcPort, to.DstPort
}

// rewriteChecksum updates the field at off for new addresses and, unless the
// checksum is partial, ports. The packet still has its old tuple.
func rewriteChecksum(l4 []byte, off int, h *wire.Headers, to *flow.Key, partial bool) {
	field := binary.BigEndian.Uint16(l4[off:])
	if partial {
		field = wire.UpdatePartial(field, h.Src[:], to.Src[:])
		field = wire.UpdatePartial(field, h.Dst[:], to.Dst[:])
	} else {
		var ports [4]byte
		binary.BigEndian.PutUint16(ports[:], to.SrcPort)
		binary.BigEndian.PutUint16(ports[2:], to.DstPort)
		field = wire.Update(field, h.Src[:], to.Src[:])
		field = wire.Update(field, h.Dst[:], to.Dst[:])
		field = wire.Update(field, l4[:4], ports[:])
	}
	binary.BigEndian.PutUint16(l4[off:], field)
}

func putPorts(l4 []byte, to *flow.Key) {
	binary.BigEndian.PutUint16(l4, to.SrcPort)
	binary.BigEndian.PutUint16(l4[2:], to.DstPort)
}

// rewriteSCTP recomputes the CRC32c, which covers the ports but no address (RFC
// 9260 section 6.8). A CRC can't be updated by difference as cheaply as it is
// computed, so it is checked first: one that was wrong stays wrong.
func rewriteSCTP(l4 []byte, to *flow.Key) {
	valid := binary.LittleEndian.Uint32(l4[sctpChecksumOff:]) == wire.SCTPChecksum(l4)
	putPorts(l4, to)
	sum := wire.SCTPChecksum(l4)
	if !valid {
		sum = ^sum
	}
	binary.LittleEndian.PutUint32(l4[sctpChecksumOff:], sum)
}

// rewriteEcho changes the identifier. ICMPv6's checksum covers the addresses
// (RFC 4443 section 2.3), ICMP's does not.
func rewriteEcho(l4 []byte, h *wire.Headers, to *flow.Key) {
	field := binary.BigEndian.Uint16(l4[icmpChecksumOff:])
	var id [2]byte
	binary.BigEndian.PutUint16(id[:], to.SrcPort)
	field = wire.Update(field, l4[4:6], id[:])
	if h.V6 {
		field = wire.Update(field, h.Src[:], to.Src[:])
		field = wire.Update(field, h.Dst[:], to.Dst[:])
	}
	binary.BigEndian.PutUint16(l4[icmpChecksumOff:], field)
	copy(l4[4:6], id[:])
}

// rewriteAddresses changes source and destination of the IP header at ip.
func rewriteAddresses(ip []byte, v6 bool, src, dst *wire.Addr) {
	if v6 {
		copy(ip[8:24], src[:])
		copy(ip[24:40], dst[:])
		return
	}
	var addrs [8]byte
	copy(addrs[:4], src[12:])
	copy(addrs[4:], dst[12:])
	sum := wire.Update(binary.BigEndian.Uint16(ip[10:]), ip[12:20], addrs[:])
	binary.BigEndian.PutUint16(ip[10:], sum)
	copy(ip[12:20], addrs[:])
}

// decrementTTL takes one hop off. The caller has checked that one is left.
func decrementTTL(b []byte, h *wire.Headers) {
	ip := b[h.L3Off:]
	if h.V6 {
		ip[7]--
		return
	}
	var old, now [2]byte
	copy(old[:], ip[8:10])
	ip[8]--
	copy(now[:], ip[8:10])
	binary.BigEndian.PutUint16(ip[10:], wire.Update(binary.BigEndian.Uint16(ip[10:]), old[:], now[:]))
}
