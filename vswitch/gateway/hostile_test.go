package gateway

import (
	"net/netip"
	"sync/atomic"
	"testing"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// What has broken other user-mode networks (case 26). Zero windows for ever are in
// memory_test.go, floods of SYNs in egress_test.go, what is left of fragments in
// joins_test.go.

// Urgent pointers that point anywhere change no byte of the stream and lose none.
func TestUrgentPointersMeanNothing(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		_, n := start(t, nil)
		var marked atomic.Uint32
		n.Watch(func(f *frame.Frame, fromGateway bool) {
			var h wire.Headers
			b := f.Bytes()
			if fromGateway || wire.Parse(b, &h) != drop.None || h.Proto != wire.ProtoTCP || h.TCPFlags&wire.SYN != 0 || h.PayloadOff == h.End {
				return
			}
			i := marked.Add(1)
			pointers := []uint16{0, 1, uint16(h.End - h.PayloadOff), uint16(h.End-h.PayloadOff) + 1, 0x7fff, 0xffff}
			p := pointers[int(i)%len(pointers)]
			const urg = 0x20
			b[h.L4Off+13] |= urg
			b[h.L4Off+18], b[h.L4Off+19] = byte(p>>8), byte(p)
			if f.VNet.Flags&frame.NeedsCsum == 0 { // else it is completed later
				b[h.L4Off+16], b[h.L4Off+17] = 0, 0
				sum := ^wire.Fold(wire.Sum(b[h.L4Off:h.End], wire.PseudoSum(&h, h.End-h.L4Off)))
				b[h.L4Off+16], b[h.L4Off+17] = byte(sum>>8), byte(sum)
			}
		})
		c, err := n.Pod(fam.pod.String()).DialTCP(soon(t), hostServer(t, fam, echo))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		exchange(t, c, 2<<20)
		if marked.Load() == 0 {
			t.Error("no segment was marked")
		}
	})
}

// There is no BOOTP, DHCP or TFTP server inside: nothing but an ICMP error comes
// back, and nothing goes anywhere.
func TestNoServersInside(t *testing.T) {
	g, n := start(t, nil)
	var datagrams atomic.Uint32
	n.Watch(func(f *frame.Frame, fromGateway bool) {
		var h wire.Headers
		if fromGateway && wire.Parse(f.Bytes(), &h) == drop.None && h.Proto == wire.ProtoUDP {
			datagrams.Add(1)
		}
	})
	bootp := make([]byte, 300)
	bootp[0], bootp[1], bootp[2] = 1, 1, 6 // request, Ethernet
	discover := append(append([]byte{}, bootp[:236]...), 0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255)
	for name, payload := range map[string][]byte{
		"BOOTP": bootp, "DHCP discover": discover, "DHCP cut short": discover[:240], "nothing": nil,
		"TFTP read": []byte("\x00\x01/etc/passwd\x00octet\x00"), "TFTP without an end": []byte("\x00\x01../../etc/passwd"),
	} {
		for _, to := range []netip.Addr{netip.MustParseAddr("255.255.255.255"), router4, netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("169.254.1.1")} {
			for _, port := range []uint16{67, 68, 69} {
				f := frame.New()
				f.Set(wiretest.Packet{Src: pod4, Dst: to, Proto: wire.ProtoUDP, SrcPort: 68, DstPort: port, Payload: payload}.Frame())
				if r := n.Inject(f); r != drop.EgressDenied {
					t.Errorf("%s to %v port %d: %v, want %v", name, to, port, r, drop.EgressDenied)
				}
			}
		}
	}
	if s := g.Stats(); datagrams.Load() != 0 || s.Sessions != 0 || s.DatagramsOut != 0 {
		t.Errorf("%d datagrams came back; %+v", datagrams.Load(), s)
	}
}
