package gateway

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"vswitch/internal/wire"
	"vswitch/vswitch/flow"
)

// session is one UDP or echo flow between a pod and a peer on the host's side.
// All but the atomics is immutable.
type session struct {
	inside flow.Key       // the tuple of the pod's packets
	remote netip.AddrPort // the peer as the host knows it
	sock   *hostSocket
	route  *stack.Route // for packets to the pod
	hash   uint32       // spreads sessions over the switch's queues

	by       *entrance // what it came in by; nil: the pod began it
	endpoint uint64    // and the identity of the endpoint chosen

	used     atomic.Uint32 // tick of the last datagram
	fromPod  atomic.Uint32 // datagrams; saturation does not matter
	toPod    atomic.Uint32
	released atomic.Bool
}

func (s *session) echo() bool { return s.inside.Proto != wire.ProtoUDP }

// idleLimit is how many ticks of silence end the session. An exchange of one
// question and one answer is over sooner than a stream.
func (s *session) idleLimit(short, stream uint32) uint32 {
	if s.fromPod.Load() > 1 && s.toPod.Load() > 1 && !s.echo() {
		return stream
	}
	return short
}

// recyclable reports whether ending the session now loses nothing in all
// likelihood: each question was answered, and either it is DNS, whose clients
// take a new port for every question (RFC 5452 section 9.2), or it rests.
func (s *session) recyclable(tick uint32) bool {
	if s.by != nil || s.toPod.Load() < s.fromPod.Load() {
		return false
	}
	return s.inside.DstPort == portDNS && s.inside.Proto == wire.ProtoUDP || tick-s.used.Load() >= 5*ticksPerSec
}

// deliver sends one datagram to the pod. The netstack cuts it if it exceeds the
// MTU.
func (s *session) deliver(payload []byte) {
	if s.echo() {
		s.deliverEcho(payload)
		return
	}
	pkt := s.newPacket(payload, header.UDPMinimumSize)
	defer pkt.DecRef()
	pkt.TransportProtocolNumber = header.UDPProtocolNumber
	udp := header.UDP(pkt.TransportHeader().Push(header.UDPMinimumSize))
	length := uint16(header.UDPMinimumSize + len(payload))
	udp.Encode(&header.UDPFields{SrcPort: s.inside.DstPort, DstPort: s.inside.SrcPort, Length: length})
	sum := s.route.PseudoHeaderChecksum(header.UDPProtocolNumber, length)
	sum = ^udp.CalculateChecksum(checksum.Combine(sum, pkt.Data().Checksum()))
	if sum == 0 {
		sum = 0xffff // RFC 768: zero says that there is none
	}
	udp.SetChecksum(sum)
	s.write(pkt, header.UDPProtocolNumber)
}

// deliverEcho gives a reply the identifier that the pod asked with: the kernel
// put the socket's own into the request.
func (s *session) deliverEcho(message []byte) {
	if len(message) < wire.ICMPBytes {
		return
	}
	pkt := s.newPacket(message[wire.ICMPBytes:], wire.ICMPBytes)
	defer pkt.DecRef()
	proto, replyType := header.ICMPv4ProtocolNumber, uint8(wire.ICMPEchoReply)
	var sum uint16
	if !s.inside.Src.Is4() {
		proto, replyType = header.ICMPv6ProtocolNumber, wire.ICMPv6EchoReply
		sum = s.route.PseudoHeaderChecksum(proto, uint16(len(message)))
	}
	pkt.TransportProtocolNumber = proto
	h := pkt.TransportHeader().Push(wire.ICMPBytes)
	h[0], h[1], h[2], h[3] = replyType, 0, 0, 0
	binary.BigEndian.PutUint16(h[4:], s.inside.SrcPort)
	copy(h[6:], message[6:8])
	sum = ^checksum.Checksum(h, checksum.Combine(sum, pkt.Data().Checksum()))
	binary.BigEndian.PutUint16(h[2:], sum)
	s.write(pkt, proto)
}

func (s *session) newPacket(payload []byte, headerBytes int) *stack.PacketBuffer {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: headerBytes + int(s.route.MaxHeaderLength()),
		Payload:            buffer.MakeWithData(payload),
	})
	pkt.Hash = s.hash
	return pkt
}

func (s *session) write(pkt *stack.PacketBuffer, proto tcpip.TransportProtocolNumber) {
	// A full ring is counted there; nothing else can be done about it.
	s.route.WritePacket(stack.NetworkHeaderParams{Protocol: proto, TTL: s.route.DefaultTTL()}, pkt)
}

// quote rebuilds the packet that a host error is about, as the pod sent it, in a
// frame with an empty Ethernet header.
func (s *session) quote(payload []byte) []byte {
	payload = payload[:min(len(payload), 64)]
	l4Bytes := len(payload)
	if !s.echo() {
		l4Bytes += wire.UDPBytes
	}
	ipBytes, etherType := wire.IPv6Bytes, uint16(wire.TypeIPv6)
	if s.inside.Src.Is4() {
		ipBytes, etherType = wire.IPv4Bytes, wire.TypeIPv4
	}
	b := make([]byte, wire.EthernetBytes+ipBytes+l4Bytes)
	binary.BigEndian.PutUint16(b[12:], etherType)
	ip, l4 := b[wire.EthernetBytes:], b[wire.EthernetBytes+ipBytes:]
	if s.inside.Src.Is4() {
		ip[0] = 4<<4 | wire.IPv4Bytes/4
		binary.BigEndian.PutUint16(ip[2:], uint16(ipBytes+l4Bytes))
		ip[8], ip[9] = 1, s.inside.Proto
		copy(ip[12:], s.inside.Src[12:])
		copy(ip[16:], s.inside.Dst[12:])
		binary.BigEndian.PutUint16(ip[10:], ^wire.Fold(wire.Sum(ip[:ipBytes], 0)))
	} else {
		ip[0] = 6 << 4
		binary.BigEndian.PutUint16(ip[4:], uint16(l4Bytes))
		ip[6], ip[7] = s.inside.Proto, 1
		copy(ip[8:], s.inside.Src[:])
		copy(ip[24:], s.inside.Dst[:])
	}
	if s.echo() {
		copy(l4, payload)
		if len(l4) >= 6 {
			binary.BigEndian.PutUint16(l4[4:], s.inside.SrcPort)
		}
		return b
	}
	binary.BigEndian.PutUint16(l4, s.inside.SrcPort)
	binary.BigEndian.PutUint16(l4[2:], s.inside.DstPort)
	binary.BigEndian.PutUint16(l4[4:], uint16(l4Bytes))
	copy(l4[wire.UDPBytes:], payload)
	return b
}
