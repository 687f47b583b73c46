package gateway

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
)

var (
	vip4 = netip.MustParseAddr("10.96.0.80")
	vip6 = netip.MustParseAddr("fd00:10:96::80")
)

// web is a TCP service on both VIPs with n ready endpoints of each family.
func web(n int) Service {
	s := Service{
		ServiceKey: ServiceKey{Namespace: "default", Name: "web"},
		Protocol:   wire.ProtoTCP, Port: 80, VIPs: []netip.Addr{vip4, vip6},
	}
	for i := range n {
		s.Endpoints = append(s.Endpoints,
			Endpoint{Addr: netip.AddrFrom4([4]byte{10, 244, 1, byte(10 + i)}), Port: 8080, ID: uint64(100 + i), Cluster: true},
			Endpoint{Addr: netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x10, 15: byte(10 + i)}), Port: 8080, ID: uint64(100 + i), Cluster: true},
		)
	}
	return s
}

func keyTo(vip netip.Addr, port uint16, proto uint8) *flow.Key {
	src := wire.AddrFrom(pod4)
	if vip.Is6() {
		src = wire.AddrFrom(pod6)
	}
	return &flow.Key{Src: src, SrcPort: 40000, Dst: wire.AddrFrom(vip), DstPort: port, Proto: proto}
}

func newTestGateway(t testing.TB, change func(*Config)) *Gateway {
	g, _ := start(t, change)
	return g
}

// chiSquare of how often each of n equally likely endpoints was seen.
func chiSquare(counts map[flow.Endpoint]int, n int) float64 {
	total, chi2 := 0, 0.0
	for _, c := range counts {
		total += c
	}
	want := float64(total) / float64(n)
	for _, c := range counts {
		chi2 += (float64(c) - want) * (float64(c) - want) / want
	}
	return chi2 + want*float64(n-len(counts))
}

// chiSquare15 is the 1-10^-6 quantile of the distribution with 15 degrees of freedom.
const chiSquare15 = 57.3

// Each protocol, family and way in, with and without affinity: flows spread
// evenly, those of a thousand clients that keep their endpoint among them.
// A pod that was just deleted gets no new flow, though its service lists it still, and a
// client with affinity moves; if nobody else is there it gets them as ever.
func TestNoFlowGoesWhereNoWayLeads(t *testing.T) {
	for _, s := range []Service{web(4), sticky(4)} {
		gone := map[netip.Addr]bool{}
		g := newTestGateway(t, func(c *Config) { c.Unreachable = func(a netip.Addr) bool { return gone[a] } })
		if err := g.PutService(s); err != nil {
			t.Fatal(err)
		}
		k := keyTo(vip4, 80, wire.ProtoTCP)
		for left := 4; left > 0; left-- {
			for range 100 {
				if ep, r := g.Pick(k, nil); r != drop.None || gone[ep.Addr.Netip()] {
					t.Fatalf("affinity %v, %d of 4 left: %v, %v", s.Affinity, left, ep.Addr.Netip(), r)
				}
			}
			ep, _ := g.Pick(k, nil)
			gone[ep.Addr.Netip()] = true
		}
		if ep, r := g.Pick(k, nil); r != drop.None || ep.ID == 0 {
			t.Errorf("affinity %v, none left: %+v, %v", s.Affinity, ep, r)
		}
	}
}

func TestPickIsUniform(t *testing.T) {
	g := newTestGateway(t, func(c *Config) { c.IsNode = func(a netip.Addr) bool { return a == node4 || a == node6 } })
	const endpoints, clients = 16, 40_000
	for _, proto := range []uint8{wire.ProtoTCP, wire.ProtoUDP, wire.ProtoSCTP} {
		for _, affinity := range []time.Duration{0, time.Hour} {
			s := web(endpoints)
			s.Protocol, s.NodePort, s.Affinity = proto, 30080, affinity
			if err := g.PutService(s); err != nil {
				t.Fatal(err)
			}
			for _, to := range []netip.AddrPort{
				netip.AddrPortFrom(vip4, 80), netip.AddrPortFrom(vip6, 80),
				netip.AddrPortFrom(node4, 30080), netip.AddrPortFrom(node6, 30080),
			} {
				counts := make(map[flow.Endpoint]int)
				for i := range clients {
					k := keyTo(to.Addr(), to.Port(), proto)
					binary.BigEndian.PutUint32(k.Src[12:], 0x0a_f4_00_00+uint32(i))
					ep, r := g.Pick(k, nil)
					if r != drop.None || ep.Addr.Is4() != to.Addr().Is4() || ep.Port != 8080 {
						t.Fatalf("picked %+v, %v", ep, r)
					}
					counts[ep]++
				}
				if chi2 := chiSquare(counts, endpoints); chi2 > chiSquare15 {
					t.Errorf("protocol %d to %v, affinity %v: chi-square %.1f over %d endpoints", proto, to, affinity, chi2, endpoints)
				}
			}
		}
	}
}

