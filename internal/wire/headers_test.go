package wire

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"vswitch/vswitch/drop"
)

// unhex reads hexadecimal with spaces and newlines between.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Headers written out by hand, so that no code under test makes its own input.
const (
	eth4   = "02767377 0001 0200 5e00 0001 0800 "
	eth6   = "02767377 0001 0200 5e00 0001 86dd "
	v4ends = "c0000201 c6336402"                     // 192.0.2.1 > 198.51.100.2
	v6ends = "20010db8 00000000 00000000 00000001" + // 2001:db8::1 >
		"20010db8 00000000 00000000 00000002" // 2001:db8::2
	tcpSYN  = "03e8 0050 00000001 00000000 5002 ffff 0000 0000"
	udpHead = "03e8 0035 000c 0000 "
)

// ipv4 builds an IPv4 packet behind eth4: the header checksum is computed here by
// the plain loop.
func ipv4(t testing.TB, frag uint16, ttl, proto uint8, options, payload string) []byte {
	t.Helper()
	opt, data := unhex(t, options), unhex(t, payload)
	ip := make([]byte, 20, 20+len(opt)+len(data))
	ip[0] = 0x40 | byte((20+len(opt))/4)
	ip[1] = 0xb8
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(opt)+len(data)))
	binary.BigEndian.PutUint16(ip[4:], 0x1234)
	binary.BigEndian.PutUint16(ip[6:], frag)
	ip[8], ip[9] = ttl, proto
	copy(ip[12:], unhex(t, v4ends))
	ip = append(ip, opt...)
	binary.BigEndian.PutUint16(ip[10:], ^slowSum(ip))
	return append(unhex(t, eth4), append(ip, data...)...)
}

func ipv6(t testing.TB, next uint8, payload string) []byte {
	t.Helper()
	data := unhex(t, payload)
	ip := make([]byte, 8)
	ip[0], ip[1] = 0x6b, 0x80 // traffic class 0xb8
	binary.BigEndian.PutUint16(ip[4:], uint16(len(data)))
	ip[6], ip[7] = next, 63
	ip = append(ip, unhex(t, v6ends)...)
	return append(unhex(t, eth6), append(ip, data...)...)
}

var (
	src4 = AddrFrom(netip.MustParseAddr("192.0.2.1"))
	dst4 = AddrFrom(netip.MustParseAddr("198.51.100.2"))
	src6 = AddrFrom(netip.MustParseAddr("2001:db8::1"))
	dst6 = AddrFrom(netip.MustParseAddr("2001:db8::2"))
)

// head4 and head6 are what every packet of ipv4 and ipv6 has in common.
func head4(h Headers) Headers {
	h.EtherType, h.TOS, h.L3Off, h.Src, h.Dst, h.FragID = TypeIPv4, 0xb8, 14, src4, dst4, 0x1234
	if h.TTL == 0 {
		h.TTL = 64
	}
	return h
}

