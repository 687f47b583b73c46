package gateway

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"vswitch/internal/wire"
	"vswitch/vswitch/affinity"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
)

// The clock of these tests is the tick they pass: ten ticks of timeout.
const pinTimeout = 10 * tickInterval

// memory is a service table without a gateway, whose clock stands still.
type memory struct {
	t testing.TB
	*services
}

func newMemory(t testing.TB) memory { return memory{t, newServices(newAffinity(t))} }

func newAffinity(t testing.TB) *affinity.Memory {
	t.Helper()
	m, err := affinity.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func (m memory) put(s Service) {
	m.t.Helper()
	if _, _, _, err := m.services.put(s.clone()); err != nil {
		m.t.Fatal(err)
	}
}

// pick is what client i gets at a VIP; ID zero: it was refused.
func (m memory) pick(vip netip.Addr, i int, tick uint32) flow.Endpoint {
	m.t.Helper()
	k := keyTo(vip, 80, wire.ProtoTCP)
	binary.BigEndian.PutUint32(k.Src[12:], 0x0a_f4_00_00+uint32(i))
	ep, r := m.at(k).pick(&k.Src, tick)
	if r != drop.None {
		return flow.Endpoint{}
	}
	return ep
}

func sticky(n int) Service {
	s := web(n)
	s.Affinity = pinTimeout
	return s
}

// moved counts the clients that a tick later have another endpoint than want says.
func (m memory) moved(want []flow.Endpoint, tick uint32) (n int) {
	for i, ep := range want {
		if m.pick(vip4, i, tick) != ep {
			n++
		}
	}
	return n
}

func TestAffinityLastsForItsTimeout(t *testing.T) {
	m := newMemory(t)
	m.put(sticky(64))
	limit := ticksOf(pinTimeout)
	first := m.pick(vip4, 1, 100)
	for tick := uint32(100); tick <= 100+3*limit; tick += limit { // each flow begins the time anew
		for range 8 {
			if got := m.pick(vip4, 1, tick); got != first {
				t.Fatalf("tick %d: %+v, want %+v", tick, got, first)
			}
		}
	}
	// Later than the timeout the choice is free: out of 64 clients the number that
	// stay is one on average, and beyond 20 less often than once in 10^17.
	want := make([]flow.Endpoint, 64)
	for i := range want {
		want[i] = m.pick(vip4, i, 1000)
	}
	if n := m.moved(want, 1000+limit+1); n < 44 {
		t.Errorf("after the timeout %d of 64 clients moved, want nearly all", n)
	}
}

// Adding endpoints moves no client, removing one those that it had: a 16th of
// them. One that comes back is another pod.
func TestAffinitySurvivesChurn(t *testing.T) {
	const endpoints, clients = 16, 4000
	for _, c := range []struct {
		name   string
		change func(*Service)
		moves  bool // the clients of the first endpoint
	}{
		{"endpoints come", func(s *Service) { s.Endpoints = append(s.Endpoints, web(endpoints + 4).Endpoints[2*endpoints:]...) }, false},
		{"the timeout is longer", func(s *Service) { s.Affinity *= 2 }, false},
		{"one goes", func(s *Service) { s.Endpoints = s.Endpoints[2:] }, true},
		{"one takes no new flows", func(s *Service) { s.Endpoints[0].Cluster = false }, true},
		{"one is at another port", func(s *Service) { s.Endpoints[0].Port++ }, true},
		{"one is another pod at the same address", func(s *Service) { s.Endpoints[0].ID = 9999 }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemory(t)
			s := sticky(endpoints)
			m.put(s)
			first := flow.Endpoint{Addr: wire.AddrFrom(s.Endpoints[0].Addr), Port: s.Endpoints[0].Port, ID: s.Endpoints[0].ID}
			had, want := make([]flow.Endpoint, clients), 0
			for i := range had {
				had[i] = m.pick(vip4, i, 1)
				if c.moves && had[i] == first {
					want++
				}
			}
			if want > clients/8 {
				t.Fatalf("%d of %d clients are at one of %d endpoints", want, clients, endpoints)
			}
			c.change(&s)
			m.put(s)
			if n := m.moved(had, 2); n != want {
				t.Errorf("%d clients moved, want %d", n, want)
			}
		})
	}
}

