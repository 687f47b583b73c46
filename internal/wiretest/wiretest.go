// Package wiretest builds packets for tests, plainly and slowly: field by field,
// checksums by the textbook loop, so that what it says is independent of the
// code under test. Only tests import it.
package wiretest

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
)

// Packet describes an Ethernet frame with an IP packet. Zero fields get a
// harmless value: TTL 64, TCP window 65,535.
type Packet struct {
	SrcMAC, DstMAC   [6]byte
	Src, Dst         netip.Addr
	TTL              uint8
	TOS              uint8
	ID               uint16
	DontFragment     bool
	MoreFragments    bool
	FragmentOffset   int // bytes, IPv4 only
	Proto            uint8
	SrcPort, DstPort uint16
	Flags            uint8  // TCP
	Seq, Ack         uint32 // Seq is the verification tag of SCTP
	Options          []byte // TCP, a multiple of four bytes
	ICMPType, Code   uint8
	EchoID, EchoSeq  uint16
	Rest             uint32 // second word of ICMP messages other than echo
	Payload          []byte
	NoChecksum       bool // UDP: zero checksum
}

// Frame lays the packet out.
func (p Packet) Frame() []byte {
	eth := make([]byte, 14)
	copy(eth, p.DstMAC[:])
	copy(eth[6:], p.SrcMAC[:])
	if p.Src.Is4() {
		binary.BigEndian.PutUint16(eth[12:], 0x0800)
	} else {
		binary.BigEndian.PutUint16(eth[12:], 0x86dd)
	}
	return append(eth, p.IP()...)
}

// IP lays out the packet without the Ethernet header.
func (p Packet) IP() []byte {
	if p.TTL == 0 {
		p.TTL = 64
	}
	l4 := p.transport()
	if !p.Src.Is4() {
		ip := make([]byte, 40)
		binary.BigEndian.PutUint32(ip, 6<<28|uint32(p.TOS)<<20)
		binary.BigEndian.PutUint16(ip[4:], uint16(len(l4)))
		ip[6], ip[7] = p.Proto, p.TTL
		copy(ip[8:], p.Src.AsSlice())
		copy(ip[24:], p.Dst.AsSlice())
		return append(ip, l4...)
	}
	ip := make([]byte, 20)
	ip[0], ip[1] = 0x45, p.TOS
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(l4)))
	binary.BigEndian.PutUint16(ip[4:], p.ID)
	frag := uint16(p.FragmentOffset / 8)
	if p.DontFragment {
		frag |= 0x4000
	}
	if p.MoreFragments {
		frag |= 0x2000
	}
	binary.BigEndian.PutUint16(ip[6:], frag)
	ip[8], ip[9] = p.TTL, p.Proto
	copy(ip[12:], p.Src.AsSlice())
	copy(ip[16:], p.Dst.AsSlice())
	binary.BigEndian.PutUint16(ip[10:], ^Sum16(ip))
	return append(ip, l4...)
}

