package gateway

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
	"vswitch/vswitch/gateway/gatewaytest"
)

// The host of these tests has two addresses of its own and loopback.
var (
	hostA, hostB = netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")
	loop4, loop6 = netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")
)

// onHost opens node ports at the host's two addresses.
func onHost(c *Config) {
	c.NoNodePorts, c.HostLoopback = false, nil
	c.HostAddrs = func() ([]netip.Addr, error) { return []netip.Addr{hostA, hostB, loop4, loop6}, nil }
	c.NodePortAddrs = []netip.Addr{hostA, hostB}
}

// openAt are the addresses at which the listeners for which f holds are open.
func openAt(g *Gateway, f func(*ListenerStatus) bool) []netip.Addr {
	var as []netip.Addr
	for _, s := range g.Listeners() {
		if s.Err == nil && f(&s) {
			as = append(as, s.Addr.Addr())
		}
	}
	return as
}

func byPod(pod string, at netip.Addr, port uint16, proto uint8, to netip.Addr) HostPort {
	return HostPort{
		HostPortKey: HostPortKey{Pod: pod, HostIP: at, Port: port, Protocol: proto},
		Endpoints:   []Endpoint{{Addr: to, Port: 8080, ID: 1, OnNode: true}},
	}
}

// inForce is a service as the table makes it, whose rules are not asked: it refuses
// outside addresses on loopback.
func inForce(g *Gateway, s *Service) *served {
	s = s.clone()
	f := &served{Service: s, pools: newPools(s, &services{}, nil)}
	g.services.mu.Lock()
	defer g.services.mu.Unlock()
	g.services.all[s.ServiceKey] = f
	return f
}

// Who has a port of the host when several want it, case 18: each in turn goes, and
// the next in order has it.
func TestPrecedence(t *testing.T) {
	g := newTestGateway(t, onHost)
	port := freePort(t)
	put := func(name string, change func(*Service)) ServiceKey {
		s := published(wire.ProtoTCP, 0)
		s.Name, s.Port = name, port
		change(&s)
		g.listeners.replace(nil, inForce(g, &s))
		return s.ServiceKey
	}
	// In the opposite order, so that coming first is no help.
	for _, p := range []HostPort{byPod("anywhere", netip.Addr{}, port, wire.ProtoTCP, pod4), byPod("at", hostA, port, wire.ProtoTCP, pod4)} {
		if err := g.PutHostPort(p); err != nil {
			t.Fatal(err)
		}
	}
	health := put("health", func(s *Service) { s.HealthCheckNodePort = port })
	node := put("node", func(s *Service) { s.NodePort = port })
	external := put("external", func(s *Service) { s.ExternalIPs = []netip.Addr{hostA} })
	late := put("late", func(s *Service) { s.LoadBalancerIPs = []netip.Addr{hostA} })
	first := put("first", func(s *Service) { s.LoadBalancerIPs = []netip.Addr{hostA} })

	forget := func(k ServiceKey) func() {
		return func() { g.listeners.replace(inForce(g, &Service{ServiceKey: k}), nil) }
	}
	for _, step := range []struct {
		has    EntranceKind
		owner  string
		others int // at the same address
		forget func()
	}{
		{LoadBalancerIP, "default/late", 6, forget(late)},
		{LoadBalancerIP, "default/first", 5, forget(first)},
		{ExternalIP, "default/external", 4, forget(external)},
		{NodePort, "default/node", 3, forget(node)},
		{HealthCheckNodePort, "default/health", 2, forget(health)},
		{HostPortAtAddress, "at", 1, func() { g.DeleteHostPort(HostPortKey{"at", hostA, port, wire.ProtoTCP}) }},
		{HostPortAnywhere, "anywhere", 0, func() { g.DeleteHostPort(HostPortKey{"anywhere", netip.Addr{}, port, wire.ProtoTCP}) }},
	} {
		open, waiting := 0, 0
		for _, s := range g.Listeners() {
			var taken *TakenError
			switch {
			case s.Addr != netip.AddrPortFrom(hostA, port):
			case s.Err == nil:
				open++
				if s.Kind != step.has || s.Owner != step.owner {
					t.Errorf("the %s of %s has the port, want the %s of %s", s.Kind, s.Owner, step.has, step.owner)
				}
			case errors.As(s.Err, &taken) && taken.Kind == step.has && taken.Owner == step.owner:
				waiting++
			default:
				t.Errorf("%+v", s)
			}
		}
		if open != 1 || waiting != step.others {
			t.Errorf("with the %s of %s: %d open, %d waiting; want 1, %d", step.has, step.owner, open, waiting, step.others)
		}
		step.forget()
	}
	if left := g.Listeners(); len(left) != 0 || len(g.listeners.slots) != 0 {
		t.Errorf("left: %+v", left)
	}
}

