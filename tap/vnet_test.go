package tap

import (
	"encoding/binary"
	"testing"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// packet builds a frame with correct lengths: Ethernet, IP with ext bytes of
// options or extension headers, a transport header of proto, n bytes of payload.
func packet(v6 bool, proto uint8, ext, n int) []byte {
	l4 := map[uint8]int{wire.ProtoTCP: 20, wire.ProtoUDP: 8, wire.ProtoSCTP: 12, wire.ProtoICMP: 8}[proto]
	ip := 20
	if v6 {
		ip = 40
	}
	b := make([]byte, 14+ip+ext+l4+n)
	if v6 {
		binary.BigEndian.PutUint16(b[12:], wire.TypeIPv6)
		b[14] = 0x60
		binary.BigEndian.PutUint16(b[18:], uint16(ext+l4+n))
		b[20], b[21] = proto, 64
		copy(b[22:], []byte{0x20, 0x01, 0x0d, 0xb8, 15: 1})
		copy(b[38:], []byte{0x20, 0x01, 0x0d, 0xb8, 15: 2})
		if ext > 0 {
			b[20] = wire.ProtoDstOpts
			b[54], b[55] = proto, byte(ext/8-1)
		}
	} else {
		binary.BigEndian.PutUint16(b[12:], wire.TypeIPv4)
		b[14] = 0x40 | byte((20+ext)/4)
		binary.BigEndian.PutUint16(b[16:], uint16(len(b)-14))
		b[22], b[23] = 64, proto
		copy(b[26:], []byte{192, 0, 2, 1, 192, 0, 2, 2})
		for i := 34; i < 34+ext; i++ {
			b[i] = 1 // no-operation
		}
		binary.BigEndian.PutUint16(b[24:], ^wire.Fold(wire.Sum(b[14:34+ext], 0)))
	}
	t := b[14+ip+ext:]
	switch proto {
	case wire.ProtoTCP:
		t[12], t[13] = 5<<4, wire.ACK
		binary.BigEndian.PutUint16(t, 1000)
		binary.BigEndian.PutUint16(t[2:], 80)
	case wire.ProtoUDP:
		binary.BigEndian.PutUint16(t, 1000)
		binary.BigEndian.PutUint16(t[2:], 53)
		binary.BigEndian.PutUint16(t[4:], uint16(8+n))
	}
	for i := range n {
		b[len(b)-n+i] = byte(i)
	}
	return b
}

func edit(b []byte, at int, to ...byte) []byte {
	copy(b[at:], to)
	return b
}

// Metadata as Linux writes it for the frames that packet makes.
const csum, valid = frame.NeedsCsum, frame.DataValid

var (
	tcp4 = frame.VNet{Flags: csum, CsumStart: 34, CsumOffset: 16}
	tso4 = frame.VNet{Flags: csum, GSOType: frame.GSOTCPv4, GSOSize: 1000, HdrLen: 54, CsumStart: 34, CsumOffset: 16}
	tso6 = frame.VNet{Flags: csum, GSOType: frame.GSOTCPv6, GSOSize: 1000, HdrLen: 74, CsumStart: 54, CsumOffset: 16}
	uso4 = frame.VNet{Flags: csum, GSOType: frame.GSOUDPL4, GSOSize: 1000, HdrLen: 42, CsumStart: 34, CsumOffset: 6}
	uso6 = frame.VNet{Flags: csum, GSOType: frame.GSOUDPL4, GSOSize: 1000, HdrLen: 62, CsumStart: 54, CsumOffset: 6}
)

func with(v frame.VNet, change func(*frame.VNet)) frame.VNet {
	change(&v)
	return v
}

func TestSanitizeKeepsWhatKernelsWrite(t *testing.T) {
	for _, tt := range []struct {
		name string
		v    frame.VNet
		b    []byte
		want frame.VNet
	}{
		{"nothing offloaded", frame.VNet{}, packet(false, wire.ProtoTCP, 0, 9), frame.VNet{}},
		{"verified checksum", frame.VNet{Flags: valid}, packet(false, wire.ProtoTCP, 0, 9), frame.VNet{Flags: valid}},
		{"unknown flags and idle fields are cleared", frame.VNet{Flags: 0xfe, HdrLen: 9, GSOSize: 9, CsumStart: 9, CsumOffset: 9},
			packet(false, wire.ProtoTCP, 0, 9), frame.VNet{Flags: valid}},
		{"partial TCP checksum", tcp4, packet(false, wire.ProtoTCP, 0, 9), tcp4},
		{"partial checksum and verified at once", with(tcp4, func(v *frame.VNet) { v.Flags |= valid }),
			packet(false, wire.ProtoTCP, 0, 9), tcp4},
		{"partial checksum with a GSO size but no GSO", with(tcp4, func(v *frame.VNet) { v.GSOSize, v.HdrLen = 5, 5 }),
			packet(false, wire.ProtoTCP, 0, 9), tcp4},
		{"partial checksum behind IPv4 options", with(tcp4, func(v *frame.VNet) { v.CsumStart = 42 }),
			packet(false, wire.ProtoTCP, 8, 9), with(tcp4, func(v *frame.VNet) { v.CsumStart = 42 })},
		{"partial checksum behind an IPv6 extension", frame.VNet{Flags: csum, CsumStart: 62, CsumOffset: 6},
			packet(true, wire.ProtoUDP, 8, 9), frame.VNet{Flags: csum, CsumStart: 62, CsumOffset: 6}},
		{"partial checksum of a packet in a tunnel of the pod's", frame.VNet{Flags: csum, CsumStart: 34 + 8 + 8 + 34, CsumOffset: 16},
			packet(false, wire.ProtoUDP, 0, 8+34+20), frame.VNet{Flags: csum, CsumStart: 84, CsumOffset: 16}},
		{"metadata of ARP means nothing", tcp4, edit(packet(false, wire.ProtoTCP, 0, 9), 12, 8, 6), frame.VNet{}},
		{"TSO over IPv4", tso4, packet(false, wire.ProtoTCP, 0, 5000), tso4},
		{"TSO over IPv6", tso6, packet(true, wire.ProtoTCP, 0, 5000), tso6},
		{"TSO with CWR", with(tso4, func(v *frame.VNet) { v.GSOType |= frame.GSOECN }),
			packet(false, wire.ProtoTCP, 0, 5000), with(tso4, func(v *frame.VNet) { v.GSOType |= frame.GSOECN })},
		{"USO over IPv4", uso4, packet(false, wire.ProtoUDP, 0, 5000), uso4},
		{"USO over IPv6", uso6, packet(true, wire.ProtoUDP, 0, 5000), uso6},
		{"USO of as many datagrams as Linux makes", with(uso4, func(v *frame.VNet) { v.GSOSize = 10 }),
			packet(false, wire.ProtoUDP, 0, 1280), with(uso4, func(v *frame.VNet) { v.GSOSize = 10 })},
		{"header length is computed, not believed", with(tso4, func(v *frame.VNet) { v.HdrLen = 65535 }),
			packet(false, wire.ProtoTCP, 0, 5000), tso4},
		{"super-frame of one segment is none", tso4, packet(false, wire.ProtoTCP, 0, 1000), tcp4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := tt.v
			if r := sanitize(&v, tt.b); r != drop.None || v != tt.want {
				t.Errorf("%v, %+v; want %+v", r, v, tt.want)
			}
		})
	}
}

