package vswitch_test

import (
	"net/netip"
	"testing"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// tuple is what a packet says of its connection.
type tuple struct {
	src, dst netip.AddrPort
}

func tupleOf(h *wire.Headers) tuple {
	return tuple{netip.AddrPortFrom(h.Src.Netip(), h.SrcPort), netip.AddrPortFrom(h.Dst.Netip(), h.DstPort)}
}

func (b *bed) wantTuple(f *frame.Frame, src netip.Addr, srcPort uint16, dst netip.Addr, dstPort uint16) {
	b.t.Helper()
	h := b.headers(f)
	if got, want := tupleOf(&h), (tuple{netip.AddrPortFrom(src, srcPort), netip.AddrPortFrom(dst, dstPort)}); got != want {
		b.t.Errorf("packet %v, want %v", got, want)
	}
}

// A connection to a VIP and its answers, for both families, TCP, UDP and SCTP,
// with the endpoint here and on another node.
func TestServiceFlow(t *testing.T) {
	for _, tt := range []struct {
		name          string
		vip, endpoint netip.Addr
		proto         uint8
		out           string
	}{
		{"TCP to an endpoint of this node", vip4, podB4, 6, "b"},
		{"UDP to an endpoint of this node", vip4, podB4, 17, "b"},
		{"SCTP to an endpoint of this node", vip4, podB4, 132, "b"},
		{"TCP over IPv6 to an endpoint of this node", vip6, podB6, 6, "b"},
		{"UDP over IPv6 to an endpoint of this node", vip6, podB6, 17, "b"},
		{"TCP to an endpoint of another node", vip4, remote4, 6, "tunnel"},
		{"UDP over IPv6 to an endpoint of another node", vip6, remote6, 17, "tunnel"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			b.services.set(tt.vip, netip.AddrPortFrom(tt.endpoint, 8080))
			client := podA4
			if tt.vip.Is6() {
				client = podA6
			}
			request := fromA(wiretest.Packet{Dst: tt.vip, Proto: tt.proto, Flags: wire.SYN, SrcPort: 40000, DstPort: 80, Payload: []byte("hello")})
			for range 2 { // the first packet and an established one
				f := b.only(b.send("a", owned(request.Frame())), tt.out)
				b.wantTuple(f, client, 40000, tt.endpoint, 8080)
			}
			answer := wiretest.Packet{Src: tt.endpoint, Dst: client, Proto: tt.proto, Flags: wire.SYN | wire.ACK, SrcPort: 8080, DstPort: 40000, Payload: []byte("world")}
			in := tunnelled(peerIndex, answer)
			if tt.out == "b" {
				in = owned(fromB(answer).Frame())
			}
			f := b.only(b.send(tt.out, in), "a")
			b.wantTuple(f, tt.vip, 80, client, 40000)
		})
	}
}

func TestServiceRewriteOfSuperFrameWithPartialChecksum(t *testing.T) {
	for _, vip := range []netip.Addr{vip4, vip6} {
		b := newBed(t)
		syn := fromA(wiretest.Packet{Dst: vip, Proto: 6, Flags: wire.SYN, SrcPort: 40000, DstPort: 80})
		b.only(b.send("a", owned(syn.Frame())), "b")

		p := fromA(wiretest.Packet{Dst: vip, Proto: 6, Flags: wire.ACK, SrcPort: 40000, DstPort: 80, Payload: make([]byte, 40000)})
		f, l4 := partial(p)
		f.VNet.GSOType, f.VNet.GSOSize = frame.GSOTCPv4, 1390
		if vip.Is6() {
			f.VNet.GSOType = frame.GSOTCPv6
		}
		got := b.only(b.send("a", f), "b")
		complete(got, l4)
		if !wiretest.TransportIntact(got.Bytes()) {
			t.Errorf("VIP %v: completing the rewritten partial checksum gives a wrong sum", vip)
		}
	}
}

