package control

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"
)

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

var dualRanges = prefixes("10.96.0.0/16", "fd00:10:96::/112")

func serviceOf(t testing.TB, name, spec string) *corev1.Service {
	t.Helper()
	objs, err := Decode([]byte("apiVersion: v1\nkind: Service\nmetadata: {name: " + name + "}\nspec: " + spec))
	if err != nil {
		t.Fatal(err)
	}
	return objs[0].(*corev1.Service)
}

func TestServicesGetTheFamiliesTheyAskFor(t *testing.T) {
	tests := []struct {
		name, spec string
		ranges     []netip.Prefix
		families   string // of the addresses; an error if it starts with !
		policy     corev1.IPFamilyPolicy
	}{
		{"nothing said", "{ports: [{port: 80}]}", dualRanges, "IPv4", corev1.IPFamilyPolicySingleStack},
		{"nothing said where IPv6 is first", "{ports: [{port: 80}]}", prefixes("fd00:10:96::/112", "10.96.0.0/16"), "IPv6", corev1.IPFamilyPolicySingleStack},
		{"IPv6", "{ipFamilies: [IPv6], ports: [{port: 80}]}", dualRanges, "IPv6", corev1.IPFamilyPolicySingleStack},
		{"both", "{ipFamilies: [IPv6, IPv4], ports: [{port: 80}]}", dualRanges, "IPv6 IPv4", corev1.IPFamilyPolicyRequireDualStack},
		{"both required", "{ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}", dualRanges, "IPv4 IPv6", corev1.IPFamilyPolicyRequireDualStack},
		{"both preferred", "{ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}", dualRanges, "IPv4 IPv6", corev1.IPFamilyPolicyPreferDualStack},
		{"both preferred where there is one", "{ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}", dualRanges[:1], "IPv4", corev1.IPFamilyPolicyPreferDualStack},
		{"both required where there is one", "{ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}", dualRanges[:1], "!RequireDualStack", ""},
		{"a family there is not", "{ipFamilies: [IPv6], ports: [{port: 80}]}", dualRanges[:1], "!IPv6, but the service CIDR is [10.96.0.0/16]", ""},
		{"an IPv6 address asked for", "{clusterIP: 'fd00:10:96::77', ports: [{port: 80}]}", dualRanges, "IPv6", corev1.IPFamilyPolicySingleStack},
		{"headless", "{clusterIP: None, ports: [{port: 80}]}", dualRanges, "", corev1.IPFamilyPolicySingleStack},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := serviceOf(t, "web", tt.spec)
			err := NewServiceAllocator(tt.ranges, nil, nil).Allocate(s)
			if want, bad := strings.CutPrefix(tt.families, "!"); bad {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v, want %q in it", err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for ip := range serviceAddrs(s) {
				got = append(got, string(familyOf(ip)))
			}
			if f := strings.Join(got, " "); f != tt.families {
				t.Errorf("addresses %v of families %s, want %s", s.Spec.ClusterIPs, f, tt.families)
			}
			if *s.Spec.IPFamilyPolicy != tt.policy {
				t.Errorf("policy %s, want %s", *s.Spec.IPFamilyPolicy, tt.policy)
			}
		})
	}
}

