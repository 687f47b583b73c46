package wire

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"vswitch/vswitch/drop"
)

// gateway4 and gateway6 are whom the composed packets come from.
var (
	gateway4  = AddrFrom(netip.MustParseAddr("203.0.113.1"))
	gateway6  = AddrFrom(netip.MustParseAddr("2001:db8:f::1"))
	routerMAC = [6]byte{0x02, 0, 0x5e, 0, 0, 0xfe}
)

// framed puts an Ethernet header before a composed packet and parses it. The
// transport checksum is judged by the plain loop.
func framed(t *testing.T, ip []byte) ([]byte, Headers) {
	t.Helper()
	eth := eth4
	if ip[0]>>4 == 6 {
		eth = eth6
	}
	b := append(unhex(t, eth), ip...)
	var h Headers
	if r := Parse(b, &h); r != drop.None || h.End != len(b) {
		t.Fatalf("composed packet: %v, %d of %d bytes", r, h.End, len(b))
	}
	if s := slowTransport(b, &h); s != 0xffff {
		t.Errorf("transport checksum: the packet sums to %#04x", s)
	}
	return b, h
}

// slowTransport is the word-by-word sum over transport header, payload and, but
// for ICMP over IPv4, the pseudo-header.
func slowTransport(b []byte, h *Headers) uint16 {
	var words []byte
	if h.V6 {
		words = append(words, b[22:54]...)
	} else if h.Proto != ProtoICMP {
		words = append(words, b[26:34]...)
	}
	if words != nil {
		words = append(words, 0, h.Proto)
		words = binary.BigEndian.AppendUint16(words, uint16(h.End-h.L4Off))
	}
	return slowSum(append(words, b[h.L4Off:h.End]...))
}

func parsed(t *testing.T, b []byte) ([]byte, *Headers) {
	t.Helper()
	var h Headers
	if r := Parse(b, &h); r != drop.None {
		t.Fatal(r)
	}
	return b, &h
}

func TestPutICMPError(t *testing.T) {
	long := make([]byte, 3000)
	for _, tt := range []struct {
		name      string
		b         []byte
		from      Addr
		typ, code uint8
		info      uint32
		total     int
		proto     uint8
	}{
		{"unreachable quotes a short packet whole", ipv4(t, 0, 64, ProtoUDP, "", udpHead+"01020304"), gateway4, ICMPUnreachable, 3, 0, 20 + 8 + 32, ProtoICMP},
		{"fragmentation needed quotes 576 bytes at most", append(resum(set(ipv4(t, 0x4000, 64, ProtoESP, "", ""), 16, 0x0b, 0xcc)), long...), gateway4, ICMPUnreachable, 4, 1450, 576, ProtoICMP},
		{"time exceeded over IPv6", ipv6(t, ProtoTCP, tcpSYN), gateway6, ICMPv6TimeExceeded, 0, 0, 40 + 8 + 60, ProtoICMPv6},
		{"packet too big quotes 1280 bytes at most", append(set(ipv6(t, ProtoESP, ""), 18, 0x0b, 0xb8), long...), gateway6, ICMPv6TooBig, 0, 1430, 1280, ProtoICMPv6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			about, h := parsed(t, tt.b)
			dst := bytes.Repeat([]byte{0xa5}, MaxICMPv6ErrorBytes+1)
			n := PutICMPError(dst, about, h, tt.from, tt.typ, tt.code, tt.info)
			if n != tt.total || dst[n] != 0xa5 {
				t.Fatalf("%d bytes, want %d and none beyond", n, tt.total)
			}
			b, e := framed(t, dst[:n])
			if e.Src != tt.from || e.Dst != h.Src || e.Proto != tt.proto || e.ICMPType != tt.typ || e.ICMPCode != tt.code || !e.IsICMPError() {
				t.Errorf("%+v", e)
			}
			if info := binary.BigEndian.Uint32(b[e.L4Off+4:]); info != tt.info {
				t.Errorf("second word %d, want %d", info, tt.info)
			}
			quote := b[e.PayloadOff:e.End]
			if !bytes.Equal(quote, about[14:14+len(quote)]) {
				t.Error("the quote is not the packet")
			}
			var q Headers
			if r := ParseQuoted(quote, &q); r != drop.None || q.Src != h.Src || q.Dst != h.Dst || q.SrcPort != h.SrcPort {
				t.Errorf("quote reads as %v, %+v", r, q)
			}
		})
	}
}

