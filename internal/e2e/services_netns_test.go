package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vswitch/internal/lab"
)

// service is a row of `vswitch get services -o json`, as far as it is judged.
type service struct {
	Name, Namespace string
	ClusterIPs      []string // "None" of a headless one
	Ports           []struct {
		Name     string
		Port     uint16
		Protocol string
		NodePort uint16
	}
}

// service waits until the first node has heard of a service.
func (c *cluster) service(name string) (found service) {
	c.t.Helper()
	c.eventually("service "+name+" is known", func() error {
		var rows []service
		get(c.t, c.nodes[0], "services", &rows)
		for _, s := range rows {
			if s.Name == name {
				found = s
				return nil
			}
		}
		return fmt.Errorf("services are %+v", rows)
	})
	return found
}

func (s service) ip(family int) netip.Addr {
	for _, text := range s.ClusterIPs {
		if a, err := netip.ParseAddr(text); err == nil && a.Is4() == (family == 4) {
			return a
		}
	}
	return netip.Addr{}
}

func (s service) nodePort(t *testing.T, name string) uint16 {
	t.Helper()
	for _, p := range s.Ports {
		if p.Name == name {
			return p.NodePort
		}
	}
	t.Fatalf("service %s has no port %q", s.Name, name)
	return 0
}

const webService = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080, protocol: TCP}
  - {name: dns-tcp, port: 53, targetPort: 5353, protocol: TCP}
  - {name: dns-udp, port: 53, targetPort: 5354, protocol: UDP}
  - {name: greet, port: 7, targetPort: 7777}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: default}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: nobody}
  ports:
  - {name: tcp, port: 80, protocol: TCP}
  - {name: udp, port: 80, protocol: UDP}
