package e2e

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/lab"
	"vswitch/internal/lab/labtest"
)

// Bytes of outer headers that VXLAN adds to an inner IP packet: Ethernet,
// VXLAN, UDP and IP (RFC 7348 section 5).
func vxlanOverhead(underlay netip.Addr) int {
	if underlay.Is4() {
		return 14 + 8 + 8 + 20
	}
	return 14 + 8 + 8 + 40
}

// Case 4: whatever the pods' MTU, packets that fill it arrive, with DF; bulk
// TCP is as it was sent; and no packet on the wire is larger than the MTU allows.
func TestMTUSweep(t *testing.T) {
	const largest = 9000
	c := newClusterOn(t, lab.Config{MTUBytes: largest + 70, Offload: lab.OffloadWire}, "--mtu", fmt.Sprint(largest))
	wire := captureUnderlay(t, c.nodes[0])
	for _, to := range []*lab.Pod{c.a2, c.b1} {
		serveDigests(t, to, 7100)
	}
	sizes := []int{576, 1035, 1280, 1281, 1409, 1500, 4097, 8191, 8999, 9000}
	if labtest.Long() {
		sizes = nil
		for n := 576; n <= largest; n += 77 {
			sizes = append(sizes, n)
		}
		sizes = append(sizes, 1280, largest)
	}
	for _, mtu := range sizes {
		if mtu >= 1280 { // IPv6 leaves an interface with less (RFC 8200 section 5)
			for _, p := range []*lab.Pod{c.a1, c.a2, c.b1} {
				if err := p.SetMTU("eth0", mtu); err != nil {
					t.Fatal(err)
				}
			}
		}
		wire.largest.Store(0)
		c.eachPath(func(t *testing.T, from, to *lab.Pod, family int) {
			if family == 6 && mtu < 1280 {
				return
			}
			addr := netip.AddrPortFrom(to.IP(family), 7100)
			if err := fillMTU(from, addr, mtu); err != nil {
				t.Errorf("MTU %d: UDP that fills it: %v", mtu, err)
			}
			if err := bulkTCP(from, addr, mtu, 512<<10); err != nil {
				t.Errorf("MTU %d: TCP: %v", mtu, err)
			}
		})
		limit := int64(mtu + vxlanOverhead(c.nodes[0].Underlay()))
		c.eventually("the capture has seen packets that fill the MTU", func() error {
			if got := wire.largest.Load(); got < limit-40 {
				return fmt.Errorf("MTU %d: the largest packet on the wire has %d bytes, want %d or a little less", mtu, got, limit)
			}
			return nil
		})
		if got := wire.largest.Load(); got > limit {
			t.Errorf("MTU %d: the largest packet on the wire has %d bytes, want %d at most", mtu, got, limit)
		}
	}
}

// ipHeaders is what IP and UDP headers take of a packet to an address.
func ipHeaders(a netip.Addr) int {
	if a.Is4() {
		return 20 + 8
	}
	return 40 + 8
}

// dialOptions opens a connection with socket options set before it connects.
func dialOptions(ns *lab.Namespace, network string, to netip.AddrPort, options ...[3]int) (net.Conn, error) {
	var conn net.Conn
	err := ns.Do(func() (err error) {
		d := net.Dialer{Timeout: 5 * time.Second, Control: func(_, _ string, rc syscall.RawConn) error {
			var err error
			for _, o := range options {
				if cerr := rc.Control(func(fd uintptr) { err = errors.Join(err, unix.SetsockoptInt(int(fd), o[0], o[1], o[2])) }); cerr != nil {
					return cerr
				}
			}
			return err
		}}
		conn, err = d.Dial(network, to.String())
		return err
	})
	return conn, err
}

// discover sets a UDP socket's treatment of DF (ip(7)), in either family.
func discover(a netip.Addr, v4, v6 int) [3]int {
	if a.Is4() {
		return [3]int{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, v4}
	}
	return [3]int{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, v6}
}