func TestSanitizeRefusesWhatContradictsTheFrame(t *testing.T) {
	for _, tt := range []struct {
		name string
		v    frame.VNet
		b    []byte
	}{
		{"GSO without partial checksum", with(tso4, func(v *frame.VNet) { v.Flags = 0 }), packet(false, wire.ProtoTCP, 0, 5000)},
		{"checksum beyond the frame", with(tcp4, func(v *frame.VNet) { v.CsumStart = 60000 }), packet(false, wire.ProtoTCP, 0, 9)},
		{"checksum start and offset that overflow", frame.VNet{Flags: csum, CsumStart: 65535, CsumOffset: 65535}, packet(false, wire.ProtoTCP, 0, 9)},
		{"checksum over the source address", frame.VNet{Flags: csum, CsumStart: 20, CsumOffset: 6}, packet(false, wire.ProtoUDP, 0, 9)},
		{"checksum over the ports", frame.VNet{Flags: csum, CsumStart: 34, CsumOffset: 2}, packet(false, wire.ProtoUDP, 0, 9)},
		{"checksum over the TCP flags", frame.VNet{Flags: csum, CsumStart: 41, CsumOffset: 6}, packet(false, wire.ProtoTCP, 0, 30)},
		{"checksum over the MAC", frame.VNet{Flags: csum, CsumStart: 0, CsumOffset: 6}, packet(false, wire.ProtoUDP, 0, 9)},
		{"UDP offset on TCP", with(tcp4, func(v *frame.VNet) { v.CsumOffset = 6 }), packet(false, wire.ProtoTCP, 0, 9)},
		{"TCP offset on UDP", tcp4, packet(false, wire.ProtoUDP, 0, 50)},
		{"partial checksum of ICMP", frame.VNet{Flags: csum, CsumStart: 34, CsumOffset: 2}, packet(false, wire.ProtoICMP, 0, 9)},
		{"partial checksum in an IPv4 fragment", tcp4, edit(packet(false, wire.ProtoTCP, 0, 9), 20, 0x20)},
		{"partial checksum in an IPv6 fragment", frame.VNet{Flags: csum, CsumStart: 62, CsumOffset: 6},
			edit(packet(true, wire.ProtoUDP, 8, 9), 20, wire.ProtoFragment)},
		{"cut IPv4 header", tcp4, packet(false, wire.ProtoTCP, 0, 0)[:30]},
		{"IPv4 header length too small", with(tcp4, func(v *frame.VNet) { v.CsumStart = 18 }), edit(packet(false, wire.ProtoTCP, 0, 99), 14, 0x41)},
		{"cut IPv6 header", tcp4, packet(true, wire.ProtoTCP, 0, 0)[:50]},
		{"cut TCP header", tcp4, packet(false, wire.ProtoTCP, 0, 0)[:53]},
		{"TSO4 on IPv6", with(tso6, func(v *frame.VNet) { v.GSOType = frame.GSOTCPv4 }), packet(true, wire.ProtoTCP, 0, 5000)},
		{"TSO6 on IPv4", with(tso4, func(v *frame.VNet) { v.GSOType = frame.GSOTCPv6 }), packet(false, wire.ProtoTCP, 0, 5000)},
		{"TSO on UDP", with(uso4, func(v *frame.VNet) { v.GSOType = frame.GSOTCPv4 }), packet(false, wire.ProtoUDP, 0, 5000)},
		{"USO on TCP", with(tso4, func(v *frame.VNet) { v.GSOType = frame.GSOUDPL4 }), packet(false, wire.ProtoTCP, 0, 5000)},
		{"USO with CWR", with(uso4, func(v *frame.VNet) { v.GSOType |= frame.GSOECN }), packet(false, wire.ProtoUDP, 0, 5000)},
		{"UFO", with(uso4, func(v *frame.VNet) { v.GSOType = frame.GSOUDP }), packet(false, wire.ProtoUDP, 0, 5000)},
		{"unknown GSO type", with(tso4, func(v *frame.VNet) { v.GSOType = 0x41 }), packet(false, wire.ProtoTCP, 0, 5000)},
		{"GSO size zero", with(tso4, func(v *frame.VNet) { v.GSOSize = 0 }), packet(false, wire.ProtoTCP, 0, 5000)},
		{"TCP segments of seven bytes", with(tso4, func(v *frame.VNet) { v.GSOSize = 7 }), packet(false, wire.ProtoTCP, 0, 5000)},
		{"more datagrams than Linux makes", with(uso4, func(v *frame.VNet) { v.GSOSize = 10 }), packet(false, wire.ProtoUDP, 0, 1281)},
		{"super-frame with padding", tso4, append(packet(false, wire.ProtoTCP, 0, 5000), 0)},
		{"super-frame shorter than its IP length", tso4, packet(false, wire.ProtoTCP, 0, 5000)[:4000]},
		{"TCP header length too small", tso4, edit(packet(false, wire.ProtoTCP, 0, 5000), 46, 4<<4)},
		{"TCP header longer than the frame", with(tso4, func(v *frame.VNet) { v.GSOSize = 8 }), edit(packet(false, wire.ProtoTCP, 0, 20), 46, 15<<4)},
		{"TSO of a packet in a tunnel, never negotiated", with(tso4, func(v *frame.VNet) { v.CsumStart = 84 }),
			edit(packet(false, wire.ProtoUDP, 0, 5000), 84+12, 5<<4)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := tt.v
			if r := sanitize(&v, tt.b); r != drop.BadOffload {
				t.Errorf("%v, want bad-offload", r)
			}
		})
	}
}

