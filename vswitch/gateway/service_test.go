package gateway

import (
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

func TestPickIsUniform(t *testing.T) {
	g := newTestGateway(t, nil)
	const endpoints, picks = 16, 160_000
	if err := g.PutService(web(endpoints)); err != nil {
		t.Fatal(err)
	}
	for _, vip := range []netip.Addr{vip4, vip6} {
		counts := make(map[flow.Endpoint]int)
		for range picks {
			ep, r := g.Pick(keyTo(vip, 80, wire.ProtoTCP), nil)
			if r != drop.None || ep.Addr.Is4() != vip.Is4() || ep.Port != 8080 {
				t.Fatalf("picked %+v, %v", ep, r)
			}
			counts[ep]++
		}
		var chi2 float64
		const want = float64(picks) / endpoints
		for _, n := range counts {
			chi2 += (float64(n) - want) * (float64(n) - want) / want
		}
		chi2 += want * float64(endpoints-len(counts))
		// The 1-10^-6 quantile of the distribution with 15 degrees of freedom.
		if chi2 > 57.3 {
			t.Errorf("%v: chi-square %.1f over %d endpoints", vip, chi2, endpoints)
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
			[]string{"101 [] removed=true", "102 [10.96.0.80] removed=false", "102 [] removed=false"}},
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

func BenchmarkPick(b *testing.B) {
	g := newTestGateway(b, nil)
	if err := g.PutService(web(8)); err != nil {
		b.Fatal(err)
	}
	key := keyTo(vip4, 80, wire.ProtoTCP)
	for b.Loop() {
		g.Pick(key, nil)
	}
}
