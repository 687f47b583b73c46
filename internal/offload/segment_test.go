package offload_test

import (
	"bytes"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"vswitch/internal/offload"
	"vswitch/internal/offload/offloadtest"
	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// cutAll runs the segmenter and joins headers and payload.
func cutAll(t rapid.TB, f *frame.Frame) ([][]byte, drop.Reason) {
	t.Helper()
	var h wire.Headers
	if r := wire.Parse(f.Bytes(), &h); r != drop.None {
		t.Fatalf("the super-frame does not parse: %v", r)
	}
	var s offload.Segments
	if r := s.Reset(f, &h); r != drop.None {
		return nil, r
	}
	var out [][]byte
	for i := range s.Len() {
		hdr := make([]byte, s.HeaderBytes())
		payload := s.At(i, hdr)
		if n := len(hdr) + len(payload); n > s.MaxBytes() {
			t.Fatalf("segment %d has %d bytes, MaxBytes says %d", i, n, s.MaxBytes())
		}
		out = append(out, append(hdr, payload...))
	}
	return out, drop.None
}

// drawPacket draws any packet that may be a super-frame.
func drawPacket(t *rapid.T) *offloadtest.Packet {
	p := &offloadtest.Packet{
		V6: rapid.Bool().Draw(t, "v6"), UDP: rapid.Bool().Draw(t, "udp"),
		SrcPort: rapid.Uint16().Draw(t, "sport"), DstPort: rapid.Uint16().Draw(t, "dport"),
		TOS: rapid.Uint8().Draw(t, "tos"), TTL: rapid.Uint8().Draw(t, "ttl"),
		ID: rapid.Uint16().Draw(t, "id"), DF: rapid.Bool().Draw(t, "df"),
		Seq: rapid.Uint32().Draw(t, "seq"), Ack: rapid.Uint32().Draw(t, "ack"),
		Window: rapid.Uint16().Draw(t, "window"),
	}
	p.Src, p.Dst = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.2")
	if p.V6 {
		p.Src, p.Dst = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:2::2")
		if rapid.Bool().Draw(t, "extension") {
			p.Extensions = []byte{0, 0, 1, 4, 0, 0, 0, 0} // PadN
		}
	}
	p.Flags = wire.ACK | rapid.SampledFrom([]uint8{0, wire.PSH, wire.FIN, wire.PSH | wire.FIN, wire.ECE, wire.CWR, wire.CWR | wire.PSH}).Draw(t, "flags")
	p.Options = offloadtest.Random(4*rapid.IntRange(0, 10).Draw(t, "option words"), 3)
	n := rapid.OneOf(rapid.IntRange(0, 300), rapid.IntRange(0, 60000)).Draw(t, "payload bytes")
	p.Payload = offloadtest.Random(n, rapid.Uint64().Draw(t, "payload seed"))
	if p.UDP {
		p.Seq, p.Flags, p.Options = 0, 0, nil
	}
	return p
}

// drawSize draws a segment size; for UDP one that respects the bound on segments.
func drawSize(t *rapid.T, p *offloadtest.Packet) int {
	least := 8
	if p.UDP {
		least = max(least, len(p.Payload)/64+1)
	}
	return rapid.OneOf(rapid.IntRange(least, least+50), rapid.IntRange(max(least, 500), 9000)).Draw(t, "segment size")
}

func TestSegmentsEqualTheSlowTwins(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPacket(t)
		size := drawSize(t, p)
		var want [][]byte
		for _, s := range p.Cut(size) {
			want = append(want, s.Bytes(false))
		}
		got, r := cutAll(t, p.Super(size))
		if r != drop.None {
			t.Fatalf("refused: %v", r)
		}
		if len(got) != len(want) {
			t.Fatalf("%d segments, want %d", len(got), len(want))
		}
		for i := range got {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("segment %d\n got %x\nwant %x", i, got[i][:p.HeaderBytes()], want[i][:p.HeaderBytes()])
			}
		}
	})
}

