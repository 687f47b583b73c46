package vswitch_test

import (
	"net/netip"
	"testing"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/frame"
)

// marked is a frame that a member sends in the ingress network.
func marked(peer uint32, p wiretest.Packet) *frame.Frame {
	f := tunnelled(peer, p)
	f.Ingress = true
	return f
}

const otherPeer = 8

// withOtherPeer adds a second member, which owns 10.244.3.0/24.
func withOtherPeer(b *bed) *bed {
	b.fib.SetPrefix(netip.MustParsePrefix("10.244.3.0/24"), fib.NextHop{Kind: fib.Peer, Index: otherPeer})
	return b
}

// fromClient is a client's packet to pod a as the netstack of another node sends it.
func fromClient(proto uint8, v6 bool) wiretest.Packet {
	p := wiretest.Packet{Src: outside4, Dst: podA4, Proto: proto, Flags: wire.SYN, SrcPort: 40000, DstPort: 80, Payload: []byte("request")}
	if v6 {
		p.Src, p.Dst = outside6, podA6
	}
	return p
}

func answerTo(p wiretest.Packet) wiretest.Packet {
	return fromA(wiretest.Packet{Src: p.Dst, Dst: p.Src, Proto: p.Proto, Flags: wire.SYN | wire.ACK, SrcPort: p.DstPort, DstPort: p.SrcPort, Payload: []byte("answer")})
}

var ingressKinds = []struct {
	name  string
	proto uint8
	v6    bool
}{
	{"TCP over IPv4", wire.ProtoTCP, false}, {"TCP over IPv6", wire.ProtoTCP, true},
	{"UDP over IPv4", wire.ProtoUDP, false}, {"UDP over IPv6", wire.ProtoUDP, true},
}

func TestIngressKeepsTheClientAndAnswersGoBackToTheMember(t *testing.T) {
	for _, k := range ingressKinds {
		t.Run(k.name, func(t *testing.T) {
			b := newBed(t)
			p := fromClient(k.proto, k.v6)
			for range 2 { // first packet and established
				f := b.only(b.send("tunnel", marked(peerIndex, p)), "a")
				b.wantTuple(f, p.Src, 40000, p.Dst, 80)
				answer := b.only(b.send("a", owned(answerTo(p).Frame())), "tunnel")
				b.wantTuple(answer, p.Dst, 80, p.Src, 40000)
				if answer.Peer != peerIndex || answer.Ingress {
					t.Fatalf("the answer goes to member %d, marked %v; want %d, unmarked", answer.Peer, answer.Ingress, peerIndex)
				}
			}
		})
	}
}