func TestRequestedValuesAreHonouredOrRefused(t *testing.T) {
	a := NewServiceAllocator(dualRanges, nil, nil)
	first := serviceOf(t, "web", "{type: NodePort, clusterIP: 10.96.0.5, ports: [{port: 80, nodePort: 30080}]}")
	if err := a.Allocate(first); err != nil {
		t.Fatal(err)
	}
	if first.Spec.ClusterIP != "10.96.0.5" || first.Spec.Ports[0].NodePort != 30080 {
		t.Errorf("got %s and %d, want what was asked for", first.Spec.ClusterIP, first.Spec.Ports[0].NodePort)
	}
	for _, tt := range []struct{ name, spec, want string }{
		{"an address another has", "{clusterIP: 10.96.0.5, ports: [{port: 80}]}", "clusterIP 10.96.0.5 is held by Service default/web"},
		{"a port another has", "{type: NodePort, ports: [{port: 80, nodePort: 30080}]}", "nodePort 30080/TCP is held by Service default/web"},
		{"an address outside", "{clusterIP: 10.97.0.5, ports: [{port: 80}]}", "10.97.0.5 is outside the service CIDR [10.96.0.0/16 fd00:10:96::/112]"},
		{"the network address", "{clusterIP: 10.96.0.0, ports: [{port: 80}]}", "network or broadcast"},
		{"the broadcast address", "{clusterIP: 10.96.255.255, ports: [{port: 80}]}", "network or broadcast"},
		{"a port outside", "{type: NodePort, ports: [{port: 80, nodePort: 8080}]}", "want 30000 to 32767"},
	} {
		err := a.Allocate(serviceOf(t, "other", tt.spec))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	if err := a.Allocate(serviceOf(t, "udp", "{type: NodePort, ports: [{port: 80, protocol: UDP, nodePort: 30080}]}")); err != nil {
		t.Errorf("the same number over another protocol: %v", err)
	}
}

func TestOnePortOverTwoProtocolsGetsOneNodePort(t *testing.T) {
	s := serviceOf(t, "dns", "{type: NodePort, ports: [{name: a, port: 53, protocol: UDP}, {name: b, port: 53}, {name: c, port: 9153}]}")
	if err := NewServiceAllocator(dualRanges, nil, nil).Allocate(s); err != nil {
		t.Fatal(err)
	}
	p := s.Spec.Ports
	if p[0].NodePort != p[1].NodePort || p[0].NodePort == p[2].NodePort {
		t.Errorf("node ports %d %d %d, want the first two alike and the third not", p[0].NodePort, p[1].NodePort, p[2].NodePort)
	}
}

func TestExhaustedRangesSaySo(t *testing.T) {
	a := NewServiceAllocator(prefixes("10.96.0.0/29"), nil, nil)
	var got []string
	for i := range 6 {
		s := serviceOf(t, fmt.Sprintf("s%d", i), "{ports: [{port: 80}]}")
		if err := a.Allocate(s); err != nil {
			t.Fatal(err)
		}
		got = append(got, s.Spec.ClusterIP)
	}
	slices.Sort(got)
	if want := []string{"10.96.0.1", "10.96.0.2", "10.96.0.3", "10.96.0.4", "10.96.0.5", "10.96.0.6"}; !slices.Equal(got, want) {
		t.Errorf("allocated %v, want %v", got, want)
	}
	err := a.Allocate(serviceOf(t, "more", "{ports: [{port: 80}]}"))
	if err == nil || !strings.Contains(err.Error(), "no free ClusterIP in 10.96.0.0/29") {
		t.Errorf("%v, want the range to be named", err)
	}
}

// Random services come, change and go: no two have one address or port, all are in
// range, and what is kept is kept.
func TestAllocatorProperties(t *testing.T) {
	specs := []string{
		"{ports: [{port: 80}]}", "{clusterIP: None, ports: [{port: 80}]}", "{ipFamilies: [IPv6], ports: [{port: 80}]}",
		"{type: NodePort, ipFamilyPolicy: PreferDualStack, ports: [{name: a, port: 80}, {name: b, port: 80, protocol: UDP}]}",
		"{type: NodePort, ports: [{port: 80, nodePort: 30001}]}", "{clusterIP: 10.96.0.3, ports: [{port: 80}]}",
		"{type: LoadBalancer, externalTrafficPolicy: Local, ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}",
		"{type: LoadBalancer, ipFamilies: [IPv4], loadBalancerIP: 198.51.100.3, ports: [{port: 80}]}", "{type: ExternalName, externalName: example.com}",
	}
	rapid.Check(t, func(t *rapid.T) {
		ranges := prefixes("10.96.0.0/28", "fd00:10:96::/124")
		model := map[string]*corev1.Service{}
		a := NewServiceAllocator(ranges, lbRanges, nil)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			name := fmt.Sprintf("s%d", rapid.IntRange(0, 11).Draw(t, "name"))
			if rapid.IntRange(0, 4).Draw(t, "delete") == 0 {
				delete(model, name)
				a = NewServiceAllocator(ranges, lbRanges, values(model)) // as the store does: from what there is
				continue
			}
			objs, err := Decode([]byte("apiVersion: v1\nkind: Service\nmetadata: {name: " + name + "}\nspec: " + rapid.SampledFrom(specs).Draw(t, "spec")))
			if err != nil {
				t.Fatal(err)
			}
			s := objs[0].(*corev1.Service)
			asked := s.Spec.ClusterIP
			old := model[name]
			if err := a.Allocate(s); err != nil {
				var conflict *ConflictError
				if !errors.As(err, &conflict) && !strings.Contains(err.Error(), "no free") {
					t.Fatal(err)
				}
				continue
			}
			if old != nil && asked == "" && len(old.Spec.ClusterIPs) > 0 && len(s.Spec.ClusterIPs) > 0 && !isHeadless(&old.Spec) && !slices.Contains(s.Spec.ClusterIPs, old.Spec.ClusterIP) &&
				familyOf(netip.MustParseAddr(old.Spec.ClusterIP)) == s.Spec.IPFamilies[0] {
				t.Fatalf("%s had %s and got %v", name, old.Spec.ClusterIP, s.Spec.ClusterIPs)
			}
			model[name] = s
		}
		ips, ports := map[netip.Addr]string{}, map[nodePort]string{}
		for name, s := range model {
			for ip := range serviceAddrs(s) {
				if other, ok := ips[ip]; ok {
					t.Fatalf("%s is %s's and %s's", ip, name, other)
				}
				if !slices.ContainsFunc(slices.Concat(ranges, lbRanges), func(p netip.Prefix) bool { return p.Contains(ip) && p.Addr() != ip }) {
					t.Fatalf("%s is outside", ip)
				}
				ips[ip] = name
			}
			for p := range serviceNodePorts(s) {
				if other, ok := ports[p]; ok {
					t.Fatalf("%v is %s's and %s's", p, name, other)
				}
				if p.port < NodePortMin || p.port > NodePortMax {
					t.Fatalf("%v is outside", p)
				}
				ports[p] = name
			}
		}
	})
}

