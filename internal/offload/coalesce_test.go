package offload_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"vswitch/internal/offload"
	"vswitch/internal/offload/offloadtest"
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
		if parsed && c.Merge(p, &h, &frame.VNet{}, 1, false) {
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
func wires(ps ...*offloadtest.Packet) [][]byte {
	var out [][]byte
	for _, p := range ps {
		out = append(out, p.Bytes(false))
	}
	return out
}

func TestSegmentThenCoalesceIsIdentity(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPacket(t)
		size := drawSize(t, p)
		super := p.Super(size)
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
			t.Fatalf("\n got %x\nwant %x", got.Bytes()[:p.HeaderBytes()], super.Bytes()[:p.HeaderBytes()])
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
			p := offloadtest.TCP4(offloadtest.Random(rapid.SampledFrom([]int{0, 8, 100, 100, 100, 100, 50}).Draw(t, "bytes"), uint64(len(all))))
			p.SrcPort = uint16(1000 + k)
			p.UDP = k%3 == 2
			p.DF = k%2 == 0
			p.Flags |= rapid.SampledFrom([]uint8{0, 0, 0, 0, wire.PSH, wire.FIN, wire.SYN, wire.RST, wire.URG, wire.ECE, wire.CWR}).Draw(t, "flags")
			p.TOS = rapid.SampledFrom([]uint8{2, 2, 2, 3}).Draw(t, "tos")
			p.Seq = seq[k] + rapid.SampledFrom([]uint32{0, 0, 0, 0, 1}).Draw(t, "gap")
			p.ID = id[k]
			if p.UDP {
				p.Flags = 0
			}
			seq[k] = p.Seq + uint32(len(p.Payload))
			id[k]++
			b := p.Bytes(false)
			if rapid.IntRange(0, 9).Draw(t, "corrupt") == 0 && len(p.Payload) > 0 {
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

// What a network does to streams: packets lost, sent twice, late by some places,
// marked, damaged, answered with duplicate acknowledgements in between. Cutting what
// the coalescer made, over several batches, gives each flow's packets as they came:
// none more, none less, none before another.
func TestCoalesceAfterABadNetwork(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var pkts []*offloadtest.Packet
		flows := rapid.IntRange(1, 4).Draw(t, "flows")
		for k := range flows {
			stream := offloadtest.TCP4(offloadtest.Random(100*rapid.IntRange(1, 30).Draw(t, "segments"), uint64(k)))
			if k%2 == 1 {
				stream = stream.ToV6()
			}
			stream.SrcPort, stream.DF = uint16(1000+k), true
			stream.Flags |= rapid.SampledFrom([]uint8{0, wire.PSH, wire.CWR, wire.ECE}).Draw(t, "flags")
			for i, p := range stream.Cut(100) {
				p.TOS = 2
				if rapid.IntRange(0, 15).Draw(t, "mark") == 0 {
					p.TOS = 3 // congestion experienced
				}
				if rapid.IntRange(0, 15).Draw(t, "push") == 0 {
					p.Flags |= wire.PSH
				}
				switch rapid.IntRange(0, 9).Draw(t, "fate") {
				case 0: // lost
				case 1:
					pkts = append(pkts, p, p)
				case 2: // three duplicate acknowledgements, with the stream's latest number
					ack := *p
					ack.Payload, ack.Flags = nil, wire.ACK
					pkts = append(pkts, p, &ack, &ack, &ack)
				case 3: // a window update
					update := *p
					update.Payload, update.Window, update.Flags = nil, p.Window+uint16(i), wire.ACK
					pkts = append(pkts, &update, p)
				default:
					pkts = append(pkts, p)
				}
			}
		}
		for range rapid.IntRange(0, len(pkts)).Draw(t, "swaps") { // late, and flows mixed
			i := rapid.IntRange(0, max(0, len(pkts)-1)).Draw(t, "from")
			j := min(len(pkts)-1, i+rapid.IntRange(0, 8).Draw(t, "late"))
			pkts[i], pkts[j] = pkts[j], pkts[i]
		}
		var in [][]byte
		for _, p := range pkts {
			b := p.Bytes(false)
			if rapid.IntRange(0, 20).Draw(t, "damaged") == 0 {
				b[len(b)-1] ^= 0x20
			}
			in = append(in, b)
		}
		want, got := map[uint16][][]byte{}, map[uint16][][]byte{}
		sourcePort := func(b []byte) uint16 {
			var h wire.Headers
			if r := wire.Parse(b, &h); r != drop.None {
				t.Fatal(r)
			}
			return h.SrcPort
		}
		for _, b := range in {
			want[sourcePort(b)] = append(want[sourcePort(b)], b)
		}
		c := &offload.Coalescer{ECN: rapid.Bool().Draw(t, "ecn")}
		for len(in) > 0 {
			n := rapid.IntRange(1, len(in)).Draw(t, "batch")
			batch := receive(c, in[:n])
			in = in[n:]
			for i := range batch.Len() {
				f := batch.At(i)
				out := [][]byte{f.Bytes()}
				if f.VNet.IsGSO() {
					var r drop.Reason
					if out, r = cutAll(t, f); r != drop.None {
						t.Fatalf("frame %d can't be cut: %v", i, r)
					}
				}
				k := sourcePort(f.Bytes())
				got[k] = append(got[k], out...)
			}
		}
		for k := range want {
			if len(got[k]) != len(want[k]) {
				t.Fatalf("flow %d: %d packets in, %d out", k, len(want[k]), len(got[k]))
			}
			for i := range want[k] {
				if !bytes.Equal(withoutID(got[k][i]), withoutID(want[k][i])) {
					t.Fatalf("flow %d packet %d:\n in %x\nout %x", k, i, want[k][i], got[k][i])
				}
			}
		}
	})
}

// withoutID is an IPv4 packet with DF less its identification, which then means nothing
// (RFC 6864 section 4.1), and the header checksum over it.
func withoutID(b []byte) []byte {
	b = bytes.Clone(b)
	if b[12] == 8 {
		copy(b[18:20], []byte{0, 0})
		copy(b[24:26], []byte{0, 0})
	}
	return b
}

func TestCoalesceRules(t *testing.T) {
	// pair is two packets that merge, the second changed by each case.
	pair := func(change func(a, b *offloadtest.Packet)) [][]byte {
		a, b := offloadtest.TCP4(offloadtest.Random(100, 1)), offloadtest.TCP4(offloadtest.Random(100, 2))
		b.Seq += 100
		b.ID++
		change(a, b)
		return wires(a, b)
	}
	options := func(p *offloadtest.Packet, last byte) { p.Options = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, last} }
	tests := []struct {
		name string
		c    offload.Coalescer
		in   [][]byte
		want int // frames
	}{
		{name: "contiguous segments merge", in: pair(func(a, b *offloadtest.Packet) {}), want: 1},
		{name: "a gap does not merge", in: pair(func(a, b *offloadtest.Packet) { b.Seq++ }), want: 2},
		{name: "a duplicate does not merge", in: pair(func(a, b *offloadtest.Packet) { b.Seq = a.Seq }), want: 2},
		{name: "another flow does not merge", in: pair(func(a, b *offloadtest.Packet) { b.SrcPort++ }), want: 2},
		{name: "another acknowledgement does not merge", in: pair(func(a, b *offloadtest.Packet) { b.Ack++ }), want: 2},
		{name: "another window does not merge", in: pair(func(a, b *offloadtest.Packet) { b.Window++ }), want: 2},
		{name: "another TTL does not merge", in: pair(func(a, b *offloadtest.Packet) { b.TTL-- }), want: 2},
		{name: "another ECN mark does not merge", in: pair(func(a, b *offloadtest.Packet) { a.TOS, b.TOS = 2, 3 }), want: 2},
		{name: "same options merge", in: pair(func(a, b *offloadtest.Packet) { options(a, 1); options(b, 1) }), want: 1},
		{name: "another timestamp does not merge", in: pair(func(a, b *offloadtest.Packet) { options(a, 1); options(b, 2) }), want: 2},
		{name: "options of another length do not merge", in: pair(func(a, b *offloadtest.Packet) { options(a, 1) }), want: 2},
		{name: "a longer segment does not merge", in: pair(func(a, b *offloadtest.Packet) { b.Payload = offloadtest.Random(101, 3) }), want: 2},
		{name: "a shorter segment merges", in: pair(func(a, b *offloadtest.Packet) { b.Payload = offloadtest.Random(99, 3) }), want: 1},
		{name: "an empty segment does not merge", in: pair(func(a, b *offloadtest.Packet) { b.Payload = nil }), want: 2},
		{name: "PSH ends a frame", in: pair(func(a, b *offloadtest.Packet) { b.Flags |= wire.PSH }), want: 1},
		{name: "nothing follows PSH", in: pair(func(a, b *offloadtest.Packet) { a.Flags |= wire.PSH }), want: 2},
		{name: "SYN does not merge", in: pair(func(a, b *offloadtest.Packet) { a.Flags |= wire.SYN }), want: 2},
		{name: "RST does not merge", in: pair(func(a, b *offloadtest.Packet) { b.Flags |= wire.RST }), want: 2},
		{name: "URG does not merge", in: pair(func(a, b *offloadtest.Packet) { b.Flags |= wire.URG }), want: 2},
		{name: "ECE on one does not merge", in: pair(func(a, b *offloadtest.Packet) { b.Flags |= wire.ECE }), want: 2},
		{name: "ECE on both merges", in: pair(func(a, b *offloadtest.Packet) { a.Flags |= wire.ECE; b.Flags |= wire.ECE }), want: 1},
		{name: "CWR first does not merge without ECN", in: pair(func(a, b *offloadtest.Packet) { a.Flags |= wire.CWR }), want: 2},
		{name: "CWR first merges with ECN", c: offload.Coalescer{ECN: true}, in: pair(func(a, b *offloadtest.Packet) { a.Flags |= wire.CWR }), want: 1},
		{name: "CWR later does not merge", c: offload.Coalescer{ECN: true}, in: pair(func(a, b *offloadtest.Packet) { b.Flags |= wire.CWR }), want: 2},
		{name: "without DF an identification that jumps does not merge", in: pair(func(a, b *offloadtest.Packet) { a.DF, b.DF = false, false; b.ID++ }), want: 2},
		{name: "without DF an identification that counts merges", in: pair(func(a, b *offloadtest.Packet) { a.DF, b.DF = false, false }), want: 1},
		{name: "UDP does not merge unless asked", in: pair(func(a, b *offloadtest.Packet) { a.UDP, b.UDP = true, true }), want: 2},
		{name: "equal UDP merges when asked", c: offload.Coalescer{USO: true}, in: pair(func(a, b *offloadtest.Packet) { a.UDP, b.UDP = true, true }), want: 1},
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
				p := offloadtest.TCP4(offloadtest.Random(100, uint64(i)))
				p.Seq += uint32(100 * i)
				p.ID += uint16(i)
				in = append(in, p.Bytes(false))
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
	p := offloadtest.TCP4(offloadtest.Random(100, 1))
	q := offloadtest.TCP4(offloadtest.Random(100, 2))
	q.Seq += 100
	var c offload.Coalescer
	var h wire.Headers
	f := frame.New()
	f.Set(p.Bytes(false))
	f.Peer = 1
	wire.Parse(f.Bytes(), &h)
	c.Open(f, &h)
	next := q.Bytes(false)
	wire.Parse(next, &h)
	if c.Merge(next, &h, &frame.VNet{}, 2, false) {
		t.Error("member 2 added to a frame of member 1")
	}
	if c.Merge(next, &h, &frame.VNet{}, 1, true) {
		t.Error("a packet from outside the cluster was added to one from inside")
	}
}

// A packet whose checksum a kernel left to a device that never came.
func TestCoalescePartialChecksums(t *testing.T) {
	whole := offloadtest.TCP4(offloadtest.Random(300, 1))
	segs := whole.Cut(100)
	tests := []struct {
		name    string
		partial [3]bool
		frames  int
	}{
		{"all partial merge", [3]bool{true, true, true}, 1},
		{"full does not join partial", [3]bool{true, true, false}, 2},
		{"partial does not join full", [3]bool{false, true, true}, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var c offload.Coalescer
			var h wire.Headers
			var fs []*frame.Frame
			for i, p := range segs {
				b := p.Bytes(tt.partial[i])
				wire.Parse(b, &h)
				v, ok := offload.Partial(b, &h)
				if ok != tt.partial[i] {
					t.Fatalf("packet %d: Partial says %v", i, ok)
				}
				if c.Merge(b, &h, &v, 0, false) {
					continue
				}
				f := frame.New()
				f.Set(b)
				f.VNet = v
				fs = append(fs, f)
				c.Open(f, &h)
			}
			c.Flush()
			if len(fs) != tt.frames {
				t.Fatalf("%d frames, want %d", len(fs), tt.frames)
			}
			var got [][]byte
			for _, f := range fs {
				if !f.VNet.IsGSO() {
					if r := offload.Complete(f); r != drop.None {
						t.Fatal(r)
					}
					got = append(got, f.Bytes())
					continue
				}
				parts, r := cutAll(t, f)
				if r != drop.None {
					t.Fatal(r)
				}
				got = append(got, parts...)
			}
			for i := range segs {
				if !bytes.Equal(got[i], segs[i].Bytes(false)) {
					t.Errorf("packet %d changed", i)
				}
			}
		})
	}
}