// answering has a pod say its own name over TCP and UDP at port 8080.
func answering(n *gatewaytest.Net, addr netip.Addr) {
	pod := n.Pod(addr.String())
	l, u := pod.ListenTCP(netip.AddrPortFrom(addr, 8080)), pod.ListenUDP(netip.AddrPortFrom(addr, 8080))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "tcp ", addr)
			c.Close()
		}
	}()
	go func() {
		b := make([]byte, 100)
		for {
			_, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			u.WriteTo([]byte("udp "+addr.String()), from)
		}
	}()
}

// askHost is what a client hears at a port of the host.
func askHost(t *testing.T, network string, to netip.AddrPort) string {
	t.Helper()
	c, err := net.Dial(network, to.String())
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	c.Write([]byte("x"))
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err != nil {
		return err.Error()
	}
	return string(b[:n])
}

// Case 18: one host port, by address and by protocol each another pod's.
func TestHostPortsCoexist(t *testing.T) {
	pods := gatewaytest.Addrs("10.244.1.21", "10.244.1.22", "10.244.1.23")
	g, n := start(t, func(c *Config) { onHost(c); c.NodePortLoopback = false })
	for _, a := range pods {
		answering(n, a)
	}
	port := freePort(t)
	for i, p := range []HostPort{
		byPod("a", hostA, port, wire.ProtoTCP, pods[0]),
		byPod("b", netip.Addr{}, port, wire.ProtoTCP, pods[1]),
		byPod("c", hostA, port, wire.ProtoUDP, pods[2]),
		byPod("a", hostB, port, wire.ProtoUDP, pods[0]),
	} {
		if err := g.PutHostPort(p); err != nil {
			t.Fatalf("host port %d: %v", i, err)
		}
	}
	for _, c := range []struct {
		network string
		at      netip.Addr
		want    string
	}{
		{"tcp", hostA, "tcp 10.244.1.21"},
		{"tcp", hostB, "tcp 10.244.1.22"},
		{"tcp", loop4, "tcp 10.244.1.22"},
		{"udp", hostA, "udp 10.244.1.23"},
		{"udp", hostB, "udp 10.244.1.21"},
	} {
		if got := askHost(t, c.network, netip.AddrPortFrom(c.at, port)); got != c.want {
			t.Errorf("%s at %v: %q, want %q", c.network, c.at, got, c.want)
		}
	}
	if err := g.PutHostPort(byPod("thief", hostA, port, wire.ProtoTCP, pods[2])); err == nil || !strings.Contains(err.Error(), "belongs to a") {
		t.Errorf("a second pod's claim to one port: %v", err)
	}
	g.DeleteHostPort(HostPortKey{"a", hostA, port, wire.ProtoTCP})
	if got, want := askHost(t, "tcp", netip.AddrPortFrom(hostA, port)), "tcp 10.244.1.22"; got != want {
		t.Errorf("after the first pod went: %q, want %q", got, want)
	}
	g.DeleteHostPort(HostPortKey{"b", netip.Addr{}, port, wire.ProtoTCP})
	g.DeleteHostPort(HostPortKey{"b", netip.Addr{}, port, wire.ProtoTCP}) // again is no error
	if _, err := net.Dial("tcp", netip.AddrPortFrom(hostB, port).String()); !refused(err) {
		t.Errorf("a host port of nobody: %v, want connection refused", err)
	}
}

func TestHostPortsThatMakeNoSense(t *testing.T) {
	g := newTestGateway(t, onHost)
	for _, c := range []struct {
		name   string
		change func(*HostPort)
	}{
		{"SCTP", func(p *HostPort) { p.Protocol = wire.ProtoSCTP }},
		{"port zero", func(p *HostPort) { p.Port = 0 }},
		{"a multicast address", func(p *HostPort) { p.HostIP = netip.MustParseAddr("224.0.0.1") }},
		{"an endpoint on the host's loopback", func(p *HostPort) { p.Endpoints[0].Addr = loop4 }},
		{"an endpoint without port", func(p *HostPort) { p.Endpoints[0].Port = 0 }},
	} {
		p := byPod("a", netip.Addr{}, 8080, wire.ProtoTCP, pod4)
		c.change(&p)
		if err := g.PutHostPort(p); err == nil {
			t.Errorf("%s: accepted", c.name)
		}
	}
}