func head6(h Headers) Headers {
	h.EtherType, h.TOS, h.L3Off, h.Src, h.Dst = TypeIPv6, 0xb8, 14, src6, dst6
	h.V6, h.DontFragment, h.TTL = true, true, 63
	return h
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name string
		b    []byte
		want Headers
	}{
		{"TCP over IPv4", ipv4(t, 0x4000, 64, ProtoTCP, "", tcpSYN),
			head4(Headers{Proto: ProtoTCP, L4Off: 34, PayloadOff: 54, End: 54, HasL4: true, DontFragment: true, SrcPort: 1000, DstPort: 80, TCPFlags: SYN})},
		{"Ethernet padding is not payload", append(ipv4(t, 0, 64, ProtoUDP, "", udpHead+"01020304"), make([]byte, 14)...),
			head4(Headers{Proto: ProtoUDP, L4Off: 34, PayloadOff: 42, End: 46, HasL4: true, SrcPort: 1000, DstPort: 53})},
		{"IPv4 options", ipv4(t, 0, 1, ProtoUDP, "01010101", udpHead+"01020304"),
			head4(Headers{Proto: ProtoUDP, TTL: 1, L4Off: 38, PayloadOff: 46, End: 50, HasL4: true, SrcPort: 1000, DstPort: 53})},
		{"TCP options", ipv4(t, 0, 64, ProtoTCP, "", "03e8 0050 00000001 00000002 6010 ffff 0000 0000 01010101 aa"),
			head4(Headers{Proto: ProtoTCP, L4Off: 34, PayloadOff: 58, End: 59, HasL4: true, SrcPort: 1000, DstPort: 80, TCPFlags: ACK})},
		{"SCTP", ipv4(t, 0, 64, ProtoSCTP, "", "03e8 0050 00000000 00000000"),
			head4(Headers{Proto: ProtoSCTP, L4Off: 34, PayloadOff: 46, End: 46, HasL4: true, SrcPort: 1000, DstPort: 80})},
		{"echo request", ipv4(t, 0, 64, ProtoICMP, "", "0800 0000 abcd 0001"),
			head4(Headers{Proto: ProtoICMP, L4Off: 34, PayloadOff: 42, End: 42, HasL4: true, ICMPType: 8, SrcPort: 0xabcd, DstPort: 0xabcd})},
		{"unreachable has no identifier", ipv4(t, 0, 64, ProtoICMP, "", "0303 0000 abcd 0001"),
			head4(Headers{Proto: ProtoICMP, L4Off: 34, PayloadOff: 42, End: 42, HasL4: true, ICMPType: 3, ICMPCode: 3})},
		{"ICMPv6 in IPv4 is an unknown protocol", ipv4(t, 0, 64, ProtoICMPv6, "", "8000 0000 abcd 0001"),
			head4(Headers{Proto: ProtoICMPv6, L4Off: 34, PayloadOff: 34, End: 42})},
		{"unknown protocol", ipv4(t, 0, 64, ProtoESP, "", "00"),
			head4(Headers{Proto: ProtoESP, L4Off: 34, PayloadOff: 34, End: 35})},
		{"first fragment of a long datagram", ipv4(t, 0x2000, 64, ProtoUDP, "", "03e8 0035 1000 0000 00000000"),
			head4(Headers{Proto: ProtoUDP, L4Off: 34, PayloadOff: 42, End: 46, HasL4: true, SrcPort: 1000, DstPort: 53, Fragment: true, MoreFrags: true})},
		{"later fragment has no ports", ipv4(t, 0x20b9, 64, ProtoUDP, "", udpHead),
			head4(Headers{Proto: ProtoUDP, L4Off: 34, PayloadOff: 34, End: 42, Fragment: true, MoreFrags: true, LaterFrag: true, FragOffset: 185 * 8})},
		{"last fragment of one byte", ipv4(t, 0x00b9, 64, ProtoTCP, "", "00"),
			head4(Headers{Proto: ProtoTCP, L4Off: 34, PayloadOff: 34, End: 35, Fragment: true, LaterFrag: true, FragOffset: 185 * 8})},

		{"TCP over IPv6", ipv6(t, ProtoTCP, tcpSYN),
			head6(Headers{Proto: ProtoTCP, L4Off: 54, PayloadOff: 74, End: 74, HasL4: true, SrcPort: 1000, DstPort: 80, TCPFlags: SYN})},
		{"neighbour solicitation", ipv6(t, ProtoICMPv6, "8700 0000 00000000"),
			head6(Headers{Proto: ProtoICMPv6, L4Off: 54, PayloadOff: 62, End: 62, HasL4: true, ICMPType: 135})},
		{"echo reply over IPv6", ipv6(t, ProtoICMPv6, "8100 0000 abcd 0001"),
			head6(Headers{Proto: ProtoICMPv6, L4Off: 54, PayloadOff: 62, End: 62, HasL4: true, ICMPType: 129, SrcPort: 0xabcd, DstPort: 0xabcd})},
		{"extension headers of every kind", ipv6(t, ProtoHopByHop,
			"2b00 010400000000"+ // hop by hop, then routing
				"3c00 0000 00000000"+ // routing, then destination options
				"3301 0104 00000000 00000000 00000000"+ // options of 16 bytes, then AH
				"1104 0000 00000001 00000001 000000000000000000000000"+ // AH of 24, then UDP
				udpHead+"01020304"),
			head6(Headers{Proto: ProtoUDP, L4Off: 54 + 8 + 8 + 16 + 24, PayloadOff: 54 + 8 + 8 + 16 + 24 + 8, End: 54 + 8 + 8 + 16 + 24 + 12, HasL4: true, SrcPort: 1000, DstPort: 53})},
		{"first fragment over IPv6", ipv6(t, ProtoFragment, "1100 0001 00000007 03e8 0035 1000 0000"),
			head6(Headers{Proto: ProtoUDP, L4Off: 62, PayloadOff: 70, End: 70, HasL4: true, SrcPort: 1000, DstPort: 53, Fragment: true, MoreFrags: true, FragID: 7})},
		{"atomic fragment (RFC 6946)", ipv6(t, ProtoFragment, "1100 0000 00000007"+udpHead+"01020304"),
			head6(Headers{Proto: ProtoUDP, L4Off: 62, PayloadOff: 70, End: 74, HasL4: true, SrcPort: 1000, DstPort: 53, Fragment: true, FragID: 7})},
		{"later fragment over IPv6: what follows is no header", ipv6(t, ProtoFragment, "0000 0549 00000007 ff"),
			head6(Headers{Proto: ProtoHopByHop, L4Off: 62, PayloadOff: 62, End: 63, Fragment: true, MoreFrags: true, LaterFrag: true, FragID: 7, FragOffset: 0x548})},
		{"no next header", ipv6(t, ProtoNoNext, ""), head6(Headers{Proto: ProtoNoNext, L4Off: 54, PayloadOff: 54, End: 54})},

		{"ARP is left to its reader", unhex(t, "ffffffff ffff 0200 5e00 0001 0806 0001"),
			Headers{EtherType: TypeARP, L3Off: 14, L4Off: 14, PayloadOff: 14, End: 16}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var h Headers
			if r := Parse(tt.b, &h); r != drop.None {
				t.Fatal(r)
			}
			if h != tt.want {
				t.Errorf("\ngot  %+v\nwant %+v", h, tt.want)
			}
		})
	}
}