func TestAffinityIsSwitchedOnAndOff(t *testing.T) {
	m := newMemory(t)
	spread := func(tick uint32) int {
		seen := map[flow.Endpoint]bool{}
		for range 200 {
			seen[m.pick(vip4, 1, tick)] = true
		}
		return len(seen)
	}
	const endpoints = 4 // 200 picks miss one of them once in 10^24 runs
	for i, s := range []Service{web(endpoints), sticky(endpoints), web(endpoints), sticky(endpoints)} {
		m.put(s)
		want := endpoints
		if s.Affinity != 0 {
			want = 1
		}
		if n := spread(uint32(i)); n != want {
			t.Errorf("step %d, affinity %v: %d endpoints, want %d", i, s.Affinity, n, want)
		}
	}
}

// A client has one endpoint under each policy and family, and its own at each
// service; all VIPs of a family and policy lead it to the same.
func TestAffinityIsByServiceAndPolicy(t *testing.T) {
	m := newMemory(t)
	s := sticky(64)
	lb, external := netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("198.51.100.11")
	s.LoadBalancerIPs, s.ExternalIPs = []netip.Addr{lb}, []netip.Addr{external}
	for i := range s.Endpoints {
		s.Endpoints[i].Local = i%16 < 2
	}
	m.put(s)
	for i := range 16 {
		ep := m.pick(vip4, i, 1)
		if m.pick(lb, i, 1) != ep || m.pick(external, i, 1) != ep {
			t.Errorf("client %d has more than one endpoint", i)
		}
	}
	s.InternalLocal = true
	m.put(s)
	for i := range 16 {
		internal, outside := m.pick(vip4, i, 1), m.pick(lb, i, 1)
		for range 8 {
			if m.pick(vip4, i, 1) != internal || m.pick(lb, i, 1) != outside {
				t.Errorf("client %d: one policy's endpoint displaces the other's", i)
			}
		}
	}
}

// A client that opens a socket for each datagram is one client: case 13.
func TestAffinityIsByAddressNotPort(t *testing.T) {
	g := newTestGateway(t, nil)
	s := sticky(64)
	s.Protocol = wire.ProtoUDP
	if err := g.PutService(s); err != nil {
		t.Fatal(err)
	}
	k := keyTo(vip4, 80, wire.ProtoUDP)
	first, _ := g.Pick(k, nil)
	for port := range uint16(100) {
		k.SrcPort = 1024 + port
		if ep, r := g.Pick(k, nil); ep != first || r != drop.None {
			t.Fatalf("from port %d: %+v, %v, want %+v", k.SrcPort, ep, r, first)
		}
	}
}

// What one gateway remembered the next one knows, be the services put in another order and
// their timeouts shorter.
func TestAffinityOutlivesTheGateway(t *testing.T) {
	memory := newAffinity(t)
	services := []Service{sticky(64), sticky(64)}
	services[1].Name, services[1].VIPs = "other", []netip.Addr{netip.MustParseAddr("10.96.1.1")}
	had := map[netip.Addr]flow.Endpoint{}
	for range 2 {
		g := newTestGateway(t, func(c *Config) { c.Affinity = memory })
		for _, s := range services {
			s.Affinity = time.Hour
			if err := g.PutService(s); err != nil {
				t.Fatal(err)
			}
			vip := s.VIPs[0]
			for range 8 {
				ep, r := g.Pick(keyTo(vip, 80, wire.ProtoTCP), nil)
				if had[vip] == (flow.Endpoint{}) {
					had[vip] = ep
				}
				if ep != had[vip] || r != drop.None {
					t.Fatalf("%v: %+v, %v, want %+v", vip, ep, r, had[vip])
				}
			}
		}
		slices.Reverse(services)
	}
}

// Without a memory a service can't have what it asks for.
func TestAffinityNeedsAMemory(t *testing.T) {
	g := newTestGateway(t, func(c *Config) { c.Affinity = nil })
	if err := g.PutService(sticky(1)); err == nil || !strings.Contains(err.Error(), "affinity") {
		t.Errorf("%v, want an error that names affinity", err)
	}
}

func BenchmarkPickWithAffinity(b *testing.B) {
	m := newMemory(b)
	s := web(8)
	s.Affinity = 3 * time.Hour
	m.put(s)
	k := keyTo(vip4, 80, wire.ProtoTCP)
	b.RunParallel(func(pb *testing.PB) {
		key := *k
		for i := uint32(0); pb.Next(); i++ {
			binary.BigEndian.PutUint32(key.Src[12:], i%1000)
			m.at(&key).pick(&key.Src, i>>16)
		}
	})
}
