package vswitch_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

func TestForwardDirect(t *testing.T) {
	for _, tt := range []struct {
		name  string
		from  string
		in    *frame.Frame
		out   string
		dst   frame.MAC
		peer  uint32
		ttl   uint8
		proto uint8
	}{
		{name: "pod to pod on the node over IPv4", from: "a", out: "b", dst: macB, ttl: 63, proto: 6,
			in: owned(fromA(wiretest.Packet{Dst: podB4, Proto: 6, Flags: wire.SYN, SrcPort: 40000, DstPort: 80}).Frame())},
		{name: "pod to pod on the node over IPv6", from: "a", out: "b", dst: macB, ttl: 63, proto: 17,
			in: owned(fromA(wiretest.Packet{Dst: podB6, Proto: 17, SrcPort: 40000, DstPort: 53, Payload: []byte("q")}).Frame())},
		{name: "pod to a pod of another node", from: "a", out: "tunnel", peer: peerIndex, ttl: 63, proto: 17,
			in: owned(fromA(wiretest.Packet{Dst: remote4, Proto: 17, SrcPort: 1, DstPort: 2}).Frame())},
		{name: "from another node to a pod", from: "tunnel", out: "a", dst: macA, ttl: 63, proto: 6,
			in: tunnelled(peerIndex, wiretest.Packet{Src: remote6, Dst: podA6, Proto: 6, Flags: wire.SYN, SrcPort: 5, DstPort: 6})},
		{name: "pod to the world", from: "a", out: "gateway", ttl: 63, proto: 6,
			in: owned(fromA(wiretest.Packet{Dst: outside4, Proto: 6, Flags: wire.SYN, SrcPort: 7, DstPort: 8}).Frame())},
		{name: "pod to the world over IPv6", from: "a", out: "gateway", ttl: 63, proto: 58,
			in: owned(fromA(wiretest.Packet{Dst: outside6, Proto: 58, ICMPType: 128, EchoID: 9}).Frame())},
		{name: "netstack to a pod keeps its hop count", from: "gateway", out: "a", dst: macA, ttl: 64, proto: 6,
			in: owned(wiretest.Packet{Src: outside4, Dst: podA4, Proto: 6, Flags: wire.SYN, SrcPort: 7, DstPort: 8}.Frame())},
		{name: "a UDP datagram without checksum", from: "a", out: "b", dst: macB, ttl: 63, proto: 17,
			in: owned(fromA(wiretest.Packet{Dst: podB4, Proto: 17, SrcPort: 1, DstPort: 2, NoChecksum: true}).Frame())},
		{name: "SCTP between pods", from: "a", out: "b", dst: macB, ttl: 63, proto: 132,
			in: owned(fromA(wiretest.Packet{Dst: podB4, Proto: 132, SrcPort: 1, DstPort: 2, Payload: make([]byte, 20)}).Frame())},
		{name: "a later fragment of a protocol without ports", from: "a", out: "b", dst: macB, ttl: 63, proto: 47,
			in: owned(fromA(wiretest.Packet{Dst: podB4, Proto: 47, FragmentOffset: 1480, Payload: make([]byte, 64)}).Frame())},
		{name: "a protocol without ports", from: "a", out: "b", dst: macB, ttl: 63, proto: 47,
			in: owned(fromA(wiretest.Packet{Dst: podB4, Proto: 47, Payload: make([]byte, 8)}).Frame())},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			f := b.only(b.send(tt.from, tt.in), tt.out)
			h := b.headers(f)
			if h.TTL != tt.ttl || h.Proto != tt.proto || tt.out == "tunnel" && f.Peer != tt.peer {
				t.Errorf("TTL %d proto %d peer %d, want %d %d %d", h.TTL, h.Proto, f.Peer, tt.ttl, tt.proto, tt.peer)
			}
			if got := frame.MAC(f.Bytes()[:6]); got != tt.dst {
				t.Errorf("destination MAC %v, want %v", got, tt.dst)
			}
			if got := frame.MAC(f.Bytes()[6:12]); got != vswitch.GatewayMAC {
				t.Errorf("source MAC %v, want the gateway's", got)
			}
		})
	}
}