func values[K comparable, V any](m map[K]V) []V {
	var out []V
	for _, s := range m {
		out = append(out, s)
	}
	return out
}

func claimFor(node string, cluster ...string) Claim {
	return Claim{Node: node, Instance: "i-" + node, ClusterCIDRs: prefixes(cluster...), Facts: NodeFacts{
		Underlays: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, UDPPorts: []uint16{8472}, VTEPMAC: [6]byte{2},
	}}
}

func nodesOf(claims ...Claim) []*corev1.Node {
	var out []*corev1.Node
	for _, c := range claims {
		out = append(out, NewNode(c))
	}
	return out
}

func TestNodePrefixesAreAllocatedInPairs(t *testing.T) {
	var have []Claim
	for _, want := range []string{"[10.244.0.0/24 fd00:10:244::/64]", "[10.244.1.0/24 fd00:10:244:1::/64]", "[10.244.2.0/24 fd00:10:244:2::/64]"} {
		c := claimFor(fmt.Sprintf("n%d", len(have)), "10.244.0.0/16", "fd00:10:244::/48")
		got, err := AllocateNodeCIDRs(nodesOf(have...), c)
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != want {
			t.Errorf("allocated %v, want %s", got, want)
		}
		c.PodCIDRs = got
		have = append(have, c)
	}
	// The middle one goes; a foreign node sits on its IPv6 half.
	foreign := claimFor("foreign")
	foreign.PodCIDRs = prefixes("fd00:10:244:1::/65")
	got, err := AllocateNodeCIDRs(nodesOf(have[0], have[2], foreign), claimFor("new", "10.244.0.0/16", "fd00:10:244::/48"))
	if err != nil || fmt.Sprint(got) != "[10.244.3.0/24 fd00:10:244:3::/64]" {
		t.Errorf("allocated %v, %v; want the first number free in both families", got, err)
	}
}

