package link

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

var (
	pod4, world4 = netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("192.0.2.1")
	pod6, world6 = netip.MustParseAddr("fd00:10:244:1::5"), netip.MustParseAddr("2001:db8::1")
)

// stackDouble is the netstack's entrance: it counts and keeps the last packet.
type stackDouble struct {
	packets int
	last    []byte
}

func (d *stackDouble) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	d.packets++
	d.last = pkt.Data().AsRange().ToSlice()
}
func (*stackDouble) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// attached is a link with a double behind each interface.
func attached(t testing.TB) (l *Link, whole, fragments *stackDouble) {
	l = newLink(t, 1, 64, nil)
	whole, fragments = new(stackDouble), new(stackDouble)
	l.Whole().Attach(whole)
	l.Fragments().Attach(fragments)
	return l, whole, fragments
}

func ports(p wiretest.Packet) wiretest.Packet {
	p.SrcPort, p.DstPort = 40000, 80
	return p
}

// One packet of each kind whose checksum the netstack is told not to verify.
func samples() map[string]wiretest.Packet {
	payload := []byte("payload of odd length")
	s := make(map[string]wiretest.Packet)
	for _, fam := range []struct {
		name     string
		src, dst netip.Addr
		icmp     uint8
		echo     uint8
	}{{"IPv4", pod4, world4, wire.ProtoICMP, wire.ICMPEcho}, {"IPv6", pod6, world6, wire.ProtoICMPv6, wire.ICMPv6Echo}} {
		base := wiretest.Packet{Src: fam.src, Dst: fam.dst, Payload: payload}
		tcp, udp, icmp := ports(base), ports(base), base
		tcp.Proto, tcp.Flags = wire.ProtoTCP, wire.ACK
		udp.Proto = wire.ProtoUDP
		icmp.Proto, icmp.ICMPType, icmp.EchoID = fam.icmp, fam.echo, 9
		super := tcp
		super.Payload = bytes.Repeat(payload, 3000)
		s["TCP/"+fam.name], s["UDP/"+fam.name], s["echo/"+fam.name], s["64 KiB of TCP/"+fam.name] = tcp, udp, icmp, super
	}
	return s
}

func transmit(l *Link, b []byte, v frame.VNet) drop.Reason {
	f := frame.New()
	f.Set(b)
	f.VNet = v
	l.Queue(0).Transmit([]*frame.Frame{f})
	return f.Drop
}

func TestChecksumsAreVerified(t *testing.T) {
	for name, p := range samples() {
		t.Run(name, func(t *testing.T) {
			l, whole, _ := attached(t)
			good := p.Frame()
			if r := transmit(l, good, frame.VNet{}); r != drop.None || whole.packets != 1 || !bytes.Equal(whole.last, good[14:]) {
				t.Fatalf("a good packet: %v, %d delivered", r, whole.packets)
			}
			for _, at := range []int{len(good) - 1, len(good) / 2, len(good) - len(p.Payload) - 1} {
				bad := bytes.Clone(good)
				bad[at] ^= 0x10
				if r := transmit(l, bad, frame.VNet{Flags: frame.DataValid}); r != drop.BadChecksum {
					t.Errorf("byte %d of %d corrupted: %v, want %v", at, len(bad), r, drop.BadChecksum)
				}
			}
			if whole.packets != 1 {
				t.Error("a corrupt packet was delivered")
			}
		})
	}
}

func TestPartialChecksumsAreTrusted(t *testing.T) {
	l, whole, _ := attached(t)
	b := samples()["TCP/IPv4"].Frame()
	b[34+16] ^= 0xff // what stands there is the pseudo-header's sum, not a checksum
	v := frame.VNet{Flags: frame.NeedsCsum, CsumStart: 34, CsumOffset: 16}
	if r := transmit(l, b, v); r != drop.None || whole.packets != 1 {
		t.Fatalf("%v, %d delivered", r, whole.packets)
	}
}

