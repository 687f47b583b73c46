package wire_test

import (
	"net/netip"
	"testing"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/drop"
)

func TestOpeningsAreWhole(t *testing.T) {
	for _, ends := range [][2]string{{"192.0.2.1", "192.0.2.2"}, {"2001:db8::1", "2001:db8::2"}} {
		src, dst := netip.MustParseAddr(ends[0]), netip.MustParseAddr(ends[1])
		echo, etherType := uint8(wire.ProtoICMP), []byte{0x08, 0}
		if src.Is6() {
			echo, etherType = wire.ProtoICMPv6, []byte{0x86, 0xdd}
		}
		for _, proto := range []uint8{wire.ProtoTCP, wire.ProtoUDP, wire.ProtoSCTP, echo} {
			b := make([]byte, wire.EthernetBytes+wire.MaxOpeningBytes)
			copy(b[12:], etherType)
			n := wire.PutOpening(b[wire.EthernetBytes:], &wire.Opening{
				Src: wire.AddrFrom(src), Dst: wire.AddrFrom(dst), Proto: proto, SrcPort: 7000, DstPort: 80,
			})
			b = b[:wire.EthernetBytes+n]
			var h wire.Headers
			if r := wire.Parse(b, &h); r != drop.None {
				t.Errorf("%v, protocol %d: %v", src, proto, r)
				continue
			}
			if h.Src.Netip() != src || h.Dst.Netip() != dst || h.Proto != proto || !h.HasL4 || h.End != len(b) || h.SrcPort != 7000 {
				t.Errorf("%v, protocol %d: %+v", src, proto, h)
			}
			if proto == wire.ProtoTCP && h.TCPFlags != wire.SYN || proto == echo && !h.IsEcho() {
				t.Errorf("%v, protocol %d opens nothing: %+v", src, proto, h)
			}
			if !wiretest.TransportIntact(b) {
				t.Errorf("%v, protocol %d: wrong checksum", src, proto)
			}
		}
	}
	if n := wire.PutOpening(nil, &wire.Opening{Proto: wire.ProtoESP}); n != 0 {
		t.Errorf("a protocol that has no opening: %d bytes", n)
	}
}