// Endpoints that come and go leave the choice among the rest even.
func TestPickIsUniformUnderChurn(t *testing.T) {
	g := newTestGateway(t, nil)
	const endpoints, rounds, picks = 16, 200, 800
	counts := make(map[flow.Endpoint]int)
	for round := range rounds {
		s := web(endpoints + 1 + round%3) // the first 16 stay
		if err := g.PutService(s); err != nil {
			t.Fatal(err)
		}
		for range picks {
			ep, r := g.Pick(keyTo(vip4, 80, wire.ProtoTCP), nil)
			if r != drop.None {
				t.Fatal(r)
			}
			if ep.ID < 100+endpoints {
				counts[ep]++
			}
		}
	}
	if chi2 := chiSquare(counts, endpoints); chi2 > chiSquare15 {
		t.Errorf("chi-square %.1f over %d endpoints", chi2, endpoints)
	}
}

// Who picks from what, for every combination of the two policies and of where
// endpoints take flows: kube-proxy's rules. A pod that asks a node port, a load
// balancer's or an external address takes the short cut to the cluster's endpoints.
func TestPickByPolicy(t *testing.T) {
	g := newTestGateway(t, func(c *Config) { c.IsNode = func(a netip.Addr) bool { return a == node4 } })
	const clusterOnly, localOnly, both, neither = 1, 2, 4, 8 // endpoint ids
	endpoint := func(id uint64) Endpoint {
		return Endpoint{
			Addr: netip.AddrFrom4([4]byte{10, 244, 1, byte(10 + id)}), Port: 8080, ID: id,
			Cluster: id&(clusterOnly|both) != 0, Local: id&(localOnly|both) != 0,
		}
	}
	lb, external := netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("198.51.100.11")
	const cluster, local = clusterOnly | both, localOnly | both
	for _, internalLocal := range []bool{false, true} {
		for _, externalLocal := range []bool{false, true} {
			for present := range uint64(16) { // which of the endpoints there are
				s := web(0)
				s.VIPs, s.NodePort = []netip.Addr{vip4}, 30080
				s.LoadBalancerIPs, s.ExternalIPs = []netip.Addr{lb}, []netip.Addr{external}
				s.InternalLocal, s.ExternalLocal = internalLocal, externalLocal
				for _, id := range []uint64{clusterOnly, localOnly, both, neither} {
					if present&id != 0 {
						s.Endpoints = append(s.Endpoints, endpoint(id))
					}
				}
				if err := g.PutService(s); err != nil {
					t.Fatal(err)
				}
				pod := func(to netip.Addr, port uint16) func() (flow.Endpoint, drop.Reason) {
					return func() (flow.Endpoint, drop.Reason) { return g.Pick(keyTo(to, port, wire.ProtoTCP), nil) }
				}
				internalSet, externalSet := uint64(cluster), uint64(cluster)
				if internalLocal {
					internalSet = local
				}
				if externalLocal {
					externalSet = local
				}
				for _, c := range []struct {
					name string
					pick func() (flow.Endpoint, drop.Reason)
					from uint64
				}{
					{"pod to ClusterIP", pod(vip4, 80), internalSet},
					{"pod to load balancer", pod(lb, 80), cluster},
					{"pod to external address", pod(external, 80), cluster},
					{"pod to node port", pod(node4, 30080), cluster},
					{"client outside", func() (flow.Endpoint, drop.Reason) {
						client := wire.AddrFrom(netip.MustParseAddr("203.0.113.9"))
						return g.services.all[s.ServiceKey].external[0].pick(&client, 0)
					}, externalSet},
				} {
					want, seen := present&c.from, uint64(0)
					for range 64 {
						ep, r := c.pick()
						if (r == drop.NoEndpoint) != (want == 0) || r != drop.None && r != drop.NoEndpoint {
							t.Fatalf("%s, internal local %v, external local %v, endpoints %04b: %v", c.name, internalLocal, externalLocal, present, r)
						}
						seen |= ep.ID
					}
					if seen != want {
						t.Errorf("%s, internal local %v, external local %v, endpoints %04b: got %04b, want %04b",
							c.name, internalLocal, externalLocal, present, seen, want)
					}
				}
			}
		}
	}
}