func TestOffloadMetadataPassesUntouched(t *testing.T) {
	b := newBed(t)
	f := owned(fromA(wiretest.Packet{Dst: podB4, Proto: 6, Flags: wire.ACK, SrcPort: 1, DstPort: 2, Payload: make([]byte, 30000)}).Frame())
	f.VNet = frame.VNet{Flags: frame.NeedsCsum, GSOType: frame.GSOTCPv4, HdrLen: 54, GSOSize: 1410, CsumStart: 34, CsumOffset: 16}
	got := b.only(b.send("a", f), "b")
	if got.VNet != f.VNet || got.Len() != f.Len() {
		t.Errorf("got %+v of %d bytes, want %+v of %d", got.VNet, got.Len(), f.VNet, f.Len())
	}
}

func TestDropsWithoutAnswer(t *testing.T) {
	arp := func(sender, target netip.Addr, mac frame.MAC, op uint16) *frame.Frame {
		return owned(wiretest.ARP(frame.Broadcast, op, mac, sender, frame.MAC{}, target))
	}
	with := func(p wiretest.Packet, change func(b []byte)) *frame.Frame {
		raw := p.Frame()
		change(raw)
		return owned(raw)
	}
	gso := func(v frame.VNet, p wiretest.Packet) *frame.Frame {
		f := owned(fromA(p).Frame())
		f.VNet = v
		return f
	}
	udp := wiretest.Packet{Dst: podB4, Proto: 17, SrcPort: 1, DstPort: 2}
	nd := func(icmpType uint8, src, dst, target netip.Addr, option []byte) *frame.Frame {
		p := wiretest.Packet{SrcMAC: macA, DstMAC: frame.MAC{0x33, 0x33, 0, 0, 0, 1}, Src: src, Dst: dst, TTL: 255,
			Proto: 58, ICMPType: icmpType, Payload: append(target.AsSlice(), option...)}
		return owned(p.Frame())
	}
	linkLocalA := netip.MustParseAddr("fe80::aaaa")
	allNodes := netip.MustParseAddr("ff02::1")
	for _, tt := range []struct {
		name string
		from string
		in   *frame.Frame
		want drop.Reason
	}{
		{"a runt", "a", owned(make([]byte, 10)), drop.Truncated},
		{"a VLAN tag", "a", with(fromA(udp), func(b []byte) { b[12], b[13] = 0x81, 0 }), drop.UnknownType},
		{"an IPv4 header with a wrong checksum", "a", with(fromA(udp), func(b []byte) { b[24] ^= 1 }), drop.BadChecksum},
		{"an IPv4 length beyond the frame", "a", with(fromA(udp), func(b []byte) { b[16] = 0xff }), drop.Truncated},
		{"IPv6 in an IPv4 EtherType", "a", with(fromA(udp), func(b []byte) { b[14] = 0x65 }), drop.BadVersion},
		{"a mapped IPv4 address inside IPv6", "a", owned(fromA(wiretest.Packet{
			Src: netip.AddrFrom16(podA4.As16()), Dst: podB6, Proto: 17}).Frame()), drop.MartianSource},

		{"another pod's MAC", "a", with(fromA(udp), func(b []byte) { copy(b[6:], macB[:]) }), drop.SpoofedMAC},
		{"another pod's address", "a", owned(fromA(wiretest.Packet{Src: podB4, Dst: remote4, Proto: 17}).Frame()), drop.SpoofedIP},
		{"another pod's IPv6 address", "a", owned(fromA(wiretest.Packet{Src: podB6, Dst: remote6, Proto: 17}).Frame()), drop.SpoofedIP},
		{"the node's own address as source", "a", owned(fromA(wiretest.Packet{Src: node4, Dst: podB4, Proto: 17}).Frame()), drop.SpoofedIP},
		{"the router's address as source", "a", owned(fromA(wiretest.Packet{Src: router4, Dst: podB4, Proto: 17}).Frame()), drop.SpoofedIP},
		{"a loopback source", "a", owned(fromA(wiretest.Packet{Src: netip.MustParseAddr("127.0.0.1"), Dst: podB4, Proto: 17}).Frame()), drop.MartianSource},
		{"an IPv6 loopback source", "a", owned(fromA(wiretest.Packet{Src: netip.IPv6Loopback(), Dst: podB6, Proto: 17}).Frame()), drop.MartianSource},
		{"a source in 0/8", "a", owned(fromA(wiretest.Packet{Src: netip.MustParseAddr("0.1.2.3"), Dst: podB4, Proto: 17}).Frame()), drop.MartianSource},
		{"a link-local source", "a", owned(fromA(wiretest.Packet{Src: netip.MustParseAddr("169.254.7.7"), Dst: podB4, Proto: 17}).Frame()), drop.MartianSource},
		{"a multicast source", "a", owned(fromA(wiretest.Packet{Src: netip.MustParseAddr("224.0.0.5"), Dst: podB4, Proto: 17}).Frame()), drop.MartianSource},
		{"a MAC other than the gateway's", "a", with(fromA(udp), func(b []byte) { copy(b, macB[:]) }), drop.WrongGateway},
		{"broadcast", "a", with(fromA(udp), func(b []byte) { copy(b, frame.Broadcast[:]) }), drop.Multicast},

		{"to loopback", "a", owned(fromA(wiretest.Packet{Dst: netip.MustParseAddr("127.0.0.1"), Proto: 17}).Frame()), drop.MartianTarget},
		{"to IPv6 loopback", "a", owned(fromA(wiretest.Packet{Dst: netip.IPv6Loopback(), Proto: 17}).Frame()), drop.MartianTarget},
		{"to 0/8", "a", owned(fromA(wiretest.Packet{Dst: netip.MustParseAddr("0.0.0.9"), Proto: 17}).Frame()), drop.MartianTarget},
		{"to the metadata address", "a", owned(fromA(wiretest.Packet{Dst: netip.MustParseAddr("169.254.169.254"), Proto: 6, Flags: wire.SYN}).Frame()), drop.MartianTarget},
		{"to a link-local IPv6 address", "a", owned(fromA(wiretest.Packet{Dst: netip.MustParseAddr("fe80::99"), Proto: 17}).Frame()), drop.MartianTarget},
		{"to multicast by a unicast MAC", "a", owned(fromA(wiretest.Packet{Dst: netip.MustParseAddr("224.0.0.1"), Proto: 17}).Frame()), drop.Multicast},
		{"to itself", "a", owned(fromA(wiretest.Packet{Dst: podA4, Proto: 17}).Frame()), drop.Reflected},
		{"to a node's tunnel port", "a", owned(fromA(wiretest.Packet{Dst: node4, Proto: 17, DstPort: 8472}).Frame()), drop.TunnelPort},

		{"an ARP reply of its own", "a", arp(podA4, podA4, macA, 2), drop.NotForUs},
		{"a gratuitous ARP for another pod", "a", arp(podB4, podB4, macA, 1), drop.SpoofedARP},
		{"an ARP reply that claims the gateway", "a", arp(vswitch.GatewayIPv4, podB4, macA, 2), drop.SpoofedARP},
		{"an ARP request for another pod", "a", arp(podA4, podB4, macA, 1), drop.NotForUs},
		{"an ARP sender MAC that is not the frame's", "a", with2(wiretest.ARP(frame.Broadcast, 1, macA, podA4, frame.MAC{}, podB4),
			func(b []byte) { copy(b[22:], macB[:]) }), drop.SpoofedARP},
		{"ARP from the tunnel", "tunnel", tunnelledRaw(wiretest.ARP(frame.Broadcast, 1, macB, remote4, frame.MAC{}, podA4)), drop.NotForUs},

		{"a router advertisement", "a", nd(134, linkLocalA, allNodes, vswitch.GatewayIPv6, nil), drop.RogueRA},
		{"a redirect", "a", nd(137, linkLocalA, allNodes, vswitch.GatewayIPv6, nil), drop.RogueRA},
		{"an advertisement for another pod", "a", nd(136, podA6, allNodes, podB6, nil), drop.SpoofedND},
		{"an advertisement for the gateway", "a", nd(136, podA6, allNodes, vswitch.GatewayIPv6, nil), drop.SpoofedND},
		{"an advertisement with another's MAC", "a", nd(136, podA6, allNodes, podA6, append([]byte{2, 1}, macB[:]...)), drop.SpoofedND},
		{"a solicitation from another's address", "a", nd(135, podB6, allNodes, vswitch.GatewayIPv6, nil), drop.SpoofedND},
		{"a solicitation with another's MAC", "a", nd(135, podA6, allNodes, vswitch.GatewayIPv6, append([]byte{1, 1}, macB[:]...)), drop.SpoofedND},
		{"a solicitation for another pod", "a", nd(135, podA6, allNodes, podB6, nil), drop.NotForUs},
		{"an ND option of no length", "a", nd(135, podA6, allNodes, vswitch.GatewayIPv6, make([]byte, 8)), drop.BadHeader},
		{"a DHCP server's answer", "a", with(fromA(wiretest.Packet{Dst: netip.MustParseAddr("255.255.255.255"), Proto: 17, SrcPort: 67, DstPort: 68}),
			func(b []byte) { copy(b, frame.Broadcast[:]) }), drop.RogueDHCP},
		{"a DHCPv6 server's answer", "a", owned(fromA(wiretest.Packet{Dst: podB6, Proto: 17, SrcPort: 547, DstPort: 546}).Frame()), drop.RogueDHCP},
		{"multicast listener reports", "a", owned(wiretest.Packet{SrcMAC: macA, DstMAC: frame.MAC{0x33, 0x33, 0, 0, 0, 0x16},
			Src: linkLocalA, Dst: netip.MustParseAddr("ff02::16"), Proto: 58, ICMPType: 143}.Frame()), drop.Multicast},

		{"a member's packet from another node's pod", "tunnel", tunnelled(3, wiretest.Packet{Src: remote4, Dst: podA4, Proto: 17}), drop.ForeignSource},
		{"a member's packet from a local pod's address", "tunnel", tunnelled(peerIndex, wiretest.Packet{Src: podB4, Dst: podA4, Proto: 17}), drop.ForeignSource},
		{"a member's packet from outside", "tunnel", tunnelled(peerIndex, wiretest.Packet{Src: outside4, Dst: podA4, Proto: 17}), drop.ForeignSource},
		{"a member's packet for its own pod", "tunnel", tunnelled(peerIndex, wiretest.Packet{Src: remote4, Dst: netip.MustParseAddr("10.244.2.21"), Proto: 17}), drop.Reflected},

		{"a checksum over the source port", "a", gso(frame.VNet{Flags: frame.NeedsCsum, CsumStart: 34},
			wiretest.Packet{Dst: podB4, Proto: 17, Payload: make([]byte, 30)}), drop.BadOffload},
		{"a checksum over the addresses", "a", gso(frame.VNet{Flags: frame.NeedsCsum, CsumStart: 26},
			wiretest.Packet{Dst: podB4, Proto: 17, Payload: make([]byte, 30)}), drop.BadOffload},
		{"segments of no size", "a", gso(frame.VNet{Flags: frame.NeedsCsum, GSOType: frame.GSOTCPv4, CsumStart: 34, CsumOffset: 16},
			wiretest.Packet{Dst: podB4, Proto: 6, Flags: wire.ACK, Payload: make([]byte, 3000)}), drop.BadOffload},
		{"TCP segmentation of UDP", "a", gso(frame.VNet{Flags: frame.NeedsCsum, GSOType: frame.GSOTCPv4, GSOSize: 1000, CsumStart: 34, CsumOffset: 16},
			wiretest.Packet{Dst: podB4, Proto: 17, Payload: make([]byte, 3000)}), drop.BadOffload},
		{"IPv6 segmentation of IPv4", "a", gso(frame.VNet{Flags: frame.NeedsCsum, GSOType: frame.GSOTCPv6, GSOSize: 1000, CsumStart: 34, CsumOffset: 16},
			wiretest.Packet{Dst: podB4, Proto: 6, Flags: wire.ACK, Payload: make([]byte, 3000)}), drop.BadOffload},

		{"a fragment to a VIP of a protocol without ports", "a", owned(fromA(wiretest.Packet{Dst: vip4, Proto: 47, FragmentOffset: 64, Payload: make([]byte, 64)}).Frame()), drop.StrayFragment},
		{"a fragment with a partial checksum", "a", gso(frame.VNet{Flags: frame.NeedsCsum, CsumStart: 34, CsumOffset: 6},
			wiretest.Packet{Dst: podB4, Proto: 17, DstPort: 80, MoreFragments: true, Payload: make([]byte, 64)}), drop.BadOffload},
		{"an ICMP error about no flow to a VIP", "a", owned(fromA(wiretest.Packet{Dst: vip4, Proto: 1, ICMPType: 3,
			Payload: wiretest.Packet{Src: vip4, Dst: podA4, Proto: 17}.IP()}).Frame()), drop.NoFlow},
		{"an ICMP error that quotes another's packet", "a", owned(fromA(wiretest.Packet{Dst: podB4, Proto: 1, ICMPType: 3,
			Payload: wiretest.Packet{Src: remote4, Dst: podA4, Proto: 17}.IP()}).Frame()), drop.BadHeader},
		{"a reset to a VIP without a flow", "a", owned(fromA(wiretest.Packet{Dst: vip4, Proto: 6, Flags: wire.RST, DstPort: 80}).Frame()), drop.NoFlow},
		{"an echo request with a wrong checksum", "a", with(fromA(wiretest.Packet{Dst: vswitch.GatewayIPv4, Proto: 1, ICMPType: 8, EchoID: 1}),
			func(b []byte) { b[36] ^= 1 }), drop.BadChecksum},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			b.dropped(b.send(tt.from, tt.in), tt.want)
		})
	}
}

