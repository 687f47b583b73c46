//go:build linux

package vxlan_test

import (
	"testing"

	"vswitch/internal/offload/offloadtest"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// Both ends of a tunnel over loopback on one thread: encapsulation, the kernel's
// UDP stack twice, decapsulation. Each round sends fs and receives packets.
func benchmarkTunnel(b *testing.B, fs []*frame.Frame, packets int) {
	from, to := pair(b, loopbacks["IPv4"], nil)
	batch := frame.NewBatch(frame.BatchFrames)
	bytes := 0
	for _, f := range fs {
		bytes += f.Len()
		f.Peer = idB
	}
	b.SetBytes(int64(bytes))
	for b.Loop() {
		from.Queue(0).Transmit(fs)
		for got := 0; got < bytes; {
			batch.Reset()
			if err := to.Queue(0).Receive(batch); err != nil {
				b.Fatal(err)
			}
			if batch.Len() == 0 {
				b.Fatalf("%d of %d bytes arrived", got, bytes)
			}
			for i := range batch.Len() {
				if f := batch.At(i); f.Drop == drop.None {
					got += f.Len()
				}
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*packets), "ns/packet")
}

func BenchmarkOneTCPSuperFrame60k(b *testing.B) {
	f := offloadtest.TCP4(offloadtest.Random(43*1398, 1)).Super(1398)
	benchmarkTunnel(b, []*frame.Frame{f}, 43)
}

func BenchmarkFullSizeDatagramsOneFlow(b *testing.B) {
	var fs []*frame.Frame
	for i := range 32 {
		fs = append(fs, plain(offloadtest.TCP4(offloadtest.Random(1422, uint64(i))).ToUDP()))
	}
	benchmarkTunnel(b, fs, len(fs))
}

func Benchmark64ByteDatagramsOneFlow(b *testing.B) {
	var fs []*frame.Frame
	for i := range 64 {
		fs = append(fs, plain(offloadtest.TCP4(offloadtest.Random(22, uint64(i))).ToUDP()))
	}
	benchmarkTunnel(b, fs, len(fs))
}

func BenchmarkOneSmallDatagram(b *testing.B) {
	f := plain(offloadtest.TCP4(offloadtest.Random(22, 1)).ToUDP())
	benchmarkTunnel(b, []*frame.Frame{f}, 1)
}
