package offload_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"vswitch/internal/offload"
	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// receive runs packets through the coalescer as a tunnel's Receive does.
func receive(c *offload.Coalescer, pkts [][]byte) *frame.Batch {
	b := frame.NewBatch(len(pkts))
	for _, p := range pkts {
		var h wire.Headers
		parsed := wire.Parse(p, &h) == drop.None
		if parsed && c.Merge(p, &h, 1) {
			continue
		}
		f := b.Next()
		f.Set(p)
		f.Peer = 1
		b.Keep()
		if parsed {
			c.Open(f, &h)
		}
	}
	c.Flush()
	return b
}

// wires turns packets into bytes.
func wires(ps ...*packet) [][]byte {
	var out [][]byte
	for _, p := range ps {
		out = append(out, p.bytes(false))
	}
	return out
}

func TestSegmentThenCoalesceIsIdentity(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPacket(t)
		size := drawSize(t, p)
		super := p.super(size)
		segs, r := cutAll(t, super)
		if r != drop.None {
			t.Fatalf("refused: %v", r)
		}
		b := receive(&offload.Coalescer{USO: true, ECN: true}, segs)
		if b.Len() != 1 {
			t.Fatalf("%d frames of %d segments, want one", b.Len(), len(segs))
		}
		got := b.At(0)
		if len(segs) == 1 {
			if !bytes.Equal(got.Bytes(), segs[0]) || got.VNet != (frame.VNet{}) {
				t.Fatal("a lone packet was changed")
			}
			return
		}
		if !bytes.Equal(got.Bytes(), super.Bytes()) {
			t.Fatalf("\n got %x\nwant %x", got.Bytes()[:p.headerBytes()], super.Bytes()[:p.headerBytes()])
		}
		if got.VNet != super.VNet {
			t.Fatalf("metadata %+v, want %+v", got.VNet, super.VNet)
		}
	})
}

// Any sequence of packets: cutting what the coalescer made gives, flow by flow,
// the packets that went in, in their order and bit by bit.
func TestCoalesceLosesNothingAndKeepsOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		flows := rapid.IntRange(1, 20).Draw(t, "flows")
		seq := make([]uint32, flows)
		id := make([]uint16, flows)
		in := map[int][][]byte{}
		var all [][]byte
		for range rapid.IntRange(1, 60).Draw(t, "packets") {
			k := rapid.IntRange(0, flows-1).Draw(t, "flow")
			p := tcp4(bytesOf(rapid.SampledFrom([]int{0, 8, 100, 100, 100, 100, 50}).Draw(t, "bytes"), uint64(len(all))))
			p.sport = uint16(1000 + k)
			p.udp = k%3 == 2
			p.df = k%2 == 0
			p.flags |= rapid.SampledFrom([]uint8{0, 0, 0, 0, wire.PSH, wire.FIN, wire.SYN, wire.RST, wire.URG, wire.ECE, wire.CWR}).Draw(t, "flags")
			p.tos = rapid.SampledFrom([]uint8{2, 2, 2, 3}).Draw(t, "tos")
			p.seq = seq[k] + rapid.SampledFrom([]uint32{0, 0, 0, 0, 1}).Draw(t, "gap")
			p.id = id[k]
			if p.udp {
				p.flags = 0
			}
			seq[k] = p.seq + uint32(len(p.payload))
			id[k]++
			b := p.bytes(false)
			if rapid.IntRange(0, 9).Draw(t, "corrupt") == 0 && len(p.payload) > 0 {
				b[len(b)-1] ^= 1
			}
			in[k] = append(in[k], b)
			all = append(all, b)
		}
		batch := receive(&offload.Coalescer{USO: rapid.Bool().Draw(t, "uso"), ECN: rapid.Bool().Draw(t, "ecn")}, all)
		out := map[int][][]byte{}
		for i := range batch.Len() {
			f := batch.At(i)
			k := int(binary.BigEndian.Uint16(f.Bytes()[34:])) - 1000
			if !f.VNet.IsGSO() {
				out[k] = append(out[k], f.Bytes())
				continue
			}
			segs, r := cutAll(t, f)
			if r != drop.None {
				t.Fatalf("frame %d can't be cut: %v", i, r)
			}
			out[k] = append(out[k], segs...)
		}
		for k := range in {
			if len(in[k]) != len(out[k]) {
				t.Fatalf("flow %d: %d packets in, %d out", k, len(in[k]), len(out[k]))
			}
			for i := range in[k] {
				if !bytes.Equal(in[k][i], out[k][i]) {
					t.Fatalf("flow %d packet %d:\n in %x\nout %x", k, i, in[k][i], out[k][i])
				}
			}
		}
	})
}