// A tunnel inside a pod leaves its inner checksum open; it must not leave the
// node that way.
func TestInnerPartialChecksumIsFinished(t *testing.T) {
	inner := wiretest.Packet{Src: pod4, Dst: world4, Proto: wire.ProtoUDP, SrcPort: 1, DstPort: 2, Payload: []byte("inner")}.Frame()
	p := ports(wiretest.Packet{Src: pod4, Dst: world4, Proto: wire.ProtoUDP, Payload: inner, NoChecksum: true})
	b := p.Frame()
	const innerUDP = 14 + 20 + 8 + 14 + 20
	whole := binary.BigEndian.Uint16(b[innerUDP+6:])
	var h wire.Headers
	wire.Parse(inner, &h)
	binary.BigEndian.PutUint16(b[innerUDP+6:], wire.Fold(wire.PseudoSum(&h, 8+5)))
	l, stack, _ := attached(t)
	v := frame.VNet{Flags: frame.NeedsCsum, CsumStart: innerUDP, CsumOffset: 6}
	if r := transmit(l, b, v); r != drop.None {
		t.Fatal(r)
	}
	if got := binary.BigEndian.Uint16(stack.last[innerUDP-14+6:]); got != whole {
		t.Fatalf("inner checksum %#04x, want %#04x", got, whole)
	}
}

func TestFragmentsComeByTheInterfaceWithoutOffload(t *testing.T) {
	l, whole, fragments := attached(t)
	p := ports(wiretest.Packet{Src: pod4, Dst: world4, Proto: wire.ProtoUDP, Payload: make([]byte, 64), MoreFragments: true})
	if r := transmit(l, p.Frame(), frame.VNet{}); r != drop.None {
		t.Fatal(r)
	}
	p.MoreFragments, p.FragmentOffset = false, 72
	if r := transmit(l, p.Frame(), frame.VNet{}); r != drop.None {
		t.Fatal(r)
	}
	if whole.packets != 0 || fragments.packets != 2 {
		t.Fatalf("%d and %d packets, want 0 and 2", whole.packets, fragments.packets)
	}
	const offload = stack.CapabilityRXChecksumOffload
	if l.Whole().Capabilities()&offload == 0 || l.Fragments().Capabilities()&offload != 0 {
		t.Error("the wrong interface claims receive checksum offload")
	}
}

func TestMalformedFramesAreNamed(t *testing.T) {
	l, whole, fragments := attached(t)
	ip := samples()["TCP/IPv4"].Frame()
	for _, c := range []struct {
		name string
		b    []byte
		want drop.Reason
	}{
		{"runt", ip[:10], drop.Truncated},
		{"cut off", ip[:40], drop.Truncated},
		{"ARP", wiretest.ARP([6]byte{}, 1, [6]byte{}, pod4, [6]byte{}, world4), drop.NotForUs},
		{"VLAN", append(append(append([]byte{}, ip[:12]...), 0x81, 0, 0, 1), ip[12:]...), drop.UnknownType},
	} {
		if r := transmit(l, c.b, frame.VNet{}); r != c.want {
			t.Errorf("%s: %v, want %v", c.name, r, c.want)
		}
	}
	if whole.packets+fragments.packets != 0 {
		t.Error("a malformed frame was delivered")
	}
}

// handlerFunc is a Handler.
type handlerFunc func(*frame.Frame, *wire.Headers) bool

func (f handlerFunc) Inbound(b *frame.Frame, h *wire.Headers) bool { return f(b, h) }

func TestTheHandlerComesFirst(t *testing.T) {
	l := newLink(t, 1, 8, handlerFunc(func(f *frame.Frame, h *wire.Headers) bool {
		f.Drop = drop.EgressDenied
		return h.DstPort == 80
	}))
	whole := new(stackDouble)
	l.Whole().Attach(whole)
	p := samples()["TCP/IPv4"]
	if r := transmit(l, p.Frame(), frame.VNet{}); r != drop.EgressDenied || whole.packets != 0 {
		t.Errorf("handled: %v, %d delivered", r, whole.packets)
	}
	p.DstPort = 81
	if r := transmit(l, p.Frame(), frame.VNet{}); r != drop.None || whole.packets != 1 {
		t.Errorf("left to the netstack: %v, %d delivered", r, whole.packets)
	}
}

