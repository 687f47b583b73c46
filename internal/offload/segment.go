package offload

import (
	"encoding/binary"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// Segmentation follows Linux's tcp_gso_segment and __udp_gso_segment: each
// segment carries the super-frame's headers, changed in
//
//	IP       length; IPv4 also identification (+1 a segment) and header checksum
//	TCP      sequence number, FIN and PSH (last segment only), CWR (first only)
//	UDP      length
//	both     checksum
//
// Headers are written into the caller's scratch, payload stays where it is and
// is handed out as a slice of the super-frame: the caller gathers the two. Each
// segment's payload is summed once, which is the only pass over the bytes.

const (
	// MaxHeaderBytes is the longest header, Ethernet to transport, that is cut:
	// Ethernet (14), IPv6 (40), TCP with all options (60), and 78 bytes of
	// extension headers or 40 of IPv4 options. Longer ones are drop.BadOffload.
	MaxHeaderBytes = 192

	// minTCPSegment is the smallest segment size Linux itself asks for (48 bytes of
	// least MSS less 40 of options, TCP_MIN_GSO_SIZE). Smaller ones are an attempt
	// to make one frame cost sixty thousand packets.
	minTCPSegment = 8
	// maxUDPSegments is Linux's UDP_MAX_SEGMENTS since 6.9 (64 before): more is refused.
	maxUDPSegments = 128
)

// Longest headers without IPv6 extensions.
const _ = uint(MaxHeaderBytes - (wire.EthernetBytes + 60 + 60))

// Segments is one super-frame on its way to being cut. The zero value holds
// none; Reset fills it. It borrows the frame: neither may change while in use.
type Segments struct {
	b       []byte // the frame up to the end of its IP packet
	h       wire.Headers
	size    int    // payload bytes of every segment but the last
	n       int    // segments
	pseudo  uint64 // pseudo-header sum but for the length
	seq     uint32 // TCP, of the first segment
	id      uint16 // IPv4, of the first segment
	payload int
}

// Reset takes a super-frame with headers h. The metadata must agree with the
// headers, leave the transport checksum open, and ask for a sensible size;
// anything else is drop.BadOffload. A frame whose payload fits one segment gives
// one segment.
func (s *Segments) Reset(f *frame.Frame, h *wire.Headers) drop.Reason {
	*s = Segments{}
	v := &f.VNet
	if h.Fragment || !hasOwnPartial(v, h) || h.PayloadOff > MaxHeaderBytes || v.GSOSize == 0 {
		return drop.BadOffload
	}
	size, payload := int(v.GSOSize), h.End-h.PayloadOff
	l4 := f.Bytes()[h.L4Off:h.End]
	switch v.GSOType.Kind() {
	case frame.GSOTCPv4, frame.GSOTCPv6:
		if h.Proto != wire.ProtoTCP || h.V6 != (v.GSOType.Kind() == frame.GSOTCPv6) ||
			size < minTCPSegment || h.TCPFlags&(wire.SYN|wire.RST) != 0 {
			return drop.BadOffload
		}
		s.seq = binary.BigEndian.Uint32(l4[4:])
	case frame.GSOUDPL4:
		if h.Proto != wire.ProtoUDP || int(binary.BigEndian.Uint16(l4[4:])) != len(l4) ||
			payload > size*maxUDPSegments {
			return drop.BadOffload
		}
	default:
		return drop.BadOffload
	}
	s.b = f.Bytes()[:h.End]
	s.h = *h
	s.size, s.payload = size, payload
	s.n = max(1, (payload+size-1)/size)
	s.id = uint16(h.FragID) // IPv4 only
	s.pseudo = wire.PseudoSum(h, 0)
	return drop.None
}

// Len is the number of segments.
func (s *Segments) Len() int { return s.n }

// HeaderBytes is the length of every segment's headers, Ethernet to transport,
// at most MaxHeaderBytes.
func (s *Segments) HeaderBytes() int { return s.h.PayloadOff }

// MaxBytes is the length of the longest segment, Ethernet header included.
func (s *Segments) MaxBytes() int { return s.h.PayloadOff + min(s.size, s.payload) }

// At writes the headers of segment i, 0 <= i < Len, into hdr, which is HeaderBytes
// long, and returns the segment's payload, borrowed from the frame.
func (s *Segments) At(i int, hdr []byte) (payload []byte) {
	h := &s.h
	from := i * s.size
	payload = s.b[h.PayloadOff+from : h.PayloadOff+min(from+s.size, s.payload)]
	hdr = hdr[:h.PayloadOff]
	copy(hdr, s.b)

	putIPLength(hdr, h, len(hdr)-h.L3Off+len(payload))
	if !h.V6 {
		binary.BigEndian.PutUint16(hdr[h.L3Off+4:], s.id+uint16(i))
		sealIPv4(hdr, h)
	}

	l4 := hdr[h.L4Off:]
	field := l4[udpChecksum : udpChecksum+2]
	if h.Proto == wire.ProtoTCP {
		field = l4[tcpChecksum : tcpChecksum+2]
		binary.BigEndian.PutUint32(l4[4:], s.seq+uint32(from))
		if i > 0 {
			l4[13] &^= wire.CWR
		}
		if i < s.n-1 {
			l4[13] &^= wire.FIN | wire.PSH
		}
	} else {
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)+len(payload)))
	}
	binary.BigEndian.PutUint16(field, 0)
	// Transport headers have even length, so the payload continues at a word.
	sum := wire.Sum(payload, wire.Sum(l4, s.pseudo+uint64(len(l4)+len(payload))))
	binary.BigEndian.PutUint16(field, nonZero(^wire.Fold(sum)))
	return payload
}

// putIPLength writes the length of an IP packet of n bytes, header included.
func putIPLength(b []byte, h *wire.Headers, n int) {
	if h.V6 {
		binary.BigEndian.PutUint16(b[h.L3Off+4:], uint16(n-wire.IPv6Bytes))
	} else {
		binary.BigEndian.PutUint16(b[h.L3Off+2:], uint16(n))
	}
}

// sealIPv4 recomputes the IPv4 header checksum.
func sealIPv4(b []byte, h *wire.Headers) {
	ip := b[h.L3Off:h.L4Off]
	binary.BigEndian.PutUint16(ip[ipv4Checksum:], 0)
	binary.BigEndian.PutUint16(ip[ipv4Checksum:], ^wire.Fold(wire.Sum(ip, 0)))
}