func TestCoalesceRules(t *testing.T) {
	// pair is two packets that merge, the second changed by each case.
	pair := func(change func(a, b *packet)) [][]byte {
		a, b := tcp4(bytesOf(100, 1)), tcp4(bytesOf(100, 2))
		b.seq += 100
		b.id++
		change(a, b)
		return wires(a, b)
	}
	options := func(p *packet, last byte) { p.options = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, last} }
	tests := []struct {
		name string
		c    offload.Coalescer
		in   [][]byte
		want int // frames
	}{
		{name: "contiguous segments merge", in: pair(func(a, b *packet) {}), want: 1},
		{name: "a gap does not merge", in: pair(func(a, b *packet) { b.seq++ }), want: 2},
		{name: "a duplicate does not merge", in: pair(func(a, b *packet) { b.seq = a.seq }), want: 2},
		{name: "another flow does not merge", in: pair(func(a, b *packet) { b.sport++ }), want: 2},
		{name: "another acknowledgement does not merge", in: pair(func(a, b *packet) { b.ack++ }), want: 2},
		{name: "another window does not merge", in: pair(func(a, b *packet) { b.window++ }), want: 2},
		{name: "another TTL does not merge", in: pair(func(a, b *packet) { b.ttl-- }), want: 2},
		{name: "another ECN mark does not merge", in: pair(func(a, b *packet) { a.tos, b.tos = 2, 3 }), want: 2},
		{name: "same options merge", in: pair(func(a, b *packet) { options(a, 1); options(b, 1) }), want: 1},
		{name: "another timestamp does not merge", in: pair(func(a, b *packet) { options(a, 1); options(b, 2) }), want: 2},
		{name: "options of another length do not merge", in: pair(func(a, b *packet) { options(a, 1) }), want: 2},
		{name: "a longer segment does not merge", in: pair(func(a, b *packet) { b.payload = bytesOf(101, 3) }), want: 2},
		{name: "a shorter segment merges", in: pair(func(a, b *packet) { b.payload = bytesOf(99, 3) }), want: 1},
		{name: "an empty segment does not merge", in: pair(func(a, b *packet) { b.payload = nil }), want: 2},
		{name: "PSH ends a frame", in: pair(func(a, b *packet) { b.flags |= wire.PSH }), want: 1},
		{name: "nothing follows PSH", in: pair(func(a, b *packet) { a.flags |= wire.PSH }), want: 2},
		{name: "SYN does not merge", in: pair(func(a, b *packet) { a.flags |= wire.SYN }), want: 2},
		{name: "RST does not merge", in: pair(func(a, b *packet) { b.flags |= wire.RST }), want: 2},
		{name: "URG does not merge", in: pair(func(a, b *packet) { b.flags |= wire.URG }), want: 2},
		{name: "ECE on one does not merge", in: pair(func(a, b *packet) { b.flags |= wire.ECE }), want: 2},
		{name: "ECE on both merges", in: pair(func(a, b *packet) { a.flags |= wire.ECE; b.flags |= wire.ECE }), want: 1},
		{name: "CWR first does not merge without ECN", in: pair(func(a, b *packet) { a.flags |= wire.CWR }), want: 2},
		{name: "CWR first merges with ECN", c: offload.Coalescer{ECN: true}, in: pair(func(a, b *packet) { a.flags |= wire.CWR }), want: 1},
		{name: "CWR later does not merge", c: offload.Coalescer{ECN: true}, in: pair(func(a, b *packet) { b.flags |= wire.CWR }), want: 2},
		{name: "without DF an identification that jumps does not merge", in: pair(func(a, b *packet) { a.df, b.df = false, false; b.id++ }), want: 2},
		{name: "without DF an identification that counts merges", in: pair(func(a, b *packet) { a.df, b.df = false, false }), want: 1},
		{name: "UDP does not merge unless asked", in: pair(func(a, b *packet) { a.udp, b.udp = true, true }), want: 2},
		{name: "equal UDP merges when asked", c: offload.Coalescer{USO: true}, in: pair(func(a, b *packet) { a.udp, b.udp = true, true }), want: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := receive(&tt.c, tt.in).Len(); got != tt.want {
				t.Errorf("%d frames, want %d", got, tt.want)
			}
		})
	}
}