func TestOffloadMetadataIsTranslated(t *testing.T) {
	const mss = 1000
	for _, c := range []struct {
		name    string
		v6      bool
		payload int
		gso     stack.GSO
		want    frame.VNet
	}{
		{name: "no offload", payload: 5000},
		{
			name: "one segment", payload: mss,
			gso:  stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, CsumOffset: 16, MSS: mss},
			want: frame.VNet{Flags: frame.NeedsCsum, CsumStart: 34, CsumOffset: 16},
		},
		{
			name: "super-frame", payload: mss + 1,
			gso:  stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, CsumOffset: 16, MSS: mss},
			want: frame.VNet{Flags: frame.NeedsCsum, CsumStart: 34, CsumOffset: 16, GSOType: frame.GSOTCPv4, GSOSize: mss, HdrLen: 54},
		},
		{
			name: "super-frame, IPv6", v6: true, payload: 60000,
			gso:  stack.GSO{Type: stack.GSOTCPv6, NeedsCsum: true, CsumOffset: 16, MSS: mss},
			want: frame.VNet{Flags: frame.NeedsCsum, CsumStart: 54, CsumOffset: 16, GSOType: frame.GSOTCPv6, GSOSize: mss, HdrLen: 74},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLink(t, 1, 8, nil)
			ipBytes, proto, etherType := 20, header.IPv4ProtocolNumber, uint16(0x0800)
			if c.v6 {
				ipBytes, proto, etherType = 40, header.IPv6ProtocolNumber, 0x86dd
			}
			payload := bytes.Repeat([]byte("x"), c.payload)
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
				ReserveHeaderBytes: ipBytes + 20, Payload: buffer.MakeWithData(payload),
			})
			copy(pkt.TransportHeader().Push(20), bytes.Repeat([]byte("t"), 20))
			copy(pkt.NetworkHeader().Push(ipBytes), bytes.Repeat([]byte("n"), ipBytes))
			pkt.NetworkProtocolNumber, pkt.GSOOptions = proto, c.gso
			var list stack.PacketBufferList
			list.PushBack(pkt)
			if n, err := l.Whole().WritePackets(list); n != 1 || err != nil {
				t.Fatalf("wrote %d, %v", n, err)
			}
			pkt.DecRef()
			b := frame.NewBatch(4)
			l.Queue(0).Receive(b)
			if b.Len() != 1 {
				t.Fatalf("%d frames", b.Len())
			}
			f := b.At(0)
			want := append(bytes.Repeat([]byte("n"), ipBytes), bytes.Repeat([]byte("t"), 20)...)
			want = append(want, payload...)
			if !bytes.Equal(f.Bytes()[14:], want) {
				t.Error("the frame's bytes are not the packet's")
			}
			if got := fmt.Sprintf("%x", f.Bytes()[:14]); got != fmt.Sprintf("00000000000002005e000001%04x", etherType) {
				t.Errorf("Ethernet header %s", got)
			}
			if f.VNet != c.want {
				t.Errorf("metadata %+v, want %+v", f.VNet, c.want)
			}
		})
	}
}

// Packets are counted references: one forgotten on any path is a leak that only
// a long run shows, one too many a corruption.
func TestPacketsAreReleasedOnEveryPath(t *testing.T) {
	l := newLink(t, 1, 64, nil)
	l.Whole().Attach(new(stackDouble))
	good, bad := samples()["TCP/IPv4"].Frame(), samples()["TCP/IPv6"].Frame()
	bad[len(bad)-1]++
	f, b := frame.New(), frame.NewBatch(8)
	round := func() {
		f.Set(good)
		l.Queue(0).Transmit([]*frame.Frame{f}) // delivered
		f.Set(bad)
		l.Queue(0).Transmit([]*frame.Frame{f}) // dropped
		for range 3 {
			pkt := packet(1500)
			l.write(pkt)
			pkt.DecRef()
		}
		b.Reset()
		l.Queue(0).Receive(b)
		for range 70 { // more than the ring holds
			pkt := packet(100)
			l.write(pkt)
			pkt.DecRef()
		}
		for b.Reset(); l.Queue(0).ring.n > 0; b.Reset() {
			l.Queue(0).Receive(b)
		}
	}
	measure := func(rounds int) (objects uint64) {
		for range rounds {
			round()
		}
		runtime.GC()
		runtime.GC() // pools keep what they hold for one collection
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapObjects
	}
	before := measure(200)
	after := measure(10_000)
	if after > before+1000 {
		t.Fatalf("%d heap objects became %d", before, after)
	}
}
