package vswitch

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/frame"
)

func BenchmarkForward(b *testing.B) {
	for _, tt := range []struct {
		name   string
		packet wiretest.Packet
	}{
		{"64B-UDP-to-local-pod", wiretest.Packet{Dst: netip.MustParseAddr("10.244.1.11"), Proto: 17, SrcPort: 1, DstPort: 2, Payload: make([]byte, 18)}},
		{"64B-UDP-to-tunnel", wiretest.Packet{Dst: netip.MustParseAddr("10.244.2.20"), Proto: 17, SrcPort: 1, DstPort: 2, Payload: make([]byte, 18)}},
		{"64B-UDP-to-VIP", wiretest.Packet{Dst: netip.MustParseAddr("10.96.0.1"), Proto: 17, SrcPort: 1, DstPort: 2, Payload: make([]byte, 18)}},
	} {
		for _, batch := range []int{1, 4, frame.BatchFrames} {
			b.Run(fmt.Sprintf("%s/batch-%d", tt.name, batch), func(b *testing.B) {
				packets := make([]wiretest.Packet, batch)
				for i := range packets {
					packets[i] = tt.packet
				}
				measure(b, forwarder(b, 1<<12, packets...), batch)
			})
		}
	}
}

// Every frame is of another flow than the one before, in random order: each lookup
// goes where no cache line has been for long, when the flows are many.
func BenchmarkForwardFlows(b *testing.B) {
	for _, flows := range []int{100, 10_000, 100_000} {
		for _, batch := range []int{1, 4, frame.BatchFrames} {
			b.Run(fmt.Sprintf("64B-UDP-of-%d-flows/batch-%d", flows, batch), func(b *testing.B) {
				packets := make([]wiretest.Packet, batch)
				for i := range packets {
					packets[i] = wiretest.Packet{Dst: netip.MustParseAddr("10.244.1.11"), Proto: 17, Payload: make([]byte, 18)}
				}
				serve := forwarder(b, 1<<18, packets...)
				in, next := serve.in, 0
				ports := make([]uint32, flows)
				for i, n := range rand.Perm(flows) {
					ports[i] = uint32(n)<<8 | 1
				}
				serve.before = func() {
					for _, f := range in.frames {
						// The checksum is the receiver's to judge.
						binary.BigEndian.PutUint32(f.Bytes()[wire.EthernetBytes+wire.IPv4Bytes:], ports[next])
						if next++; next == len(ports) {
							next = 0
						}
					}
				}
				for range flows/batch + 1 {
					serve.run() // the flows are installed
				}
				if n := serve.worker.sw.cfg.Flows.Len(); n < flows {
					b.Fatalf("%d flows in the table, want %d", n, flows)
				}
				measure(b, serve, batch)
			})
		}
	}
}

func measure(b *testing.B, f *forwarding, batch int) {
	b.ReportAllocs()
	for b.Loop() {
		f.run()
	}
	frames := float64(b.N) * float64(batch)
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/frames, "ns/frame")
	b.ReportMetric(frames/b.Elapsed().Seconds(), "frames/s")
}