func set(b []byte, at int, to ...byte) []byte {
	copy(b[at:], to)
	return b
}

// resum puts a right header checksum into an IPv4 frame that a test changed.
func resum(b []byte) []byte {
	b[24], b[25] = 0, 0
	binary.BigEndian.PutUint16(b[24:], ^slowSum(b[14:14+int(b[14]&0xf)*4]))
	return b
}

func TestParseRefuses(t *testing.T) {
	tcp := func() []byte { return ipv4(t, 0, 64, ProtoTCP, "", tcpSYN) }
	udp := func() []byte { return ipv4(t, 0, 64, ProtoUDP, "", udpHead+"01020304") }
	for _, tt := range []struct {
		name string
		b    []byte
		want drop.Reason
	}{
		{"nothing", nil, drop.Truncated},
		{"half an Ethernet header", tcp()[:13], drop.Truncated},
		{"VLAN tag", set(tcp(), 12, 0x81, 0x00), drop.UnknownType},
		{"802.3 length", set(tcp(), 12, 0x00, 0x2e), drop.UnknownType},
		{"half an IPv4 header", tcp()[:33], drop.Truncated},
		{"IPv6 under the EtherType of IPv4", set(tcp(), 14, 0x65), drop.BadVersion},
		{"IPv4 header length of 16", set(tcp(), 14, 0x44), drop.BadHeader},
		{"IPv4 header longer than the packet", resum(set(tcp(), 16, 0, 19)), drop.BadHeader},
		{"IPv4 header longer than the frame", set(ipv4(t, 0, 64, ProtoUDP, "", ""), 14, 0x4f, 0, 0, 60), drop.Truncated},
		{"IPv4 packet longer than the frame", tcp()[:53], drop.Truncated},
		{"IPv4 header checksum", set(tcp(), 24, 0, 0), drop.BadChecksum},
		{"TCP header cut", ipv4(t, 0, 64, ProtoTCP, "", tcpSYN[:38]), drop.Truncated},
		{"TCP header length of 16", set(tcp(), 46, 0x40), drop.BadHeader},
		{"TCP header longer than the packet", set(tcp(), 46, 0x60), drop.Truncated},
		{"UDP header cut", ipv4(t, 0, 64, ProtoUDP, "", "03e8 0035 0008 00"), drop.Truncated},
		{"UDP length below its header", set(udp(), 38, 0, 7), drop.BadHeader},
		{"UDP length beyond the packet", set(udp(), 38, 0, 13), drop.BadHeader},
		{"SCTP header cut", ipv4(t, 0, 64, ProtoSCTP, "", "03e8 0050 00000000 000000"), drop.Truncated},
		{"ICMP header cut", ipv4(t, 0, 64, ProtoICMP, "", "0800 0000 abcd 00"), drop.Truncated},
		{"first fragment too short for its header", ipv4(t, 0x2000, 64, ProtoTCP, "", "03e8 0050 00000001"), drop.Truncated},
		{"half an IPv6 header", ipv6(t, ProtoNoNext, "")[:53], drop.Truncated},
		{"IPv4 under the EtherType of IPv6", set(ipv6(t, ProtoTCP, tcpSYN), 14, 0x45), drop.BadVersion},
		{"IPv6 packet longer than the frame", ipv6(t, ProtoTCP, tcpSYN)[:73], drop.Truncated},
		{"extension header cut", ipv6(t, ProtoDstOpts, "1100 0104 000000"), drop.Truncated},
		{"extension header beyond the packet", ipv6(t, ProtoDstOpts, "1101 0104 00000000"), drop.Truncated},
		{"fragment header cut", ipv6(t, ProtoFragment, "1100 0001"), drop.Truncated},
		{"fragment that ends beyond the longest packet", ipv4(t, 0x1fff, 64, ProtoUDP, "", udpHead), drop.BadHeader},
		{"fragment that ends beyond the longest packet, IPv6", ipv6(t, ProtoFragment, "1100 fff8 00000007"+udpHead), drop.BadHeader},
		{"AH beyond the packet", ipv6(t, ProtoAH, "1104 0000 00000001"), drop.Truncated},
		{"IPv6 options in Ethernet padding", append(ipv6(t, ProtoDstOpts, ""), unhex(t, "1100 0104 00000000")...), drop.Truncated},
		{"ten extension headers", ipv6(t, ProtoDstOpts, strings.Repeat("3c00 0104 00000000", 10)+udpHead), drop.TooManyHeaders},
		{"IPv4-mapped source in IPv6", set(ipv6(t, ProtoTCP, tcpSYN), 22, src4[:]...), drop.MartianSource},
		{"IPv4-mapped destination in IPv6", set(ipv6(t, ProtoTCP, tcpSYN), 38, dst4[:]...), drop.MartianTarget},
		{"sixty-four extension headers", ipv6(t, ProtoDstOpts, strings.Repeat("3c00 0104 00000000", 64)+udpHead), drop.TooManyHeaders},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var h Headers
			if r := Parse(tt.b, &h); r != tt.want {
				t.Errorf("%v, want %v", r, tt.want)
			}
		})
	}
}