// A service's own address and port come before a node port, and a node port is
// one at nodes' addresses alone.
func TestPrecedenceOfAddresses(t *testing.T) {
	g := newTestGateway(t, func(c *Config) { c.IsNode = func(a netip.Addr) bool { return a == node4 } })
	byPort, byAddr := web(1), web(1)
	byPort.Name, byPort.NodePort, byPort.Endpoints[0].ID = "by-port", 30080, 1
	byAddr.Name, byAddr.VIPs, byAddr.ExternalIPs, byAddr.Port, byAddr.Endpoints[0].ID = "by-addr", nil, []netip.Addr{node4}, 30080, 2
	picked := func(a netip.Addr, port uint16) string {
		ep, r := g.Pick(keyTo(a, port, wire.ProtoTCP), nil)
		return fmt.Sprint(ep.ID, " ", r)
	}
	for _, step := range []struct {
		name string
		do   func() error
		want string // at the node's address and port 30080
	}{
		{"no service", func() error { return nil }, "0 no-service"},
		{"a node port", func() error { return g.PutService(byPort) }, "1 none"},
		{"a service at the address", func() error { return g.PutService(byAddr) }, "2 none"},
		{"the node port again", func() error { return g.PutService(byPort) }, "2 none"},
		{"the service at the address gone", func() error { return g.DeleteService(byAddr.ServiceKey) }, "1 none"},
		{"another node port", func() error { byPort.NodePort = 30081; return g.PutService(byPort) }, "0 no-service"},
		{"the first one back", func() error { byPort.NodePort = 30080; return g.PutService(byPort) }, "1 none"},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if got := picked(node4, 30080); got != step.want {
			t.Errorf("%s: %s, want %s", step.name, got, step.want)
		}
	}
	for _, c := range []struct {
		name string
		addr netip.Addr
		port uint16
	}{
		{"a VIP at the node port", vip4, 30080},
		{"a node's address at the service's port", node4, 80},
		{"a node port of the other family, which has no node here", node6, 30080},
	} {
		if got := picked(c.addr, c.port); got != "0 no-service" {
			t.Errorf("%s: %s, want no-service", c.name, got)
		}
	}
	if g.HasVIP(new(wire.AddrFrom(node4))) {
		t.Error("the external address stayed when its service went")
	}
}

// At a load balancer's address, source ranges hold for pods too; nowhere else.
func TestSourceRanges(t *testing.T) {
	g := newTestGateway(t, nil)
	s := web(1)
	s.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("2001:db8:1::10")}
	s.ExternalIPs = []netip.Addr{netip.MustParseAddr("198.51.100.11")}
	for _, c := range []struct {
		name   string
		ranges []netip.Prefix
		lb     [2]drop.Reason // IPv4, IPv6
	}{
		{"none", nil, [2]drop.Reason{drop.None, drop.None}},
		{"the pod's", []netip.Prefix{netip.PrefixFrom(pod4, 24).Masked(), netip.PrefixFrom(pod6, 64).Masked()}, [2]drop.Reason{drop.None, drop.None}},
		{"the pod's in one family", []netip.Prefix{netip.PrefixFrom(pod4, 32)}, [2]drop.Reason{drop.None, drop.SourceRange}},
		{"another", []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}, [2]drop.Reason{drop.SourceRange, drop.SourceRange}},
	} {
		s.SourceRanges = c.ranges
		if err := g.PutService(s); err != nil {
			t.Fatal(err)
		}
		for i, a := range s.LoadBalancerIPs {
			if _, r := g.Pick(keyTo(a, 80, wire.ProtoTCP), nil); r != c.lb[i] {
				t.Errorf("%s: %v: %v, want %v", c.name, a, r, c.lb[i])
			}
		}
		for _, a := range []netip.Addr{vip4, vip6, s.ExternalIPs[0]} {
			if _, r := g.Pick(keyTo(a, 80, wire.ProtoTCP), nil); r != drop.None {
				t.Errorf("%s: %v: %v", c.name, a, r)
			}
		}
	}
}

