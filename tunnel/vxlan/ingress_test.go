//go:build linux

package vxlan_test

import (
	"net/netip"
	"testing"

	"vswitch/internal/offload/offloadtest"
	"vswitch/tunnel/vxlan"
	"vswitch/vswitch/drop"
)

func TestIngressVNIs(t *testing.T) {
	for vni, want := range map[uint32]uint32{1: 0x800001, 0x800001: 1, vxlan.MaxVNI: 0x7fffff, 1 << 23: vxlan.MaxVNI} {
		if got := vxlan.IngressVNI(vni); got != want {
			t.Errorf("VNI %#x goes with %#x, want %#x", vni, got, want)
		}
	}
}

// A frame from outside the cluster crosses as one, alone and cut from a
// super-frame; those before and behind it cross as they are.
func TestIngressFramesCross(t *testing.T) {
	forEachFamily(t, func(t *testing.T, underlay netip.Addr) {
		a, b := pair(t, underlay, func(c *vxlan.Config) { c.IngressVNI = vxlan.IngressVNI(1) })
		setPeer(t, a, vxlan.Peer{ID: idB, Node: "b", Underlay: underlay, Ports: b.Ports(), MAC: macB, IngressVNI: vxlan.IngressVNI(1)})
		setPeer(t, b, vxlan.Peer{ID: idA, Node: "a", Underlay: underlay, Ports: a.Ports(), MAC: macA, IngressVNI: vxlan.IngressVNI(1)})
		for _, super := range []bool{false, true} {
			payload := make([]byte, 100)
			if super {
				payload = make([]byte, 5000)
			}
			for i, ingress := range []bool{false, true, false} {
				p := offloadtest.TCP4(payload)
				p.SrcPort += uint16(i)
				f := plain(p)
				if super {
					f = p.Super(1300)
				}
				f.Ingress = ingress
				transmit(a.Queue(0), idB, f)
				if f.Drop != drop.None {
					t.Fatalf("super-frame %v, ingress %v: %v", super, ingress, f.Drop)
				}
				for _, got := range receive(t, b.Queue(0), len(payload)/1300+1) {
					if got.Drop != drop.None || got.Ingress != ingress || got.Peer != idA {
						t.Errorf("super-frame %v: %v, ingress %v from %d; want ingress %v from %d", super, got.Drop, got.Ingress, got.Peer, ingress, idA)
					}
				}
			}
		}
	})
}

// Both ends must have announced an ingress VNI: whoever has not is sent nothing by
// it, and nothing is taken from it.
func TestIngressNeedsBothEnds(t *testing.T) {
	underlay := loopbacks["IPv4"]
	for _, tt := range []struct {
		name      string
		own, peer uint32 // B's, and what A announced to it
		vni       uint32
		want      drop.Reason
		ingress   bool
	}{
		{"both have it", 0x800001, 0x800001, 0x800001, drop.None, true},
		{"each its own: the receiver's counts", 0x800001, 0x800002, 0x800001, drop.None, true},
		{"the sender's own is not the receiver's", 0x800001, 0x800002, 0x800002, drop.UnknownVNI, false},
		{"a flannel node announces none", 0x800001, 0, 0x800001, drop.UnknownVNI, false},
		{"the receiver has none", 0, 0x800001, 0x800001, drop.UnknownVNI, false},
		{"zero is no VNI", 0, 0x800001, 0, drop.UnknownVNI, false},
		{"the ordinary VNI stays ordinary", 0x800001, 0x800001, 1, drop.None, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := open(t, vxlan.Config{Underlays: []netip.Addr{underlay}, MAC: macB, IngressVNI: tt.own})
			a, stranger := newOutside(t, underlay, b), newOutside(t, underlay, b)
			setPeer(t, b, vxlan.Peer{ID: idA, Node: "a", Underlay: underlay, Ports: []uint16{a.conn.Local().Port()}, MAC: macA, IngressVNI: tt.peer})
			a.send(0, encapsulated(tt.vni, innerFrame()))
			if got := receive(t, b.Queue(0), 1)[0]; got.Drop != tt.want || got.Ingress != tt.ingress {
				t.Errorf("%v, ingress %v; want %v, %v", got.Drop, got.Ingress, tt.want, tt.ingress)
			}
			stranger.send(0, encapsulated(tt.vni, innerFrame()))
			if got := receive(t, b.Queue(0), 1)[0]; got.Drop != drop.NotMember || got.Ingress {
				t.Errorf("from a stranger: %v, ingress %v; want %v", got.Drop, got.Ingress, drop.NotMember)
			}
			f := plain(offloadtest.TCP4([]byte("x")))
			f.Ingress = true
			transmit(b.Queue(0), idA, f)
			if takes := b.TakesIngress(idA); takes != (tt.peer != 0) || (f.Drop == drop.None) != takes {
				t.Errorf("takes ingress: %v, and a frame to it: %v", takes, f.Drop)
			}
		})
	}
}