func with2(raw []byte, change func(b []byte)) *frame.Frame {
	change(raw)
	return owned(raw)
}

func tunnelledRaw(raw []byte) *frame.Frame {
	f := owned(raw)
	f.Peer = peerIndex
	return f
}

func TestEgressDropIsChargedToTheSender(t *testing.T) {
	b := newBed(t)
	b.queues["b"].Refuse(drop.EgressFull)
	o := b.send("a", owned(fromA(wiretest.Packet{Dst: podB4, Proto: 17, SrcPort: 1, DstPort: 2}).Frame()))
	b.dropped(o, drop.EgressFull)
	if s := b.stats("b"); s.EgressFrames != 0 || len(s.Drops) != 0 {
		t.Errorf("the receiver's counters show %+v, want nothing", s)
	}
}

func TestCountersAgree(t *testing.T) {
	b := newBed(t)
	f := owned(fromA(wiretest.Packet{Dst: podB4, Proto: 17, SrcPort: 1, DstPort: 2, Payload: make([]byte, 100)}).Frame())
	size := uint64(f.Len())
	const n = 50
	for range n {
		b.only(b.send("a", f), "b")
	}
	in, out := b.stats("a"), b.stats("b")
	if in.IngressFrames != n || in.IngressBytes != n*size || out.EgressFrames != n || out.EgressBytes != n*size {
		t.Errorf("in %+v, out %+v; want %d frames of %d bytes", in, out, n, size)
	}
}

