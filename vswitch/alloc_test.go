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

// forwarding is a worker that the caller drives by hand.
type forwarding struct {
	worker *worker
	port   *port
	in     *source
	before func() // each run; nil: nothing
}

// run serves the source once.
func (f *forwarding) run() {
	if f.before != nil {
		f.before()
	}
	f.worker.serve(polled{port: f.port, queue: f.in})
}

// forwarder is a switch with two pods and a tunnel, and room for so many flows.
func forwarder(tb testing.TB, connections int, packets ...wiretest.Packet) *forwarding {
	a, b := netip.MustParseAddr("10.244.1.10"), netip.MustParseAddr("10.244.1.11")
	flows, err := flow.New(flow.Config{Connections: connections, PerOwner: connections})
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
	return &forwarding{worker: w, port: p, in: in}
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
	f := forwarder(t, 1<<12, hotPackets...)
	f.run() // the flows are installed
	if n := testing.AllocsPerRun(1000, f.run); n != 0 {
		t.Errorf("%v allocations a batch, want 0", n)
	}
}
