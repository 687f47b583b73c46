package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/lab"
	"vswitch/internal/wiretest"
)

// A pod with CAP_NET_RAW says what it likes on its wire (cases 30, 32, 33, 35);
// nobody else hears it, and the counters name the pod.
func TestIsolation(t *testing.T) {
	c := newCluster(t)
	raw := openRaw(t, c.a1)
	victims := map[string]*rawSocket{"a2": openRaw(t, c.a2), "b1": openRaw(t, c.b1)}
	gateway := net.HardwareAddr{0x02, 0x76, 0x73, 0x77, 0, 1}
	own := [6]byte(c.a1.MAC)
	neighbour := [6]byte(c.a2.MAC)
	marker := []byte("forged by a1, must not be seen")
	udp := func(p wiretest.Packet) []byte {
		p.DstMAC = [6]byte(gateway)
		if p.SrcMAC == [6]byte{} {
			p.SrcMAC = own
		}
		p.Proto, p.SrcPort, p.DstPort, p.Payload = 17, 4000, 4001, marker
		return p.Frame()
	}
	addr := netip.MustParseAddr
	broadcast := [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	nd := func(icmpType uint8, src netip.Addr, target netip.Addr) []byte {
		return wiretest.Packet{SrcMAC: own, DstMAC: [6]byte{0x33, 0x33, 0, 0, 0, 1}, Src: src, Dst: addr("ff02::1"), TTL: 255,
			Proto: 58, ICMPType: icmpType, Payload: append(target.AsSlice(), append([]byte{2, 1}, own[:]...)...)}.Frame()
	}
	for _, tt := range []struct {
		name   string
		frame  []byte
		reason string
	}{
		{"another pod's IPv4 address", udp(wiretest.Packet{Src: c.a2.IPv4, Dst: c.b1.IPv4}), "spoofed-ip"},
		{"another pod's IPv6 address", udp(wiretest.Packet{Src: c.a2.IPv6, Dst: c.b1.IPv6}), "spoofed-ip"},
		{"a remote pod's address", udp(wiretest.Packet{Src: c.b1.IPv4, Dst: c.a2.IPv4}), "spoofed-ip"},
		{"the node's address", udp(wiretest.Packet{Src: c.nodes[0].Underlay4, Dst: c.a2.IPv4}), "spoofed-ip"},
		{"another pod's MAC", udp(wiretest.Packet{SrcMAC: neighbour, Src: c.a1.IPv4, Dst: c.a2.IPv4}), "spoofed-mac"},
		{"from loopback", udp(wiretest.Packet{Src: addr("127.0.0.1"), Dst: c.a2.IPv4}), "martian-source"},
		{"from IPv6 loopback", udp(wiretest.Packet{Src: addr("::1"), Dst: c.a2.IPv6}), "martian-source"},
		{"from this network", udp(wiretest.Packet{Src: addr("0.0.0.7"), Dst: c.a2.IPv4}), "martian-source"},
		{"from a multicast group", udp(wiretest.Packet{Src: addr("224.0.0.9"), Dst: c.a2.IPv4}), "martian-source"},
		{"to the node's loopback", udp(wiretest.Packet{Src: c.a1.IPv4, Dst: addr("127.0.0.1")}), "martian-target"},
		{"to IPv6 loopback", udp(wiretest.Packet{Src: c.a1.IPv6, Dst: addr("::1")}), "martian-target"},
		{"to the metadata service", udp(wiretest.Packet{Src: c.a1.IPv4, Dst: addr("169.254.169.254")}), "martian-target"},
		{"ARP that claims another pod", wiretest.ARP(broadcast, 2, own, c.a2.IPv4, broadcast, c.a2.IPv4), "spoofed-arp"},
		{"gratuitous ARP for the gateway", wiretest.ARP(broadcast, 1, own, addr("169.254.1.1"), broadcast, addr("169.254.1.1")), "spoofed-arp"},
		{"an advertisement for another pod", nd(136, c.a1.IPv6, c.a2.IPv6), "spoofed-nd"},
		{"an advertisement for the gateway", nd(136, c.a1.IPv6, addr("fe80::1")), "spoofed-nd"},
		{"a router advertisement", nd(134, addr("fe80::1234"), addr("fe80::1")), "rogue-ra"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := podDrops(t, c.nodes[0], "a1", tt.reason)
			raw.send(t, tt.frame)
			c.in(t).eventually("it is counted as "+tt.reason, func() error {
				if podDrops(t, c.nodes[0], "a1", tt.reason) == before {
					return fmt.Errorf("drops are %v", nodeDrops(t, c.nodes[0]))
				}
				return nil
			})
		})
	}

	// Case 35: VXLAN from inside: to the other node's tunnel port, through egress.
	t.Run("a pod can't speak to the tunnel", func(t *testing.T) {
		inner := wiretest.Packet{SrcMAC: own, Src: c.a2.IPv4, Dst: c.b1.IPv4, Proto: 17, DstPort: 4001, Payload: marker}.Frame()
		vxlan := append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, inner...)
		conn, err := dial(c.a1.Namespace, "udp", netip.AddrPort{}, netip.AddrPortFrom(c.nodes[1].Underlay4, 8472))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write(vxlan); err != nil {
			t.Fatal(err)
		}
		c.in(t).eventually("it is counted as tunnel-port", func() error {
			if podDrops(t, c.nodes[0], "a1", "tunnel-port") == 0 {
				return fmt.Errorf("drops are %v", nodeDrops(t, c.nodes[0]))
			}
			return nil
		})
	})

	// Cases 25 and 35 from outside: VXLAN from a machine that is no member.
	t.Run("a stranger's VXLAN is refused", func(t *testing.T) {
		outside, err := c.lab.Outside()
		if err != nil {
			t.Fatal(err)
		}
		inner := wiretest.Packet{SrcMAC: own, Src: c.b1.IPv4, Dst: c.a2.IPv4, Proto: 17, DstPort: 4001, Payload: marker}.Frame()
		conn, err := dial(outside.Namespace, "udp", netip.AddrPort{}, netip.AddrPortFrom(c.nodes[0].Underlay4, 8472))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, packet := range [][]byte{append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, inner...), {8, 0, 0}, make([]byte, 60)} {
			if _, err := conn.Write(packet); err != nil {
				t.Fatal(err)
			}
		}
		c.in(t).eventually("all are counted", func() error {
			d := nodeDrops(t, c.nodes[0])
			if d["not-member"]+d["not-vxlan"]+d["bad-inner"] < 3 {
				return fmt.Errorf("drops are %v", d)
			}
			return nil
		})
	})

	// A last honest datagram to each victim: what was sent before it is through.
	for name, to := range map[string]*lab.Pod{"a2": c.a2, "b1": c.b1} {
		honest := []byte("honest " + name)
		conn, err := dial(c.a1.Namespace, "udp", netip.AddrPort{}, netip.AddrPortFrom(to.IPv4, 4001))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(honest); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		victims[name].until(t, honest, marker)
	}
}