func TestPickRefuses(t *testing.T) {
	g := newTestGateway(t, nil)
	s := web(1)
	s.Endpoints = s.Endpoints[:1] // IPv4 alone
	if err := g.PutService(s); err != nil {
		t.Fatal(err)
	}
	unready := web(2)
	unready.Name, unready.VIPs = "unready", []netip.Addr{netip.MustParseAddr("10.96.0.81")}
	for i := range unready.Endpoints {
		unready.Endpoints[i].Cluster = false
	}
	away := web(2)
	away.Name, away.VIPs, away.InternalLocal = "away", []netip.Addr{netip.MustParseAddr("10.96.0.82")}, true
	for _, s := range []Service{unready, away} {
		if err := g.PutService(s); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		key  *flow.Key
		want drop.Reason
	}{
		{"a ready endpoint", keyTo(vip4, 80, wire.ProtoTCP), drop.None},
		{"endpoints of the other family alone", keyTo(vip6, 80, wire.ProtoTCP), drop.NoEndpoint},
		{"no endpoint ready", keyTo(unready.VIPs[0], 80, wire.ProtoTCP), drop.NoEndpoint},
		{"internalTrafficPolicy Local and no endpoint here", keyTo(away.VIPs[0], 80, wire.ProtoTCP), drop.NoEndpoint},
		{"another port", keyTo(vip4, 81, wire.ProtoTCP), drop.NoService},
		{"another protocol", keyTo(vip4, 80, wire.ProtoUDP), drop.NoService},
		{"an address that is no VIP", keyTo(netip.MustParseAddr("10.96.9.9"), 80, wire.ProtoTCP), drop.NoService},
	} {
		if _, r := g.Pick(c.key, nil); r != c.want {
			t.Errorf("%s: %v, want %v", c.name, r, c.want)
		}
	}
}

func TestHasVIPFollowsServices(t *testing.T) {
	g := newTestGateway(t, nil)
	has := func() bool { return g.HasVIP(new(wire.AddrFrom(vip4))) }
	http, https := web(1), web(1)
	https.PortName, https.Port = "https", 443
	steps := []struct {
		name string
		do   func() error
		want bool
	}{
		{"nothing yet", func() error { return nil }, false},
		{"one port", func() error { return g.PutService(http) }, true},
		{"two ports", func() error { return g.PutService(https) }, true},
		{"the same again", func() error { return g.PutService(https) }, true},
		{"one port left", func() error { return g.DeleteService(http.ServiceKey) }, true},
		{"VIP moved away", func() error { https.VIPs = []netip.Addr{vip6}; return g.PutService(https) }, false},
		{"deleted twice", func() error { return g.DeleteService(http.ServiceKey) }, false},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		if has() != s.want {
			t.Errorf("%s: HasVIP is %v, want %v", s.name, !s.want, s.want)
		}
	}
}

func TestServicesThatCanNotBeAreRefused(t *testing.T) {
	g := newTestGateway(t, nil)
	first := web(1)
	first.NodePort = 30080
	if err := g.PutService(first); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*Service)
	}{
		{"no port", func(s *Service) { s.Port = 0 }},
		{"no protocol", func(s *Service) { s.Protocol = 0 }},
		{"a VIP of another service", func(s *Service) { s.Name = "other" }},
		{"a node port of another service", func(s *Service) { s.Name, s.VIPs, s.NodePort = "other", nil, 30080 }},
		{"a loopback VIP", func(s *Service) { s.VIPs = []netip.Addr{netip.MustParseAddr("127.0.0.1")} }},
		{"a loopback endpoint", func(s *Service) { s.Endpoints[0].Addr = netip.MustParseAddr("127.0.0.1") }},
		{"an endpoint at the metadata service", func(s *Service) { s.Endpoints[0].Addr = netip.MustParseAddr("169.254.169.254") }},
		{"an IPv6 loopback endpoint", func(s *Service) { s.Endpoints[0].Addr = netip.MustParseAddr("::1") }},
		{"a v4-mapped endpoint", func(s *Service) { s.Endpoints[0].Addr = netip.MustParseAddr("::ffff:127.0.0.1") }},
		{"a multicast endpoint", func(s *Service) { s.Endpoints[0].Addr = netip.MustParseAddr("224.0.0.1") }},
		{"an endpoint without port", func(s *Service) { s.Endpoints[0].Port = 0 }},
	} {
		s := web(1)
		c.change(&s)
		if err := g.PutService(s); err == nil {
			t.Errorf("%s: accepted", c.name)
		}
	}
	if ep, r := g.Pick(keyTo(vip4, 80, wire.ProtoTCP), nil); r != drop.None || ep.ID != 100 {
		t.Errorf("the first service now gives %+v, %v", ep, r)
	}
}