func TestCoalesceLeavesBadChecksumsAlone(t *testing.T) {
	for bad := range 3 {
		t.Run(fmt.Sprintf("packet %d of three", bad), func(t *testing.T) {
			var in [][]byte
			for i := range 3 {
				p := tcp4(bytesOf(100, uint64(i)))
				p.seq += uint32(100 * i)
				p.id += uint16(i)
				in = append(in, p.bytes(false))
			}
			in[bad][60] ^= 0x10
			b := receive(new(offload.Coalescer), in)
			found := false
			for i := range b.Len() {
				f := b.At(i)
				if bytes.Equal(f.Bytes(), in[bad]) && f.VNet == (frame.VNet{}) {
					found = true
				}
			}
			if !found {
				t.Error("the packet with the bad checksum did not come out as it went in")
			}
		})
	}
}

func TestCoalesceKeepsMembersApart(t *testing.T) {
	p := tcp4(bytesOf(100, 1))
	q := tcp4(bytesOf(100, 2))
	q.seq += 100
	var c offload.Coalescer
	var h wire.Headers
	f := frame.New()
	f.Set(p.bytes(false))
	f.Peer = 1
	wire.Parse(f.Bytes(), &h)
	c.Open(f, &h)
	next := q.bytes(false)
	wire.Parse(next, &h)
	if c.Merge(next, &h, 2) {
		t.Error("member 2 added to a frame of member 1")
	}
}

func TestCoalesceStopsAtTheLongestPacket(t *testing.T) {
	var in [][]byte
	for i := range 60 {
		p := tcp4(bytesOf(1400, uint64(i)))
		p.seq += uint32(1400 * i)
		in = append(in, p.bytes(false))
	}
	b := receive(new(offload.Coalescer), in)
	if b.Len() != 2 {
		t.Fatalf("%d frames, want 2", b.Len())
	}
	if want := 14 + 40 + 1400*46; b.At(0).Len() != want { // 47 would need 65,840 bytes of IP packet
		t.Errorf("first frame has %d bytes, want %d", b.At(0).Len(), want)
	}
}

func TestPaddingIsNotPayload(t *testing.T) {
	a, b := tcp4(bytesOf(8, 1)), tcp4(bytesOf(8, 2))
	b.seq += 8
	in := wires(a, b)
	in[0] = append(in[0], 0xee, 0xee, 0xee)
	got := receive(new(offload.Coalescer), in)
	a.payload = append(bytes.Clone(a.payload), b.payload...)
	want := a.super(8)
	if got.Len() != 1 || !bytes.Equal(got.At(0).Bytes(), want.Bytes()) {
		t.Error("padding got into the merged payload")
	}
}

func FuzzCoalesce(f *testing.F) {
	p := tcp4(bytesOf(100, 1))
	q := tcp4(bytesOf(100, 2))
	q.seq += 100
	f.Add(p.bytes(false), q.bytes(false), true)
	p.udp, q.udp = true, true
	f.Add(p.bytes(false), q.bytes(false), true)
	p.v6, p.src, p.dst = true, netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	f.Add(p.bytes(false), p.bytes(false), true)
	f.Fuzz(func(t *testing.T, a, b []byte, uso bool) {
		if len(a) > frame.MaxBytes || len(b) > frame.MaxBytes {
			return
		}
		batch := receive(&offload.Coalescer{USO: uso, ECN: uso}, [][]byte{a, b})
		if batch.Len() == 2 {
			if !bytes.Equal(batch.At(0).Bytes(), a) || !bytes.Equal(batch.At(1).Bytes(), b) {
				t.Fatal("packets that did not merge were changed")
			}
			return
		}
		segs, r := cutAll(t, batch.At(0))
		if r != drop.None || len(segs) != 2 {
			t.Fatalf("the merged frame can't be cut in two: %v", r)
		}
		var h wire.Headers
		for i, in := range [][]byte{a, b} {
			wire.Parse(in, &h)
			in = bytes.Clone(in[:h.End])
			if h.DontFragment && !h.V6 { // the identification is renumbered, and the checksums with it
				copy(in[18:20], segs[i][18:20])
				copy(in[24:26], segs[i][24:26])
			}
			if !bytes.Equal(in, segs[i]) && !sameButZeroForm(in, segs[i], &h) {
				t.Fatalf("packet %d changed\n in %x\nout %x", i, in, segs[i])
			}
		}
	})
}

// sameButZeroForm allows a checksum to be the other form of zero.
func sameButZeroForm(a, b []byte, h *wire.Headers) bool {
	at := h.L4Off + 16
	if h.Proto == wire.ProtoUDP {
		at = h.L4Off + 6
	}
	a, b = bytes.Clone(a), bytes.Clone(b)
	zero := []byte{0, 0}
	ones := []byte{0xff, 0xff}
	if bytes.Equal(a[at:at+2], zero) && bytes.Equal(b[at:at+2], ones) {
		copy(a[at:], ones)
	}
	return bytes.Equal(a, b)
}
