package offload_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"vswitch/internal/wire"
	"vswitch/vswitch/frame"
)

// The slow twin: packets built field by field from a description, checksums by
// the sixteen-bit loop of RFC 1071 section 4.1. It shares no arithmetic with the
// code under test.

// packet describes one TCP or UDP packet.
type packet struct {
	v6         bool
	udp        bool
	src, dst   netip.Addr
	sport      uint16
	dport      uint16
	tos, ttl   uint8
	id         uint16 // IPv4
	df         bool   // IPv4
	seq, ack   uint32
	flags      uint8
	window     uint16
	options    []byte // TCP, a multiple of 4
	extensions []byte // IPv6 destination options, a multiple of 8
	payload    []byte
}

func slowSum(b []byte) uint32 {
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
func (p *packet) pseudo(l4Bytes int) []byte {
	b := append(p.src.AsSlice(), p.dst.AsSlice()...)
	if p.v6 {
		b = binary.BigEndian.AppendUint32(b, uint32(l4Bytes))
		return append(b, 0, 0, 0, p.proto())
	}
	b = append(b, 0, p.proto())
	return binary.BigEndian.AppendUint16(b, uint16(l4Bytes))
}

func (p *packet) proto() uint8 {
	if p.udp {
		return wire.ProtoUDP
	}
	return wire.ProtoTCP
}

// l3Bytes is the length of Ethernet and IP headers.
func (p *packet) l3Bytes() int {
	if p.v6 {
		return 14 + 40 + len(p.extensions)
	}
	return 14 + 20
}

// headerBytes is the length of all headers.
func (p *packet) headerBytes() int {
	if p.udp {
		return p.l3Bytes() + 8
	}
	return p.l3Bytes() + 20 + len(p.options)
}

// bytes builds the frame; with partial, the checksum is left to be completed.
func (p *packet) bytes(partial bool) []byte {
	var l4 []byte
	field := 16
	if p.udp {
		field = 6
		l4 = binary.BigEndian.AppendUint16(l4, p.sport)
		l4 = binary.BigEndian.AppendUint16(l4, p.dport)
		l4 = binary.BigEndian.AppendUint16(l4, uint16(8+len(p.payload)))
		l4 = append(l4, 0, 0)
	} else {
		l4 = binary.BigEndian.AppendUint16(l4, p.sport)
		l4 = binary.BigEndian.AppendUint16(l4, p.dport)
		l4 = binary.BigEndian.AppendUint32(l4, p.seq)
		l4 = binary.BigEndian.AppendUint32(l4, p.ack)
		l4 = append(l4, uint8(5+len(p.options)/4)<<4, p.flags)
		l4 = binary.BigEndian.AppendUint16(l4, p.window)
		l4 = append(l4, 0, 0, 0, 0)
		l4 = append(l4, p.options...)
	}
	l4 = append(l4, p.payload...)
	pseudo := p.pseudo(len(l4))
	if partial {
		binary.BigEndian.PutUint16(l4[field:], uint16(slowSum(pseudo)))
	} else {
		sum := ^uint16(slowSum(append(pseudo, l4...)))
		if sum == 0 {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(l4[field:], sum)
	}

	b := []byte{2, 0, 0x5e, 0, 0, 2, 2, 0, 0x5e, 0, 0, 1}
	if p.v6 {
		b = append(b, 0x86, 0xdd)
		b = append(b, 0x60|p.tos>>4, p.tos<<4, 0x12, 0x34)
		b = binary.BigEndian.AppendUint16(b, uint16(len(p.extensions)+len(l4)))
		next := p.proto()
		if len(p.extensions) > 0 {
			p.extensions[0], next = p.proto(), wire.ProtoDstOpts
		}
		b = append(b, next, p.ttl)
		b = append(b, p.src.AsSlice()...)
		b = append(b, p.dst.AsSlice()...)
		b = append(b, p.extensions...)
	} else {
		b = append(b, 8, 0)
		ip := []byte{0x45, p.tos}
		ip = binary.BigEndian.AppendUint16(ip, uint16(20+len(l4)))
		ip = binary.BigEndian.AppendUint16(ip, p.id)
		if p.df {
			ip = append(ip, 0x40, 0)
		} else {
			ip = append(ip, 0, 0)
		}
		ip = append(ip, p.ttl, p.proto(), 0, 0)
		ip = append(ip, p.src.AsSlice()...)
		ip = append(ip, p.dst.AsSlice()...)
		binary.BigEndian.PutUint16(ip[10:], ^uint16(slowSum(ip)))
		b = append(b, ip...)
	}
	return append(b, l4...)
}

// super is p as a super-frame of segments of size bytes, as a pod's kernel emits it.
func (p *packet) super(size int) *frame.Frame {
	f := frame.New()
	f.Set(p.bytes(true))
	v := frame.VNet{
		Flags: frame.NeedsCsum, HdrLen: uint16(p.headerBytes()), GSOSize: uint16(size),
		CsumStart: uint16(p.l3Bytes()), CsumOffset: 16,
	}
	switch {
	case p.udp:
		v.GSOType, v.CsumOffset = frame.GSOUDPL4, 6
	case p.v6:
		v.GSOType = frame.GSOTCPv6
	default:
		v.GSOType = frame.GSOTCPv4
	}
	if !p.udp && p.flags&wire.CWR != 0 {
		v.GSOType |= frame.GSOECN
	}
	f.VNet = v
	return f
}

// cut is the slow segmenter: the packets that p stands for.
func (p *packet) cut(size int) []*packet {
	var out []*packet
	for at := 0; at == 0 || at < len(p.payload); at += size {
		s := *p
		s.payload = p.payload[at:min(at+size, len(p.payload))]
		s.seq += uint32(at)
		s.id += uint16(len(out))
		if at > 0 {
			s.flags &^= wire.CWR
		}
		if at+size < len(p.payload) {
			s.flags &^= wire.FIN | wire.PSH
		}
		out = append(out, &s)
	}
	return out
}

// tcp4 is a plain segment to vary.
func tcp4(payload []byte) *packet {
	return &packet{
		src: netip.MustParseAddr("192.0.2.1"), dst: netip.MustParseAddr("198.51.100.2"),
		sport: 40000, dport: 80, ttl: 64, id: 7, df: true,
		seq: 0xfffffc00, ack: 99, flags: wire.ACK, window: 501, payload: payload,
	}
}

// bytesOf is n bytes that depend on seed.
func bytesOf(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}
