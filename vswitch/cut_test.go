package vswitch

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
)

var straightToB = netip.MustParseAddr("10.244.1.11")

// A packet without DF that exceeds the egress MTU arrives in pieces that fit and
// make it whole, whatever its size and the MTU; its hop count goes down once.
func TestCutFitsAndMakesWhole(t *testing.T) {
	for _, mtu := range []int{576, 577, 583, 1280, 1450, 1500} {
		d := newHandDriven(t, mtu)
		for _, size := range []int{mtu - 28, mtu - 27, mtu, 2*mtu - 51, 3000, 8972} {
			payload := bytes.Repeat([]byte{byte(size), 1, 2}, size)[:size]
			d.out.sent = nil
			d.serve(1, d.fromA(wiretest.Packet{Dst: straightToB, ID: uint16(size), Proto: 17, SrcPort: 1, DstPort: 2, Payload: payload}))
			for _, raw := range d.out.sent {
				var h wire.Headers
				if r := wire.Parse(raw, &h); r != drop.None || h.End-h.L3Off > mtu || h.TTL != 63 || h.FragID != uint32(uint16(size)) && h.Fragment {
					t.Fatalf("MTU %d, %d bytes: %v, %d bytes, TTL %d", mtu, size, r, h.End-h.L3Off, h.TTL)
				}
			}
			whole, err := wiretest.Reassemble(d.out.sent)
			if err != nil || !wiretest.TransportIntact(whole) || !bytes.Equal(whole[42:], payload) {
				t.Fatalf("MTU %d, %d bytes in %d pieces: not the datagram that was sent (%v)", mtu, size, len(d.out.sent), err)
			}
			if pieces := len(d.out.sent); size <= mtu-28 && pieces != 1 || size > mtu-28 && pieces == 1 {
				t.Errorf("MTU %d, %d bytes: %d pieces", mtu, size, pieces)
			}
		}
	}
}

// Of the options only those with the copied flag are in every piece, and a
// fragment that is cut again stays part of its datagram.
func TestCutOptionsAndFragments(t *testing.T) {
	d := newHandDriven(t, 576)
	raw := d.fromA(wiretest.Packet{Dst: straightToB, ID: 77, Proto: 17, SrcPort: 1, DstPort: 2, Payload: make([]byte, 1500)})
	options := []byte{0x44, 4, 5, 0, 0x94, 4, 0, 0} // timestamp (not copied), router alert (copied, RFC 2113)
	raw = bytes.Join([][]byte{raw[:34], options, raw[34:]}, nil)
	raw[14] = 0x47
	binary.BigEndian.PutUint16(raw[16:], uint16(len(raw)-14))
	raw[24], raw[25] = 0, 0
	binary.BigEndian.PutUint16(raw[24:], ^wiretest.Sum16(raw[14:42]))
	d.serve(1, raw)
	if len(d.out.sent) < 3 {
		t.Fatalf("%d pieces", len(d.out.sent))
	}
	for i, b := range d.out.sent {
		want := options[4:]
		if i == 0 {
			want = options
		}
		if got := b[34 : 14+int(b[14]&15)*4]; !bytes.Equal(got, want) {
			t.Errorf("piece %d has options %x, want %x", i, got, want)
		}
	}
	if _, err := wiretest.Reassemble(d.out.sent); err != nil {
		t.Error(err)
	}

	d.out.sent = nil
	d.serve(1, wiretest.Fragments(d.fromA(wiretest.Packet{Dst: straightToB, Proto: 17, SrcPort: 1, DstPort: 2, Payload: make([]byte, 4000)}), 9, 1400, 0)...)
	whole, err := wiretest.Reassemble(d.out.sent)
	if err != nil || !wiretest.TransportIntact(whole) || len(d.out.sent) < 8 {
		t.Errorf("fragments cut again, %d pieces: %v", len(d.out.sent), err)
	}
}