// TestExtensionHeadersUpToTheBound fixes what maxExtensionHeaders means.
func TestExtensionHeadersUpToTheBound(t *testing.T) {
	for n, want := range map[int]drop.Reason{
		maxExtensionHeaders:     drop.None,
		maxExtensionHeaders + 1: drop.TooManyHeaders,
	} {
		text := strings.Repeat("3c00 0104 00000000", n-1) + "1100 0104 00000000" + udpHead + "01020304"
		var h Headers
		if r := Parse(ipv6(t, ProtoDstOpts, text), &h); r != want {
			t.Errorf("%d extension headers: %v, want %v", n, r, want)
		}
	}
}

func TestParseQuoted(t *testing.T) {
	tcp4 := ipv4(t, 0x4000, 1, ProtoTCP, "", tcpSYN)[14:]
	for _, tt := range []struct {
		name   string
		b      []byte
		reason drop.Reason
		l4     bool
		ports  [2]uint16
	}{
		{"IPv4 and eight bytes of TCP", tcp4[:28], drop.None, true, [2]uint16{1000, 80}},
		{"seven bytes don't do", tcp4[:27], drop.None, false, [2]uint16{}},
		{"bare IPv4 header", tcp4[:20], drop.None, false, [2]uint16{}},
		{"header checksum is not judged", set(append([]byte(nil), tcp4[:28]...), 10, 0, 0), drop.None, true, [2]uint16{1000, 80}},
		{"IPv4 echo", ipv4(t, 0, 1, ProtoICMP, "", "0800 0000 abcd 0001")[14:], drop.None, true, [2]uint16{0xabcd, 0xabcd}},
		{"later fragment", ipv4(t, 0x00b9, 1, ProtoUDP, "", udpHead)[14:], drop.None, false, [2]uint16{}},
		{"IPv6 and eight bytes of TCP", ipv6(t, ProtoTCP, tcpSYN)[14:62], drop.None, true, [2]uint16{1000, 80}},
		{"IPv6 bare header", ipv6(t, ProtoTCP, tcpSYN)[14:54], drop.None, false, [2]uint16{}},
		{"IPv6 echo reply", ipv6(t, ProtoICMPv6, "8100 0000 abcd 0001")[14:], drop.None, true, [2]uint16{0xabcd, 0xabcd}},
		{"IPv6 behind an extension header", ipv6(t, ProtoDstOpts, "1100 0104 00000000"+udpHead+"01020304")[14:], drop.None, true, [2]uint16{1000, 53}},
		{"IPv6 later fragment", ipv6(t, ProtoFragment, "1100 0549 00000007"+udpHead)[14:], drop.None, false, [2]uint16{}},
		{"IPv6 extension header cut", ipv6(t, ProtoDstOpts, "1100 0104 00000000")[14:58], drop.Truncated, false, [2]uint16{}},
		{"nothing", nil, drop.Truncated, false, [2]uint16{}},
		{"cut IPv4 header", tcp4[:19], drop.Truncated, false, [2]uint16{}},
		{"IPv4 header length too small", set(append([]byte(nil), tcp4...), 0, 0x44), drop.BadHeader, false, [2]uint16{}},
		{"IPv4 options beyond the quote", set(append([]byte(nil), tcp4[:28]...), 0, 0x4f), drop.Truncated, false, [2]uint16{}},
		{"cut IPv6 header", ipv6(t, ProtoTCP, tcpSYN)[14:53], drop.Truncated, false, [2]uint16{}},
		{"IPv4-mapped source in IPv6", set(ipv6(t, ProtoTCP, tcpSYN), 22, src4[:]...)[14:], drop.BadHeader, false, [2]uint16{}},
		{"IPv4-mapped destination in IPv6", set(ipv6(t, ProtoTCP, tcpSYN), 38, dst4[:]...)[14:], drop.BadHeader, false, [2]uint16{}},
		{"neither family", []byte{0x50, 0, 0, 0}, drop.BadVersion, false, [2]uint16{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var h Headers
			r := ParseQuoted(tt.b, &h)
			if r != tt.reason {
				t.Fatalf("%v, want %v", r, tt.reason)
			}
			if r != drop.None {
				return
			}
			if h.HasL4 != tt.l4 || h.SrcPort != tt.ports[0] || h.DstPort != tt.ports[1] {
				t.Errorf("HasL4 %v, ports %d %d; want %v %v", h.HasL4, h.SrcPort, h.DstPort, tt.l4, tt.ports)
			}
			if want := src4; !h.V6 && h.Src != want || h.V6 && h.Src != src6 {
				t.Errorf("source %v", h.Src)
			}
		})
	}
}