// Case 17: loopback has a node port if asked for, a host port always, unless it
// names another address or family.
func TestWhatLoopbackHas(t *testing.T) {
	for _, enabled := range []bool{false, true} {
		g := newTestGateway(t, func(c *Config) { onHost(c); c.NodePortLoopback = enabled })
		s := published(wire.ProtoTCP, freePort(t))
		g.listeners.replace(nil, inForce(g, &s))
		want := []netip.Addr{hostA, hostB}
		if enabled {
			want = []netip.Addr{loop4, hostA, hostB, loop6}
		}
		if got := openAt(g, func(s *ListenerStatus) bool { return s.Kind == NodePort }); !slices.Equal(got, want) {
			t.Errorf("loopback enabled %v: the node port is open at %v, want %v", enabled, got, want)
		}
		for _, p := range []struct {
			at   netip.Addr
			want []netip.Addr
		}{
			{netip.Addr{}, []netip.Addr{loop4, hostA, hostB, loop6}},
			{netip.IPv4Unspecified(), []netip.Addr{loop4, hostA, hostB}},
			{netip.IPv6Unspecified(), []netip.Addr{loop6}},
			{loop4, []netip.Addr{loop4}},
			{hostB, []netip.Addr{hostB}},
			{netip.MustParseAddr("203.0.113.9"), nil}, // of another host
		} {
			hp := byPod("a", p.at, freePort(t), wire.ProtoTCP, pod4)
			hp.Endpoints = append(hp.Endpoints, Endpoint{Addr: pod6, Port: 8080, ID: 1})
			if err := g.PutHostPort(hp); err != nil {
				t.Fatal(err)
			}
			if got := openAt(g, func(s *ListenerStatus) bool { return s.Addr.Port() == hp.Port }); !slices.Equal(got, p.want) {
				t.Errorf("host port at %v: open at %v, want %v", p.at, got, p.want)
			}
			g.DeleteHostPort(hp.HostPortKey)
		}
	}
}

// An outside address of a service is open as long as the host has it.
func TestOutsideAddressesFollowTheHost(t *testing.T) {
	own := []netip.Addr{hostA}
	g := newTestGateway(t, func(c *Config) {
		onHost(c)
		c.HostAddrs = func() ([]netip.Addr, error) { return own, nil }
	})
	s := published(wire.ProtoTCP, 0)
	s.Port = freePort(t)
	s.LoadBalancerIPs, s.ExternalIPs = []netip.Addr{hostB, netip.MustParseAddr("203.0.113.9")}, []netip.Addr{hostA}
	g.listeners.replace(nil, inForce(g, &s))
	expect := func(want ...netip.Addr) {
		t.Helper()
		if got := openAt(g, func(*ListenerStatus) bool { return true }); !slices.Equal(got, want) {
			t.Errorf("open at %v, want %v", got, want)
		}
	}
	expect(hostA)
	own = []netip.Addr{hostA, hostB}
	g.listeners.refresh()
	expect(hostA, hostB)
	own = nil
	g.listeners.refresh()
	expect()
}