// Case 32: a user's EndpointSlice can't point at the node itself.
func TestForbiddenEndpointsAreRefused(t *testing.T) {
	c := newCluster(t)
	for _, a := range []string{"127.0.0.1", "169.254.169.254", "::1", "fe80::1", "224.0.0.1", "0.0.0.0"} {
		family := "IPv4"
		if addr := netip.MustParseAddr(a); addr.Is6() {
			family = "IPv6"
		}
		err := c.nodes[0].Apply(t.Context(), fmt.Sprintf(`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: bad, labels: {kubernetes.io/service-name: bad}}
addressType: %s
ports: [{port: 80}]
endpoints: [{addresses: ["%s"]}]
`, family, a))
		if err == nil {
			t.Errorf("an endpoint at %s was accepted", a)
		} else {
			t.Logf("%s: %v", a, err)
		}
	}
}

func podDrops(t *testing.T, node *lab.Node, pod, reason string) (n uint64) {
	t.Helper()
	var rows []struct {
		Name, Pod string
		Count     uint64
	}
	get(t, node, "drops", &rows)
	for _, r := range rows {
		if r.Name == reason && (r.Pod == pod || r.Pod == "default/"+pod) {
			n += r.Count
		}
	}
	return n
}

// rawSocket is an AF_PACKET socket on a pod's interface (packet(7)).
type rawSocket struct{ fd, ifindex int }

func openRaw(t *testing.T, p *lab.Pod) *rawSocket {
	t.Helper()
	s := &rawSocket{}
	err := p.Do(func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		s.ifindex = ifi.Index
		s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			return err
		}
		return unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: s.ifindex})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(s.fd) })
	return s
}

func htons(v uint16) uint16 { return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v)) }

func (s *rawSocket) send(t *testing.T, frame []byte) {
	t.Helper()
	if err := unix.Sendto(s.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: s.ifindex}); err != nil {
		t.Fatal(err)
	}
}

// until reads frames until one holds last, and fails if any holds forbidden.
func (s *rawSocket) until(t *testing.T, last, forbidden []byte) {
	t.Helper()
	tv := unix.NsecToTimeval((5 * time.Second).Nanoseconds())
	if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 65536)
	for {
		n, _, err := unix.Recvfrom(s.fd, b, 0)
		if err != nil {
			t.Fatalf("%q did not arrive: %v", last, err)
		}
		if contains(b[:n], string(forbidden)) {
			t.Errorf("a forged frame arrived: %x", b[:min(n, 80)])
		}
		if contains(b[:n], string(last)) {
			return
		}
	}
}
