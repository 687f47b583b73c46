package node

import (
	"net/netip"
	"testing"

	"vswitch/tunnel/vxlan"
	"vswitch/vswitch/fib"
)

// A member has the same id in the next process, whatever order the members come
// in: the flow table may outlive this one.
func TestMemberIDsOutliveTheProcess(t *testing.T) {
	one, two := newBench(t), newBench(t)
	nodes := []string{"b", "c", "d", "e"}
	for i := range nodes {
		one.put(t, tunnel(nodes[i], "192.0.2.7"))
		two.put(t, tunnel(nodes[len(nodes)-1-i], "192.0.2.7"))
	}
	for id, p := range one.peers.byID {
		if id == 0 || id > fib.MaxIndex {
			t.Errorf("node %s has id %d", p.Node, id)
		}
		if got := two.peers.byID[id].Node; got != p.Node {
			t.Errorf("id %d is node %q in one process and %q in the next", id, p.Node, got)
		}
	}
	if len(one.peers.byID) != len(nodes) {
		t.Errorf("%d ids for %d nodes", len(one.peers.byID), len(nodes))
	}
}

// Two members never share an id, be their hashes the same.
func TestMemberIDsThatCollide(t *testing.T) {
	b := newBench(t)
	first := tunnel("b", "192.0.2.2")
	other := &peer{id: b.newID(first.TunnelKey), Tunnel: tunnel("squatter", "192.0.2.9")}
	b.members[other.TunnelKey], b.ids[other.id] = other, other.TunnelKey
	b.put(t, first)
	if got := b.members[first.TunnelKey].id; got == other.id || got == 0 {
		t.Errorf("id %d beside %d", got, other.id)
	}
}

func TestWhoTakesIngress(t *testing.T) {
	b := newBench(t)
	takes := tunnel("b", "192.0.2.2", "10.244.2.0/24")
	takes.IngressVNI = 0x800001
	b.put(t, takes)
	b.put(t, tunnel("flannel", "192.0.2.3", "10.244.3.0/24"))
	for addr, want := range map[string]bool{
		"10.244.2.5":   true,
		"10.244.3.5":   false, // announces nothing
		"10.244.9.9":   false, // nobody's
		"192.0.2.2":    false, // the node itself
		"198.51.100.1": false,
	} {
		if got := b.takesIngress(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v, want %v", addr, got, want)
		}
	}
	takes.IngressVNI = 0 // an older version took its place
	b.put(t, takes)
	if b.takesIngress(netip.MustParseAddr("10.244.2.5")) {
		t.Error("still, after the node withdrew it")
	}
}

// A node that is reached in two ways is as good as the worse; of itself it says nothing.
func TestTrainsToANode(t *testing.T) {
	b := newBench(t)
	first := tunnel("b", "192.0.2.2", "10.244.2.0/24")
	b.put(t, first)
	second := tunnel("b", "2001:db8::2", "fd00:10:244:2::/64")
	second.Device = "vxlan6"
	b.put(t, second)
	for _, tt := range []struct {
		first, second vxlan.TrainState
		want          string
	}{
		{vxlan.TrainsOn, vxlan.TrainsOn, "on"},
		{vxlan.TrainsOn, vxlan.TrainsUnchecked, "unchecked"},
		{vxlan.TrainsUnchecked, vxlan.TrainsOn, "unchecked"},
		{vxlan.TrainsOff, vxlan.TrainsUnchecked, "off"},
		{vxlan.TrainsUnchecked, vxlan.TrainsOff, "off"},
	} {
		b.peers.trains = map[uint32]vxlan.TrainState{
			b.members[first.TunnelKey].id: tt.first, b.members[second.TunnelKey].id: tt.second,
		}
		got, failures := b.dataplane.trains("b")
		if want := uint64(tt.first + tt.second); got != tt.want || failures != want {
			t.Errorf("%v and %v: %s, %d failures, want %s, %d", tt.first, tt.second, got, failures, tt.want, want)
		}
	}
	if got, _ := b.dataplane.trains("a"); got != "" {
		t.Errorf("of the node itself: %q", got)
	}
}
