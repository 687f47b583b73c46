package vswitch

import (
	"net/netip"
	"testing"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
)

// source is a queue that receives the same frames each time and swallows what
// is sent.
type source struct{ frames []*frame.Frame }

func (s *source) PollFD() int             { return -1 }
func (s *source) Transmit([]*frame.Frame) {}
func (s *source) Close() error            { return nil }
func (s *source) Receive(b *frame.Batch) error {
	for _, f := range s.frames {
		n := b.Next()
		n.SetLen(f.Len())
		copy(n.Bytes(), f.Bytes())
		n.VNet, n.Peer = f.VNet, f.Peer
		b.Keep()
	}
	return nil
}

type oneEndpoint struct{ ep flow.Endpoint }

func (o oneEndpoint) Pick(*flow.Key, *wire.Headers) (flow.Endpoint, drop.Reason) {
	return o.ep, drop.None
}
func (oneEndpoint) HasVIP(*wire.Addr) bool                 { return true }
func (oneEndpoint) Exposed(*wire.Addr, uint16, uint8) bool { return true }

// forwarder is a switch with two pods and a tunnel, whose worker the caller
// drives by hand.
func forwarder(tb testing.TB, packets ...wiretest.Packet) (serve func()) {
	a, b := netip.MustParseAddr("10.244.1.10"), netip.MustParseAddr("10.244.1.11")
	flows, err := flow.New(flow.Config{Connections: 1 << 12})
	if err != nil {
		tb.Fatal(err)
	}
	routes := fib.New()
	sw, err := New(Config{FIB: routes, Flows: flows, Services: oneEndpoint{flow.Endpoint{Addr: wire.AddrFrom(b), Port: 8080, ID: 1}}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { sw.Close(); flows.Close() })
	macA := frame.MAC{2, 0, 0, 0, 0, 0xa}
	in := &source{}
	for _, p := range packets {
		p.SrcMAC, p.DstMAC, p.Src = macA, GatewayMAC, a
		f := frame.New()
		f.Set(p.Frame())
		in.frames = append(in.frames, f)
	}
	idA, err := sw.AddPort(PortConfig{Kind: PortPod, Name: "a", MAC: macA, Addrs: []netip.Addr{a}, MTUBytes: 1500, Queues: []Queue{in}})
	if err != nil {
		tb.Fatal(err)
	}
	idB, err := sw.AddPort(PortConfig{Kind: PortPod, Name: "b", MAC: frame.MAC{2, 0, 0, 0, 0, 0xb}, Addrs: []netip.Addr{b}, MTUBytes: 1500, Queues: []Queue{&source{}}})
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := sw.AddPort(PortConfig{Kind: PortTunnel, Name: "tunnel", MTUBytes: 1500, Queues: []Queue{&source{}}}); err != nil {
		tb.Fatal(err)
	}
	routes.SetHost(a, fib.NextHop{Kind: fib.Port, Index: idA})
	routes.SetHost(b, fib.NextHop{Kind: fib.Port, Index: idB})
	routes.SetPrefix(netip.MustParsePrefix("10.244.2.0/24"), fib.NextHop{Kind: fib.Peer, Index: 7})
	routes.SetPrefix(netip.MustParsePrefix("10.96.0.0/16"), fib.NextHop{Kind: fib.VIP})
	sw.SetFacts(Facts{Routers: []netip.Addr{netip.MustParseAddr("10.244.1.1")}})
	w, p := sw.workers[0], (*sw.ports.Load())[idA]
	w.stop() // from here on the caller is the worker
	return func() { w.serve(polled{port: p, queue: in}) }
}

var hotPackets = []wiretest.Packet{
	{Dst: netip.MustParseAddr("10.244.1.11"), Proto: 6, Flags: wire.ACK, SrcPort: 1000, DstPort: 80, Payload: make([]byte, 1000)},
	{Dst: netip.MustParseAddr("10.244.2.20"), Proto: 17, SrcPort: 1001, DstPort: 80, Payload: make([]byte, 18)},
	{Dst: netip.MustParseAddr("10.96.0.1"), Proto: 17, SrcPort: 1002, DstPort: 80, Payload: make([]byte, 18)},
	{Dst: netip.MustParseAddr("10.96.0.1"), Proto: 1, ICMPType: 8, EchoID: 9},  // answered
	{Dst: netip.MustParseAddr("10.99.0.1"), Proto: 17, SrcPort: 1, DstPort: 2}, // no route: ICMP error
	{Dst: netip.MustParseAddr("127.0.0.1"), Proto: 17, SrcPort: 1, DstPort: 2}, // dropped
	{Dst: netip.MustParseAddr("10.244.1.11"), Proto: 17, FragmentOffset: 8, Payload: make([]byte, 8)},
}

// Forwarding allocates nothing: direct and rewritten flows, answers, drops.
func TestForwardingAllocatesNothing(t *testing.T) {
	serve := forwarder(t, hotPackets...)
	serve() // the flows are installed
	if n := testing.AllocsPerRun(1000, serve); n != 0 {
		t.Errorf("%v allocations a batch, want 0", n)
	}
}

func BenchmarkForward(b *testing.B) {
	for _, tt := range []struct {
		name   string
		packet wiretest.Packet
	}{
		{"64B-UDP-to-local-pod", wiretest.Packet{Dst: netip.MustParseAddr("10.244.1.11"), Proto: 17, SrcPort: 1, DstPort: 2, Payload: make([]byte, 18)}},
		{"64B-UDP-to-tunnel", wiretest.Packet{Dst: netip.MustParseAddr("10.244.2.20"), Proto: 17, SrcPort: 1, DstPort: 2, Payload: make([]byte, 18)}},
		{"64B-UDP-to-VIP", wiretest.Packet{Dst: netip.MustParseAddr("10.96.0.1"), Proto: 17, SrcPort: 1, DstPort: 2, Payload: make([]byte, 18)}},
	} {
		b.Run(tt.name, func(b *testing.B) {
			packets := make([]wiretest.Packet, frame.BatchFrames)
			for i := range packets {
				packets[i] = tt.packet
			}
			serve := forwarder(b, packets...)
			for b.Loop() {
				serve()
			}
			frames := float64(b.N) * frame.BatchFrames
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/frames, "ns/frame")
			b.ReportMetric(frames/b.Elapsed().Seconds(), "frames/s")
		})
	}
}