// Only clients in the source ranges come to a load balancer's address; the node
// port is open to all.
func TestSourceRangesOutside(t *testing.T) {
	g, n := start(t, func(c *Config) { onHost(c); c.IsLocalPod = nil })
	answering(n, pod4)
	for _, proto := range []uint8{wire.ProtoTCP, wire.ProtoUDP} {
		s := published(proto, freePort(t))
		s.Name, s.Port = protocolName(proto), freePort(t)
		s.LoadBalancerIPs = []netip.Addr{hostA}
		s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::/32")}
		g.listeners.replace(nil, inForce(g, &s))
		want := protocolName(proto) + " " + pod4.String()
		if got := askHost(t, protocolName(proto), netip.AddrPortFrom(hostA, s.NodePort)); got != want {
			t.Errorf("at the node port: %q, want %q", got, want)
		}
		allowed := s
		allowed.SourceRanges = append(slices.Clone(s.SourceRanges), netip.MustParsePrefix("127.0.0.0/8"))
		before := g.Stats().IngressForbidden
		if proto == wire.ProtoTCP {
			if got := askHost(t, "tcp", netip.AddrPortFrom(hostA, s.Port)); !strings.Contains(got, "reset") {
				t.Errorf("a client of another range: %q, want a reset", got)
			}
		} else {
			c, err := net.Dial("udp", netip.AddrPortFrom(hostA, s.Port).String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.Write([]byte("x"))
		}
		eventually(t, "the client is counted", func() bool { return g.Stats().IngressForbidden == before+1 })
		g.listeners.replace(inForce(g, &s), inForce(g, &allowed))
		if got := askHost(t, protocolName(proto), netip.AddrPortFrom(hostA, s.Port)); got != want {
			t.Errorf("once its range is allowed: %q, want %q", got, want)
		}
	}
}

// A source port that a switch says is taken is changed, the address is not.
func TestTakenSourcePortIsChanged(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		t.Run("TCP", func(t *testing.T) {
			g, n := start(t, onHost)
			from := podServer(n, fam)
			s := published(wire.ProtoTCP, freePort(t))
			g.listeners.replace(nil, inForce(g, &s))
			n.Watch(func(f *frame.Frame, fromGateway bool) { // a switch that refuses the client's own port
				var h wire.Headers
				if wire.Parse(f.Bytes(), &h) != drop.None || !fromGateway || h.SrcPort != fam.outside.Port() {
					return
				}
				reset := frame.New()
				b := make([]byte, wire.EthernetBytes+100)
				k := wire.PutTCPReset(b[wire.EthernetBytes:], f.Bytes(), &h)
				copy(b, f.Bytes()[:wire.EthernetBytes])
				reset.Set(b[:wire.EthernetBytes+k])
				f.SetLen(0)
				n.Inject(reset)
			})
			client, accepted := tcpPair(t)
			e := g.listeners.byService[s.ServiceKey][0]
			g.listeners.serving.Go(func() { g.serveClientAs(accepted, fam.outside, e) })
			exchange(t, client, 100)
			if got := <-from; got.Addr() != fam.outside.Addr() || got.Port() == fam.outside.Port() {
				t.Errorf("the pod saw %v, want %v from another port", got, fam.outside.Addr())
			}
		})
		t.Run("UDP", func(t *testing.T) {
			g := newTestGateway(t, onHost)
			s := published(wire.ProtoUDP, freePort(t))
			g.listeners.replace(nil, inForce(g, &s))
			sock, err := listenUDPAt(netip.AddrPortFrom(netip.MustParseAddr(fam.loopback), 0))
			if err != nil {
				t.Fatal(err)
			}
			defer sock.close()
			sock.by = g.listeners.byService[s.ServiceKey][0]
			before := g.relay.openFromHost(sock, fam.outside)
			question := &session{inside: before.inside.Reverse()}
			about := question.quote([]byte("question"))
			var q wire.Headers
			if r := wire.Parse(about, &q); r != drop.None {
				t.Fatal(r)
			}
			for i, code := range []uint8{portUnreachable.of(q.V6).code, adminProhibited.of(q.V6).code} {
				k := adminProhibited.of(q.V6)
				b := make([]byte, wire.EthernetBytes+wire.MaxICMPv6ErrorBytes)
				copy(b, about[:wire.EthernetBytes])
				size := wire.PutICMPError(b[wire.EthernetBytes:], about, &q, wire.AddrFrom(fam.router), k.icmpType, code, 0)
				var e wire.Headers
				if r := wire.Parse(b[:wire.EthernetBytes+size], &e); r != drop.None {
					t.Fatal(r)
				}
				if took := g.relay.sourceTaken(b[:wire.EthernetBytes+size], &e); took != (i == 1) {
					t.Fatalf("code %d: taken for the switch's word %v", code, took)
				}
			}
			after := sock.session(fam.outside)
			if after == nil || after.inside.DstPort == before.inside.DstPort || after.inside.Dst != before.inside.Dst || after.endpoint != before.endpoint {
				t.Errorf("the session went from %+v to %+v", before.inside, after)
			}
			if open := g.Stats().IngressOpen; open != 1 {
				t.Errorf("%d sessions, want 1", open)
			}
		})
	})
}