// The guard's table: what may come by the ingress network, and under which name
// the rest is counted.
func TestIngressGuard(t *testing.T) {
	node6 := netip.MustParseAddr("2001:db8:2::1")
	for _, tt := range []struct {
		name   string
		change func(*wiretest.Packet)
		v6     bool
		want   drop.Reason
	}{
		{"a client outside to an exposed port", func(*wiretest.Packet) {}, false, drop.None},
		{"source a pod of the sender's own", func(p *wiretest.Packet) { p.Src = remote4 }, false, drop.IngressSource},
		{"source a pod of the sender's own, IPv6", func(p *wiretest.Packet) { p.Src = remote6 }, true, drop.IngressSource},
		{"source a pod of another member", func(p *wiretest.Packet) { p.Src = netip.MustParseAddr("10.244.3.9") }, false, drop.IngressSource},
		{"source a pod of this node", func(p *wiretest.Packet) { p.Src = podB4 }, false, drop.IngressSource},
		{"source the pod itself", func(p *wiretest.Packet) { p.Src = podA6 }, true, drop.IngressSource},
		{"source in the cluster range, of no node", func(p *wiretest.Packet) { p.Src = netip.MustParseAddr("10.244.99.1") }, false, drop.IngressSource},
		{"source a VIP", func(p *wiretest.Packet) { p.Src = vip4 }, false, drop.IngressSource},
		{"source a VIP, IPv6", func(p *wiretest.Packet) { p.Src = vip6 }, true, drop.IngressSource},
		{"source this node's router address", func(p *wiretest.Packet) { p.Src = router4 }, false, drop.IngressSource},
		{"source a node", func(p *wiretest.Packet) { p.Src = node4 }, false, drop.IngressSource},
		{"source a node, IPv6", func(p *wiretest.Packet) { p.Src = node6 }, true, drop.IngressSource},
		{"source loopback", func(p *wiretest.Packet) { p.Src = netip.MustParseAddr("127.0.0.1") }, false, drop.IngressSource},
		{"source link-local", func(p *wiretest.Packet) { p.Src = netip.MustParseAddr("169.254.1.1") }, false, drop.IngressSource},
		{"source multicast", func(p *wiretest.Packet) { p.Src = netip.MustParseAddr("ff02::1") }, true, drop.IngressSource},
		{"source v4-mapped", func(p *wiretest.Packet) { p.Src = netip.MustParseAddr("::ffff:198.51.100.7") }, true, drop.MartianSource},
		{"destination a pod elsewhere", func(p *wiretest.Packet) { p.Dst = remote4 }, false, drop.NotExposed},
		{"destination outside", func(p *wiretest.Packet) { p.Dst = netip.MustParseAddr("203.0.113.1") }, false, drop.NotExposed},
		{"destination a VIP", func(p *wiretest.Packet) { p.Dst = vip4 }, false, drop.NotExposed},
		{"destination the router", func(p *wiretest.Packet) { p.Dst = router6 }, true, drop.NotExposed},
		{"destination a node", func(p *wiretest.Packet) { p.Dst = node4 }, false, drop.NotExposed},
		{"destination the gateway", func(p *wiretest.Packet) { p.Dst = netip.MustParseAddr("169.254.1.1") }, false, drop.NotExposed},
		{"a port that no service exposes", func(p *wiretest.Packet) { p.DstPort = 22 }, false, drop.NotExposed},
		{"a port exposed over another protocol", func(p *wiretest.Packet) { p.Proto = wire.ProtoSCTP }, false, drop.NotExposed},
		{"an echo request", func(p *wiretest.Packet) { p.Proto, p.ICMPType = wire.ProtoICMP, wire.ICMPEcho }, false, drop.NotExposed},
		{"a protocol without ports", func(p *wiretest.Packet) { p.Proto = 47 }, false, drop.NotExposed},
		{"a stray later fragment", func(p *wiretest.Packet) { p.Proto, p.FragmentOffset = 47, 800 }, false, drop.NotExposed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := withOtherPeer(newBed(t))
			b.fib.SetHost(node6, fib.NextHop{Kind: fib.Node})
			p := fromClient(wire.ProtoTCP, tt.v6)
			tt.change(&p)
			o := b.send("tunnel", marked(peerIndex, p))
			if tt.want == drop.None {
				b.only(o, "a")
			} else {
				b.dropped(o, tt.want)
			}
			if tt.want != drop.None && b.flows.Len() != 0 {
				t.Error("it left a flow behind")
			}
		})
	}
	t.Run("unmarked, a client outside is foreign as ever", func(t *testing.T) {
		b := newBed(t)
		b.dropped(b.send("tunnel", tunnelled(peerIndex, fromClient(wire.ProtoTCP, false))), drop.ForeignSource)
	})
}

// A flow lets in only the member that it came by, and only its own direction: not
// another member's frames, nor answers to what a pod of this node has asked outside.
func TestIngressNeedsAFlowOfItsOwn(t *testing.T) {
	for _, k := range ingressKinds {
		t.Run(k.name, func(t *testing.T) {
			b := withOtherPeer(newBed(t))
			p := fromClient(k.proto, k.v6)
			b.only(b.send("tunnel", marked(peerIndex, p)), "a")
			refusal := b.only(b.send("tunnel", marked(otherPeer, p)), "tunnel", drop.SourceTaken)
			if refusal.Peer != otherPeer || refusal.Ingress {
				t.Errorf("the refusal goes to member %d, marked %v", refusal.Peer, refusal.Ingress)
			}
			h := b.headers(refusal)
			if k.proto == wire.ProtoTCP && (h.TCPFlags&wire.RST == 0 || h.Dst != wire.AddrFrom(p.Src)) || k.proto != wire.ProtoTCP && !h.IsICMPError() {
				t.Errorf("the refusal is %+v", h)
			}

			asked := answerTo(fromClient(k.proto, k.v6)) // now as the first packet, from another port
			asked.SrcPort, asked.Flags = 50000, wire.SYN
			b.only(b.send("a", owned(asked.Frame())), "gateway")
			forged := fromClient(k.proto, k.v6)
			forged.DstPort, forged.Flags = 50000, wire.SYN|wire.ACK
			b.only(b.send("tunnel", marked(peerIndex, forged)), "tunnel", drop.SourceTaken)
		})
	}
}

// This node's own netstack, too, learns that its source port towards an endpoint
// is taken by a client that came by another node.
func TestNetstackLearnsThatASourcePortIsTaken(t *testing.T) {
	for _, k := range ingressKinds {
		t.Run(k.name, func(t *testing.T) {
			b := newBed(t)
			p := fromClient(k.proto, k.v6)
			b.only(b.send("tunnel", marked(peerIndex, p)), "a")
			b.only(b.send("gateway", owned(p.Frame())), "gateway", drop.SourceTaken)
			p.SrcPort++
			b.only(b.send("gateway", owned(p.Frame())), "a")
			b.only(b.send("a", owned(answerTo(p).Frame())), "gateway")
			b.only(b.send("tunnel", marked(peerIndex, p)), "tunnel", drop.SourceTaken)
		})
	}
}

