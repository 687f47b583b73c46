package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/lab/labtest"
)

// cluster is two nodes with two pods each: the smallest network with every path.
type cluster struct {
	t      *testing.T
	lab    *lab.Lab
	nodes  []*lab.Node
	a1, a2 *lab.Pod // on nodes[0]
	b1, b2 *lab.Pod // on nodes[1]
}

// patience bounds every wait in these tests; nothing takes a tenth of it on a quiet machine.
const patience = 60 * time.Second

func newCluster(t *testing.T, args ...string) *cluster {
	t.Helper()
	return newClusterOn(t, lab.Config{}, args...)
}

// newClusterOn is newCluster with an underlay of another kind.
func newClusterOn(t *testing.T, cfg lab.Config, args ...string) *cluster {
	t.Helper()
	c := newNodes(t, cfg)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := lab.RunCluster(ctx, c.nodes, args...); err != nil {
		t.Fatal(err)
	}
	c.addPods()
	return c
}

// newNodes makes the nodes and starts nothing on them.
func newNodes(t *testing.T, cfg lab.Config) *cluster {
	t.Helper()
	cfg.BinDir = labtest.BinDir(t)
	c := &cluster{t: t, lab: labtest.New(t, cfg)}
	for _, name := range []string{"a", "b"} {
		n, err := c.lab.AddNode(name)
		if err != nil {
			t.Fatal(err)
		}
		c.nodes = append(c.nodes, n)
	}
	return c
}

// addPods makes the four pods and waits until they reach each other.
func (c *cluster) addPods() {
	c.t.Helper()
	c.a1, c.a2 = c.pod(0, "a1", nil), c.pod(0, "a2", nil)
	c.b1, c.b2 = c.pod(1, "b1", nil), c.pod(1, "b2", nil)
	c.waitJoined()
}

// waitJoined waits until each node knows a way to the other's pods.
func (c *cluster) waitJoined() {
	c.t.Helper()
	for _, pair := range [][2]*lab.Pod{{c.a1, c.b1}, {c.b1, c.a1}} {
		for _, family := range []int{4, 6} {
			c.eventually("the nodes know each other", func() error {
				return ping(pair[0], pair[1].IP(family), 1)
			})
		}
	}
}

func (c *cluster) pod(node int, name string, labels map[string]string) *lab.Pod {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	p, err := c.nodes[node].AddPod(ctx, lab.PodSpec{Name: name, Labels: labels})
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

func (c *cluster) apply(yaml string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	if err := c.nodes[0].Apply(ctx, yaml); err != nil {
		c.t.Fatal(err)
	}
}

// eventually polls until f succeeds, or fails the test with its last error.
func (c *cluster) eventually(what string, f func() error) {
	c.t.Helper()
	c.within(patience, what, f)
}

// within is eventually for what is promised a time.
func (c *cluster) within(bound time.Duration, what string, f func() error) {
	c.t.Helper()
	within(c.t, bound, what, f)
}

// within polls until f succeeds, or fails the test with its last error once bound is over.
func within(t *testing.T, bound time.Duration, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(bound)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, bound, err)
		}
		time.Sleep(20 * time.Millisecond) // between two looks at the condition
	}
}

// paths are the pairs of pods for each way a packet can take.
func (c *cluster) paths() map[string][2]*lab.Pod {
	return map[string][2]*lab.Pod{"same node": {c.a1, c.a2}, "across nodes": {c.a1, c.b1}}
}

// eachPath runs f for same node and tunnel, IPv4 and IPv6.
func (c *cluster) eachPath(f func(t *testing.T, from, to *lab.Pod, family int)) {
	for name, pair := range c.paths() {
		for _, family := range []int{4, 6} {
			c.t.Run(fmt.Sprintf("%s, IPv%d", name, family), func(t *testing.T) { f(t, pair[0], pair[1], family) })
		}
	}
}