// partial is the frame as a kernel with checksum offload hands it out: the field
// holds the folded sum of the pseudo-header.
func partial(p wiretest.Packet) (f *frame.Frame, l4Off int) {
	raw := p.Frame()
	l4Off = 34
	pseudo := append(p.Src.AsSlice(), p.Dst.AsSlice()...)
	if p.Src.Is6() {
		l4Off = 54
	}
	length := len(raw) - l4Off
	pseudo = append(pseudo, 0, p.Proto, byte(length>>8), byte(length))
	sum := wiretest.Sum16(pseudo)
	raw[l4Off+16], raw[l4Off+17] = byte(sum>>8), byte(sum)
	f = owned(raw)
	f.VNet = frame.VNet{Flags: frame.NeedsCsum, HdrLen: uint16(l4Off + 20), CsumStart: uint16(l4Off), CsumOffset: 16}
	return f, l4Off
}

// complete does what the last kernel does with a partial checksum.
func complete(f *frame.Frame, l4Off int) {
	sum := ^wiretest.Sum16(f.Bytes()[l4Off:])
	f.Bytes()[l4Off+16], f.Bytes()[l4Off+17] = byte(sum>>8), byte(sum)
}

// A pod that is its own endpoint sees the router as its client (case 11).
func TestHairpin(t *testing.T) {
	for _, tt := range []struct{ vip, pod, router netip.Addr }{{vip4, podA4, router4}, {vip6, podA6, router6}} {
		b := newBed(t)
		b.services.set(tt.vip, netip.AddrPortFrom(tt.pod, 8080))
		f := b.only(b.send("a", owned(fromA(wiretest.Packet{Dst: tt.vip, Proto: 6, Flags: wire.SYN, SrcPort: 40000, DstPort: 80}).Frame())), "a")
		b.wantTuple(f, tt.router, 40000, tt.pod, 8080)
		f = b.only(b.send("a", owned(fromA(wiretest.Packet{Dst: tt.router, Proto: 6, Flags: wire.SYN | wire.ACK, SrcPort: 8080, DstPort: 40000}).Frame())), "a")
		b.wantTuple(f, tt.vip, 80, tt.pod, 40000)
	}
}

// One source port to a VIP and to the endpoint behind it: the later flow comes
// from another port, in either order, and both get their answers.
func TestFlowsWhoseAnswersWouldLookAlike(t *testing.T) {
	for _, tt := range []struct {
		name                  string
		proto                 uint8
		vip, client, endpoint netip.Addr
		out                   string
	}{
		{"TCP", 6, vip4, podA4, podB4, "b"},
		{"UDP", 17, vip4, podA4, podB4, "b"},
		{"SCTP", 132, vip4, podA4, podB4, "b"},
		{"TCP over IPv6", 6, vip6, podA6, podB6, "b"},
		{"UDP over IPv6", 17, vip6, podA6, podB6, "b"},
		{"SCTP over IPv6", 132, vip6, podA6, podB6, "b"},
		{"TCP to another node", 6, vip4, podA4, remote4, "tunnel"},
		{"UDP over IPv6 to another node", 17, vip6, podA6, remote6, "tunnel"},
	} {
		toVIP := fromA(wiretest.Packet{Dst: tt.vip, Proto: tt.proto, Flags: wire.SYN, SrcPort: 40000, DstPort: 80, Payload: []byte("v")})
		direct := fromA(wiretest.Packet{Dst: tt.endpoint, Proto: tt.proto, Flags: wire.SYN, SrcPort: 40000, DstPort: 8080, Payload: []byte("d")})
		for order, packets := range map[string][2]wiretest.Packet{"VIP first": {toVIP, direct}, "direct first": {direct, toVIP}} {
			t.Run(tt.name+", "+order, func(t *testing.T) {
				b := newBed(t)
				b.services.set(tt.vip, netip.AddrPortFrom(tt.endpoint, 8080))
				var ports [2]uint16
				for i, p := range packets {
					h := b.headers(b.only(b.send("a", owned(p.Frame())), tt.out))
					ports[i] = h.SrcPort
				}
				if ports[0] != 40000 || ports[1] == 40000 {
					t.Fatalf("source ports %d, want 40000 and another", ports)
				}
				for i, request := range packets {
					answer := wiretest.Packet{Src: tt.endpoint, Dst: tt.client, Proto: tt.proto, Flags: wire.SYN | wire.ACK, SrcPort: 8080, DstPort: ports[i], Payload: []byte("a")}
					in := tunnelled(peerIndex, answer)
					if tt.out == "b" {
						in = owned(fromB(answer).Frame())
					}
					f := b.only(b.send(tt.out, in), "a")
					b.wantTuple(f, request.Dst, request.DstPort, tt.client, 40000)
				}
			})
		}
	}
}

