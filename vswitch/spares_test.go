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

// sink keeps copies of what is sent.
type sink struct {
	source
	sent [][]byte
}

func (s *sink) Transmit(fs []*frame.Frame) {
	for _, f := range fs {
		s.sent = append(s.sent, append([]byte(nil), f.Bytes()...))
	}
}

// handDriven is a switch with pods a and b and a service at 10.96.0.1 whose
// endpoint is b. The caller is its worker, and its clock.
type handDriven struct {
	w    *worker
	a, b *port
	in   *source
	out  *sink
}

func newHandDriven(t *testing.T, mtuB int) *handDriven {
	t.Helper()
	flows, err := flow.New(flow.Config{Connections: 1 << 10})
	if err != nil {
		t.Fatal(err)
	}
	routes := fib.New()
	addrA, addrB := netip.MustParseAddr("10.244.1.10"), netip.MustParseAddr("10.244.1.11")
	sw, err := New(Config{FIB: routes, Flows: flows, Services: oneEndpoint{flow.Endpoint{Addr: wire.AddrFrom(addrB), Port: 8080, ID: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sw.Close(); flows.Close() })
	d := &handDriven{in: &source{}, out: &sink{}}
	idA, err := sw.AddPort(PortConfig{Kind: PortPod, Name: "a", MAC: frame.MAC{2, 10}, Addrs: []netip.Addr{addrA}, MTUBytes: 9000, Queues: []Queue{d.in}})
	if err != nil {
		t.Fatal(err)
	}
	idB, err := sw.AddPort(PortConfig{Kind: PortPod, Name: "b", MAC: frame.MAC{2, 11}, Addrs: []netip.Addr{addrB}, MTUBytes: mtuB, Queues: []Queue{d.out}})
	if err != nil {
		t.Fatal(err)
	}
	routes.SetHost(addrA, fib.NextHop{Kind: fib.Port, Index: idA})
	routes.SetHost(addrB, fib.NextHop{Kind: fib.Port, Index: idB})
	routes.SetPrefix(netip.MustParsePrefix("10.96.0.0/16"), fib.NextHop{Kind: fib.VIP})
	d.w, d.a, d.b = sw.workers[0], (*sw.ports.Load())[idA], (*sw.ports.Load())[idB]
	d.w.stop()
	return d
}

// fromA is a frame of pod a's.
func (d *handDriven) fromA(p wiretest.Packet) []byte {
	p.SrcMAC, p.DstMAC, p.Src = d.a.mac, GatewayMAC, netip.MustParseAddr("10.244.1.10")
	if !p.Dst.IsValid() {
		p.Dst = netip.MustParseAddr("10.96.0.1")
	}
	return p.Frame()
}

// serve lets the worker take frames from a at a tick, in one batch.
func (d *handDriven) serve(tick uint32, raws ...[]byte) {
	d.in.frames = d.in.frames[:0]
	for _, raw := range raws {
		f := frame.New()
		f.Set(raw)
		d.in.frames = append(d.in.frames, f)
	}
	d.w.tick = tick
	d.w.serve(polled{port: d.a, queue: d.in})
}

func (d *handDriven) drops(r drop.Reason) uint64 { return d.a.stats().Drops[r] }

func udpPieces(d *handDriven, id uint32, srcPort uint16, n int) [][]byte {
	return wiretest.Fragments(d.fromA(wiretest.Packet{Proto: 17, SrcPort: srcPort, DstPort: 80, Payload: make([]byte, n)}), id, 1000, 0)
}

// other is a frame that has nothing to do with fragments.
func other(d *handDriven) []byte {
	return d.fromA(wiretest.Packet{Proto: 17, SrcPort: 9, DstPort: 80})
}

// A fragment waits a second for the first, and no longer.
func TestHeldFragmentsExpire(t *testing.T) {
	d := newHandDriven(t, 1500)
	fs := udpPieces(d, 1, 40000, 1500)
	d.serve(100, fs[1])
	d.serve(100+holdTicks-1, other(d))
	if n := d.drops(drop.StrayFragment); n != 0 || len(d.out.sent) != 1 {
		t.Fatalf("before its time: %d strays, %d frames sent", n, len(d.out.sent))
	}
	d.serve(100+holdTicks, other(d))
	if n := d.drops(drop.StrayFragment); n != 1 {
		t.Fatalf("%d strays counted, want 1", n)
	}
	d.out.sent = nil
	d.serve(100+holdTicks+1, fs[0], fs[1])
	if _, err := wiretest.Reassemble(d.out.sent); err != nil {
		t.Errorf("the datagram sent again: %v", err)
	}
}

// What the first fragment said is forgotten when no receiver would wait any more.
func TestFirstFragmentExpires(t *testing.T) {
	d := newHandDriven(t, 1500)
	fs := udpPieces(d, 1, 40000, 1500)
	d.serve(100, fs[0])
	d.serve(100+flow.FragmentTicks-1, fs[1])
	if len(d.out.sent) != 2 {
		t.Fatalf("%d fragments sent in time, want 2", len(d.out.sent))
	}
	d.serve(100+flow.FragmentTicks, fs[1])
	if len(d.out.sent) != 2 || d.a.spares[0].held != 1 {
		t.Errorf("%d fragments sent, want 2; the last was to wait for a new first one", len(d.out.sent))
	}
}

// A pod that sends later fragments only fills its own share and nothing else:
// what finds no room is dropped, a batch allocates nothing, and a datagram of
// which all came out of order still arrives once the flood is over.
func TestFloodOfLaterFragmentsIsBounded(t *testing.T) {
	d := newHandDriven(t, 1500)
	var flood [][]byte
	for id := range uint32(60) {
		flood = append(flood, udpPieces(d, 1000+id, 40000, 1500)[1])
	}
	d.serve(100, flood...)
	if held, n := d.a.spares[0].held, d.drops(drop.StrayFragment); held != heldFrames || n != uint64(60-heldFrames) {
		t.Fatalf("%d held, %d dropped; want %d and %d", held, n, heldFrames, 60-heldFrames)
	}
	var again []*frame.Frame
	again = append(again, d.in.frames...)
	if n := testing.AllocsPerRun(100, func() {
		d.in.frames = again
		d.w.serve(polled{port: d.a, queue: d.in})
	}); n != 0 {
		t.Errorf("%v allocations a batch of the flood, want 0", n)
	}
	fs := udpPieces(d, 1, 40000, 3500)
	d.out.sent = nil
	d.serve(100+holdTicks, fs[3], fs[2], fs[1], fs[0])
	if _, err := wiretest.Reassemble(d.out.sent); err != nil {
		t.Errorf("after the flood: %v", err)
	}
}

// Fragments that waited go out in the order of their coming, behind the first;
// their frames can be used again at once, and for ever.
func TestHeldFragmentsKeepTheirOrder(t *testing.T) {
	d := newHandDriven(t, 1500)
	for round := range uint32(200) {
		fs := udpPieces(d, round, 40000, 4500)
		d.out.sent = nil
		d.serve(100, fs[3], fs[1], fs[4], fs[0], fs[2])
		var offsets []uint16
		for _, raw := range d.out.sent {
			var h wire.Headers
			if r := wire.Parse(raw, &h); r != drop.None {
				t.Fatal(r)
			}
			offsets = append(offsets, h.FragOffset/1000)
		}
		if want := [5]uint16{0, 3, 1, 4, 2}; len(offsets) != 5 || [5]uint16(offsets) != want {
			t.Fatalf("round %d: sent %v, want %v", round, offsets, want)
		}
	}
}

// In order or not, fragments cost no allocation.
func TestFragmentsAllocateNothing(t *testing.T) {
	d := newHandDriven(t, 1500)
	fs := udpPieces(d, 1, 40000, 2500)
	d.serve(100, fs[2], fs[0], fs[1])
	d.out.sent = make([][]byte, 0)
	d.w.ports[d.b.id].queues[0] = &source{} // one that keeps nothing
	if n := testing.AllocsPerRun(100, func() { d.w.serve(polled{port: d.a, queue: d.in}) }); n != 0 {
		t.Errorf("%v allocations a batch, want 0", n)
	}
}

// The first fragment came to another worker: what waits here goes on when the
// next of its datagram comes, or with the next tick.
func TestFirstFragmentSeenByAnotherWorker(t *testing.T) {
	for _, next := range []string{"the next fragment", "the next tick"} {
		t.Run(next, func(t *testing.T) {
			d := newHandDriven(t, 1500)
			d.serve(99, other(d)) // makes the flow of port 9
			d.out.sent = nil
			fs := wiretest.Fragments(d.fromA(wiretest.Packet{Proto: 17, SrcPort: 9, DstPort: 80, Payload: make([]byte, 2500)}), 1, 1000, 0)
			d.serve(100, fs[1])
			var h wire.Headers
			if r := wire.Parse(fs[0], &h); r != drop.None {
				t.Fatal(r)
			}
			d.w.sw.cfg.Flows.Fragments.Note(&h, 100)
			if next == "the next fragment" {
				d.serve(100, fs[2])
				if len(d.out.sent) != 2 {
					t.Errorf("%d fragments went on, want both", len(d.out.sent))
				}
				return
			}
			d.serve(101, other(d))
			if len(d.out.sent) != 2 {
				t.Errorf("%d frames sent, want the fragment and the other", len(d.out.sent))
			}
		})
	}
}
