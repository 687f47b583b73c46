package offload_test

import (
	"bytes"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"vswitch/internal/offload"
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
func drawPacket(t *rapid.T) *packet {
	p := &packet{
		v6: rapid.Bool().Draw(t, "v6"), udp: rapid.Bool().Draw(t, "udp"),
		sport: rapid.Uint16().Draw(t, "sport"), dport: rapid.Uint16().Draw(t, "dport"),
		tos: rapid.Uint8().Draw(t, "tos"), ttl: rapid.Uint8().Draw(t, "ttl"),
		id: rapid.Uint16().Draw(t, "id"), df: rapid.Bool().Draw(t, "df"),
		seq: rapid.Uint32().Draw(t, "seq"), ack: rapid.Uint32().Draw(t, "ack"),
		window: rapid.Uint16().Draw(t, "window"),
	}
	p.src, p.dst = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.2")
	if p.v6 {
		p.src, p.dst = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:2::2")
		if rapid.Bool().Draw(t, "extension") {
			p.extensions = []byte{0, 0, 1, 4, 0, 0, 0, 0} // PadN
		}
	}
	p.flags = wire.ACK | rapid.SampledFrom([]uint8{0, wire.PSH, wire.FIN, wire.PSH | wire.FIN, wire.ECE, wire.CWR, wire.CWR | wire.PSH}).Draw(t, "flags")
	p.options = bytesOf(4*rapid.IntRange(0, 10).Draw(t, "option words"), 3)
	n := rapid.OneOf(rapid.IntRange(0, 300), rapid.IntRange(0, 60000)).Draw(t, "payload bytes")
	p.payload = bytesOf(n, rapid.Uint64().Draw(t, "payload seed"))
	if p.udp {
		p.seq, p.flags, p.options = 0, 0, nil
	}
	return p
}

// drawSize draws a segment size; for UDP one that respects the bound on segments.
func drawSize(t *rapid.T, p *packet) int {
	least := 8
	if p.udp {
		least = max(least, len(p.payload)/64+1)
	}
	return rapid.OneOf(rapid.IntRange(least, least+50), rapid.IntRange(max(least, 500), 9000)).Draw(t, "segment size")
}

func TestSegmentsEqualTheSlowTwins(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPacket(t)
		size := drawSize(t, p)
		var want [][]byte
		for _, s := range p.cut(size) {
			want = append(want, s.bytes(false))
		}
		got, r := cutAll(t, p.super(size))
		if r != drop.None {
			t.Fatalf("refused: %v", r)
		}
		if len(got) != len(want) {
			t.Fatalf("%d segments, want %d", len(got), len(want))
		}
		for i := range got {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("segment %d\n got %x\nwant %x", i, got[i][:p.headerBytes()], want[i][:p.headerBytes()])
			}
		}
	})
}

func TestSegmentsRefuseContradictions(t *testing.T) {
	payload := bytesOf(3000, 1)
	udp4 := func() *packet { p := tcp4(payload); p.udp = true; return p }
	tests := []struct {
		name string
		f    func() *frame.Frame
	}{
		{"segment size zero", func() *frame.Frame { return tcp4(payload).super(0) }},
		{"segment size below what Linux asks for", func() *frame.Frame { return tcp4(payload).super(7) }},
		{"more datagrams than Linux sends", func() *frame.Frame { return udp4().super(10) }},
		{"TCPv6 over IPv4", func() *frame.Frame {
			f := tcp4(payload).super(1000)
			f.VNet.GSOType = frame.GSOTCPv6
			return f
		}},
		{"TCP kind on a UDP packet", func() *frame.Frame {
			f := udp4().super(1000)
			f.VNet.GSOType = frame.GSOTCPv4
			return f
		}},
		{"UDP kind on a TCP packet", func() *frame.Frame {
			f := tcp4(payload).super(1000)
			f.VNet.GSOType = frame.GSOUDPL4
			return f
		}},
		{"UDP fragmentation offload, never negotiated", func() *frame.Frame {
			f := udp4().super(1000)
			f.VNet.GSOType = frame.GSOUDP
			return f
		}},
		{"unknown kind", func() *frame.Frame {
			f := tcp4(payload).super(1000)
			f.VNet.GSOType = 0x40
			return f
		}},
		{"complete checksum", func() *frame.Frame {
			f := tcp4(payload).super(1000)
			f.VNet.Flags = 0
			return f
		}},
		{"checksum start off the transport header", func() *frame.Frame {
			f := tcp4(payload).super(1000)
			f.VNet.CsumStart++
			return f
		}},
		{"checksum offset of another protocol", func() *frame.Frame {
			f := tcp4(payload).super(1000)
			f.VNet.CsumOffset = 6
			return f
		}},
		{"SYN", func() *frame.Frame {
			p := tcp4(payload)
			p.flags |= wire.SYN
			return p.super(1000)
		}},
		{"headers too long", func() *frame.Frame {
			p := tcp4(payload)
			p.v6, p.src, p.dst = true, netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
			p.extensions = make([]byte, 160)
			p.extensions[1] = 160/8 - 1
			return p.super(1000)
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
	add(tcp4(bytesOf(500, 1)).super(100))
	u := tcp4(bytesOf(500, 1))
	u.udp = true
	add(u.super(100))
	u.v6, u.src, u.dst = true, netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	add(u.super(100))
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
