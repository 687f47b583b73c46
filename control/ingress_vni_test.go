package control

import (
	"net/netip"
	"strings"
	"testing"

	"vswitch/vswitch/frame"
)

func TestIngressVNIOfANode(t *testing.T) {
	claim := Claim{Node: "b", Instance: "i", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}, Facts: NodeFacts{
		Underlays: []netip.Addr{netip.MustParseAddr("192.0.2.2")}, UDPPorts: []uint16{8472}, VNI: 1, VTEPMAC: frame.MAC{2, 0, 0, 0, 0, 2},
	}}
	self := &Self{Node: "a", Underlays: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	for _, want := range []uint32{0, 0x800001} {
		claim.Facts.IngressVNI = want
		n := NewNode(claim)
		facts, err := NodeFactsOf(n)
		if err != nil || facts.IngressVNI != want {
			t.Errorf("announced %d, read %d (%v)", want, facts.IngressVNI, err)
		}
		v, _ := viewNode(n)
		tunnels, problems := v.tunnels(self)
		if len(tunnels) != 1 || tunnels[0].IngressVNI != want {
			t.Errorf("tunnels %+v, problems %v; want one with ingress VNI %d", tunnels, problems, want)
		}
	}
	a, b := Tunnel{IngressVNI: 1}, Tunnel{}
	if a.equal(&b) {
		t.Error("a node that withdraws its ingress VNI is no change")
	}
	for _, bad := range []string{"x", "-1", "16777216", "1"} { // the last is its VNI
		n := NewNode(claim)
		n.Annotations[AnnotationIngressVNI] = bad
		if _, err := NodeFactsOf(n); err == nil || !strings.Contains(err.Error(), AnnotationIngressVNI) {
			t.Errorf("%q: %v; want an error that names the annotation", bad, err)
		}
	}
}