// serveDigests answers datagrams, and streams at their end, with their SHA-256.
func serveDigests(t *testing.T, p *lab.Pod, port uint16) {
	t.Helper()
	any6 := netip.AddrPortFrom(netip.IPv6Unspecified(), port)
	listenUDP(t, p.Namespace, any6, func(_ netip.AddrPort, b []byte) []byte {
		sum := sha256.Sum256(b)
		return sum[:]
	})
	listenTCP(t, p.Namespace, any6, func(conn net.Conn) {
		h := sha256.New()
		if _, err := io.Copy(h, conn); err == nil {
			conn.Write(h.Sum(nil))
		}
	})
}

// fillMTU sends datagrams with DF whose packets are exactly as large as the MTU.
func fillMTU(from *lab.Pod, to netip.AddrPort, mtu int) error {
	conn, err := dialOptions(from.Namespace, "udp", to, discover(to.Addr(), unix.IP_PMTUDISC_DO, unix.IPV6_PMTUDISC_DO))
	if err != nil {
		return err
	}
	defer conn.Close()
	payload := make([]byte, mtu-ipHeaders(to.Addr()))
	for i := range payload {
		payload[i] = byte(i * 31)
	}
	want := sha256.Sum256(payload)
	return exchange(conn, payload, want[:])
}

// bulkTCP sends n bytes in segments that fit the MTU and compares digests.
func bulkTCP(from *lab.Pod, to netip.AddrPort, mtu, n int) error {
	conn, err := dialOptions(from.Namespace, "tcp", to, [3]int{unix.IPPROTO_TCP, unix.TCP_MAXSEG, mtu - ipHeaders(to.Addr()) - 12})
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	sent := sha256.New()
	if err := pour(io.MultiWriter(conn, sent), n); err != nil {
		return err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	if string(got) != string(sent.Sum(nil)) {
		return errors.New("what arrived is not what was sent")
	}
	return nil
}

// capture watches the IP packets that leave a node's underlay device.
type capture struct{ largest atomic.Int64 } // bytes, of UDP to the tunnel's port

func captureUnderlay(t *testing.T, n *lab.Node) *capture {
	t.Helper()
	var fd int
	err := n.Do(func() (err error) {
		links, err := n.Netlink().LinkList()
		if err != nil {
			return err
		}
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Type() == "veth" {
				return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: l.Attrs().Index})
			}
		}
		return errors.New("the node has no veth device")
	})
	if err != nil {
		t.Fatal(err)
	}
	tv := unix.NsecToTimeval((100 * time.Millisecond).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	c := &capture{}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 64)
		for {
			select {
			case <-stop:
				return
			default:
			}
			got, from, err := unix.Recvfrom(fd, b, unix.MSG_TRUNC)
			if err != nil {
				continue // nothing for a while
			}
			if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype == unix.PACKET_OUTGOING && isTunnel(b) && int64(got) > c.largest.Load() {
				c.largest.Store(int64(got))
			}
		}
	})
	t.Cleanup(func() { close(stop); wg.Wait(); unix.Close(fd) })
	return c
}

// isTunnel tells UDP to ports 8472 and on in an IP packet without options.
func isTunnel(ip []byte) bool {
	proto, l4 := ip[9], ip[20:]
	if ip[0]>>4 == 6 {
		proto, l4 = ip[6], ip[40:]
	}
	return proto == unix.IPPROTO_UDP && l4[2] == 8472>>8 && l4[3] >= 8472&0xff
}

// narrowed is a cluster whose pods have a larger MTU than the tunnel, with a
// service on each node.
func narrowed(t *testing.T) (c *cluster, vip map[*lab.Pod]service, tunnelMTU int) {
	t.Helper()
	c = newClusterOn(t, lab.Config{}, "--mtu", "9000")
	tunnelMTU = 1500 - vxlanOverhead(c.nodes[0].Underlay())
	vip = map[*lab.Pod]service{}
	for _, p := range []*lab.Pod{c.a2, c.b1} {
		serveDigests(t, p, 7100)
		vip[p] = c.digestService(p)
	}
	return c, vip, tunnelMTU
}

