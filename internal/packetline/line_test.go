package packetline_test

import (
	"net/netip"
	"testing"

	"vswitch/internal/packetline"
	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
)

var (
	a4 = netip.MustParseAddr("192.0.2.1")
	b4 = netip.MustParseAddr("192.0.2.2")
	a6 = netip.MustParseAddr("2001:db8::1")
	b6 = netip.MustParseAddr("2001:db8::2")
)

func TestLines(t *testing.T) {
	quoted := wiretest.Packet{Src: a4, Dst: b4, Proto: 17, SrcPort: 7, DstPort: 9, Payload: []byte("x")}.IP()
	tests := []struct {
		frame []byte
		want  string
	}{
		{wiretest.Packet{Src: a4, Dst: b4, Proto: 6, SrcPort: 4000, DstPort: 80, Flags: wire.SYN, Seq: 7}.Frame(),
			"IP 192.0.2.1:4000 > 192.0.2.2:80: TCP [S], seq 7, win 65535, length 0"},
		{wiretest.Packet{Src: a6, Dst: b6, Proto: 6, SrcPort: 4000, DstPort: 80, Flags: wire.ACK | wire.PSH, Seq: 7, Ack: 8, Payload: make([]byte, 100)}.Frame(),
			"IP6 [2001:db8::1]:4000 > [2001:db8::2]:80: TCP [P.], seq 7, ack 8, win 65535, length 100"},
		{wiretest.Packet{Src: a4, Dst: b4, Proto: 17, SrcPort: 53, DstPort: 5353, Payload: make([]byte, 3)}.Frame(),
			"IP 192.0.2.1:53 > 192.0.2.2:5353: UDP, length 3"},
		{wiretest.Packet{Src: a4, Dst: b4, Proto: 1, ICMPType: 8, EchoID: 5, EchoSeq: 6, Payload: make([]byte, 56)}.Frame(),
			"IP 192.0.2.1 > 192.0.2.2: ICMP echo request, id 5, seq 6, length 64"},
		{wiretest.Packet{Src: b4, Dst: a4, Proto: 1, ICMPType: 3, Code: 4, Rest: 1400, Payload: quoted}.Frame(),
			"IP 192.0.2.2 > 192.0.2.1: ICMP unreachable, code 4, mtu 1400 (about UDP 192.0.2.1:7 > 192.0.2.2:9), length 37"},
		{wiretest.Packet{Src: a6, Dst: b6, Proto: 58, ICMPType: 129, EchoID: 5, EchoSeq: 6}.Frame(),
			"IP6 2001:db8::1 > 2001:db8::2: ICMP6 echo reply, id 5, seq 6, length 8"},
		{wiretest.Packet{Src: a4, Dst: b4, ID: 77, Proto: 17, FragmentOffset: 1480, MoreFragments: true, Payload: make([]byte, 16)}.Frame(),
			"IP 192.0.2.1 > 192.0.2.2: UDP, length 16 (fragment 77@1480+)"},
		{wiretest.ARP([6]byte{}, 1, [6]byte{}, a4, [6]byte{}, b4), "ARP who has 192.0.2.2, tell 192.0.2.1"},
		{wiretest.ARP([6]byte{}, 2, [6]byte{2, 0, 0, 0, 0, 1}, a4, [6]byte{}, b4), "ARP 192.0.2.1 is at 2:0:0:0:0:1"},
		{make([]byte, 5), "runt frame, 5 bytes"},
		{append(make([]byte, 12), 0x81, 0, 0, 0), "ethertype 0x8100, 16 bytes"},
		{wiretest.Packet{Src: a4, Dst: b4, Proto: 6}.Frame()[:20], "malformed packet (truncated), 20 bytes"},
	}
	for _, tt := range tests {
		if got := packetline.Of(tt.frame, len(tt.frame)); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}

// The beginning of a packet says as much as all of it.
func TestSnappedFrame(t *testing.T) {
	b := wiretest.Packet{Src: a4, Dst: b4, Proto: 6, SrcPort: 1, DstPort: 2, Flags: wire.ACK, Payload: make([]byte, 1000)}.Frame()
	whole := packetline.Of(b, len(b))
	if got := packetline.Of(b[:54], len(b)); got != whole {
		t.Errorf("got  %s\nwant %s", got, whole)
	}
}

func FuzzOf(f *testing.F) {
	f.Add(wiretest.Packet{Src: b4, Dst: a4, Proto: 1, ICMPType: 3, Payload: []byte{0x45}}.Frame(), 100)
	f.Fuzz(func(_ *testing.T, b []byte, n int) { packetline.Of(b, n) })
}