`

func TestServices(t *testing.T) {
	c := newCluster(t)
	web1, web2 := c.pod(0, "web1", map[string]string{"app": "web"}), c.pod(1, "web2", map[string]string{"app": "web"})
	for _, p := range []*lab.Pod{web1, web2} {
		for _, port := range []uint16{8080, 5353, 5354} {
			serveName(t, p, port)
		}
		serveGreeting(t, p, 7777)
	}
	c.apply(webService)
	web := c.service("web")
	for _, family := range []int{4, 6} {
		for _, n := range []*lab.Pod{c.a1, c.b1} {
			for _, network := range []string{"tcp", "udp"} {
				port := map[string]uint16{"tcp": 80, "udp": 53}[network]
				c.eventually("both endpoints are known on both nodes", func() error {
					return sawAll(n.Namespace, network, netip.AddrPortFrom(web.ip(family), port), "web1", "web2")
				})
			}
		}
	}
	t.Run("even and complete", func(t *testing.T) { c.testDistribution(t, web) })
	t.Run("one port, two protocols", func(t *testing.T) { c.testProtocols(t, web) })
	t.Run("the client's address is kept", func(t *testing.T) { c.testClientAddress(t, web) })
	t.Run("a pod reaches itself", func(t *testing.T) { c.testHairpin(t, web, web1) })
	t.Run("refused at once", func(t *testing.T) { c.testRefused(t) })
	t.Run("ping", func(t *testing.T) { c.testPingVIP(t, web) })
	t.Run("programs through VIP and NodePort", func(t *testing.T) { c.testPrograms(t) })
	t.Run("NodePort", func(t *testing.T) { c.testNodePort(t, web) })
	t.Run("an endpoint that leaves gets no more", func(t *testing.T) { c.testEndpointLeaves(t, web, web1) })
}

// sawAll asks until every name has answered, or not within 64 tries.
func sawAll(from *lab.Namespace, network string, to netip.AddrPort, names ...string) error {
	seen := map[string]bool{}
	for range 64 {
		s, err := ask(from, network, to, "who")
		if err != nil {
			return err
		}
		name, _ := answer(s)
		seen[name] = true
		if !slices.ContainsFunc(names, func(n string) bool { return !seen[n] }) {
			return nil
		}
	}
	return fmt.Errorf("%v answered, want %v", seen, names)
}

// Case 10: connections spread evenly. With one degree of freedom chi-square
// beyond 24 has probability 1e-6; one of two that got 60 of 100 would be at 16, of 65 at 36.
func (c *cluster) testDistribution(t *testing.T, web service) {
	for _, family := range []int{4, 6} {
		for network, port := range map[string]uint16{"tcp": 80, "udp": 53} {
			const n = 400
			count := map[string]float64{}
			for range n {
				s, err := ask(c.a1.Namespace, network, netip.AddrPortFrom(web.ip(family), port), "who")
				if err != nil {
					t.Fatalf("%s IPv%d: %v", network, family, err)
				}
				name, _ := answer(s)
				count[name]++
			}
			chi := 0.0
			for _, name := range []string{"web1", "web2"} {
				d := count[name] - n/2
				chi += d * d / (n / 2)
			}
			if chi > 24 {
				t.Errorf("%s IPv%d: %v, chi-square %.1f", network, family, count, chi)
			}
		}
	}
}

// Port 53 leads to different target ports by protocol.
func (c *cluster) testProtocols(t *testing.T, web service) {
	for _, network := range []string{"tcp", "udp"} {
		if s, err := ask(c.b1.Namespace, network, netip.AddrPortFrom(web.ip(4), 53), "who"); err != nil || !strings.HasPrefix(s, "web") {
			t.Errorf("%s port 53: %q, %v", network, s, err)
		}
	}
}

func (c *cluster) testClientAddress(t *testing.T, web service) {
	for _, family := range []int{4, 6} {
		for range 16 { // both endpoints, very likely
			s, err := ask(c.a1.Namespace, "tcp", netip.AddrPortFrom(web.ip(family), 80), "who")
			if name, client := answer(s); err != nil || client != c.a1.IP(family) {
				t.Errorf("IPv%d: %s saw %v (%v), want %v", family, name, client, err, c.a1.IP(family))
			}
		}
	}
}

// Case 11: the pod sees the router as its client.
func (c *cluster) testHairpin(t *testing.T, web service, self *lab.Pod) {
	for _, family := range []int{4, 6} {
		for network, port := range map[string]uint16{"tcp": 80, "udp": 53} {
			found := false
			for range 64 {
				s, err := ask(self.Namespace, network, netip.AddrPortFrom(web.ip(family), port), "who")
				if err != nil {
					t.Fatalf("%s IPv%d: %v", network, family, err)
				}
				if name, client := answer(s); name == self.Spec.Name {
					found = true
					if client == self.IP(family) || !sameNodeCIDR(client, self.IP(family)) {
						t.Errorf("%s IPv%d: its own service saw %v, want the node's router address", network, family, client)
					}
				}
			}
			if !found {
				t.Errorf("%s IPv%d: never reached itself in 64 tries", network, family)
			}
		}
	}
}

func sameNodeCIDR(a, b netip.Addr) bool {
	bits := 24
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	return err == nil && p.Contains(b)
}

// Case 12: no endpoint means refused, and at once.
func (c *cluster) testRefused(t *testing.T) {
	empty := c.service("empty")
	for _, family := range []int{4, 6} {
		vip := netip.AddrPortFrom(empty.ip(family), 80)
		c.eventually("the service is known", func() error {
			start := time.Now()
			_, err := dial(c.b1.Namespace, "tcp", netip.AddrPort{}, vip)
			if !errors.Is(err, syscall.ECONNREFUSED) {
				return fmt.Errorf("TCP: got %v, want connection refused", err)
			}
			if d := time.Since(start); d > time.Second {
				return fmt.Errorf("TCP: refused after %v", d)
			}
			return nil
		})
		if _, err := ask(c.b1.Namespace, "udp", vip, "who"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("IPv%d UDP: got %v, want connection refused", family, err)
		}
		if _, err := dial(c.a1.Namespace, "tcp", netip.AddrPort{}, netip.AddrPortFrom(empty.ip(family), 81)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("IPv%d: a port the service has not: got %v, want connection refused", family, err)
		}
	}
}

func (c *cluster) testPingVIP(t *testing.T, web service) {
	need(t, "ping")
	for _, family := range []int{4, 6} {
		if err := ping(c.a1, web.ip(family), 10); err != nil {
			t.Error(err)
		}
	}
}

// curl and iperf3 through a VIP and a NodePort.
func (c *cluster) testPrograms(t *testing.T) {
	need(t, "curl", "iperf3")
	server := c.in(t).pod(1, "server", map[string]string{"app": "server"})
	body := serveHTTP(t, server, 8000, 1<<20)
	c.apply(`
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: server}
  ports:
  - {name: http, port: 80, targetPort: 8000}
  - {name: iperf, port: 5201}