func TestCoalesceStopsAtTheLongestPacket(t *testing.T) {
	var in [][]byte
	for i := range 60 {
		p := offloadtest.TCP4(offloadtest.Random(1400, uint64(i)))
		p.Seq += uint32(1400 * i)
		in = append(in, p.Bytes(false))
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
	a, b := offloadtest.TCP4(offloadtest.Random(8, 1)), offloadtest.TCP4(offloadtest.Random(8, 2))
	b.Seq += 8
	in := wires(a, b)
	in[0] = append(in[0], 0xee, 0xee, 0xee)
	got := receive(new(offload.Coalescer), in)
	a.Payload = append(bytes.Clone(a.Payload), b.Payload...)
	want := a.Super(8)
	if got.Len() != 1 || !bytes.Equal(got.At(0).Bytes(), want.Bytes()) {
		t.Error("padding got into the merged payload")
	}
}

func FuzzCoalesce(f *testing.F) {
	p := offloadtest.TCP4(offloadtest.Random(100, 1))
	q := offloadtest.TCP4(offloadtest.Random(100, 2))
	q.Seq += 100
	f.Add(p.Bytes(false), q.Bytes(false), true)
	p.UDP, q.UDP = true, true
	f.Add(p.Bytes(false), q.Bytes(false), true)
	p.V6, p.Src, p.Dst = true, netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	f.Add(p.Bytes(false), p.Bytes(false), true)
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