func TestPutTCPAck(t *testing.T) {
	for _, tt := range []struct{ src, dst Addr }{
		{gateway4, AddrFrom(netip.MustParseAddr("10.0.0.2"))},
		{gateway6, AddrFrom(netip.MustParseAddr("2001:db8::2"))},
	} {
		ip := make([]byte, IPv6Bytes+TCPBytes)
		n := PutTCPAck(ip, &tt.src, 80, &tt.dst, 4096, 0x01020304, 0x05060708)
		b, h := framed(t, ip[:n])
		if h.Src != tt.src || h.Dst != tt.dst || h.SrcPort != 80 || h.DstPort != 4096 || h.TCPFlags != ACK || h.PayloadOff != h.End {
			t.Errorf("composed %+v", h)
		}
		if got, want := b[h.L4Off+4:h.L4Off+12], []byte{1, 2, 3, 4, 5, 6, 7, 8}; !bytes.Equal(got, want) {
			t.Errorf("sequence numbers %x, want %x", got, want)
		}
	}
}

func TestPutTCPReset(t *testing.T) {
	const ports = "03e8 0050 "
	for _, tt := range []struct {
		name     string
		segment  string
		seq, ack uint32
		flags    uint8
	}{
		{"answer to a SYN acknowledges it", ports + "00000001 00000000 5002 ffff 0000 0000", 0, 2, RST | ACK},
		{"answer to a SYN with data", ports + "00000001 00000000 5002 ffff 0000 0000 aabbcc", 0, 5, RST | ACK},
		{"answer to a FIN", ports + "ffffffff 00000000 5001 ffff 0000 0000", 0, 0, RST | ACK},
		{"answer to an acknowledgement takes its number", ports + "00000001 11223344 5010 ffff 0000 0000 aabbcc", 0x11223344, 0, RST},
		{"options are not copied", ports + "00000001 11223344 6010 ffff 0000 0000 01010101", 0x11223344, 0, RST},
	} {
		for _, family := range []struct {
			name string
			b    []byte
		}{{"IPv4", ipv4(t, 0, 64, ProtoTCP, "", tt.segment)}, {"IPv6", ipv6(t, ProtoTCP, tt.segment)}} {
			t.Run(tt.name+" "+family.name, func(t *testing.T) {
				about, h := parsed(t, family.b)
				dst := bytes.Repeat([]byte{0xa5}, 100)
				n := PutTCPReset(dst, about, h)
				if dst[n] != 0xa5 {
					t.Error("wrote beyond the length returned")
				}
				b, r := framed(t, dst[:n])
				if r.Src != h.Dst || r.Dst != h.Src || r.SrcPort != h.DstPort || r.DstPort != h.SrcPort || r.PayloadOff != r.End || r.TCPFlags != tt.flags {
					t.Errorf("%+v", r)
				}
				seq, ack := binary.BigEndian.Uint32(b[r.L4Off+4:]), binary.BigEndian.Uint32(b[r.L4Off+8:])
				if seq != tt.seq || ack != tt.ack {
					t.Errorf("sequence %#x, acknowledgement %#x; want %#x, %#x", seq, ack, tt.seq, tt.ack)
				}
			})
		}
	}
}

func TestPutNeighborAdvert(t *testing.T) {
	solicitation := "8700 0000 00000000 20010db8 000f0000 00000000 00000001"
	for _, tt := range []struct {
		name    string
		source  Addr
		flags   byte
		allNode bool
	}{
		{"to the asker", src6, 0xe0, false},
		{"to a probe for duplicates", Addr{}, 0xa0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, h := parsed(t, set(ipv6(t, ProtoICMPv6, solicitation), 22, tt.source[:]...))
			dst := bytes.Repeat([]byte{0xa5}, 100)
			n := PutNeighborAdvert(dst, h, gateway6, routerMAC)
			if n != 40+32 || dst[n] != 0xa5 {
				t.Fatalf("%d bytes", n)
			}
			b, a := framed(t, dst[:n])
			want := tt.source
			if tt.allNode {
				want = AddrFrom(netip.MustParseAddr("ff02::1"))
			}
			if a.Src != gateway6 || a.Dst != want || a.TTL != 255 || a.ICMPType != ICMPv6NeighborAdvert || a.ICMPCode != 0 {
				t.Errorf("%+v", a)
			}
			if b[a.L4Off+4] != tt.flags || Addr(b[a.L4Off+8:a.L4Off+24]) != gateway6 ||
				!bytes.Equal(b[a.L4Off+24:], append([]byte{2, 1}, routerMAC[:]...)) {
				t.Errorf("message % x", b[a.L4Off:])
			}
		})
	}
}

