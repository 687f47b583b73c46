package vswitch

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"vswitch/internal/offload"
	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// keeper keeps clones of what is sent, metadata included.
type keeper struct {
	source
	sent []*frame.Frame
}

func (k *keeper) Transmit(fs []*frame.Frame) {
	for _, f := range fs {
		k.sent = append(k.sent, f.Clone())
	}
}

// newJoining is a switch by hand whose pod a may have its datagrams joined.
func newJoining(t *testing.T) (*handDriven, *keeper) {
	d := newHandDriven(t, 1500)
	d.a.joins = true
	out := &keeper{}
	d.b.queues[0] = out
	return d, out
}

// datagramsOf are the payloads that a receiver's sockets get, by source port, with
// every checksum verified.
func datagramsOf(t *testing.T, fs []*frame.Frame) map[uint16][][]byte {
	t.Helper()
	got := map[uint16][][]byte{}
	for _, f := range fs {
		var h wire.Headers
		if r := wire.Parse(f.Bytes(), &h); r != drop.None {
			t.Fatalf("sent frame does not parse: %v", r)
		}
		if !f.VNet.IsGSO() {
			if r := offload.Verify(f, &h); r != drop.None {
				t.Fatalf("sent frame: %v", r)
			}
			got[h.SrcPort] = append(got[h.SrcPort], f.Bytes()[h.PayloadOff:h.End])
			continue
		}
		var s offload.Segments
		if r := s.Reset(f, &h); r != drop.None {
			t.Fatalf("super-frame: %v", r)
		}
		for i := range s.Len() {
			head := make([]byte, s.HeaderBytes())
			got[h.SrcPort] = append(got[h.SrcPort], s.At(i, head))
		}
	}
	return got
}

func TestDatagramsOfAFlowAreJoined(t *testing.T) {
	d, out := newJoining(t)
	var raws [][]byte
	for i := range 10 {
		raws = append(raws, d.fromA(wiretest.Packet{Dst: straightToB, DontFragment: true, Proto: 17, SrcPort: 7, DstPort: 2, Payload: bytes.Repeat([]byte{byte(i)}, 1000)}))
	}
	d.serve(1, raws...)
	if len(out.sent) != 1 {
		t.Fatalf("%d frames sent, want one super-frame", len(out.sent))
	}
	v := out.sent[0].VNet
	if v.GSOType != frame.GSOUDPL4 || v.GSOSize != 1000 {
		t.Errorf("sent with %+v, want segments of 1000", v)
	}
	if s := d.a.stats(); s.IngressFrames != 10 || s.IngressBytes != 10*1042 || len(s.Drops) != 0 {
		t.Errorf("counted %+v, want 10 frames of 1042 bytes", s)
	}
	for i, payload := range datagramsOf(t, out.sent)[7] {
		if want := bytes.Repeat([]byte{byte(i)}, 1000); !bytes.Equal(payload, want) {
			t.Errorf("datagram %d is not what was sent", i)
		}
	}
}

func TestWhatIsNotJoined(t *testing.T) {
	packet := func(p wiretest.Packet) wiretest.Packet {
		p.Dst, p.Proto, p.SrcPort, p.DstPort, p.Payload = straightToB, 17, 7, 2, make([]byte, 100)
		return p
	}
	for _, tt := range []struct {
		name   string
		packet wiretest.Packet
		joins  bool
	}{
		{name: "datagrams that may be cut on their way", packet: packet(wiretest.Packet{}), joins: true},
		{name: "datagrams without checksum", packet: packet(wiretest.Packet{DontFragment: true, NoChecksum: true}), joins: true},
		{name: "datagrams of a port that does not join", packet: packet(wiretest.Packet{DontFragment: true})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, out := newJoining(t)
			d.a.joins = tt.joins
			raw := d.fromA(tt.packet)
			d.serve(1, raw, raw, raw)
			if len(out.sent) != 3 {
				t.Errorf("%d frames sent, want 3", len(out.sent))
			}
		})
	}
}

// Whatever is sent in whatever mixture arrives whole, once, and in order within
// its flow.
func TestJoiningLosesNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		d, out := newJoining(t)
		want := map[uint16][][]byte{}
		var raws [][]byte
		lengths := []int{1 + r.IntN(40), 1 + r.IntN(1400)}
		for len(raws) < 1+r.IntN(frame.BatchFrames) {
			p := wiretest.Packet{Dst: straightToB, DontFragment: r.IntN(8) > 0, NoChecksum: r.IntN(16) == 0, TOS: uint8(r.IntN(16) / 15),
				Proto: 17, SrcPort: uint16(1 + r.IntN(1+r.IntN(20))), DstPort: 2, Payload: make([]byte, lengths[r.IntN(2)])}
			for i := range p.Payload {
				p.Payload[i] = byte(r.Uint32())
			}
			raws = append(raws, d.fromA(p))
			want[p.SrcPort] = append(want[p.SrcPort], p.Payload)
		}
		d.serve(1, raws...)
		got := datagramsOf(t, out.sent)
		for port := range want {
			if len(got[port]) != len(want[port]) {
				t.Fatalf("port %d: %d datagrams arrived, %d were sent", port, len(got[port]), len(want[port]))
			}
			for i := range want[port] {
				if !bytes.Equal(got[port][i], want[port][i]) {
					t.Fatalf("port %d: datagram %d of %d is not what was sent", port, i, len(want[port]))
				}
			}
		}
		d.w.sw.Close()
	}
}

// A joined train to a service is rewritten once, as a whole.
func TestJoinedDatagramsToAService(t *testing.T) {
	d, out := newJoining(t)
	raw := d.fromA(wiretest.Packet{DontFragment: true, Proto: 17, SrcPort: 7, DstPort: 80, Payload: make([]byte, 64)})
	d.serve(1, raw, raw, raw)
	if len(out.sent) != 1 || len(datagramsOf(t, out.sent)[7]) != 3 {
		t.Fatalf("%d frames sent, want one of 3 datagrams", len(out.sent))
	}
	b := out.sent[0].Bytes()
	if port := binary.BigEndian.Uint16(b[36:]); port != 8080 {
		t.Errorf("destination port %d, want the endpoint's 8080", port)
	}
}

func TestJoiningAllocatesNothing(t *testing.T) {
	packets := make([]wiretest.Packet, frame.BatchFrames)
	for i := range packets {
		packets[i] = wiretest.Packet{Dst: straightToB, DontFragment: true, Proto: 17, SrcPort: uint16(1 + i%20), DstPort: 2, Payload: make([]byte, 1000)}
	}
	f := forwarder(t, 1<<12, packets...)
	f.port.joins = true
	f.run() // the flows are installed
	if n := testing.AllocsPerRun(100, f.run); n != 0 {
		t.Errorf("%v allocations a batch, want 0", n)
	}
}
