package gateway

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
)

// Inbound decides about a frame from a pod before the netstack sees it; switch
// workers call it, by way of link. TCP goes to the netstack unless it begins a
// connection that is refused. UDP and echo go to the relay. Fragments go to the
// netstack to be joined, and what they carry comes back by fromNetstack. ICMP
// errors go to the netstack, whose connections they may be about.
func (g *Gateway) Inbound(f *frame.Frame, h *wire.Headers) bool {
	if h.V6 == h.Dst.Is4() || h.V6 == h.Src.Is4() { // v4-mapped addresses in IPv6
		f.Drop = drop.MartianTarget
		return true
	}
	if h.Fragment && !h.LaterFrag && !g.joins.admit(&h.Src) {
		f.Drop = drop.EgressFull
		return true
	}
	switch {
	case h.Proto == wire.ProtoTCP:
		f.Drop = g.judgeTCP(f, h)
		return f.Drop != drop.None
	case h.IsICMPError():
		return g.relay.sourceTaken(f.Bytes(), h)
	case h.Fragment && canRelay(h.Proto):
		return false
	case h.Proto == wire.ProtoUDP && g.dns.takes(h):
		f.Drop = g.dns.fromFrame(f, h)
	case h.Proto == wire.ProtoUDP:
		f.Drop = g.relayFrame(f, h, f.Bytes()[h.PayloadOff:h.L4Off+udpBytes(f, h)])
	case isEchoRequest(h):
		f.Drop = g.relayFrame(f, h, f.Bytes()[h.L4Off:h.End])
	default:
		f.Drop = drop.UnsupportedL4
		g.refuser.refuse(f.Bytes(), h, adminProhibited)
	}
	return true
}

func canRelay(proto uint8) bool {
	return proto == wire.ProtoUDP || proto == wire.ProtoICMP || proto == wire.ProtoICMPv6
}

func isEchoRequest(h *wire.Headers) bool {
	return h.IsEcho() && (h.ICMPType == wire.ICMPEcho || h.ICMPType == wire.ICMPv6Echo)
}

// udpBytes is the length of header and payload: the field of the header, which
// parsing has bounded, or for a super-frame all there is.
func udpBytes(f *frame.Frame, h *wire.Headers) int {
	if f.VNet.IsGSO() {
		return h.End - h.L4Off
	}
	return int(binary.BigEndian.Uint16(f.Bytes()[h.L4Off+4:]))
}

// judgeTCP looks at segments that begin a connection. A cap on connections under
// way passes in a moment: silence makes the pod try again, where a reset would
// make its program fail.
func (g *Gateway) judgeTCP(f *frame.Frame, h *wire.Headers) drop.Reason {
	if !h.HasL4 || h.TCPFlags&(wire.SYN|wire.ACK|wire.RST) != wire.SYN {
		return drop.None
	}
	if g.draining.Load() {
		return drop.Draining
	}
	k := flow.KeyOf(h)
	r, tell := g.judgeConnection(&k)
	switch r {
	case drop.EgressDenied:
		g.counters.egressForbidden.Add(1)
	case drop.ConnectionCap:
		g.counters.egressCapped.Add(1)
	}
	if tell {
		g.refuser.refuse(f.Bytes(), h, adminProhibited)
	}
	return r
}

// judgeConnection says whether a pod may open a connection by the gateway, and if
// not, whether it is told. It changes nothing.
func (g *Gateway) judgeConnection(k *flow.Key) (_ drop.Reason, tell bool) {
	if !g.servesTCP(k) {
		return drop.EgressDenied, true
	}
	switch g.usage.check(k) {
	case overCap:
		return drop.ConnectionCap, true
	case overHalfOpen:
		return drop.ConnectionCap, false
	}
	return drop.None, false
}

// relayFrame sends a whole datagram or echo request on, and answers for what
// keeps it.
func (g *Gateway) relayFrame(f *frame.Frame, h *wire.Headers, payload []byte) drop.Reason {
	d := datagram{key: flow.KeyOf(h), ttl: h.TTL, payload: payload}
	if f.VNet.IsGSO() {
		d.segmentBytes = f.VNet.GSOSize
	}
	reason := g.relay.fromPod(&d)
	switch reason {
	case drop.EgressDenied, drop.EchoForbidden:
		g.refuser.refuse(f.Bytes(), h, adminProhibited)
	case drop.NoRoute:
		g.refuser.refuse(f.Bytes(), h, hostUnreachable)
	}
	return reason
}

// fromNetstack is the netstack's handler for packets of one protocol that it
// joined from fragments: it has no endpoint for UDP or echo, and whole ones never
// reach it. Nothing is answered for what can't be sent.
func (g *Gateway) fromNetstack(proto uint8) func(stack.TransportEndpointID, *stack.PacketBuffer) bool {
	return func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		d := datagram{key: flow.Key{
			Src: addrOf(id.RemoteAddress), SrcPort: id.RemotePort,
			Dst: addrOf(id.LocalAddress), DstPort: id.LocalPort, Proto: proto,
		}}
		switch ip := pkt.Network().(type) {
		case header.IPv4:
			d.ttl = ip.TTL()
		case header.IPv6:
			d.ttl = ip.HopLimit()
		}
		l4 := append(pkt.TransportHeader().View().ToSlice(), pkt.Data().AsRange().ToSlice()...)
		if proto == wire.ProtoUDP {
			d.payload = joinedUDP(&d.key, l4)
		} else if len(l4) >= wire.ICMPBytes { // netstack has verified the checksum
			d.payload = l4
			d.key.SrcPort = binary.BigEndian.Uint16(l4[4:])
			d.key.DstPort = d.key.SrcPort
		}
		switch {
		case d.payload == nil:
		case g.dns.serves(&d.key):
			g.dns.fromPod(&d.key, d.payload)
		default:
			g.relay.fromPod(&d)
		}
		return true
	}
}

// joinedUDP is the payload of a datagram with a good length and checksum, or nil.
func joinedUDP(k *flow.Key, l4 []byte) []byte {
	if len(l4) < wire.UDPBytes {
		return nil
	}
	n := int(binary.BigEndian.Uint16(l4[4:]))
	if n < wire.UDPBytes || n > len(l4) {
		return nil
	}
	h := wire.Headers{V6: !k.Src.Is4(), Proto: wire.ProtoUDP, Src: k.Src, Dst: k.Dst}
	absent := l4[6] == 0 && l4[7] == 0 && !h.V6
	if !absent && wire.Fold(wire.Sum(l4[:n], wire.PseudoSum(&h, n))) != 0xffff {
		return nil
	}
	return l4[wire.UDPBytes:n]
}