// Two services with one endpoint behind them, asked from one port: the endpoint
// sees two clients, and each answer comes from the service that was asked.
func TestTwoServicesOfOneEndpoint(t *testing.T) {
	other := netip.MustParseAddr("10.96.0.11")
	for _, proto := range []uint8{6, 17, 132} {
		b := newBed(t)
		b.services.set(other, netip.AddrPortFrom(podB4, 8080))
		seen := map[uint16]bool{}
		for _, vip := range []netip.Addr{vip4, other} {
			request := fromA(wiretest.Packet{Dst: vip, Proto: proto, Flags: wire.SYN, SrcPort: 40000, DstPort: 80})
			h := b.headers(b.only(b.send("a", owned(request.Frame())), "b"))
			seen[h.SrcPort] = true
			answer := fromB(wiretest.Packet{Dst: podA4, Proto: proto, Flags: wire.SYN | wire.ACK, SrcPort: 8080, DstPort: h.SrcPort})
			b.wantTuple(b.only(b.send("b", owned(answer.Frame())), "a"), vip, 80, podA4, 40000)
		}
		if len(seen) != 2 {
			t.Errorf("protocol %d: both came from %v", proto, seen)
		}
	}
}

// Two pods ping each other with one identifier: requests and answers of both look
// alike, and nothing has to be rewritten.
func TestPodsPingEachOtherWithOneIdentifier(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		b := newBed(t)
		a4, b4, proto, request, reply := podA4, podB4, uint8(1), uint8(8), uint8(0)
		if v6 {
			a4, b4, proto, request, reply = podA6, podB6, 58, 128, 129
		}
		for range 2 {
			for _, icmpType := range []uint8{request, reply} {
				p := wiretest.Packet{Proto: proto, ICMPType: icmpType, EchoID: 7, EchoSeq: 1, Payload: []byte("ping")}
				there, back := p, p
				there.Dst, back.Dst = b4, a4
				f := b.only(b.send("a", owned(fromA(there).Frame())), "b")
				b.wantTuple(f, a4, 7, b4, 7)
				f = b.only(b.send("b", owned(fromB(back).Frame())), "a")
				b.wantTuple(f, b4, 7, a4, 7)
			}
		}
	}
}

// The netstack speaks to a pod with a client's own address; the pod's answers go
// back to it, whoever the FIB thinks owns that address.
func TestAnswersToTheGatewaysFlows(t *testing.T) {
	for _, client := range []netip.Addr{outside4, outside6, router4, remote4} {
		b := newBed(t)
		pod := podA4
		if client.Is6() {
			pod = podA6
		}
		in := owned(wiretest.Packet{Src: client, Dst: pod, Proto: 6, Flags: wire.SYN, SrcPort: 50000, DstPort: 8080}.Frame())
		b.only(b.send("gateway", in), "a")
		answer := fromA(wiretest.Packet{Dst: client, Proto: 6, Flags: wire.SYN | wire.ACK, SrcPort: 8080, DstPort: 50000})
		f := b.only(b.send("a", owned(answer.Frame())), "gateway")
		b.wantTuple(f, pod, 8080, client, 50000)
		// An error the pod raises about that flow belongs to the gateway too.
		quoted := wiretest.Packet{Src: client, Dst: pod, Proto: 6, Flags: wire.SYN, SrcPort: 50000, DstPort: 8080}
		oops := fromA(wiretest.Packet{Dst: client, Proto: 1, ICMPType: 3, Code: 3, Payload: quoted.IP()})
		if client.Is6() {
			oops.Proto, oops.ICMPType, oops.Code = 58, 1, 4
		}
		b.only(b.send("a", owned(oops.Frame())), "gateway")
	}
}