// nodeDrops sums a node's drops by reason.
func nodeDrops(t *testing.T, node *lab.Node) map[string]uint64 {
	t.Helper()
	var rows []struct {
		Name  string
		Count uint64
	}
	get(t, node, "drops", &rows)
	sum := map[string]uint64{}
	for _, r := range rows {
		sum[r.Name] += r.Count
	}
	return sum
}

func get(t *testing.T, node *lab.Node, kind string, rows any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := node.Get(ctx, kind, rows); err != nil {
		t.Fatal(err)
	}
}

// ping sends n echo requests from a namespace with the ping program and fails
// unless each is answered once.
func ping(from *lab.Pod, to netip.Addr, n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return from.Ping(ctx, to, n, 2*time.Millisecond)
}

// listenTCP serves each connection to a TCP port of a namespace with handle.
func listenTCP(t *testing.T, ns *lab.Namespace, addr netip.AddrPort, handle func(net.Conn)) net.Listener {
	t.Helper()
	var ln net.Listener
	if err := ns.Do(func() (err error) { ln, err = net.Listen("tcp", addr.String()); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); handle(conn) }()
		}
	}()
	return ln
}

// listenUDP answers each datagram to a UDP port of a namespace with reply's bytes.
func listenUDP(t *testing.T, ns *lab.Namespace, addr netip.AddrPort, reply func(from netip.AddrPort, b []byte) []byte) {
	t.Helper()
	var conn *net.UDPConn
	if err := ns.Do(func() (err error) { conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr)); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		b := make([]byte, 65535)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if out := reply(from, b[:n]); out != nil {
				conn.WriteToUDPAddrPort(out, from)
			}
		}
	}()
}

// dial opens a connection from a namespace. local may be zero.
func dial(ns *lab.Namespace, network string, local, to netip.AddrPort) (net.Conn, error) {
	var conn net.Conn
	err := ns.Do(func() (err error) {
		d := net.Dialer{Timeout: 5 * time.Second}
		if local.IsValid() {
			if network == "udp" {
				d.LocalAddr = net.UDPAddrFromAddrPort(local)
			} else {
				d.LocalAddr = net.TCPAddrFromAddrPort(local)
			}
		}
		conn, err = d.Dial(network, to.String())
		return err
	})
	return conn, err
}

// ask sends one message and returns the answer.
func ask(ns *lab.Namespace, network string, to netip.AddrPort, message string) (string, error) {
	conn, err := dial(ns, network, netip.AddrPort{}, to)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(conn, message); err != nil {
		return "", err
	}
	b := make([]byte, 65535)
	n, err := conn.Read(b)
	return string(b[:n]), err
}

// serveName makes a pod answer TCP and UDP on a port with its name and the
// client's address: "name client".
func serveName(t *testing.T, p *lab.Pod, port uint16) {
	t.Helper()
	any6 := netip.AddrPortFrom(netip.IPv6Unspecified(), port) // both families
	name := p.Spec.Name
	listenTCP(t, p.Namespace, any6, func(c net.Conn) {
		b := make([]byte, 512)
		if _, err := c.Read(b); err != nil {
			return
		}
		from := c.RemoteAddr().(*net.TCPAddr).AddrPort()
		fmt.Fprintf(c, "%s %s", name, from.Addr().Unmap())
	})
	listenUDP(t, p.Namespace, any6, func(from netip.AddrPort, _ []byte) []byte {
		return fmt.Appendf(nil, "%s %s", name, from.Addr().Unmap())
	})
}

// answer splits what serveName says.
func answer(s string) (name string, client netip.Addr) {
	name, from, _ := strings.Cut(s, " ")
	client, _ = netip.ParseAddr(from)
	return name, client
}

// need fails the test when a program is missing: `make test-deps` installs it.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, dir := range programs {
		found := false
		for _, p := range strings.Split(os.Getenv("PATH")+":/usr/sbin:/sbin", ":") {
			if _, err := os.Stat(p + "/" + dir); err == nil {
				found = true
			}
		}
		if !found {
			t.Fatalf("%s is not installed: make test-deps", dir)
		}
	}
}