func TestICMPKinds(t *testing.T) {
	for _, tt := range []struct {
		v6            bool
		proto, typ    uint8
		echo, failure bool
	}{
		{false, ProtoICMP, ICMPEcho, true, false},
		{false, ProtoICMP, ICMPEchoReply, true, false},
		{false, ProtoICMP, ICMPUnreachable, false, true},
		{false, ProtoICMP, 4, false, true},
		{false, ProtoICMP, ICMPRedirect, false, true},
		{false, ProtoICMP, ICMPTimeExceeded, false, true},
		{false, ProtoICMP, ICMPParamProblem, false, true},
		{false, ProtoICMP, 13, false, false},
		{true, ProtoICMPv6, ICMPv6Echo, true, false},
		{true, ProtoICMPv6, ICMPv6EchoReply, true, false},
		{true, ProtoICMPv6, ICMPv6TooBig, false, true},
		{true, ProtoICMPv6, 127, false, true},
		{true, ProtoICMPv6, ICMPv6NeighborSolicit, false, false},
		{true, ProtoUDP, 1, false, false},
	} {
		h := Headers{V6: tt.v6, Proto: tt.proto, ICMPType: tt.typ, HasL4: true}
		if h.IsEcho() != tt.echo || h.IsICMPError() != tt.failure {
			t.Errorf("protocol %d type %d: echo %v, error %v", tt.proto, tt.typ, h.IsEcho(), h.IsICMPError())
		}
		h.HasL4 = false
		if h.IsEcho() || h.IsICMPError() {
			t.Errorf("protocol %d type %d: judged without a header", tt.proto, tt.typ)
		}
	}
}

func TestAddr(t *testing.T) {
	for _, s := range []string{"192.0.2.1", "0.0.0.0", "2001:db8::1", "::", "::1", "::fffe:1.2.3.4"} {
		want := netip.MustParseAddr(s)
		a := AddrFrom(want)
		if a.Netip() != want || a.Is4() != want.Is4() || a.String() != want.String() {
			t.Errorf("%s became %v, Is4 %v", s, a, a.Is4())
		}
	}
	a := AddrFrom4([]byte{192, 0, 2, 1, 99})
	if a != src4 || a.V4() != 0xc0000201 {
		t.Errorf("AddrFrom4: %v, %#x", a, a.V4())
	}
}