func TestEndpointsGoneAreReported(t *testing.T) {
	var got []string
	g := newTestGateway(t, func(c *Config) {
		c.EndpointGone = func(e Gone) {
			if e.Port != 80 || e.Protocol != wire.ProtoUDP || e.Service.Name != "web" {
				t.Errorf("reported %+v", e)
			}
			got = append(got, fmt.Sprintf("%d %v removed=%v", e.Endpoint, e.VIPs, e.Removed))
		}
	})
	all := web(3).Endpoints // 100, 101, 102; of each one IPv4 and one IPv6
	unready := func(es []Endpoint) []Endpoint {
		es = slices.Clone(es)
		for i := range es {
			es[i].Cluster = false
		}
		return es
	}
	elsewhere := slices.Clone(all[4:])
	elsewhere[0].Port, elsewhere[1].Port = 9090, 9090
	both := []netip.Addr{vip4, vip6}
	for _, step := range []struct {
		name      string
		vips      []netip.Addr
		endpoints []Endpoint
		want      []string
	}{
		{"first seen", both, all, nil},
		{"unchanged", both, all, nil},
		{"one removed", both, all[2:], []string{"100 [10.96.0.80] removed=true", "100 [fd00:10:96::80] removed=true"}},
		{"one not ready, IPv4 alone", both, append(unready(all[2:3]), all[3:]...), []string{"101 [10.96.0.80] removed=false"}},
		{"a VIP gone", []netip.Addr{vip4}, append(unready(all[2:3]), all[3:]...),
			[]string{"101 [fd00:10:96::80] removed=false", "102 [fd00:10:96::80] removed=false"}},
		{"another port", []netip.Addr{vip4}, elsewhere,
			[]string{"101 [10.96.0.80] removed=true", "101 [] removed=true", "102 [10.96.0.80] removed=false", "102 [] removed=false"}},
		{"deleted", nil, nil, []string{"102 [10.96.0.80] removed=true", "102 [] removed=true"}},
	} {
		got = nil
		s := web(0)
		s.Protocol, s.VIPs, s.Endpoints = wire.ProtoUDP, step.vips, step.endpoints
		var err error
		if step.vips == nil {
			err = g.DeleteService(s.ServiceKey)
		} else {
			err = g.PutService(s)
		}
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, step.want) {
			t.Errorf("%s: reported %q, want %q", step.name, got, step.want)
		}
	}
}

func TestTenThousandServicesLoadQuickly(t *testing.T) {
	g := newTestGateway(t, nil)
	const services = 10_000
	begin := time.Now()
	for i := range services {
		s := web(4)
		s.Name = fmt.Sprint("web-", i)
		s.VIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}
		if err := g.PutService(s); err != nil {
			t.Fatal(err)
		}
	}
	if d := time.Since(begin); d > time.Second {
		t.Errorf("%d services took %v, want well under a second", services, d)
	}
	key := keyTo(netip.AddrFrom4([4]byte{10, 96, 39, 15}), 80, wire.ProtoTCP) // the last
	if _, r := g.Pick(key, nil); r != drop.None {
		t.Error(r)
	}
	if n := testing.AllocsPerRun(1000, func() { g.Pick(key, nil) }); n != 0 {
		t.Errorf("Pick allocates %v times", n)
	}
}

// Readers must find the service whole at every moment of a change.
func TestPickDuringChanges(t *testing.T) {
	g := newTestGateway(t, nil)
	s := web(2)
	if err := g.PutService(s); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			key := keyTo(vip4, 80, wire.ProtoTCP)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, r := g.Pick(key, nil); r != drop.None {
					t.Errorf("a change showed through: %v", r)
					return
				}
			}
		})
	}
	for i := range 2000 {
		next := web(1 + i%5)
		if err := g.PutService(next); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	readers.Wait()
}
