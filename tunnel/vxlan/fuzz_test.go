//go:build linux

package vxlan

import (
	"bytes"
	"testing"

	"vswitch/internal/offload/offloadtest"
	"vswitch/internal/wire"
	"vswitch/tunnel/udp"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// Any bytes from any sender: no panic, what passes has the form promised, and an
// IPv4 header whose checksum was right still has a right one.
func FuzzDecapsulate(f *testing.F) {
	own, peer := frame.MAC{2, 0, 0x5e, 0, 0, 0xb}, frame.MAC{2, 0, 0x5e, 0, 0, 0xa}
	m := &member{Peer: Peer{ID: 1, VNI: 1, IngressVNI: 7, MAC: peer}}
	tun := &Tunnel{cfg: Config{VNI: 1, IngressVNI: IngressVNI(1), MAC: own}}
	for _, p := range []*offloadtest.Packet{
		offloadtest.TCP4([]byte("x")), offloadtest.TCP4([]byte("x")).ToUDP(), offloadtest.TCP4([]byte("x")).ToV6(),
	} {
		p.TOS = 2
		inner := p.Bytes(false)
		copy(inner, own[:])
		copy(inner[6:], peer[:])
		packet := append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, inner...)
		f.Add(packet, uint8(0), true)
		f.Add(packet, uint8(3), true)
		f.Add(packet, uint8(1), true)
		f.Add(packet[:8+14+2], uint8(3), true)
		f.Add(packet, uint8(0), false)
		packet = bytes.Clone(packet)
		packet[4] = 0x80
		f.Add(packet, uint8(0), true)
	}
	f.Fuzz(func(t *testing.T, data []byte, tos uint8, known bool) {
		from := m
		if !known {
			from = nil
		}
		var before, after wire.Headers
		parsed := len(data) > HeaderBytes && wire.Parse(data[HeaderBytes:], &before) == drop.None
		original := bytes.Clone(data)
		inner, ingress, r := tun.decapsulate(data, &udp.Message{TOS: tos}, from)
		if r != drop.None {
			if inner != nil {
				t.Fatalf("%v, and yet a frame", r)
			}
			return
		}
		switch {
		case !known:
			t.Fatal("accepted from a stranger")
		case data[0]&flagVNI == 0 || ingress != (data[4] == 0x80) || data[4]&0x7f != 0 || data[5] != 0 || data[6] != 1:
			t.Fatal("accepted without one of our VNIs, or one taken for the other")
		case len(inner) != len(data)-HeaderBytes || len(inner) < wire.EthernetBytes:
			t.Fatalf("%d bytes of %d", len(inner), len(data))
		case frame.MAC(inner[:6]) != own || frame.MAC(inner[6:]) == own || inner[6]&1 != 0:
			t.Fatal("accepted MAC addresses that no member sends")
		}
		if parsed && wire.Parse(inner, &after) != drop.None {
			t.Fatal("the inner packet parsed before, and does not after")
		}
		if parsed && after.TOS&^ecnMask != before.TOS&^ecnMask {
			t.Fatal("the inner DSCP changed")
		}
		if tos&ecnMask == notECT && !bytes.Equal(data, original) {
			t.Fatal("the frame changed without an outer mark")
		}
	})
}
