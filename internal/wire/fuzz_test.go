package wire

import (
	"testing"

	"vswitch/vswitch/drop"
)

func seeds(f *testing.F, from int) {
	for _, b := range [][]byte{
		ipv4(f, 0x4000, 64, ProtoTCP, "", tcpSYN),
		ipv4(f, 0, 64, ProtoUDP, "01010101", udpHead+"01020304"),
		ipv4(f, 0x20b9, 64, ProtoUDP, "", udpHead),
		ipv4(f, 0, 64, ProtoICMP, "", "0800 0000 abcd 0001"),
		ipv6(f, ProtoTCP, tcpSYN),
		ipv6(f, ProtoHopByHop, "2b00 010400000000 3c00 0000 00000000 3301 0104 00000000 00000000 00000000"+
			"1104 0000 00000001 00000001 000000000000000000000000"+udpHead+"01020304"),
		ipv6(f, ProtoFragment, "1100 0001 00000007 03e8 0035 1000 0000"),
		ipv6(f, ProtoFragment, "0000 0549 00000007 ff"),
		unhex(f, "ffffffff ffff 0200 5e00 0001 0806 0001"),
	} {
		f.Add(b[from:])
	}
}

// checkOffsets holds headers to what every user of them relies on: they lie in
// the frame, in order.
func checkOffsets(t *testing.T, b []byte, h *Headers) {
	t.Helper()
	if h.L3Off < 0 || h.L3Off > h.L4Off || h.L4Off > h.PayloadOff || h.PayloadOff > h.End || h.End > len(b) {
		t.Errorf("offsets %d %d %d %d in %d bytes", h.L3Off, h.L4Off, h.PayloadOff, h.End, len(b))
	}
	if h.LaterFrag && (h.HasL4 || !h.Fragment) || h.MoreFrags && !h.Fragment {
		t.Errorf("fragment marks contradict each other: %+v", h)
	}
	if !h.HasL4 && (h.SrcPort|h.DstPort != 0 || h.PayloadOff != h.L4Off) {
		t.Errorf("ports or payload without a transport header: %+v", h)
	}
	if h.V6 != (h.EtherType == TypeIPv6) || h.EtherType == TypeIPv4 && !(h.Src.Is4() && h.Dst.Is4()) {
		t.Errorf("family: %+v", h)
	}
}

func FuzzParse(f *testing.F) {
	seeds(f, 0)
	f.Fuzz(func(t *testing.T, b []byte) {
		var h Headers
		if r := Parse(b, &h); r != drop.None {
			if int(r) >= drop.Count {
				t.Errorf("no reason: %d", r)
			}
			return
		}
		checkOffsets(t, b, &h)
		// What lies behind the packet has no say.
		var again Headers
		if r := Parse(b[:h.End], &again); r != drop.None || again != h {
			t.Errorf("without padding: %v\n%+v\n%+v", r, again, h)
		}
	})
}

func FuzzParseQuoted(f *testing.F) {
	seeds(f, EthernetBytes)
	f.Fuzz(func(t *testing.T, b []byte) {
		var h Headers
		if r := ParseQuoted(b, &h); r != drop.None {
			return
		}
		if h.L3Off != 0 {
			t.Errorf("L3Off %d", h.L3Off)
		}
		checkOffsets(t, b, &h)
	})
}

// FuzzQuotedAgrees: a packet that Parse takes whole has the same tuple when quoted.
func FuzzQuotedAgrees(f *testing.F) {
	seeds(f, 0)
	f.Fuzz(func(t *testing.T, b []byte) {
		var h, q Headers
		if Parse(b, &h) != drop.None || h.EtherType == TypeARP {
			return
		}
		if r := ParseQuoted(b[EthernetBytes:h.End], &q); r != drop.None {
			t.Fatalf("quoted: %v", r)
		}
		if q.Src != h.Src || q.Dst != h.Dst || q.Proto != h.Proto || q.LaterFrag != h.LaterFrag || q.L4Off+EthernetBytes != h.L4Off {
			t.Errorf("whole  %+v\nquoted %+v", h, q)
		}
		if h.HasL4 && (q.SrcPort != h.SrcPort || q.DstPort != h.DstPort) {
			t.Errorf("ports %d %d, quoted %d %d", h.SrcPort, h.DstPort, q.SrcPort, q.DstPort)
		}
	})
}

func TestParsersAllocateNothing(t *testing.T) {
	whole := [][]byte{
		ipv4(t, 0, 64, ProtoTCP, "", tcpSYN),
		ipv6(t, ProtoDstOpts, "1100 0104 00000000"+udpHead+"01020304"),
		ipv6(t, ProtoDstOpts, "1100"),
	}
	var h Headers
	if n := testing.AllocsPerRun(100, func() {
		for _, b := range whole {
			Parse(b, &h)
			ParseQuoted(b[EthernetBytes:], &h)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
