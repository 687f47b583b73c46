package gateway

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/wire"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
	"vswitch/vswitch/gateway/gatewaytest"
)

// freePort is one that is free for TCP and UDP on both loopback addresses.
func freePort(t testing.TB) uint16 {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(l.Addr().String())
		l.Close()
		free := true
		for _, host := range []string{"127.0.0.1", "::1"} {
			if l, err := net.Listen("tcp", net.JoinHostPort(host, port)); err != nil {
				free = false
			} else {
				l.Close()
			}
			if c, err := net.ListenPacket("udp", net.JoinHostPort(host, port)); err != nil {
				free = false
			} else {
				c.Close()
			}
		}
		if free {
			n, _ := strconv.ParseUint(port, 10, 16)
			return uint16(n)
		}
	}
	t.Fatal("no port is free on both loopback addresses")
	return 0
}

// onLoopback opens node ports on the host's loopback and nowhere else.
func onLoopback(c *Config) {
	c.NoNodePorts, c.NodePortLoopback, c.NodePortAddrs = false, true, []netip.Addr{}
	c.NodePortRetry = 20 * time.Millisecond
}

// published is a service with a node port that leads to a local pod.
func published(proto uint8, port uint16) Service {
	return Service{
		ServiceKey: ServiceKey{Namespace: "default", Name: "published"},
		Protocol:   proto, Port: 80, NodePort: port,
		Endpoints: []Endpoint{
			{Addr: pod4, Port: 8080, ID: 1, Cluster: true, Local: true, OnNode: true},
			{Addr: pod6, Port: 8080, ID: 1, Cluster: true, Local: true, OnNode: true},
		},
	}
}

// podServer has a pod echo on port 8080 and reports who connects.
func podServer(n *gatewaytest.Net, fam family) chan netip.AddrPort {
	from := make(chan netip.AddrPort, 16)
	l := n.Pod(fam.pod.String()).ListenTCP(netip.AddrPortFrom(fam.pod, 8080))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if client, ok := c.RemoteAddr().(*net.TCPAddr); ok { // nil: reset since
				from <- client.AddrPort()
			}
			go func() {
				io.Copy(c, c)
				c.(interface{ CloseWrite() error }).CloseWrite()
			}()
		}
	}()
	return from
}

func (f family) hostPort(port uint16) string {
	return net.JoinHostPort(f.loopback, strconv.Itoa(int(port)))
}

func TestNodePortReachesThePod(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		g, n := start(t, onLoopback)
		from := podServer(n, fam)
		port := freePort(t)
		if err := g.PutService(published(wire.ProtoTCP, port)); err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", fam.hostPort(port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		exchange(t, c.(*net.TCPConn), 4<<20)
		// A client on the host itself has no address that a pod could answer.
		if got := (<-from).Addr(); got != fam.router {
			t.Errorf("the pod saw %v, want the router address %v", got, fam.router)
		}
	})
}

// tcpPair is a client's connection and the accepted end of it.
func tcpPair(t *testing.T) (client, accepted *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn), a.(*net.TCPConn)
}

// TestNodePortOutside, in a namespace, does this with real clients.
func TestClientAddressIsKept(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		g, n := start(t, nil)
		from := podServer(n, fam)
		if err := g.PutService(published(wire.ProtoTCP, 30080)); err != nil {
			t.Fatal(err)
		}
		p := g.listeners.slots[portKey{30080, wire.ProtoTCP}].entrances[0]
		for i, port := range []string{"its port too", "another port, as its own is in use"} {
			client, accepted := tcpPair(t)
			g.listeners.serving.Go(func() { g.serveClientAs(accepted, fam.outside, p) })
			client.Write([]byte("x"))
			if _, err := client.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			got := <-from
			if got.Addr() != fam.outside.Addr() || (got.Port() == fam.outside.Port()) != (i == 0) {
				t.Errorf("the pod saw %v, want %v with %s", got, fam.outside, port)
			}
		}
	})
}