// An ICMP message that is no echo has no identifier, so an error about one says nothing
// of the echo flow whose identifier is zero.
func TestErrorsAboutOtherICMPAreAboutNoFlow(t *testing.T) {
	b := newBed(t)
	ping := wiretest.Packet{Src: outside4, Dst: podA4, Proto: wire.ProtoICMP, ICMPType: wire.ICMPEcho}
	b.only(b.send("gateway", owned(ping.Frame())), "a")
	about := func(p wiretest.Packet) outcome {
		return b.send("a", owned(fromA(wiretest.Packet{Dst: outside4, Proto: wire.ProtoICMP, ICMPType: wire.ICMPUnreachable, Payload: p.IP()}).Frame()))
	}
	b.only(about(ping), "gateway")
	timestamp := ping
	timestamp.ICMPType = 13 // RFC 792
	b.dropped(about(timestamp), drop.NoFlow)
}

// An ICMP error about a rewritten flow reaches the client with the VIP in it.
func TestErrorsAboutServiceFlowsAreTranslated(t *testing.T) {
	for _, tt := range []struct {
		name                      string
		vip, endpoint, from, want netip.Addr
		proto                     uint8
	}{
		{"from the endpoint, UDP", vip4, remote4, remote4, vip4, 17},
		{"from the endpoint, TCP", vip4, remote4, remote4, vip4, 6},
		{"from a router between", vip4, remote4, netip.MustParseAddr("10.244.2.1"), netip.MustParseAddr("10.244.2.1"), 17},
		{"from the endpoint over IPv6", vip6, remote6, remote6, vip6, 17},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			b.services.set(tt.vip, netip.AddrPortFrom(tt.endpoint, 8080))
			request := fromA(wiretest.Packet{Dst: tt.vip, Proto: tt.proto, Flags: wire.SYN, SrcPort: 40000, DstPort: 80, Payload: []byte("x")})
			sent := b.only(b.send("a", owned(request.Frame())), "tunnel")
			oops := wiretest.Packet{Src: tt.from, Dst: request.Src, Proto: 1, ICMPType: 3, Code: 3, Payload: sent.Bytes()[14:]}
			if tt.vip.Is6() {
				oops.Proto, oops.ICMPType, oops.Code = 58, 1, 4
			}
			f := b.only(b.send("tunnel", tunnelled(peerIndex, oops)), "a")
			h := b.headers(f)
			if h.Src.Netip() != tt.want || h.Dst.Netip() != request.Src {
				t.Errorf("error from %v to %v, want from %v to %v", h.Src, h.Dst, tt.want, request.Src)
			}
			var q wire.Headers
			if r := wire.ParseQuoted(f.Bytes()[h.PayloadOff:h.End], &q); r != drop.None {
				t.Fatal(r)
			}
			if got, want := tupleOf(&q), (tuple{netip.AddrPortFrom(request.Src, 40000), netip.AddrPortFrom(tt.vip, 80)}); got != want {
				t.Errorf("quotes %v, want %v", got, want)
			}
		})
	}
}

// Echo through two pods with one identifier: each gets its own answer.
func TestEchoIdentifiersDoNotMix(t *testing.T) {
	b := newBed(t)
	for _, p := range []wiretest.Packet{
		fromA(wiretest.Packet{Dst: remote4, Proto: 1, ICMPType: 8, EchoID: 5, EchoSeq: 1}),
		fromB(wiretest.Packet{Dst: remote4, Proto: 1, ICMPType: 8, EchoID: 5, EchoSeq: 1}),
	} {
		from, to := "a", podA4
		if p.Src == podB4 {
			from, to = "b", podB4
		}
		b.only(b.send(from, owned(p.Frame())), "tunnel")
		reply := wiretest.Packet{Src: remote4, Dst: to, Proto: 1, EchoID: 5, EchoSeq: 1}
		b.only(b.send("tunnel", tunnelled(peerIndex, reply)), from)
	}
}