// The side of the client's node: what the netstack sends with a client's address
// is marked, what it sends with the router's is not, and neither is a pod's.
func TestNetstackFramesToOtherNodesAreMarked(t *testing.T) {
	for _, tt := range []struct {
		name     string
		from     string
		src, dst netip.Addr
		want     bool
	}{
		{"a client outside", "gateway", outside4, remote4, true},
		{"a client outside, IPv6", "gateway", outside6, remote6, true},
		{"the router address", "gateway", router4, remote4, false},
		{"a pod", "a", podA4, remote4, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			p := wiretest.Packet{Src: tt.src, Dst: tt.dst, Proto: wire.ProtoTCP, Flags: wire.SYN, SrcPort: 40000, DstPort: 80}
			if tt.from == "a" {
				p = fromA(p)
			}
			for range 2 {
				f := b.only(b.send(tt.from, owned(p.Frame())), "tunnel")
				if f.Ingress != tt.want || f.Peer != peerIndex {
					t.Fatalf("marked %v, to member %d; want %v, %d", f.Ingress, f.Peer, tt.want, peerIndex)
				}
			}
			answer := wiretest.Packet{Src: tt.dst, Dst: tt.src, Proto: wire.ProtoTCP, Flags: wire.SYN | wire.ACK, SrcPort: 80, DstPort: 40000}
			b.only(b.send("tunnel", tunnelled(peerIndex, answer)), tt.from)
		})
	}
}

// A pod whose client's node has forgotten the connection hears it from the
// client: by a reset that its own node lets in, as the flow is still there.
func TestForgottenIngressConnectionIsReset(t *testing.T) {
	b := newBed(t)
	answer := wiretest.Packet{Src: remote4, Dst: outside4, Proto: wire.ProtoTCP, Flags: wire.ACK, SrcPort: 80, DstPort: 40000}
	reset := b.only(b.send("tunnel", tunnelled(peerIndex, answer)), "tunnel", drop.NoFlow)
	b.wantTuple(reset, outside4, 40000, remote4, 80)
	if !reset.Ingress || reset.Peer != peerIndex {
		t.Errorf("marked %v, to member %d", reset.Ingress, reset.Peer)
	}
}

// ICMP errors about an ingress flow: the pod's own go back to the member, the
// client's or a router's come in, those about nobody's flow do not.
func TestErrorsAboutIngressFlows(t *testing.T) {
	b := newBed(t)
	p := fromClient(wire.ProtoUDP, false)
	b.only(b.send("tunnel", marked(peerIndex, p)), "a")

	unreachable := func(src, dst netip.Addr, about wiretest.Packet) wiretest.Packet {
		return wiretest.Packet{Src: src, Dst: dst, Proto: wire.ProtoICMP, ICMPType: wire.ICMPUnreachable, Code: 3, Payload: about.IP()}
	}
	out := b.only(b.send("a", owned(fromA(unreachable(podA4, outside4, p)).Frame())), "tunnel")
	if out.Peer != peerIndex || out.Ingress {
		t.Errorf("the pod's error goes to member %d, marked %v", out.Peer, out.Ingress)
	}
	answer := answerTo(p)
	b.only(b.send("tunnel", marked(peerIndex, unreachable(outside4, podA4, answer))), "a")
	b.only(b.send("tunnel", marked(peerIndex, unreachable(netip.MustParseAddr("203.0.113.9"), podA4, answer))), "a")

	b.dropped(b.send("tunnel", marked(otherPeer, unreachable(outside4, podA4, answer))), drop.NotExposed)
	stranger := answer
	stranger.DstPort++
	b.dropped(b.send("tunnel", marked(peerIndex, unreachable(outside4, podA4, stranger))), drop.NoFlow)
}

// A large datagram in pieces goes both ways, whoever's piece comes first; pieces
// of another member don't get in.
func TestIngressFragments(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		b := withOtherPeer(newBed(t))
		p := fromClient(wire.ProtoUDP, v6)
		p.Payload = pattern(3000)
		for i, raw := range wiretest.Fragments(p.Frame(), 77, 1200, 0) {
			f := owned(raw)
			f.Peer, f.Ingress = peerIndex, true
			b.only(b.send("tunnel", f), "a")
			forged := owned(raw)
			forged.Peer, forged.Ingress = otherPeer, true
			if i == 0 {
				b.only(b.send("tunnel", forged), "tunnel", drop.SourceTaken)
			} else {
				b.dropped(b.send("tunnel", forged), drop.StrayFragment)
			}
		}
		answer := answerTo(p)
		answer.Payload = pattern(3000)
		for _, raw := range wiretest.Fragments(answer.Frame(), 78, 1200, 0) {
			if out := b.only(b.send("a", owned(raw)), "tunnel"); out.Peer != peerIndex {
				t.Errorf("a piece of the answer goes to member %d", out.Peer)
			}
		}
	}
}
