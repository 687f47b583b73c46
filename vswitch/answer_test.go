package vswitch_test

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"testing"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

func TestARPForTheGatewayIsAnswered(t *testing.T) {
	b := newBed(t)
	o := b.send("a", owned(wiretest.ARP(frame.Broadcast, 1, macA, podA4, frame.MAC{}, vswitch.GatewayIPv4)))
	got := b.only(o, "a").Bytes()
	want := wiretest.ARP(macA, 2, vswitch.GatewayMAC, vswitch.GatewayIPv4, macA, podA4)
	if string(got) != string(want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
}

func TestSolicitationForTheGatewayIsAnswered(t *testing.T) {
	b := newBed(t)
	option := append([]byte{1, 1}, macA[:]...)
	group := netip.MustParseAddr("ff02::1:ff00:1")
	o := b.send("a", owned(wiretest.Packet{SrcMAC: macA, DstMAC: frame.MAC{0x33, 0x33, 0xff, 0, 0, 1}, Src: podA6, Dst: group, TTL: 255,
		Proto: 58, ICMPType: 135, Payload: append(vswitch.GatewayIPv6.AsSlice(), option...)}.Frame()))
	got := b.only(o, "a").Bytes()
	want := wiretest.Packet{SrcMAC: vswitch.GatewayMAC, DstMAC: macA, Src: vswitch.GatewayIPv6, Dst: podA6, TTL: 255,
		Proto: 58, ICMPType: 136, Rest: 0xe0000000,
		Payload: append(append(vswitch.GatewayIPv6.AsSlice(), 2, 1), vswitch.GatewayMAC[:]...)}.Frame()
	if string(got) != string(want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
}

func TestEchoIsAnsweredForOwnAddresses(t *testing.T) {
	for _, dst := range []netip.Addr{vswitch.GatewayIPv4, vswitch.GatewayIPv6, router4, router6, vip4, vip6} {
		t.Run(dst.String(), func(t *testing.T) {
			b := newBed(t)
			p := fromA(wiretest.Packet{Dst: dst, Proto: 1, ICMPType: 8, EchoID: 77, EchoSeq: 3, Payload: []byte("abcdefg")})
			reply := uint8(0)
			if dst.Is6() {
				p.Proto, p.ICMPType, reply = 58, 128, 129
			}
			got := b.only(b.send("a", owned(p.Frame())), "a").Bytes()
			p.SrcMAC, p.DstMAC, p.Src, p.Dst, p.ICMPType = p.DstMAC, p.SrcMAC, p.Dst, p.Src, reply
			if want := p.Frame(); string(got) != string(want) {
				t.Errorf("got  %x\nwant %x", got, want)
			}
		})
	}
}

func TestEchoFromAnotherNodeGoesBackToItsMember(t *testing.T) {
	b := newBed(t)
	f := b.only(b.send("tunnel", tunnelled(peerIndex, wiretest.Packet{Src: remote4, Dst: router4, Proto: 1, ICMPType: 8, EchoID: 1})), "tunnel")
	if h := b.headers(f); f.Peer != peerIndex || h.Dst.Netip() != remote4 || h.ICMPType != 0 {
		t.Errorf("peer %d, to %v, type %d; want %d, %v, 0", f.Peer, h.Dst, h.ICMPType, peerIndex, remote4)
	}
}

func TestRefusals(t *testing.T) {
	none4, none6 := netip.MustParseAddr("10.96.0.99"), netip.MustParseAddr("fd00:10:96::99")
	noEndpoint := func(b *bed) {
		b.services.set(vip4, netip.AddrPort{})
		b.services.set(vip6, netip.AddrPort{})
	}
	for _, tt := range []struct {
		name    string
		prepare func(*bed)
		in      wiretest.Packet
		counted drop.Reason
		// want: a reset, or an ICMP type and code
		reset      bool
		icmp, code uint8
	}{
		{name: "TCP to a VIP without endpoints is reset", prepare: noEndpoint, counted: drop.NoEndpoint, reset: true,
			in: wiretest.Packet{Dst: vip4, Proto: 6, Flags: wire.SYN, Seq: 1000, SrcPort: 9, DstPort: 80}},
		{name: "TCP to an IPv6 VIP without endpoints is reset", prepare: noEndpoint, counted: drop.NoEndpoint, reset: true,
			in: wiretest.Packet{Dst: vip6, Proto: 6, Flags: wire.SYN, Seq: 1000, SrcPort: 9, DstPort: 80}},
		{name: "UDP to a VIP without endpoints is unreachable", prepare: noEndpoint, counted: drop.NoEndpoint, icmp: 3, code: 3,
			in: wiretest.Packet{Dst: vip4, Proto: 17, SrcPort: 9, DstPort: 80, Payload: []byte("x")}},
		{name: "UDP to an IPv6 VIP without endpoints is unreachable", prepare: noEndpoint, counted: drop.NoEndpoint, icmp: 1, code: 4,
			in: wiretest.Packet{Dst: vip6, Proto: 17, SrcPort: 9, DstPort: 80, Payload: []byte("x")}},
		{name: "SCTP to a VIP without endpoints is unreachable", prepare: noEndpoint, counted: drop.NoEndpoint, icmp: 3, code: 3,
			in: wiretest.Packet{Dst: vip4, Proto: 132, SrcPort: 9, DstPort: 80, Payload: make([]byte, 20)}},
		{name: "a port the VIP does not have", counted: drop.NoService, reset: true,
			in: wiretest.Packet{Dst: vip4, Proto: 6, Flags: wire.SYN, SrcPort: 9, DstPort: 81}},
		{name: "an address no service has", counted: drop.NoService, icmp: 1, code: 4,
			in: wiretest.Packet{Dst: none6, Proto: 17, SrcPort: 9, DstPort: 80}},
		{name: "ping to an address no service has", counted: drop.NoService, icmp: 3, code: 1,
			in: wiretest.Packet{Dst: none4, Proto: 1, ICMPType: 8, EchoID: 4}},
		{name: "a segment of an unknown connection to a VIP", counted: drop.NoFlow, reset: true,
			in: wiretest.Packet{Dst: vip4, Proto: 6, Flags: wire.ACK, Ack: 555, SrcPort: 9, DstPort: 80}},
		{name: "TCP to the gateway itself", counted: drop.ReservedRouter, reset: true,
			in: wiretest.Packet{Dst: vswitch.GatewayIPv4, Proto: 6, Flags: wire.SYN, SrcPort: 9, DstPort: 22}},
		{name: "UDP to the router address", counted: drop.ReservedRouter, icmp: 3, code: 3,
			in: wiretest.Packet{Dst: router4, Proto: 17, SrcPort: 9, DstPort: 53}},
		{name: "a pod address nobody has", counted: drop.NoRoute, icmp: 3, code: 1,
			in: wiretest.Packet{Dst: netip.MustParseAddr("10.244.9.9"), Proto: 6, Flags: wire.SYN}},
		{name: "an IPv6 pod address nobody has", counted: drop.NoRoute, icmp: 1, code: 0,
			in: wiretest.Packet{Dst: netip.MustParseAddr("fd00:10:244:9::9"), Proto: 17}},
		{name: "a packet at the end of its life", counted: drop.HopLimit, icmp: 11,
			in: wiretest.Packet{Dst: podB4, Proto: 17, TTL: 1, SrcPort: 1, DstPort: 33434}},
		{name: "an IPv6 packet at the end of its life", counted: drop.HopLimit, icmp: 3,
			in: wiretest.Packet{Dst: podB6, Proto: 17, TTL: 1, SrcPort: 1, DstPort: 33434}},
		{name: "a packet to a VIP at the end of its life", counted: drop.HopLimit, icmp: 11,
			in: wiretest.Packet{Dst: vip4, Proto: 17, TTL: 1, SrcPort: 1, DstPort: 80}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			if tt.prepare != nil {
				tt.prepare(b)
			}
			p := fromA(tt.in)
			f := b.only(b.send("a", owned(p.Frame())), "a", tt.counted)
			h := b.headers(f)
			if tt.reset {
				checkReset(t, f, &h, p)
				return
			}
			if h.ICMPType != tt.icmp || h.ICMPCode != tt.code {
				t.Errorf("ICMP type %d code %d, want %d %d", h.ICMPType, h.ICMPCode, tt.icmp, tt.code)
			}
			if r := h.Src.Netip(); r != router4 && r != router6 {
				t.Errorf("error comes from %v, want the router address", r)
			}
			if p.TTL == 0 {
				p.TTL = 64
			}
			b.quotes(f, &h, p)
		})
	}
}

// checkReset judges a reset by RFC 9293 section 3.5.2, group 1.
func checkReset(t *testing.T, f *frame.Frame, h *wire.Headers, p wiretest.Packet) {
	t.Helper()
	if h.Src.Netip() != p.Dst || h.Dst.Netip() != p.Src || h.SrcPort != p.DstPort || h.DstPort != p.SrcPort {
		t.Errorf("reset from %v:%d to %v:%d", h.Src, h.SrcPort, h.Dst, h.DstPort)
	}
	seq, ack := binary.BigEndian.Uint32(f.Bytes()[h.L4Off+4:]), binary.BigEndian.Uint32(f.Bytes()[h.L4Off+8:])
	if p.Flags&wire.ACK != 0 {
		if h.TCPFlags != wire.RST || seq != p.Ack {
			t.Errorf("flags %#x seq %d, want RST with seq %d", h.TCPFlags, seq, p.Ack)
		}
		return
	}
	if h.TCPFlags != wire.RST|wire.ACK || seq != 0 || ack != p.Seq+1 {
		t.Errorf("flags %#x seq %d ack %d, want RST|ACK, 0, %d", h.TCPFlags, seq, ack, p.Seq+1)
	}
}

func TestNoErrorAboutAnErrorNorALaterFragment(t *testing.T) {
	nobody := netip.MustParseAddr("10.244.9.9")
	for _, tt := range []struct {
		name string
		in   wiretest.Packet
		want drop.Reason
	}{
		{"an error that runs out of hops", wiretest.Packet{Dst: podB4, TTL: 1, Proto: 1, ICMPType: 11,
			Payload: wiretest.Packet{Src: podB4, Dst: podA4, Proto: 17}.IP()}, drop.HopLimit},
		{"an error with nowhere to go", wiretest.Packet{Dst: nobody, Proto: 1, ICMPType: 3,
			Payload: wiretest.Packet{Src: nobody, Dst: podA4, Proto: 17}.IP()}, drop.NoFlow},
		{"a later fragment with nowhere to go", wiretest.Packet{Dst: nobody, Proto: 47, FragmentOffset: 8, Payload: make([]byte, 8)}, drop.NoRoute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			b.dropped(b.send("a", owned(fromA(tt.in).Frame())), tt.want)
		})
	}
}

// A flood of refused packets is answered at a bounded rate, and another port's
// share is not touched.
func TestAnswersAreLimitedByPort(t *testing.T) {
	b := newBed(t)
	refused := fromA(wiretest.Packet{Dst: vip4, Proto: 17, SrcPort: 9, DstPort: 81}).Frame()
	const n = 2000
	for range n {
		b.queues["a"].Inject(owned(refused))
	}
	for b.stats("a").IngressFrames < n {
		runtime.Gosched()
	}
	s := b.stats("a")
	answered, held := s.Drops[drop.NoService], s.Drops[drop.ReplyLimited]
	if held == 0 || answered == 0 || answered+held != n {
		t.Errorf("of %d, %d answered and %d held back", n, answered, held)
	}
	b.queues["a"].Sent()
	p := fromB(wiretest.Packet{Dst: vip4, Proto: 17, SrcPort: 9, DstPort: 81})
	b.only(b.send("b", owned(p.Frame())), "b", drop.NoService)
}