func TestDamagedTransportChecksumStaysDamaged(t *testing.T) {
	for _, dst := range []netip.Addr{podB4, podB6, vip4, vip6} {
		b := newBed(t)
		raw := fromA(wiretest.Packet{Dst: dst, Proto: 6, Flags: wire.SYN, SrcPort: 1, DstPort: 80, Payload: []byte("data")}).Frame()
		raw[len(raw)-1] ^= 0x40
		got := b.only(b.send("a", owned(raw)), "b")
		if wiretest.TransportIntact(got.Bytes()) {
			t.Errorf("to %v: a damaged segment left with a right checksum", dst)
		}
	}
}

// beyond the MTU, an ICMP error with the MTU goes back and quotes the packet.
func TestTooBigTellsTheMTU(t *testing.T) {
	for _, tt := range []struct {
		dst        netip.Addr
		icmp, code uint8
	}{{remote4, 3, 4}, {remote6, 2, 0}, {vip4, 3, 4}, {vip6, 2, 0}} {
		b := newBed(t)
		p := fromA(wiretest.Packet{Dst: tt.dst, Proto: 17, SrcPort: 1, DstPort: 80, Payload: make([]byte, 1500)})
		p.DontFragment = true
		f := b.only(b.send("a", owned(p.Frame())), "a", drop.TooBig)
		h := b.headers(f)
		if h.ICMPType != tt.icmp || h.ICMPCode != tt.code {
			t.Errorf("to %v: type %d code %d, want %d %d", tt.dst, h.ICMPType, h.ICMPCode, tt.icmp, tt.code)
		}
		if mtu := binary.BigEndian.Uint32(f.Bytes()[h.L4Off+4:]); mtu != bedMTU {
			t.Errorf("to %v: MTU %d, want %d", tt.dst, mtu, bedMTU)
		}
		b.quotes(f, &h, p)
	}
}

// quotes checks that an ICMP error carries packet p as its sender sent it, hop
// count apart.
func (b *bed) quotes(f *frame.Frame, h *wire.Headers, p wiretest.Packet) {
	b.t.Helper()
	quoted := f.Bytes()[h.PayloadOff:h.End]
	want := p.IP()[:len(quoted)]
	if string(quoted) != string(want) {
		b.t.Errorf("quoted packet differs from the one sent:\n got %x\nwant %x", quoted[:48], want[:48])
	}
	if h.Dst.Netip() != p.Src {
		b.t.Errorf("error goes to %v, want %v", h.Dst, p.Src)
	}
}