func TestAFullClusterSaysWhatToDo(t *testing.T) {
	a := claimFor("a", "10.244.0.0/24")
	a.PodCIDRs = prefixes("10.244.0.0/24")
	_, err := AllocateNodeCIDRs(nodesOf(a), claimFor("b", "10.244.0.0/24"))
	if err == nil || !strings.Contains(err.Error(), "vswitch delete node") {
		t.Errorf("%v, want advice", err)
	}
}

func TestClaimsAreChecked(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Claim)
		want   string
	}{
		{"as it should be", func(*Claim) {}, ""},
		{"without an instance", func(c *Claim) { c.Instance = "" }, "instance"},
		{"a name that is none", func(c *Claim) { c.Node = "a/b" }, "metadata.name"},
		{"without a cluster CIDR", func(c *Claim) { c.ClusterCIDRs = nil }, "--cluster-cidr"},
		{"two cluster CIDRs of one family", func(c *Claim) { c.ClusterCIDRs = prefixes("10.0.0.0/16", "10.1.0.0/16") }, "second of its family"},
		{"host bits", func(c *Claim) { c.ClusterCIDRs = prefixes("10.0.0.1/16") }, "such as 10.0.0.0/16"},
		{"services among pods", func(c *Claim) { c.ServiceCIDRs = prefixes("10.244.7.0/24") }, "overlaps --cluster-cidr"},
		{"nodes larger than the cluster", func(c *Claim) { c.BitsIPv4 = 8 }, "--node-cidr-size-v4 8: want 16 to 30"},
		{"nodes without room for a pod", func(c *Claim) { c.BitsIPv6 = 127 }, "--node-cidr-size-v6 127: want 48 to 126"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := claimFor("a", "10.244.0.0/16", "fd00:10:244::/48")
			tt.change(&c)
			err := c.Validate()
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// Address arithmetic against netip's own stepping.
func TestAddrAt(t *testing.T) {
	for _, p := range prefixes("192.0.2.0/24", "2001:db8::/64", "2001:db8::ffff:ffff:ffff:ff00/120", "10.0.0.0/8") {
		a := p.Masked().Addr()
		for n := range min(Size(p), 700) {
			if got := AddrAt(p, n); got != a {
				t.Fatalf("address %d of %s is %s, want %s", n, p, got, a)
			}
			if back, ok := HostNumber(p, a); !ok || back != n {
				t.Fatalf("%s is number %d, %v of %s, want %d", a, back, ok, p, n)
			}
			a = a.Next()
		}
	}
	if _, ok := HostNumber(netip.MustParsePrefix("192.0.2.0/24"), netip.MustParseAddr("192.0.3.0")); ok {
		t.Error("an address outside has a number")
	}
	if got := RouterAddr(netip.MustParsePrefix("fd00:10:244:1::/64")); got != netip.MustParseAddr("fd00:10:244:1::1") {
		t.Errorf("router address %s", got)
	}
}

func TestSubnetAt(t *testing.T) {
	for _, tt := range []struct {
		p    string
		bits int
		n    uint64
		want string
	}{
		{"10.244.0.0/16", 24, 0, "10.244.0.0/24"},
		{"10.244.0.0/16", 24, 255, "10.244.255.0/24"},
		{"10.244.0.0/16", 26, 5, "10.244.1.64/26"},
		{"fd00:10:244::/48", 64, 0x1a2b, "fd00:10:244:1a2b::/64"},
		{"fd00:10:244::/48", 60, 3, "fd00:10:244:30::/60"},
		{"fd00:10:244::/48", 112, 0x12345, "fd00:10:244::1:2345:0/112"},
	} {
		if got := subnetAt(netip.MustParsePrefix(tt.p), tt.bits, tt.n).String(); got != tt.want {
			t.Errorf("subnet %d of %s is %s, want %s", tt.n, tt.p, got, tt.want)
		}
	}
}
