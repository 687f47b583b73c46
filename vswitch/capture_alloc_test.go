package vswitch

import (
	"fmt"
	"net/netip"
	"testing"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/frame"
)

// A worker allocates nothing for a capture, whether there is room in its ring or
// not. Without a capture TestForwardingAllocatesNothing says so.
func TestCapturingAllocatesNothing(t *testing.T) {
	serve := forwarder(t, 1<<10, hotPackets...)
	c, err := serve.worker.sw.Capture(CaptureConfig{RingBytes: minRingBytes})
	if err != nil {
		t.Fatal(err)
	}
	serve.run()
	if n := testing.AllocsPerRun(1000, serve.run); n != 0 {
		t.Errorf("%v allocations a batch, want 0", n)
	}
	if len(c.take()) == 0 || c.Lost() == 0 {
		t.Error("want some frames captured and some lost, to have measured both")
	}
}

// BenchmarkCapture is what a capture that is read in time costs the worker, for
// frames that enter and leave: with the first 96 bytes of each kept, and with all.
func BenchmarkCapture(b *testing.B) {
	for _, payload := range []int{18, 1400} {
		for _, tt := range []struct {
			name string
			snap int // -1: no capture
		}{{"none", -1}, {"first-96B", 96}, {"whole", 0}} {
			b.Run(fmt.Sprintf("%dB-UDP/%s", payload+46, tt.name), func(b *testing.B) {
				packets := make([]wiretest.Packet, frame.BatchFrames)
				for i := range packets {
					packets[i] = wiretest.Packet{Dst: netip.MustParseAddr("10.244.1.11"), Proto: wire.ProtoUDP, SrcPort: 1, DstPort: 2, Payload: make([]byte, payload)}
				}
				serve := forwarder(b, 1<<10, packets...)
				if tt.snap >= 0 {
					c, err := serve.worker.sw.Capture(CaptureConfig{SnapBytes: tt.snap})
					if err != nil {
						b.Fatal(err)
					}
					r := c.rings[0]
					serve.before = func() { // somebody has read it all
						r.taken.Store(r.next)
						r.freed.Store(r.write)
					}
				}
				measure(b, serve, frame.BatchFrames)
			})
		}
	}
}
