package vswitch_test

import (
	"net/netip"
	"slices"
	"testing"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
)

// leaving is what a trace and a real sending are compared by.
type leaving struct {
	port             string
	peer             uint32
	src, dst         netip.Addr
	srcPort, dstPort uint16
	proto, ttl       uint8
	tcpFlags         uint8
	icmpType, code   uint8
}

func leavingOf(port string, peer uint32, h *wire.Headers) leaving {
	return leaving{
		port: port, peer: peer, src: h.Src.Netip(), dst: h.Dst.Netip(), srcPort: h.SrcPort, dstPort: h.DstPort,
		proto: h.Proto, ttl: h.TTL, tcpFlags: h.TCPFlags, icmpType: h.ICMPType, code: h.ICMPCode,
	}
}

// state is all of a bed that a frame could change.
func (b *bed) state() (s []any) {
	for _, p := range b.sw.Stats() {
		s = append(s, p.Name, p.IngressFrames, p.EgressFrames, len(p.Drops))
	}
	for i := range b.flows.All() {
		i.AgeTicks, i.IdleTicks = 0, 0
		s = append(s, i)
	}
	for _, q := range b.queues {
		if len(q.Sent()) != 0 {
			s = append(s, "something was sent")
		}
	}
	return s
}

// A trace says what the same frame then does, and itself does nothing.
func TestTraceIsWhatHappens(t *testing.T) {
	tcp := func(dst netip.Addr, port uint16) wiretest.Packet {
		return wiretest.Packet{Dst: dst, Proto: wire.ProtoTCP, SrcPort: 40000, DstPort: port, Flags: wire.SYN}
	}
	udp := func(dst netip.Addr, port uint16) wiretest.Packet {
		return wiretest.Packet{Dst: dst, Proto: wire.ProtoUDP, SrcPort: 40000, DstPort: port, Payload: []byte("x")}
	}
	echo := func(dst netip.Addr) wiretest.Packet {
		p := wiretest.Packet{Dst: dst, Proto: wire.ProtoICMP, ICMPType: 8, EchoID: 7}
		if dst.Is6() {
			p.Proto, p.ICMPType = wire.ProtoICMPv6, 128
		}
		return p
	}
	spoofed := tcp(podB4, 80)
	spoofed.Src = podB4
	last := tcp(podB4, 80)
	last.TTL = 1
	answer := wiretest.Packet{Src: podB4, Dst: podA4, Proto: wire.ProtoTCP, SrcPort: 8080, DstPort: 40000, Flags: wire.SYN | wire.ACK}
	big := udp(remote4, 9)
	big.Payload, big.DontFragment = make([]byte, 1500), true

	for _, tt := range []struct {
		name    string
		packet  wiretest.Packet
		prepare func(*bed)
		fromB   bool
		// anyPort: the source port is drawn anew each time.
		anyPort bool
	}{
		{name: "pod on the node", packet: tcp(podB4, 80)},
		{name: "pod on the node, IPv6", packet: udp(podB6, 53)},
		{name: "pod of another node", packet: tcp(remote4, 80)},
		{name: "SCTP", packet: wiretest.Packet{Dst: podB4, Proto: wire.ProtoSCTP, SrcPort: 1, DstPort: 2, Payload: make([]byte, 20)}},
		{name: "ping of a pod", packet: echo(remote6)},
		{name: "service", packet: tcp(vip4, 80)},
		{name: "service, IPv6", packet: udp(vip6, 80)},
		{name: "service that leads to the client itself", packet: tcp(vip4, 80), prepare: func(b *bed) { b.services.set(vip4, netip.AddrPortFrom(podA4, 8080)) }},
		{name: "service that the gateway serves", packet: tcp(vip4, 80), prepare: func(b *bed) { b.services.serve(vip4) }},
		{name: "service without endpoints", packet: tcp(vip4, 80), prepare: func(b *bed) { b.services.set(vip4, netip.AddrPort{}) }},
		{name: "service's other port", packet: udp(vip4, 81)},
		{name: "ping of a service", packet: echo(vip4)},
		{name: "ping of the router", packet: echo(router6)},
		{name: "a port of the router", packet: tcp(router4, 22)},
		{name: "the world", packet: tcp(outside4, 443)},
		{name: "another node", packet: udp(node4, 53)},
		{name: "another node's tunnel", packet: udp(node4, 8472)},
		{name: "nobody's pod address", packet: tcp(netip.MustParseAddr("10.244.9.9"), 80)},
		{name: "itself", packet: tcp(podA4, 80)},
		{name: "the metadata address", packet: tcp(netip.MustParseAddr("169.254.169.254"), 80)},
		{name: "loopback", packet: tcp(netip.MustParseAddr("127.0.0.1"), 80)},
		{name: "multicast", packet: udp(netip.MustParseAddr("224.0.0.251"), 5353)},
		{name: "with another's source", packet: spoofed},
		{name: "at the end of its hops", packet: last},
		{name: "too large for the tunnel", packet: big},
		{name: "a connection that is known", packet: tcp(vip4, 80), prepare: func(b *bed) { b.only(b.send("a", owned(fromA(tcp(vip4, 80)).Frame())), "b") }},
		{name: "the answer of a service's endpoint", packet: answer, fromB: true, prepare: func(b *bed) { b.only(b.send("a", owned(fromA(tcp(vip4, 80)).Frame())), "b") }},
		{name: "a port that is taken by way of the service", packet: tcp(podB4, 8080), anyPort: true, prepare: func(b *bed) { b.only(b.send("a", owned(fromA(tcp(vip4, 80)).Frame())), "b") }},
		{name: "the middle of a connection to a service", packet: wiretest.Packet{Dst: vip4, Proto: wire.ProtoTCP, SrcPort: 40000, DstPort: 80, Flags: wire.ACK}},
		{name: "where a route leads to no port", packet: tcp(podB4, 80), prepare: func(b *bed) { b.fib.SetHost(podB4, fib.NextHop{Kind: fib.Port, Index: 999}) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			if tt.prepare != nil {
				tt.prepare(b)
			}
			name, packet := "a", fromA(tt.packet)
			if tt.fromB {
				name, packet = "b", fromB(tt.packet)
			}
			f := owned(packet.Frame())
			before, raw := b.state(), slices.Clone(f.Bytes())
			traced, err := b.sw.Trace(name, f, b.services)
			if err != nil {
				t.Fatal(err)
			}
			if after := b.state(); !slices.Equal(before, after) {
				t.Errorf("the trace changed\n%v\nto\n%v", before, after)
			}
			if !slices.Equal(raw, f.Bytes()) {
				t.Error("the trace changed the frame")
			}
			real := b.send(name, f)
			b.same(traced, real, tt.anyPort)

			var h wire.Headers
			wire.Parse(raw, &h)
			key := flow.KeyOf(&h)
			made, _, ok := b.flows.Find(&key)
			if ok != (traced.After != nil) {
				t.Fatalf("the trace says that there would be a connection: %v; there is: %v", traced.After != nil, ok)
			}
			if ok && !tt.anyPort && (made.Spec != traced.After.Spec || made.State != traced.After.State) {
				t.Errorf("the trace foresaw %+v, it became %+v", traced.After.Spec, made.Spec)
			}
		})
	}
}

