package crowd

import (
	"net/netip"
	"testing"
	"time"
)

func TestNothingIsTwice(t *testing.T) {
	c, err := New(Size{Nodes: 300, Pods: 9000, Services: 60}, "a", 7)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[netip.Addr]string{}
	take := func(a netip.Addr, in netip.Prefix, what string) {
		t.Helper()
		if !in.Contains(a) || seen[a] != "" {
			t.Fatalf("%s has %v, of %q too, want one of its own in %v", what, a, seen[a], in)
		}
		seen[a] = what
	}
	for i := range c.Nodes {
		take(c.Underlay(i), underlays, c.NodeName(i))
		take(c.NodeCIDR(i).Addr(), PodCIDR, c.NodeName(i)+"'s pods")
		take(c.NodeCIDR(i).Addr().Next(), PodCIDR, c.NodeName(i)+"'s router")
	}
	for i := range c.Pods {
		take(c.PodAddr(i), c.NodeCIDR(c.NodeOf(i)), c.Pod(i).Name)
	}
	for i := range c.AllServices() {
		take(c.VIP(i), ServiceCIDR, c.Service(i).Name)
		for _, changes := range []int{0, 1, 2} {
			behind := map[int]bool{}
			for _, p := range c.Endpoints(i, changes) {
				if behind[p] || p >= c.Pods {
					t.Fatalf("service %d after %d changes has pod %d twice, or it is none", i, changes, p)
				}
				behind[p] = true
			}
		}
		if c.Endpoints(i, 1)[0] == c.Endpoints(i, 0)[0] || c.Endpoints(i, 2)[0] != c.Endpoints(i, 0)[0] {
			t.Fatalf("service %d does not change there and back", i)
		}
	}
	keys := map[string]bool{}
	for key := range c.all() {
		if keys[key] {
			t.Fatalf("%s is written twice", key)
		}
		keys[key] = true
	}
	if want := namespaces + c.Nodes + c.Pods + 2*c.AllServices() + c.AllSlices(); len(keys) != want {
		t.Fatalf("%d objects are written, want %d", len(keys), want)
	}
}

func TestSlicesOfAServiceHoldItsEndpoints(t *testing.T) {
	c, err := New(Size{Nodes: 20, Pods: 600, Services: 3, Endpoints: 250}, "a", 2)
	if err != nil {
		t.Fatal(err)
	}
	when := time.Date(2026, 5, 6, 7, 8, 9, 123456789, time.UTC)
	counts := []int{100, 100, 50}
	all := c.Slices(1, 1, when)
	for n, s := range all {
		if len(s.Endpoints) != counts[n] || (s.Annotations["endpoints.kubernetes.io/last-change-trigger-time"] == "2026-05-06T07:08:09.123456789Z") != (n == 0) {
			t.Errorf("slice %d: %d endpoints, annotations %v", n, len(s.Endpoints), s.Annotations)
		}
	}
	if len(all) != len(counts) || c.AllSlices() != 3*len(counts)+2 || len(c.Slices(3, 0, when)) != 1 {
		t.Errorf("%d slices of a service, %d of all", len(all), c.AllSlices())
	}
	if a := all[0].Endpoints[0].Addresses[0]; a != c.PodAddr((250+300)%600).String() {
		t.Errorf("the changed endpoint is %s", a)
	}
}

func TestScaledKeepsWhatAServiceHas(t *testing.T) {
	s := Size{Nodes: 5000, Pods: 150_000, Services: 10_000}.Scaled(50_000)
	if want := (Size{50_000, 1_500_000, 100_000, 15}); s != want || s.Validate() != nil {
		t.Errorf("%+v (%v), want %+v", s, s.Validate(), want)
	}
	for _, bad := range []Size{{1, 2, 1, 1}, {100, 100 * 120, 1, 1}, {100, 1000, 0, 1}, {100, 1000, 1, 501}, {70_000, 1000, 10, 1}} {
		if bad.Validate() == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}