// A flow that the gateway serves itself keeps its tuple, whoever the address
// belongs to by the FIB; the answers come from the address asked.
func TestGatewayServesFlow(t *testing.T) {
	for _, tt := range []struct {
		name   string
		addr   netip.Addr
		client netip.Addr
		proto  uint8
	}{
		{"TCP to a VIP", vip4, podA4, wire.ProtoTCP},
		{"UDP to a VIP", vip4, podA4, wire.ProtoUDP},
		{"TCP to a VIP over IPv6", vip6, podA6, wire.ProtoTCP},
		{"TCP to a node's address", node4, podA4, wire.ProtoTCP},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			b.services.serve(tt.addr)
			request := fromA(wiretest.Packet{Dst: tt.addr, Proto: tt.proto, Flags: wire.SYN, SrcPort: 40000, DstPort: 80})
			for range 2 {
				f := b.only(b.send("a", owned(request.Frame())), "gateway")
				b.wantTuple(f, tt.client, 40000, tt.addr, 80)
			}
			answer := wiretest.Packet{Src: tt.addr, Dst: tt.client, Proto: tt.proto, Flags: wire.SYN | wire.ACK, SrcPort: 80, DstPort: 40000}
			f := b.only(b.send("gateway", owned(answer.Frame())), "a")
			b.wantTuple(f, tt.addr, 80, tt.client, 40000)
		})
	}
}

// A node's address at a port of a service is a VIP for pods; at another port it
// is the node's own, behind the gateway.
func TestNodeAddressIsVIPAtServicePort(t *testing.T) {
	b := newBed(t)
	b.services.set(node4, netip.AddrPortFrom(podB4, 8080))
	request := fromA(wiretest.Packet{Dst: node4, Proto: wire.ProtoTCP, Flags: wire.SYN, SrcPort: 40000, DstPort: 80})
	b.wantTuple(b.only(b.send("a", owned(request.Frame())), "b"), podA4, 40000, podB4, 8080)

	request.DstPort = 22
	b.wantTuple(b.only(b.send("a", owned(request.Frame())), "gateway"), podA4, 40000, node4, 22)

	request.SrcPort, request.DstPort, request.Flags = 40001, 80, wire.ACK // of a connection that nobody knows
	reset := b.only(b.send("a", owned(request.Frame())), "a", drop.NoFlow)
	b.wantTuple(reset, node4, 80, podA4, 40001)
}

// Programs on the nodes' own network are endpoints, the API server among them: their
// packets leave by the gateway, and the answers come back as the service's. Only the
// tunnel is none (case 35).
func TestEndpointsAtNodes(t *testing.T) {
	for _, tt := range []struct {
		name     string
		endpoint netip.AddrPort
		proto    uint8
		out      string // empty: dropped
	}{
		{"a server on a node, over TCP", netip.AddrPortFrom(node4, 6443), 6, "gateway"},
		{"a server on a node, over UDP", netip.AddrPortFrom(node4, 53), 17, "gateway"},
		{"TCP to the number of the tunnel's port", netip.AddrPortFrom(node4, 8472), 6, "gateway"},
		{"a pod's port of that number", netip.AddrPortFrom(podB4, 8472), 17, "b"},
		{"a node's tunnel", netip.AddrPortFrom(node4, 8472), 17, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			b.services.set(vip4, tt.endpoint)
			request := fromA(wiretest.Packet{Dst: vip4, Proto: tt.proto, Flags: wire.SYN, SrcPort: 40000, DstPort: 80, Payload: []byte("hello")})
			if tt.out == "" {
				for range 2 { // nor does the first packet leave a flow for the next
					b.dropped(b.send("a", owned(request.Frame())), drop.TunnelPort)
				}
				return
			}
			f := b.only(b.send("a", owned(request.Frame())), tt.out)
			b.wantTuple(f, podA4, 40000, tt.endpoint.Addr(), tt.endpoint.Port())
			if tt.out != "gateway" {
				return
			}
			answer := wiretest.Packet{Src: tt.endpoint.Addr(), Dst: podA4, Proto: tt.proto, Flags: wire.SYN | wire.ACK, SrcPort: tt.endpoint.Port(), DstPort: 40000}
			f = b.only(b.send("gateway", owned(answer.Frame())), "a")
			b.wantTuple(f, vip4, 80, podA4, 40000)
		})
	}
}