// same compares a trace with what the frame really did.
func (b *bed) same(traced *vswitch.Traced, real outcome, anyPort bool) {
	b.t.Helper()
	var foreseen, happened []leaving
	for _, s := range traced.Sent {
		foreseen = append(foreseen, leavingOf(s.Port, s.Peer, &s.Headers))
	}
	for port, fs := range real.sent {
		for _, f := range fs {
			var h wire.Headers
			wire.Parse(f.Bytes(), &h)
			happened = append(happened, leavingOf(port, f.Peer, &h))
		}
	}
	if anyPort && len(foreseen) == 1 && len(happened) == 1 {
		if happened[0].srcPort == 40000 || foreseen[0].srcPort == 40000 {
			b.t.Error("want another source port")
		}
		foreseen[0].srcPort, happened[0].srcPort = 0, 0
	}
	if !slices.Equal(foreseen, happened) {
		b.t.Errorf("the trace foresaw\n%+v\nwhat happened is\n%+v", foreseen, happened)
	}
	counted := map[drop.Reason]uint64{}
	for _, r := range traced.Drops {
		counted[r] = 1
	}
	if len(counted) != len(real.drops) {
		b.t.Errorf("the trace foresaw drops %v, counted are %v", traced.Drops, real.drops)
	}
	for r := range counted {
		if real.drops[r] != 1 {
			b.t.Errorf("the trace foresaw drops %v, counted are %v", traced.Drops, real.drops)
		}
	}
}

func TestTraceSaysWhatItKnows(t *testing.T) {
	b := newBed(t)
	syn := owned(fromA(wiretest.Packet{Dst: vip4, Proto: wire.ProtoTCP, SrcPort: 40000, DstPort: 80, Flags: wire.SYN}).Frame())
	first, err := b.sw.Trace("a", syn, b.services)
	if err != nil {
		t.Fatal(err)
	}
	if first.Before != nil || first.After == nil || first.After.Reply.Src.Netip() != podB4 || first.Direction != flow.Forward {
		t.Errorf("first packet: before %v, after %+v", first.Before, first.After)
	}
	if len(first.Sent) != 1 || first.Sent[0].Kind != vswitch.PortPod || first.Sent[0].MTUBytes != bedMTU {
		t.Errorf("sent %+v", first.Sent)
	}
	b.only(b.send("a", syn), "b")
	known, err := b.sw.Trace("a", syn, b.services)
	if err != nil {
		t.Fatal(err)
	}
	if known.Before == nil || known.Before.Frames[flow.Forward] != 1 || known.After.Frames[flow.Forward] != 2 {
		t.Errorf("known connection: before %+v, after %+v; want one frame and two", known.Before, known.After)
	}
	if _, err := b.sw.Trace("nobody", syn, b.services); err == nil {
		t.Error("a port that isn't there was traced")
	}
	if _, err := b.sw.Trace("a", frame.New(), b.services); err != nil {
		t.Errorf("an empty frame is an outcome as well: %v", err)
	}
}