func TestTurnARP(t *testing.T) {
	arp := unhex(t, "0001 0800 06 04 0001  02005e000001 c0000201  000000000000 cb007101")
	if ARPOp(arp) != 1 {
		t.Errorf("operation %d", ARPOp(arp))
	}
	TurnARP(arp, routerMAC)
	want := unhex(t, "0001 0800 06 04 0002  02005e0000fe cb007101  02005e000001 c0000201")
	if !bytes.Equal(arp, want) {
		t.Errorf("% x, want % x", arp, want)
	}
}

func TestTurnEcho(t *testing.T) {
	for _, tt := range []struct {
		name  string
		b     []byte
		reply uint8
	}{
		{"IPv4", ipv4(t, 0, 9, ProtoICMP, "", "0800 0000 abcd 0001 010203"), ICMPEchoReply},
		{"IPv4 with options", ipv4(t, 0, 9, ProtoICMP, "01010101", "0800 0000 abcd 0001"), ICMPEchoReply},
		{"IPv6", ipv6(t, ProtoICMPv6, "8000 0000 abcd 0001 010203"), ICMPv6EchoReply},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, h := parsed(t, tt.b)
			if ICMPIntact(b, h) {
				t.Error("a zero checksum passed")
			}
			PutICMPChecksum(b, h)
			if !ICMPIntact(b, h) || slowTransport(b, h) != 0xffff {
				t.Fatal("PutICMPChecksum made a checksum that is wrong")
			}
			asked := *h
			TurnEcho(b, h)
			_, got := framed(t, b[14:])
			if got.Src != asked.Dst || got.Dst != asked.Src || got.ICMPType != tt.reply || got.SrcPort != 0xabcd || got.TTL != 64 {
				t.Errorf("%+v", got)
			}
			if h.Src != got.Src || h.Dst != got.Dst {
				t.Errorf("headers left behind the packet: %+v", h)
			}
		})
	}
}

func TestComposingAllocatesNothing(t *testing.T) {
	b4, h4 := parsed(t, ipv4(t, 0, 64, ProtoTCP, "", tcpSYN))
	b6, h6 := parsed(t, ipv6(t, ProtoTCP, tcpSYN))
	dst := make([]byte, 2000)
	if n := testing.AllocsPerRun(100, func() {
		PutICMPError(dst, b4, h4, gateway4, ICMPUnreachable, 3, 0)
		PutICMPError(dst, b6, h6, gateway6, ICMPv6TooBig, 0, 1280)
		PutTCPReset(dst, b4, h4)
		PutTCPReset(dst, b6, h6)
		PutNeighborAdvert(dst, h6, gateway6, routerMAC)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestPutUDP(t *testing.T) {
	for _, c := range []struct {
		name    string
		src, to Addr
		payload []byte
	}{
		{"IPv4", gateway4, AddrFrom(netip.MustParseAddr("192.0.2.1")), []byte("an answer")},
		{"IPv6, odd", gateway6, AddrFrom(netip.MustParseAddr("2001:db8::1")), []byte("an answer that is odd")},
		{"nothing", gateway4, AddrFrom(netip.MustParseAddr("192.0.2.1")), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			ip := make([]byte, 1500)
			for i := range ip {
				ip[i] = 0xa5 // what is not written shows
			}
			b, h := framed(t, ip[:PutUDP(ip, &c.src, 53, &c.to, 40000, c.payload)])
			if h.Src != c.src || h.Dst != c.to || h.SrcPort != 53 || h.DstPort != 40000 || h.Proto != ProtoUDP {
				t.Errorf("headers %+v", h)
			}
			if got := b[h.PayloadOff:h.End]; !bytes.Equal(got, c.payload) {
				t.Errorf("payload %q, want %q", got, c.payload)
			}
		})
	}
	// A payload that makes the sum zero: the field says so with all ones (RFC 768).
	src, to := gateway4, AddrFrom(netip.MustParseAddr("192.0.2.1"))
	var ip [IPv4Bytes + UDPBytes + 2]byte
	PutUDP(ip[:], &src, 53, &to, 40000, []byte{0, 0})
	PutUDP(ip[:], &src, 53, &to, 40000, bytes.Clone(ip[IPv4Bytes+6:IPv4Bytes+8]))
	if got := ip[IPv4Bytes+6 : IPv4Bytes+8]; got[0] != 0xff || got[1] != 0xff {
		t.Errorf("checksum %x, want ffff", got)
	}
}
