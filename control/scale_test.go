package control

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// bigSet is a cluster of 1,000 nodes, 50,000 pods and 10,000 services of five
// endpoints each, as the full list a source delivers.
func bigSet(b *testing.B) []Object {
	var all []Object
	for i := range 1000 {
		name := fmt.Sprintf("node-%d", i)
		c := claimFor(name)
		c.PodCIDRs = []netip.Prefix{subnetAt(netip.MustParsePrefix("10.0.0.0/8"), 24, uint64(i))}
		c.Facts.Underlays = []netip.Addr{AddrAt(netip.MustParsePrefix("172.16.0.0/16"), uint64(i+1))}
		all = append(all, lease(name), NewNode(c))
	}
	for i := range 50000 {
		node := i % 1000
		all = append(all, NewPod(PodInfo{
			Node: fmt.Sprintf("node-%d", node), Namespace: "default", Name: fmt.Sprintf("p%d", i),
			ContainerID: fmt.Sprint(i), Interface: "eth0", Labels: map[string]string{"app": fmt.Sprint(i % 10000), "all": "x"},
			Addrs: []netip.Addr{AddrAt(subnetAt(netip.MustParsePrefix("10.0.0.0/8"), 24, uint64(node)), uint64(2+i/1000))},
		}))
	}
	for i := range 10000 {
		s := serviceOf(b, fmt.Sprintf("s%d", i), fmt.Sprintf(`{selector: {app: "%d", all: x}, clusterIP: %s, ports: [{port: 80}]}`,
			i, AddrAt(netip.MustParsePrefix("10.96.0.0/16"), uint64(i+1))))
		all = append(all, s)
	}
	return all
}

// One change among thousands of nodes costs what it is.
func TestDeltaLeavesNodesAloneThatDidNotChange(t *testing.T) {
	o := NewObjects(testSelf)
	for i := range 100 {
		o.Put(nodeOf(t, []string{fmt.Sprintf("node-%d", i), fmt.Sprintf("172.16.0.%d", i+1), fmt.Sprintf("10.0.%d.0/24", i)}))
	}
	if d := o.Delta(); len(d.PutTunnels) != 100 {
		t.Fatalf("%d tunnels are told at first, want 100", len(d.PutTunnels))
	}
	if n := testing.AllocsPerRun(10, func() { o.Delta() }); n != 0 {
		t.Errorf("%v allocations to find that nothing changed, want none", n)
	}
	o.Delete(Key{Kind: KindNode, Name: "node-7"})
	if d := o.Delta(); len(d.DeleteTunnels) != 1 || len(d.PutTunnels) != 0 {
		t.Errorf("%+v is told of a node that went, want one tunnel deleted", d)
	}
}

// BenchmarkFullList is what a resync costs; BenchmarkPodChange one pod that comes
// or goes, up to what there is to program.
func BenchmarkFullList(b *testing.B) {
	all := bigSet(b)
	self := testSelf
	self.Underlays = []netip.Addr{netip.MustParseAddr("172.31.0.1")}
	for b.Loop() {
		o := NewObjects(self)
		o.Reset(all, time.Unix(0, 0))
		if s := o.State(); len(s.Services) != 10000 || len(s.Tunnels) != 1000 || len(s.Services[0].Endpoints) != 5 {
			b.Fatalf("%d services, %d tunnels, %v", len(s.Services), len(s.Tunnels), s.Services[0].Endpoints)
		}
	}
}

func BenchmarkPodChange(b *testing.B) {
	all := bigSet(b)
	o := NewObjects(testSelf)
	o.Reset(all, time.Unix(0, 0))
	o.Delta()
	pod := all[2500]
	gone := false
	for b.Loop() {
		if gone = !gone; gone {
			o.Delete(KeyOf(pod))
		} else {
			o.Put(pod)
		}
		if d := o.Delta(); len(d.PutServices) != 1 {
			b.Fatal(d)
		}
	}
}