func TestSegmentsRefuseContradictions(t *testing.T) {
	payload := offloadtest.Random(3000, 1)
	udp4 := func() *offloadtest.Packet { p := offloadtest.TCP4(payload); p.UDP = true; return p }
	tests := []struct {
		name string
		f    func() *frame.Frame
	}{
		{"segment size zero", func() *frame.Frame { return offloadtest.TCP4(payload).Super(0) }},
		{"segment size below what Linux asks for", func() *frame.Frame { return offloadtest.TCP4(payload).Super(7) }},
		{"more datagrams than Linux sends", func() *frame.Frame { return udp4().Super(10) }},
		{"TCPv6 over IPv4", func() *frame.Frame {
			f := offloadtest.TCP4(payload).Super(1000)
			f.VNet.GSOType = frame.GSOTCPv6
			return f
		}},
		{"TCP kind on a UDP packet", func() *frame.Frame {
			f := udp4().Super(1000)
			f.VNet.GSOType = frame.GSOTCPv4
			return f
		}},
		{"UDP kind on a TCP packet", func() *frame.Frame {
			f := offloadtest.TCP4(payload).Super(1000)
			f.VNet.GSOType = frame.GSOUDPL4
			return f
		}},
		{"UDP fragmentation offload, never negotiated", func() *frame.Frame {
			f := udp4().Super(1000)
			f.VNet.GSOType = frame.GSOUDP
			return f
		}},
		{"unknown kind", func() *frame.Frame {
			f := offloadtest.TCP4(payload).Super(1000)
			f.VNet.GSOType = 0x40
			return f
		}},
		{"complete checksum", func() *frame.Frame {
			f := offloadtest.TCP4(payload).Super(1000)
			f.VNet.Flags = 0
			return f
		}},
		{"checksum start off the transport header", func() *frame.Frame {
			f := offloadtest.TCP4(payload).Super(1000)
			f.VNet.CsumStart++
			return f
		}},
		{"checksum offset of another protocol", func() *frame.Frame {
			f := offloadtest.TCP4(payload).Super(1000)
			f.VNet.CsumOffset = 6
			return f
		}},
		{"SYN", func() *frame.Frame {
			p := offloadtest.TCP4(payload)
			p.Flags |= wire.SYN
			return p.Super(1000)
		}},
		{"headers too long", func() *frame.Frame {
			p := offloadtest.TCP4(payload)
			p.V6, p.Src, p.Dst = true, netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
			p.Extensions = make([]byte, 160)
			p.Extensions[1] = 160/8 - 1
			return p.Super(1000)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, r := cutAll(t, tt.f()); r != drop.BadOffload {
				t.Errorf("got %v, want %v", r, drop.BadOffload)
			}
		})
	}
}

func FuzzSegments(f *testing.F) {
	add := func(fr *frame.Frame) {
		v := fr.VNet
		f.Add(fr.Bytes(), uint8(v.Flags), uint8(v.GSOType), v.GSOSize, v.CsumStart, v.CsumOffset)
	}
	add(offloadtest.TCP4(offloadtest.Random(500, 1)).Super(100))
	u := offloadtest.TCP4(offloadtest.Random(500, 1))
	u.UDP = true
	add(u.Super(100))
	u.V6, u.Src, u.Dst = true, netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	add(u.Super(100))
	f.Fuzz(func(t *testing.T, b []byte, flags, gso uint8, size, start, offset uint16) {
		if len(b) > frame.MaxBytes {
			return
		}
		fr := frame.New()
		fr.Set(b)
		fr.VNet = frame.VNet{Flags: frame.VNetFlags(flags), GSOType: frame.GSOType(gso), GSOSize: size, CsumStart: start, CsumOffset: offset}
		var h wire.Headers
		if wire.Parse(fr.Bytes(), &h) != drop.None {
			return
		}
		var s offload.Segments
		if s.Reset(fr, &h) != drop.None {
			return
		}
		hdr := make([]byte, offload.MaxHeaderBytes)
		payload := 0
		for i := range s.Len() {
			part := s.At(i, hdr[:s.HeaderBytes()])
			payload += len(part)
			whole := append(bytes.Clone(hdr[:s.HeaderBytes()]), part...)
			var sh wire.Headers
			if r := wire.Parse(whole, &sh); r != drop.None {
				t.Fatalf("segment %d does not parse: %v", i, r)
			}
			if r := offload.VerifyTransport(whole, &sh); r != drop.None {
				t.Fatalf("segment %d: %v", i, r)
			}
		}
		if payload != h.End-h.PayloadOff {
			t.Fatalf("segments carry %d bytes, the frame has %d", payload, h.End-h.PayloadOff)
		}
	})
}