func (p Packet) transport() []byte {
	if p.FragmentOffset != 0 {
		return p.Payload
	}
	switch p.Proto {
	case 6:
		tcp := make([]byte, 20)
		binary.BigEndian.PutUint16(tcp, p.SrcPort)
		binary.BigEndian.PutUint16(tcp[2:], p.DstPort)
		binary.BigEndian.PutUint32(tcp[4:], p.Seq)
		binary.BigEndian.PutUint32(tcp[8:], p.Ack)
		tcp[12] = byte(20+len(p.Options)) / 4 << 4
		tcp[13] = p.Flags
		binary.BigEndian.PutUint16(tcp[14:], 65535)
		tcp = append(append(tcp, p.Options...), p.Payload...)
		binary.BigEndian.PutUint16(tcp[16:], ^p.sum(tcp))
		return tcp
	case 17:
		udp := make([]byte, 8)
		binary.BigEndian.PutUint16(udp, p.SrcPort)
		binary.BigEndian.PutUint16(udp[2:], p.DstPort)
		binary.BigEndian.PutUint16(udp[4:], uint16(8+len(p.Payload)))
		udp = append(udp, p.Payload...)
		if !p.NoChecksum {
			if sum := ^p.sum(udp); sum != 0 {
				binary.BigEndian.PutUint16(udp[6:], sum)
			} else {
				binary.BigEndian.PutUint16(udp[6:], 0xffff)
			}
		}
		return udp
	case 132:
		sctp := make([]byte, 12)
		binary.BigEndian.PutUint16(sctp, p.SrcPort)
		binary.BigEndian.PutUint16(sctp[2:], p.DstPort)
		binary.BigEndian.PutUint32(sctp[4:], p.Seq)
		sctp = append(sctp, p.Payload...)
		binary.LittleEndian.PutUint32(sctp[8:], crc32.Checksum(sctp, crc32.MakeTable(crc32.Castagnoli)))
		return sctp
	case 1, 58:
		icmp := make([]byte, 8)
		icmp[0], icmp[1] = p.ICMPType, p.Code
		binary.BigEndian.PutUint32(icmp[4:], p.Rest)
		if p.EchoID != 0 || p.EchoSeq != 0 {
			binary.BigEndian.PutUint16(icmp[4:], p.EchoID)
			binary.BigEndian.PutUint16(icmp[6:], p.EchoSeq)
		}
		icmp = append(icmp, p.Payload...)
		if p.Proto == 58 {
			binary.BigEndian.PutUint16(icmp[2:], ^p.sum(icmp))
		} else {
			binary.BigEndian.PutUint16(icmp[2:], ^Sum16(icmp))
		}
		return icmp
	}
	return p.Payload
}

// sum is the one's complement sum of l4 with its pseudo-header.
func (p Packet) sum(l4 []byte) uint16 {
	pseudo := append(p.Src.AsSlice(), p.Dst.AsSlice()...)
	pseudo = append(pseudo, 0, p.Proto)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(l4)))
	return Sum16(append(pseudo, l4...))
}

// TransportIntact reports whether the transport checksum of an Ethernet frame
// without IP options or extension headers is right. UDP without checksum counts
// as right; other protocols than TCP, UDP, SCTP and ICMP always do.
func TransportIntact(b []byte) bool {
	p := Packet{}
	var l4 []byte
	switch binary.BigEndian.Uint16(b[12:]) {
	case 0x0800:
		ip := b[14:]
		if Sum16(ip[:20]) != 0xffff {
			return false
		}
		p.Proto, l4 = ip[9], ip[20:binary.BigEndian.Uint16(ip[2:])]
		p.Src, p.Dst = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
	case 0x86dd:
		ip := b[14:]
		p.Proto, l4 = ip[6], ip[40:40+binary.BigEndian.Uint16(ip[4:])]
		p.Src, p.Dst = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
	default:
		return false
	}
	switch p.Proto {
	case 6, 58:
		return p.sum(l4) == 0xffff
	case 17:
		return l4[6] == 0 && l4[7] == 0 && p.Src.Is4() || p.sum(l4) == 0xffff
	case 1:
		return Sum16(l4) == 0xffff
	case 132:
		want := binary.LittleEndian.Uint32(l4[8:])
		zeroed := append([]byte(nil), l4...)
		clear(zeroed[8:12])
		return crc32.Checksum(zeroed, crc32.MakeTable(crc32.Castagnoli)) == want
	}
	return true
}

// Sum16 is the one's complement sum of b by 16-bit words (RFC 1071 section 4.1).
func Sum16(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		word := uint32(b[i]) << 8
		if i+1 < len(b) {
			word |= uint32(b[i+1])
		}
		sum += word
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// ARP lays out an ARP packet for IPv4 over Ethernet in a frame to dst.
func ARP(dst [6]byte, op uint16, senderMAC [6]byte, sender netip.Addr, targetMAC [6]byte, target netip.Addr) []byte {
	b := make([]byte, 14, 42)
	copy(b, dst[:])
	copy(b[6:], senderMAC[:])
	binary.BigEndian.PutUint16(b[12:], 0x0806)
	b = append(b, 0, 1, 8, 0, 6, 4)
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(b, senderMAC[:]...)
	b = append(b, sender.AsSlice()...)
	b = append(b, targetMAC[:]...)
	return append(b, target.AsSlice()...)
}