// digestService gives a pod's port 7100 a service.
func (c *cluster) digestService(p *lab.Pod) service {
	c.t.Helper()
	name := "digest-" + p.Spec.Name
	c.apply(fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  ports: [{name: udp, port: 71, targetPort: 7100, protocol: UDP}, {name: tcp, port: 71, targetPort: 7100, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s-4, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv4
ports: [{name: udp, port: 7100, protocol: UDP}, {name: tcp, port: 7100, protocol: TCP}]
endpoints: [{addresses: ["%[2]v"]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s-6, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv6
ports: [{name: udp, port: 7100, protocol: UDP}, {name: tcp, port: 7100, protocol: TCP}]
endpoints: [{addresses: ["%[3]v"]}]
`, name, p.IPv4, p.IPv6))
	s := c.service(name)
	c.eventually("the service answers", func() error {
		for _, family := range []int{4, 6} {
			if err := fillMTU(c.a1, netip.AddrPortFrom(s.ip(family), 71), 1300); err != nil {
				return err
			}
		}
		return nil
	})
	return s
}

// Case 5: a packet with DF that is too large for the tunnel is answered with the
// tunnel's MTU, and the sender takes it: straight, and through a service,
// where the sender knows the packet by the service's address alone.
func TestPathMTUDiscovery(t *testing.T) {
	c, vips, tunnelMTU := narrowed(t)
	for _, family := range []int{4, 6} {
		s := vips[c.b1]
		for name, to := range map[string]netip.AddrPort{
			"straight":          netip.AddrPortFrom(c.b1.IP(family), 7100),
			"through a service": netip.AddrPortFrom(s.ip(family), 71),
		} {
			t.Run(fmt.Sprintf("%s, IPv%d", name, family), func(t *testing.T) {
				conn, err := dialOptions(c.a1.Namespace, "udp", to, discover(to.Addr(), unix.IP_PMTUDISC_DO, unix.IPV6_PMTUDISC_DO))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				c.in(t).eventually("the socket learns the path's MTU", func() error {
					if _, err := conn.Write(make([]byte, 4000)); err == nil {
						return errors.New("4,000 bytes with DF were taken")
					} else if !errors.Is(err, unix.EMSGSIZE) {
						return err
					}
					return nil
				})
				if got := pathMTU(t, conn, family); got != tunnelMTU {
					t.Errorf("path MTU %d, want the tunnel's %d", got, tunnelMTU)
				}
				if err := fillMTU(c.a1, to, tunnelMTU); err != nil {
					t.Errorf("a packet of that size: %v", err)
				}
				if err := bulkTCP(c.a1, to, 8000, 2<<20); err != nil {
					t.Errorf("TCP: %v", err)
				}
			})
		}
	}
}

func pathMTU(t *testing.T, conn net.Conn, family int) int {
	t.Helper()
	rc, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var mtu int
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if family == 6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	if cerr := rc.Control(func(fd uintptr) { mtu, err = unix.GetsockoptInt(int(fd), level, option) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return mtu
}

// Case 6 with real kernels at both ends: datagrams of every size in fragments,
// straight and through a service, on a node and across, and, in IPv4 without
// DF, in packets that the switch has to cut.
func TestFragmentedDatagrams(t *testing.T) {
	c, vips, _ := narrowed(t)
	c.eachPath(func(t *testing.T, from, to *lab.Pod, family int) {
		s := vips[to]
		for name, addr := range map[string]netip.AddrPort{
			"straight":          netip.AddrPortFrom(to.IP(family), 7100),
			"through a service": netip.AddrPortFrom(s.ip(family), 71),
		} {
			conn, err := dialOptions(from.Namespace, "udp", addr, discover(addr.Addr(), unix.IP_PMTUDISC_DONT, unix.IPV6_PMTUDISC_WANT))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for _, n := range []int{1200, 1422, 1473, 3000, 8900, 9001, 20000, 65000} {
				payload := make([]byte, n)
				for i := range payload {
					payload[i] = byte(i*7 + n)
				}
				want := sha256.Sum256(payload)
				if err := exchange(conn, payload, want[:]); err != nil {
					t.Errorf("%s, %d bytes: %v", name, n, err)
				}
			}
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if out, err := c.a1.Exec(ctx, lab.Command{Path: "ping", Args: []string{"-n", "-c", "3", "-i", "0.01", "-w", "5", "-s", "20000", c.b1.IPv4.String()}}); err != nil {
		t.Errorf("ping with 20,000 bytes: %v\n%s", err, out)
	}
}

// The path between two nodes becomes narrower while they talk: pods learn it, by
// the tunnel and the switch, straight and through a service, and connections go on.
func TestPathBecomesNarrower(t *testing.T) {
	c := newCluster(t)
	serveDigests(t, c.b1, 7100)
	s := c.digestService(c.b1)
	wide := 1500 - vxlanOverhead(c.nodes[0].Underlay())
	const narrowUnderlay = 1402
	want := narrowUnderlay - vxlanOverhead(c.nodes[0].Underlay())

	targets := map[string]netip.AddrPort{}
	streams := map[string]net.Conn{}
	for _, family := range []int{4, 6} {
		targets[fmt.Sprintf("straight, IPv%d", family)] = netip.AddrPortFrom(c.b1.IP(family), 7100)
		targets[fmt.Sprintf("through a service, IPv%d", family)] = netip.AddrPortFrom(s.ip(family), 71)
	}
	for name, to := range targets {
		if err := fillMTU(c.a1, to, wide); err != nil {
			t.Fatalf("%s: %d bytes before: %v", name, wide, err)
		}
		conn, err := dial(c.a1.Namespace, "tcp", netip.AddrPort{}, to)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		streams[name] = conn
	}
	c.routeThroughNarrow(narrowUnderlay)
	for name, to := range targets {
		t.Run(name, func(t *testing.T) {
			conn := streams[name]
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			sent := sha256.New()
			if err := pour(io.MultiWriter(conn, sent), 4<<20); err != nil {
				t.Fatal(err)
			}
			conn.(*net.TCPConn).CloseWrite()
			if got, err := io.ReadAll(conn); err != nil || string(got) != string(sent.Sum(nil)) {
				t.Errorf("a connection made before: %v, or other bytes than were sent", err)
			}
			family := 6
			if to.Addr().Is4() {
				family = 4
			}
			u, err := dialOptions(c.a1.Namespace, "udp", to, discover(to.Addr(), unix.IP_PMTUDISC_DO, unix.IPV6_PMTUDISC_DO))
			if err != nil {
				t.Fatal(err)
			}
			defer u.Close()
			c.in(t).eventually("the socket learns the path's MTU", func() error {
				if _, err := u.Write(make([]byte, wide-ipHeaders(to.Addr()))); errors.Is(err, unix.EMSGSIZE) {
					return nil
				}
				return errors.New("packets of the wide path's size are taken")
			})
			if got := pathMTU(t, u, family); got != want {
				t.Errorf("path MTU %d, want %d", got, want)
			}
			if err := fillMTU(c.a1, to, want); err != nil {
				t.Errorf("a packet of that size: %v", err)
			}
		})
	}
	t.Run("a NodePort from outside", func(t *testing.T) { c.testNarrowNodePort(t, s) })
}

// The netstack's own packets are too large as well: a client outside pours through
// a NodePort of the node that the narrow path begins at.
func (c *cluster) testNarrowNodePort(t *testing.T, s service) {
	outside, err := c.lab.Outside()
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(c.nodes[0].Underlay4, s.nodePort(t, "tcp"))
	if err := bulkTCP(&lab.Pod{Namespace: outside.Namespace}, to, 1500, 4<<20); err != nil {
		t.Error(err)
	}
}

// routeThroughNarrow sends what the first node sends to the second through the
// outside machine, whose route on says that it carries mtuBytes.
func (c *cluster) routeThroughNarrow(mtuBytes int) {
	c.t.Helper()
	outside, err := c.lab.Outside()
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	far := c.nodes[1].Underlay4.String()
	for key, value := range map[string]string{"net.ipv4.ip_forward": "1", "net.ipv4.conf.all.send_redirects": "0", "net.ipv4.conf.eth0.send_redirects": "0"} {
		if err := outside.Sysctl(key, value); err != nil {
			c.t.Fatal(err)
		}
	}
	for ns, args := range map[*lab.Namespace][]string{
		outside.Namespace:    {"route", "replace", far + "/32", "dev", "eth0", "mtu", "lock", fmt.Sprint(mtuBytes)},
		c.nodes[0].Namespace: {"route", "replace", far + "/32", "via", outside.Underlay4.String(), "dev", "eth0"},
	} {
		if out, err := ns.Exec(ctx, lab.Command{Path: "ip", Args: args}); err != nil {
			c.t.Fatalf("ip %v: %v\n%s", args, err, out)
		}
	}
}