func TestWhoseAddressIsKept(t *testing.T) {
	node := netip.MustParseAddr("203.0.113.4")
	balancer, second := netip.MustParseAddr("203.0.113.80"), netip.MustParseAddr("203.0.113.5")
	remote4, remote6 := netip.MustParseAddr("10.244.2.9"), netip.MustParseAddr("fd00:10:244:2::9")
	takes4, takes6 := netip.MustParseAddr("10.244.3.9"), netip.MustParseAddr("fd00:10:244:3::9") // on a node that takes clients' addresses
	g := newTestGateway(t, func(c *Config) {
		c.IsNode = func(a netip.Addr) bool { return a == node }
		c.LeadsOut = func(a netip.Addr) bool { return a != balancer }
		c.HostAddrs = func() ([]netip.Addr, error) { return []netip.Addr{node, balancer, second}, nil }
		c.TakesIngress = func(a netip.Addr) bool { return a == takes4 || a == takes6 }
	})
	for _, c := range []struct {
		name     string
		client   string
		endpoint netip.Addr
		kept     bool
	}{
		{"from outside to a pod here", "198.51.100.7", pod4, true},
		{"from outside to a pod here, IPv6", "2001:db8:77::7", pod6, true},
		{"from a private network outside", "192.168.7.7", pod4, true},
		{"from outside to a pod elsewhere", "198.51.100.7", remote4, false},
		{"from outside to a pod elsewhere, IPv6", "2001:db8:77::7", remote6, false},
		{"from outside to a pod of a node that takes it", "198.51.100.7", takes4, true},
		{"from outside to a pod of a node that takes it, IPv6", "2001:db8:77::7", takes6, true},
		{"from a node to a pod of another", "203.0.113.4", takes4, false},
		{"from a node", "203.0.113.4", pod4, false},
		{"from this host by an address that is not the node's", "203.0.113.5", pod4, true},
		{"from this host by a load balancer's address", "203.0.113.80", pod4, false},
		{"from a pod", "10.244.2.9", pod4, false},
		{"from a VIP", "10.96.0.1", pod4, false},
		{"from loopback", "127.0.0.1", pod4, false},
		{"from loopback, IPv6", "::1", pod6, false},
		{"link-local", "169.254.7.7", pod4, false},
		{"link-local, IPv6", "fe80::7", pod6, false},
	} {
		want := router4
		if c.endpoint.Is6() {
			want = router6
		}
		if c.kept {
			want = netip.MustParseAddr(c.client)
		}
		got, ok := g.policy.sourceFor(netip.AddrPortFrom(netip.MustParseAddr(c.client), 40000), c.endpoint)
		if !ok || got.Addr() != want {
			t.Errorf("%s: shown as %v, want %v", c.name, got, want)
		}
	}
}

func TestNodePortOverUDP(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		g, n := start(t, onLoopback)
		pod := n.Pod(fam.pod.String())
		server := pod.ListenUDP(netip.AddrPortFrom(fam.pod, 8080))
		clients := make(chan net.Addr, 16)
		go func() {
			b := make([]byte, 65536)
			for {
				n, from, err := server.ReadFrom(b)
				if err != nil {
					return
				}
				clients <- from
				server.WriteTo(bytes.ToUpper(b[:n]), from)
			}
		}()
		port := freePort(t)
		if err := g.PutService(published(wire.ProtoUDP, port)); err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("udp", fam.hostPort(port)) // connected: takes answers from the address asked alone
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, size := range []int{1, 20000} {
			question := bytes.Repeat([]byte("a"), size)
			c.Write(question)
			c.SetReadDeadline(time.Now().Add(20 * time.Second))
			b := make([]byte, 65536)
			if n, err := c.Read(b); err != nil || !bytes.Equal(b[:n], bytes.ToUpper(question)) {
				t.Fatalf("%d bytes asked: %d bytes, %v", size, n, err)
			}
		}
		first, second := <-clients, <-clients
		if first.String() != second.String() || first.(*net.UDPAddr).AddrPort().Addr() != fam.router {
			t.Errorf("the pod saw %v, then %v; want one port of %v", first, second, fam.router)
		}
		if s := g.Stats(); s.IngressOpen != 1 {
			t.Errorf("%d sessions, want 1", s.IngressOpen)
		}
		// The endpoint goes: its session must not outlive it.
		gone := published(wire.ProtoUDP, port)
		gone.Endpoints[0].Addr, gone.Endpoints[1].Addr = netip.MustParseAddr("10.244.1.77"), netip.MustParseAddr("fd00:10:244:1::77")
		if err := g.PutService(gone); err != nil {
			t.Fatal(err)
		}
		if s := g.Stats(); s.IngressOpen != 0 {
			t.Errorf("%d sessions to an endpoint that is gone", s.IngressOpen)
		}
	})
}

func TestUDPClientAddressIsKept(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		g := newTestGateway(t, nil)
		if err := g.PutService(published(wire.ProtoUDP, 30053)); err != nil {
			t.Fatal(err)
		}
		open := func() *session {
			sock, err := listenUDPAt(netip.AddrPortFrom(netip.MustParseAddr(fam.loopback), 0))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(sock.close)
			sock.by = g.listeners.slots[portKey{30053, wire.ProtoUDP}].entrances[0]
			s := g.relay.openFromHost(sock, fam.outside)
			if s == nil {
				t.Fatal("no session")
			}
			return s
		}
		// One client, one port, by way of two node ports to one endpoint.
		a, b := open(), open()
		if want := (flow.Key{
			Src: wire.AddrFrom(fam.pod), SrcPort: 8080, Proto: wire.ProtoUDP,
			Dst: wire.AddrFrom(fam.outside.Addr()), DstPort: fam.outside.Port(),
		}); a.inside != want {
			t.Errorf("the pod is shown %+v, want %+v", a.inside, want)
		}
		if b.inside.Dst != a.inside.Dst || b.inside.DstPort == a.inside.DstPort {
			t.Errorf("the second session is %+v beside %+v", b.inside, a.inside)
		}
	})
}

func refused(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }

func TestNodePortWithoutEndpointRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Service)
	}{
		{"none ready", func(s *Service) {
			s.Endpoints = slices.Clone(s.Endpoints)
			s.Endpoints[0].Cluster, s.Endpoints[1].Cluster = false, false
		}},
		{"externalTrafficPolicy Local and none here", func(s *Service) {
			s.Endpoints = slices.Clone(s.Endpoints)
			s.Endpoints[0].Local, s.Endpoints[1].Local = false, false
			s.ExternalLocal = true
		}},
		{"deleted", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, n := start(t, onLoopback)
			podServer(n, families[0])
			port := freePort(t)
			tcp, udp := published(wire.ProtoTCP, port), published(wire.ProtoUDP, port)
			udp.PortName = "udp"
			for _, s := range []Service{tcp, udp} {
				if err := g.PutService(s); err != nil {
					t.Fatal(err)
				}
				conn, err := net.Dial("tcp", families[0].hostPort(port))
				if err != nil {
					t.Fatal(err)
				}
				conn.Close()
				if c.change == nil {
					g.DeleteService(s.ServiceKey)
				} else {
					c.change(&s)
					g.PutService(s)
				}
				if s.Protocol == wire.ProtoTCP {
					if _, err := net.Dial("tcp", families[0].hostPort(port)); !refused(err) {
						t.Errorf("TCP dial gave %v, want connection refused", err)
					}
					g.PutService(tcp) // for the second round's dial
				}
			}
			client, err := net.Dial("udp", families[0].hostPort(port))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			client.Write([]byte("x"))
			client.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := client.Read(make([]byte, 1)); !refused(err) {
				t.Errorf("UDP read gave %v, want connection refused", err)
			}
		})
	}
}

func TestRefusingEndpointResetsTheClient(t *testing.T) {
	g, n := start(t, onLoopback)
	n.Pod(pod4.String()) // which listens nowhere
	port := freePort(t)
	if err := g.PutService(published(wire.ProtoTCP, port)); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", families[0].hostPort(port))
	if err == nil {
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Fatalf("the client read %v, want a reset", err)
	}
}

func TestNodePortHeldByAnotherIsTriedAgain(t *testing.T) {
	g, n := start(t, onLoopback)
	podServer(n, families[0])
	port := freePort(t)
	holder, err := net.Listen("tcp4", families[0].hostPort(port))
	if err != nil {
		t.Fatal(err)
	}
	if err := g.PutService(published(wire.ProtoTCP, port)); err != nil {
		t.Fatal(err)
	}
	status := func() (s ListenerStatus) {
		for _, s := range g.Listeners() {
			if s.Addr.Addr().Is4() {
				return s
			}
		}
		t.Fatal("the node port is not listed")
		return s
	}
	if s := status(); !errors.Is(s.Err, unix.EADDRINUSE) || s.Addr.Port() != port || !strings.Contains(s.Service.String(), "published") {
		t.Fatalf("the status is %+v, want address in use", s)
	}
	holder.Close()
	eventually(t, "the port opened", func() bool { return status().Err == nil })
	c, err := net.Dial("tcp4", families[0].hostPort(port))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// An endpoint outside the pod ranges is a program on a node: the host goes there
// by itself.
func TestNodePortToAProgramOfANode(t *testing.T) {
	g, n := start(t, nil)
	n.Watch(func(*frame.Frame, bool) { t.Error("a frame went to pods") })
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				echo(c.(*net.TCPConn))
				c.Close()
			}()
		}
	}()
	client, accepted := tcpPair(t)
	g.listeners.serving.Go(func() { g.serveByHost(accepted, l.Addr().(*net.TCPAddr).AddrPort(), backend{}) })
	exchange(t, client, 1<<20)
}

// The store is nobody's by way of a service: not pods', and not a client's outside.
func TestNodePortToTheStoreIsRefused(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	store := l.Addr().(*net.TCPAddr).AddrPort()
	g, _ := start(t, func(c *Config) { c.DeniedTCP = []netip.AddrPort{store} })
	client, accepted := tcpPair(t)
	g.serveByHost(accepted, store, backend{})
	if n, err := client.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes from the store", n)
	}
	l.(*net.TCPListener).SetDeadline(time.Now())
	if _, err := l.Accept(); err == nil {
		t.Error("the store was connected to")
	}
}

func TestIngressIsCapped(t *testing.T) {
	g, n := start(t, func(c *Config) { onLoopback(c); c.IngressConnections = 1 })
	podServer(n, families[0])
	port := freePort(t)
	if err := g.PutService(published(wire.ProtoTCP, port)); err != nil {
		t.Fatal(err)
	}
	first, err := net.Dial("tcp", families[0].hostPort(port))
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	first.Write([]byte("x"))
	if _, err := first.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	second, err := net.Dial("tcp", families[0].hostPort(port))
	if err == nil {
		second.SetReadDeadline(time.Now().Add(20 * time.Second))
		_, err = second.Read(make([]byte, 1))
		second.Close()
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Fatalf("the second client read %v, want a reset", err)
	}
}
