// Package offloadtest builds TCP and UDP packets the slow way, for tests to judge
// by: field by field from a description, checksums by the sixteen-bit loop of RFC
// 1071 section 4.1. It shares no arithmetic with the code it judges.
package offloadtest

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"vswitch/internal/wire"
	"vswitch/vswitch/frame"
)

// Packet describes one TCP or UDP packet.
type Packet struct {
	V6, UDP          bool
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
	TOS, TTL         uint8
	ID               uint16 // IPv4
	DF               bool   // IPv4
	Seq, Ack         uint32
	Flags            uint8
	Window           uint16
	Options          []byte // TCP, a multiple of 4
	Extensions       []byte // IPv6 destination options, a multiple of 8
	Payload          []byte
}

// Sum is the one's complement sum of b, folded.
func Sum(b []byte) uint32 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
		for sum > 0xffff {
			sum = sum&0xffff + sum>>16
		}
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
		for sum > 0xffff {
			sum = sum&0xffff + sum>>16
		}
	}
	return sum
}

// pseudo is the pseudo-header of RFC 9293 section 3.1 or RFC 8200 section 8.1.
func (p *Packet) pseudo(l4Bytes int) []byte {
	b := append(p.Src.AsSlice(), p.Dst.AsSlice()...)
	if p.V6 {
		b = binary.BigEndian.AppendUint32(b, uint32(l4Bytes))
		return append(b, 0, 0, 0, p.proto())
	}
	b = append(b, 0, p.proto())
	return binary.BigEndian.AppendUint16(b, uint16(l4Bytes))
}

func (p *Packet) proto() uint8 {
	if p.UDP {
		return wire.ProtoUDP
	}
	return wire.ProtoTCP
}

// L3Bytes is the length of Ethernet and IP headers.
func (p *Packet) L3Bytes() int {
	if p.V6 {
		return 14 + 40 + len(p.Extensions)
	}
	return 14 + 20
}

// HeaderBytes is the length of all headers.
func (p *Packet) HeaderBytes() int {
	if p.UDP {
		return p.L3Bytes() + 8
	}
	return p.L3Bytes() + 20 + len(p.Options)
}

// Bytes builds the frame; with partial, the checksum is left to be completed.
func (p *Packet) Bytes(partial bool) []byte {
	var l4 []byte
	field := 16
	if p.UDP {
		field = 6
		l4 = binary.BigEndian.AppendUint16(l4, p.SrcPort)
		l4 = binary.BigEndian.AppendUint16(l4, p.DstPort)
		l4 = binary.BigEndian.AppendUint16(l4, uint16(8+len(p.Payload)))
		l4 = append(l4, 0, 0)
	} else {
		l4 = binary.BigEndian.AppendUint16(l4, p.SrcPort)
		l4 = binary.BigEndian.AppendUint16(l4, p.DstPort)
		l4 = binary.BigEndian.AppendUint32(l4, p.Seq)
		l4 = binary.BigEndian.AppendUint32(l4, p.Ack)
		l4 = append(l4, uint8(5+len(p.Options)/4)<<4, p.Flags)
		l4 = binary.BigEndian.AppendUint16(l4, p.Window)
		l4 = append(l4, 0, 0, 0, 0)
		l4 = append(l4, p.Options...)
	}
	l4 = append(l4, p.Payload...)
	pseudo := p.pseudo(len(l4))
	if partial {
		binary.BigEndian.PutUint16(l4[field:], uint16(Sum(pseudo)))
	} else {
		sum := ^uint16(Sum(append(pseudo, l4...)))
		if sum == 0 {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(l4[field:], sum)
	}

	b := []byte{2, 0, 0x5e, 0, 0, 2, 2, 0, 0x5e, 0, 0, 1}
	if p.V6 {
		b = append(b, 0x86, 0xdd)
		b = append(b, 0x60|p.TOS>>4, p.TOS<<4, 0x12, 0x34)
		b = binary.BigEndian.AppendUint16(b, uint16(len(p.Extensions)+len(l4)))
		next := p.proto()
		if len(p.Extensions) > 0 {
			p.Extensions[0], next = p.proto(), wire.ProtoDstOpts
		}
		b = append(b, next, p.TTL)
		b = append(b, p.Src.AsSlice()...)
		b = append(b, p.Dst.AsSlice()...)
		b = append(b, p.Extensions...)
	} else {
		b = append(b, 8, 0)
		ip := []byte{0x45, p.TOS}
		ip = binary.BigEndian.AppendUint16(ip, uint16(20+len(l4)))
		ip = binary.BigEndian.AppendUint16(ip, p.ID)
		if p.DF {
			ip = append(ip, 0x40, 0)
		} else {
			ip = append(ip, 0, 0)
		}
		ip = append(ip, p.TTL, p.proto(), 0, 0)
		ip = append(ip, p.Src.AsSlice()...)
		ip = append(ip, p.Dst.AsSlice()...)
		binary.BigEndian.PutUint16(ip[10:], ^uint16(Sum(ip)))
		b = append(b, ip...)
	}
	return append(b, l4...)
}

// Super is p as a super-frame of segments of size bytes, as a pod's kernel emits it.
func (p *Packet) Super(size int) *frame.Frame {
	f := frame.New()
	f.Set(p.Bytes(true))
	v := frame.VNet{
		Flags: frame.NeedsCsum, HdrLen: uint16(p.HeaderBytes()), GSOSize: uint16(size),
		CsumStart: uint16(p.L3Bytes()), CsumOffset: 16,
	}
	switch {
	case p.UDP:
		v.GSOType, v.CsumOffset = frame.GSOUDPL4, 6
	case p.V6:
		v.GSOType = frame.GSOTCPv6
	default:
		v.GSOType = frame.GSOTCPv4
	}
	if !p.UDP && p.Flags&wire.CWR != 0 {
		v.GSOType |= frame.GSOECN
	}
	f.VNet = v
	return f
}

// Cut is the slow segmenter: the packets that p stands for.
func (p *Packet) Cut(size int) []*Packet {
	var out []*Packet
	for at := 0; at == 0 || at < len(p.Payload); at += size {
		s := *p
		s.Payload = p.Payload[at:min(at+size, len(p.Payload))]
		s.Seq += uint32(at)
		s.ID += uint16(len(out))
		if at > 0 {
			s.Flags &^= wire.CWR
		}
		if at+size < len(p.Payload) {
			s.Flags &^= wire.FIN | wire.PSH
		}
		out = append(out, &s)
	}
	return out
}

// TCP4 is a plain segment to vary.
func TCP4(payload []byte) *Packet {
	return &Packet{
		Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr("198.51.100.2"),
		SrcPort: 40000, DstPort: 80, TTL: 64, ID: 7, DF: true,
		Seq: 0xfffffc00, Ack: 99, Flags: wire.ACK, Window: 501, Payload: payload,
	}
}

// Random is n bytes that depend on seed.
func Random(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// ToV6 makes p an IPv6 packet between documentation addresses, and returns it.
func (p *Packet) ToV6() *Packet {
	p.V6, p.Src, p.Dst = true, netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:2::2")
	return p
}

// ToUDP makes p a UDP datagram, and returns it.
func (p *Packet) ToUDP() *Packet {
	p.UDP, p.Seq, p.Ack, p.Flags, p.Window, p.Options = true, 0, 0, 0, 0, nil
	return p
}