`)
	s := c.service("server")
	outside, err := c.lab.Outside()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range []int{4, 6} {
		vip := netip.AddrPortFrom(s.ip(family), 80)
		c.eventually("the server's service is known", func() error {
			conn, err := dial(c.a1.Namespace, "tcp", netip.AddrPort{}, vip)
			if err == nil {
				conn.Close()
			}
			return err
		})
		if got := curl(t, c.a1.Namespace, vip); got != body {
			t.Errorf("IPv%d through the VIP: %d bytes, not the %d served", family, len(got), len(body))
		}
		if r := iperf(t, c.a1.Namespace, server.Namespace, s.ip(family), "-n", "64M"); r.End.SumReceived.Bytes < 8<<20 {
			t.Errorf("IPv%d through the VIP: iperf3 received %v bytes", family, r.End.SumReceived.Bytes)
		}
	}
	for _, node := range c.nodes {
		to := netip.AddrPortFrom(node.Underlay4, s.nodePort(t, "http"))
		c.eventually("the node port listens", func() error {
			conn, err := dial(outside.Namespace, "tcp", netip.AddrPort{}, to)
			if err == nil {
				conn.Close()
			}
			return err
		})
		if got := curl(t, outside.Namespace, to); got != body {
			t.Errorf("through %v: %d bytes, not the %d served", to, len(got), len(body))
		}
		r := iperf(t, outside.Namespace, server.Namespace, node.Underlay4, "-n", "64M", "-p", fmt.Sprint(s.nodePort(t, "iperf")))
		if r.End.SumReceived.Bytes < 8<<20 {
			t.Errorf("iperf3 through %v received %v bytes", to, r.End.SumReceived.Bytes)
		}
	}
}

// External to internal, TCP and UDP, both families, with the client's address
// where the endpoint is on the node that was asked.
func (c *cluster) testNodePort(t *testing.T, web service) {
	outside, err := c.lab.Outside()
	if err != nil {
		t.Fatal(err)
	}
	for i, node := range c.nodes {
		local := []string{"web1", "web2"}[i]
		for _, addr := range []netip.Addr{node.Underlay4, node.Underlay6} {
			client := outside.Underlay4
			if addr.Is6() {
				client = outside.Underlay6
			}
			for network, name := range map[string]string{"tcp": "http", "udp": "dns-udp"} {
				to := netip.AddrPortFrom(addr, web.nodePort(t, name))
				c.eventually(fmt.Sprintf("both endpoints answer through %s %v", network, to), func() error {
					return sawAll(outside.Namespace, network, to, "web1", "web2")
				})
				for range 16 {
					s, err := ask(outside.Namespace, network, to, "who")
					if err != nil {
						t.Errorf("%s %v: %v", network, to, err)
						continue
					}
					if name, from := answer(s); name == local && from != client {
						t.Errorf("%s %v: %s saw %v, want the client's %v", network, to, name, from, client)
					}
				}
			}
		}
	}
}

func (c *cluster) testEndpointLeaves(t *testing.T, web service, gone *lab.Pod) {
	// A connection to the pod that stays is not disturbed.
	stays, err := dialGreeting(c.a1.Namespace, netip.AddrPortFrom(web.ip(4), 7), "web2")
	if err != nil {
		t.Fatal(err)
	}
	defer stays.Close()
	if err := gone.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, from := range []*lab.Pod{c.a1, c.b1} {
		c.eventually("only web2 answers", func() error {
			for range 32 {
				s, err := ask(from.Namespace, "tcp", netip.AddrPortFrom(web.ip(4), 80), "who")
				if err != nil {
					return err
				}
				if name, _ := answer(s); name != "web2" {
					return fmt.Errorf("%q answered", name)
				}
			}
			return nil
		})
	}
	if err := echoes(stays, "still here"); err != nil {
		t.Errorf("the connection to the endpoint that stays: %v", err)
	}
}

// serveGreeting makes a pod say its name to whoever connects, then echo.
func serveGreeting(t *testing.T, p *lab.Pod, port uint16) {
	t.Helper()
	listenTCP(t, p.Namespace, netip.AddrPortFrom(netip.IPv6Unspecified(), port), func(conn net.Conn) {
		fmt.Fprintln(conn, p.Spec.Name)
		io.Copy(conn, conn)
	})
}

// dialGreeting connects until the endpoint wanted greets, and returns that connection.
func dialGreeting(from *lab.Namespace, to netip.AddrPort, want string) (net.Conn, error) {
	for range 64 {
		conn, err := dial(from, "tcp", netip.AddrPort{}, to)
		if err != nil {
			return nil, err
		}
		conn.SetDeadline(time.Now().Add(patience))
		name := make([]byte, len(want)+1)
		if _, err := io.ReadFull(conn, name); err == nil && string(name) == want+"\n" {
			return conn, nil
		}
		conn.Close()
	}
	return nil, errors.New("never reached " + want)
}

// echoes checks that a connection made by dialGreeting still carries data.
func echoes(conn net.Conn, message string) error {
	if _, err := io.WriteString(conn, message); err != nil {
		return err
	}
	b := make([]byte, len(message))
	if _, err := io.ReadFull(conn, b); err != nil {
		return err
	}
	if string(b) != message {
		return fmt.Errorf("got %q, want %q", b, message)
	}
	return nil
}