// A fragment that ends beyond the longest packet there can be is not cut into pieces whose
// offsets have begun again at zero, where they would overwrite what was judged.
func TestCutMakesNoOffsetsThatWrap(t *testing.T) {
	d := newHandDriven(t, 576)
	d.serve(1, d.fromA(wiretest.Packet{Dst: straightToB, ID: 5, Proto: 17, SrcPort: 1, DstPort: 2, MoreFragments: true, Payload: make([]byte, 512)}))
	d.out.sent = nil
	d.serve(1, d.fromA(wiretest.Packet{Dst: straightToB, ID: 5, Proto: 17, FragmentOffset: 65528, Payload: make([]byte, 1400)}))
	for _, raw := range d.out.sent {
		t.Errorf("a piece at offset %d", binary.BigEndian.Uint16(raw[20:])&0x1fff*8)
	}
}

// A partial checksum is completed before the packet is cut, and a super-frame of
// TCP gets smaller segments.
func TestCutOffloaded(t *testing.T) {
	d := newHandDriven(t, 576)
	raw := d.fromA(wiretest.Packet{Dst: straightToB, Proto: 17, SrcPort: 1, DstPort: 2, Payload: make([]byte, 1400)})
	var h wire.Headers
	wire.Parse(raw, &h)
	binary.BigEndian.PutUint16(raw[40:], wire.Fold(wire.PseudoSum(&h, len(raw)-34)))
	f := frame.New()
	f.Set(raw)
	f.VNet = frame.VNet{Flags: frame.NeedsCsum, CsumStart: 34, CsumOffset: 6}
	d.in.frames = append(d.in.frames[:0], f)
	d.w.serve(polled{port: d.a, queue: d.in})
	whole, err := wiretest.Reassemble(d.out.sent)
	if err != nil || !wiretest.TransportIntact(whole) {
		t.Errorf("a partial checksum: %v", err)
	}

	raw = d.fromA(wiretest.Packet{Dst: straightToB, Proto: 6, Flags: wire.ACK, SrcPort: 1, DstPort: 2, Payload: make([]byte, 20000)})
	f.Set(raw)
	f.VNet = frame.VNet{Flags: frame.NeedsCsum, GSOType: frame.GSOTCPv4, GSOSize: 1400, CsumStart: 34, CsumOffset: 16}
	wire.Parse(f.Bytes(), &h)
	key := flow.KeyOf(&h)
	d.w.hash = d.w.sw.cfg.Flows.Hash(&key)
	d.w.ports = *d.w.sw.ports.Load()
	d.w.facts = d.w.sw.facts.Load()
	if r := d.w.forward(d.a, f, &h); r != drop.None || f.VNet.GSOSize != 536 || f.Len() != len(raw) {
		t.Errorf("a super-frame: %v, segments of %d in %d bytes, want 536 in %d", r, f.VNet.GSOSize, f.Len(), len(raw))
	}
	d.w.flush(d.a)
}

// With DF the sender is told, and nothing is sent.
func TestDontFragmentIsNotCut(t *testing.T) {
	d := newHandDriven(t, 576)
	d.serve(1, d.fromA(wiretest.Packet{Dst: straightToB, DontFragment: true, Proto: 17, SrcPort: 1, DstPort: 2, Payload: make([]byte, 1400)}))
	if len(d.out.sent) != 0 || d.drops(drop.TooBig) != 1 {
		t.Errorf("%d frames sent, %d counted as too big", len(d.out.sent), d.drops(drop.TooBig))
	}
}

// A batch with more pieces than spare frames loses none, keeps the order, and
// allocates nothing.
func TestCutManyAtOnce(t *testing.T) {
	d := newHandDriven(t, 576)
	var raws [][]byte
	for i := range uint16(20) {
		raws = append(raws, d.fromA(wiretest.Packet{Dst: straightToB, ID: i, Proto: 17, SrcPort: 1, DstPort: 2, Payload: make([]byte, 8900)}))
	}
	d.serve(1, raws...)
	const pieces = 17 // of 8,908 bytes in 552s
	if len(d.out.sent) != 20*pieces {
		t.Fatalf("%d pieces, want %d", len(d.out.sent), 20*pieces)
	}
	for i := range 20 {
		whole, err := wiretest.Reassemble(d.out.sent[i*pieces : (i+1)*pieces])
		if err != nil || !wiretest.TransportIntact(whole) {
			t.Fatalf("datagram %d: %v", i, err)
		}
	}
	d.b.queues[0] = &source{}
	if n := testing.AllocsPerRun(20, func() { d.w.serve(polled{port: d.a, queue: d.in}) }); n != 0 {
		t.Errorf("%v allocations a batch, want 0", n)
	}
}
