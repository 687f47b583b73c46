package vswitch

import (
	"net/netip"
	"testing"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
)

// A worker allocates nothing for a capture, whether there is room in its ring or
// not. Without a capture TestForwardingAllocatesNothing says so.
func TestCapturingAllocatesNothing(t *testing.T) {
	flows, err := flow.New(flow.Config{Connections: 1 << 10})
	if err != nil {
		t.Fatal(err)
	}
	routes := fib.New()
	sw, err := New(Config{FIB: routes, Flows: flows, Services: oneEndpoint{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sw.Close(); flows.Close() })
	a, mac := netip.MustParseAddr("10.244.1.10"), frame.MAC{2, 0, 0, 0, 0, 0xa}
	in := &source{}
	for _, dst := range []string{"10.244.2.20", "127.0.0.1", "10.99.0.1"} { // sent, dropped, answered
		f := frame.New()
		f.Set(wiretest.Packet{
			SrcMAC: mac, DstMAC: GatewayMAC, Src: a, Dst: netip.MustParseAddr(dst),
			Proto: wire.ProtoUDP, SrcPort: 1, DstPort: 2, Payload: make([]byte, 1000),
		}.Frame())
		in.frames = append(in.frames, f)
	}
	id, err := sw.AddPort(PortConfig{Kind: PortPod, Name: "a", MAC: mac, Addrs: []netip.Addr{a}, MTUBytes: 1500, Queues: []Queue{in}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sw.AddPort(PortConfig{Kind: PortTunnel, Name: "tunnel", MTUBytes: 1500, Queues: []Queue{&source{}}}); err != nil {
		t.Fatal(err)
	}
	routes.SetPrefix(netip.MustParsePrefix("10.244.2.0/24"), fib.NextHop{Kind: fib.Peer, Index: 7})
	sw.SetFacts(Facts{Routers: []netip.Addr{netip.MustParseAddr("10.244.1.1")}})
	c, err := sw.Capture(CaptureConfig{RingBytes: minRingBytes})
	if err != nil {
		t.Fatal(err)
	}
	w, p := sw.workers[0], (*sw.ports.Load())[id]
	w.stop() // from here on the test is the worker
	serve := func() { w.serve(polled{port: p, queue: in}) }
	serve()
	if n := testing.AllocsPerRun(1000, serve); n != 0 {
		t.Errorf("%v allocations a batch, want 0", n)
	}
	if len(c.take()) == 0 || c.Lost() == 0 {
		t.Error("want some frames captured and some lost, to have measured both")
	}
}