// FuzzSanitize holds what passes to what the rest of the switch relies on.
func FuzzSanitize(f *testing.F) {
	add := func(v frame.VNet, b []byte) {
		raw := make([]byte, frame.VNetHeaderBytes, frame.VNetHeaderBytes+len(b))
		v.Encode(raw)
		f.Add(append(raw, b...))
	}
	add(frame.VNet{Flags: 1, GSOType: frame.GSOTCPv4, GSOSize: 100, CsumStart: 34, CsumOffset: 16}, packet(false, wire.ProtoTCP, 0, 500))
	add(frame.VNet{Flags: 1, GSOType: frame.GSOUDPL4, GSOSize: 100, CsumStart: 62, CsumOffset: 6}, packet(true, wire.ProtoUDP, 8, 500))
	add(frame.VNet{Flags: 1, CsumStart: 84, CsumOffset: 6}, packet(false, wire.ProtoUDP, 0, 100))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) < frame.VNetHeaderBytes+frame.EthernetBytes || len(raw) > frame.VNetHeaderBytes+frame.MaxBytes {
			return
		}
		var v frame.VNet
		v.Decode(raw)
		b := raw[frame.VNetHeaderBytes:]
		if sanitize(&v, b) != drop.None {
			return
		}
		again := v
		if r := sanitize(&again, b); r != drop.None || again != v {
			t.Errorf("not idempotent: %+v, then %v and %+v", v, r, again)
		}
		if v.Flags&frame.NeedsCsum == 0 {
			if v != (frame.VNet{Flags: v.Flags}) {
				t.Errorf("metadata without a partial checksum: %+v", v)
			}
			return
		}
		// The two bytes a completion writes, never in what the guards judge.
		if at := int(v.CsumStart) + int(v.CsumOffset); at+2 > len(b) || at < 14+20+6 {
			t.Errorf("checksum field at %d of %d bytes", at, len(b))
		}
		var h wire.Headers
		if wire.Parse(b, &h) == drop.None && h.HasL4 && h.Proto != wire.ProtoICMPv6 && h.L4Off <= 54 {
			at := int(v.CsumStart) + int(v.CsumOffset)
			own := int(v.CsumStart) == h.L4Off
			if !own && at < h.L4Off+8 {
				t.Errorf("checksum field at %d within the transport header at %d", at, h.L4Off)
			}
		}
		if !v.IsGSO() {
			return
		}
		payload := len(b) - int(v.HdrLen)
		if v.GSOSize == 0 || payload <= int(v.GSOSize) || int(v.HdrLen) <= int(v.CsumStart) {
			t.Errorf("super-frame of %d bytes: %+v", len(b), v)
		}
		if v.GSOType.Kind() == frame.GSOUDPL4 && payload > int(v.GSOSize)*maxUDPSegments {
			t.Errorf("%d bytes in datagrams of %d", payload, v.GSOSize)
		}
	})
}
