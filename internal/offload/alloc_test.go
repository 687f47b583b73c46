package offload_test

import (
	"testing"

	"vswitch/internal/offload"
	"vswitch/internal/offload/offloadtest"
	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

func TestNothingAllocates(t *testing.T) {
	super := offloadtest.TCP4(offloadtest.Random(60000, 1)).Super(1400)
	segs, r := cutAll(t, super)
	if r != drop.None {
		t.Fatal(r)
	}
	var (
		h   wire.Headers
		s   offload.Segments
		c   offload.Coalescer
		hdr [offload.MaxHeaderBytes]byte
		out = frame.New()
	)
	wire.Parse(super.Bytes(), &h)
	cut := func() {
		if s.Reset(super, &h) != drop.None {
			t.Fatal("refused")
		}
		for i := range s.Len() {
			s.At(i, hdr[:s.HeaderBytes()])
		}
	}
	merge := func() {
		out.Set(segs[0])
		wire.Parse(segs[0], &h)
		c.Open(out, &h)
		for _, seg := range segs[1:] {
			wire.Parse(seg, &h)
			if !c.Merge(seg, &h, &frame.VNet{}, 0, false) {
				t.Fatal("not merged")
			}
		}
		c.Flush()
	}
	for name, f := range map[string]func(){"cut": cut, "merge": merge} {
		if n := testing.AllocsPerRun(10, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

// A TSO frame of 60,000 bytes to packets for an MTU of 1500 less VXLAN, and back.
func BenchmarkCutTSO60kTo1400(b *testing.B) {
	super := offloadtest.TCP4(offloadtest.Random(60000, 1)).Super(1400)
	var h wire.Headers
	var s offload.Segments
	var hdr [offload.MaxHeaderBytes]byte
	wire.Parse(super.Bytes(), &h)
	b.SetBytes(int64(super.Len()))
	for b.Loop() {
		s.Reset(super, &h)
		for i := range s.Len() {
			s.At(i, hdr[:s.HeaderBytes()])
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(s.Len()), "ns/packet")
}

func BenchmarkMerge1400To60k(b *testing.B) {
	super := offloadtest.TCP4(offloadtest.Random(60000, 1)).Super(1400)
	segs, _ := cutAll(b, super)
	var h wire.Headers
	var c offload.Coalescer
	out := frame.New()
	b.SetBytes(int64(super.Len()))
	for b.Loop() {
		out.Set(segs[0])
		wire.Parse(segs[0], &h)
		c.Open(out, &h)
		for _, seg := range segs[1:] {
			wire.Parse(seg, &h)
			c.Merge(seg, &h, &frame.VNet{}, 0, false)
		}
		c.Flush()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(segs)), "ns/packet")
}
