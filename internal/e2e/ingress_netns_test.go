package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/lab"
	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/tunnel/vxlan"
	"vswitch/vswitch/frame"
)

const farService = `
apiVersion: v1
kind: Service
metadata: {name: far, namespace: default}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: far}
  ports:
  - {name: tcp, port: 80, targetPort: 8080, protocol: TCP}
  - {name: udp, port: 80, targetPort: 8080, protocol: UDP}
  - {name: echo-tcp, port: 7, targetPort: 7777, protocol: TCP}
  - {name: echo-udp, port: 7, targetPort: 7777, protocol: UDP}
`

// far is a cluster with a service whose one endpoint is on the second node, and a
// client outside.
type far struct {
	*cluster
	pod     *lab.Pod
	service service
	outside *lab.Node
}

func newFar(t *testing.T) *far {
	t.Helper()
	f := &far{cluster: newCluster(t)}
	f.pod = f.cluster.pod(1, "far", map[string]string{"app": "far"})
	serveName(t, f.pod, 8080)
	any6 := netip.AddrPortFrom(netip.IPv6Unspecified(), 7777)
	listenTCP(t, f.pod.Namespace, any6, func(c net.Conn) { io.Copy(c, c) })
	listenUDP(t, f.pod.Namespace, any6, func(_ netip.AddrPort, b []byte) []byte { return b })
	f.apply(farService)
	f.service = f.cluster.service("far")
	var err error
	if f.outside, err = f.lab.Outside(); err != nil {
		t.Fatal(err)
	}
	for _, node := range f.nodes {
		for _, a := range []netip.Addr{node.Underlay4, node.Underlay6} {
			for _, network := range []string{"tcp", "udp"} {
				f.eventually("the endpoint answers", func() error {
					_, err := ask(f.outside.Namespace, network, f.at(a, network), "who")
					return err
				})
			}
		}
	}
	return f
}

func (f *far) at(node netip.Addr, port string) netip.AddrPort {
	return netip.AddrPortFrom(node, f.service.nodePort(f.t, port))
}

func (f *far) client(node netip.Addr) netip.Addr {
	if node.Is6() {
		return f.outside.Underlay6
	}
	return f.outside.Underlay4
}

// A server on the second node sees the client's own address, whichever node the
// client came to, over TCP and UDP, IPv4 and IPv6, and what it answers arrives.
func TestClientAddressIsKeptAcrossNodes(t *testing.T) {
	f := newFar(t)
	for i, node := range f.nodes {
		for _, a := range []netip.Addr{node.Underlay4, node.Underlay6} {
			for _, network := range []string{"tcp", "udp"} {
				s, err := ask(f.outside.Namespace, network, f.at(a, network), "who")
				if name, from := answer(s); err != nil || name != "far" || from != f.client(a) {
					t.Errorf("%s to node %d at %v: %q, %v; want far to see %v", network, i, a, s, err, f.client(a))
				}
			}
		}
	}
	node := f.nodes[0]
	for _, a := range []netip.Addr{node.Underlay4, node.Underlay6} {
		t.Run(fmt.Sprintf("bulk to %v", a), func(t *testing.T) { f.testBulk(t, a) })
		t.Run(fmt.Sprintf("datagrams in pieces to %v", a), func(t *testing.T) { f.testLargeDatagrams(t, a) })
	}
	t.Run("a client that is a node is shown by the router address", func(t *testing.T) {
		s, err := ask(f.nodes[1].Namespace, "tcp", f.at(node.Underlay4, "tcp"), "who")
		if _, from := answer(s); err != nil || !f.isRouter(from) {
			t.Errorf("%q, %v", s, err)
		}
	})
	for _, n := range f.nodes {
		d := nodeDrops(t, n)
		for _, reason := range []string{"ingress-source", "not-exposed", "source-taken", "foreign-source", "no-peer"} {
			if d[reason] != 0 {
				t.Errorf("%d frames dropped as %s", d[reason], reason)
			}
		}
	}
}

// isRouter reports whether a is a node's router address, the first of a pod CIDR.
func (f *far) isRouter(a netip.Addr) bool {
	var rows []struct{ PodCIDRs []netip.Prefix }
	get(f.t, f.nodes[0], "nodes", &rows)
	for _, r := range rows {
		for _, p := range r.PodCIDRs {
			if p.Addr().Next() == a {
				return true
			}
		}
	}
	return false
}

func (f *far) testBulk(t *testing.T, a netip.Addr) {
	conn, err := dial(f.outside.Namespace, "tcp", netip.AddrPort{}, f.at(a, "echo-tcp"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	go func() {
		conn.Write(sent)
		conn.(*net.TCPConn).CloseWrite()
	}()
	if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(sent), err)
	}
}

// A datagram beyond the tunnel's MTU is cut on its way in and on its way back.
func (f *far) testLargeDatagrams(t *testing.T, a netip.Addr) {
	conn, err := dial(f.outside.Namespace, "udp", netip.AddrPort{}, f.at(a, "echo-udp"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent := bytes.Repeat([]byte("datagram"), 1000)
	f.in(t).eventually("the datagram comes back whole", func() error {
		if _, err := conn.Write(sent); err != nil {
			return err
		}
		conn.SetReadDeadline(time.Now().Add(time.Second))
		b := make([]byte, 65536)
		n, err := conn.Read(b)
		if err == nil && !bytes.Equal(b[:n], sent) {
			t.Fatalf("%d bytes came back of %d, or not the same", n, len(sent))
		}
		return err
	})
}

// One client uses one source port to both nodes at once, to one endpoint: both
// conversations work, and the server sees the client's address in both.
func TestOneSourcePortByTwoNodes(t *testing.T) {
	f := newFar(t)
	for _, v6 := range []bool{false, true} {
		var at []netip.Addr
		for _, n := range f.nodes {
			a := n.Underlay4
			if v6 {
				a = n.Underlay6
			}
			at = append(at, a)
		}
		t.Run(fmt.Sprintf("TCP from %v", f.client(at[0])), func(t *testing.T) {
			reuse := func(_, _ string, c syscall.RawConn) (err error) {
				c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
				return err
			}
			local := &net.TCPAddr{IP: f.client(at[0]).AsSlice()}
			var conns []net.Conn
			for _, a := range at {
				err := f.outside.Namespace.Do(func() error {
					d := net.Dialer{LocalAddr: local, Control: reuse, Timeout: 5 * time.Second}
					c, err := d.Dial("tcp", f.at(a, "echo-tcp").String())
					if err == nil {
						local = c.LocalAddr().(*net.TCPAddr)
						conns = append(conns, c)
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			for i, c := range conns {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				if err := echoes(c, fmt.Sprintf("to node %d", i)); err != nil {
					t.Errorf("node %d: %v", i, err)
				}
			}
		})
		t.Run(fmt.Sprintf("UDP from %v", f.client(at[0])), func(t *testing.T) {
			var sock *net.UDPConn
			err := f.outside.Namespace.Do(func() (err error) {
				sock, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.client(at[0]), 0)))
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			defer sock.Close()
			for range 3 {
				for _, a := range at {
					f.in(t).eventually("an answer comes from the node asked", func() error {
						if _, err := sock.WriteToUDPAddrPort([]byte("who"), f.at(a, "udp")); err != nil {
							return err
						}
						b := make([]byte, 100)
						sock.SetReadDeadline(time.Now().Add(time.Second))
						n, from, err := sock.ReadFromUDPAddrPort(b)
						if err != nil {
							return err
						}
						if from.Addr().Unmap() != a {
							return fmt.Errorf("asked %v, answered by %v", a, from)
						}
						if _, saw := answer(string(b[:n])); saw != f.client(a) {
							t.Errorf("the server saw %v", saw)
						}
						return nil
					})
				}
			}
		})
	}
}

// Frames forged in the ingress network, by a member that has lost its mind and by
// a stranger: none reaches a pod, each has its counter.
func TestForgedIngressIsDropped(t *testing.T) {
	f := newFar(t)
	var rows []struct {
		Name       string
		VTEPMAC    string
		IngressVNI uint32
	}
	get(t, f.nodes[0], "nodes", &rows)
	mac := func(node string) [6]byte {
		i := slices.IndexFunc(rows, func(r struct {
			Name       string
			VTEPMAC    string
			IngressVNI uint32
		}) bool {
			return r.Name == node
		})
		m, err := frame.ParseMAC(rows[i].VTEPMAC)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	vni := rows[0].IngressVNI
	if vni == 0 || vni != vxlan.IngressVNI(vxlan.DefaultVNI) {
		t.Fatalf("the nodes announce ingress VNI %d", vni)
	}
	marker := []byte("forged, must not be seen")
	victim := openRaw(t, f.pod)
	a, b := f.nodes[0], f.nodes[1]
	inner := func(p wiretest.Packet) []byte {
		p.SrcMAC, p.DstMAC = mac(a.Host), mac(b.Host)
		p.SrcPort, p.Payload = 40001, marker
		if p.Proto == 0 {
			p.Proto = wire.ProtoUDP
		}
		if p.DstPort == 0 {
			p.DstPort = 8080
		}
		if !p.Dst.IsValid() {
			p.Dst = f.pod.IPv4
		}
		return p.Frame()
	}
	client := f.outside.Underlay4
	for _, tt := range []struct {
		name   string
		vni    uint32
		from   *lab.Node
		packet []byte
		reason string
	}{
		{"from a pod's address of its own", vni, a, inner(wiretest.Packet{Src: f.a1.IPv4}), "ingress-source"},
		{"from a pod's address of the receiver's", vni, a, inner(wiretest.Packet{Src: f.b1.IPv4}), "ingress-source"},
		{"from a service's address", vni, a, inner(wiretest.Packet{Src: f.service.ip(4)}), "ingress-source"},
		{"from a node's address", vni, a, inner(wiretest.Packet{Src: b.Underlay4}), "ingress-source"},
		{"from loopback", vni, a, inner(wiretest.Packet{Src: netip.MustParseAddr("127.0.0.1")}), "ingress-source"},
		{"to a port that is not exposed", vni, a, inner(wiretest.Packet{Src: client, DstPort: 9999}), "not-exposed"},
		{"to a pod that is not exposed", vni, a, inner(wiretest.Packet{Src: client, Dst: f.b1.IPv4}), "not-exposed"},
		{"an echo request", vni, a, inner(wiretest.Packet{Src: client, Proto: wire.ProtoICMP, ICMPType: wire.ICMPEcho}), "not-exposed"},
		{"from outside in the ordinary network", vxlan.DefaultVNI, a, inner(wiretest.Packet{Src: client}), "foreign-source"},
		{"by a stranger", vni, f.outside, inner(wiretest.Packet{Src: client}), "not-member"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := nodeDrops(t, b)[tt.reason]
			sendVXLAN(t, tt.from, b.Underlay4, tt.vni, tt.packet)
			f.in(t).eventually("it is counted as "+tt.reason, func() error {
				if d := nodeDrops(t, b); d[tt.reason] == before {
					return fmt.Errorf("drops are %v", d)
				}
				return nil
			})
		})
	}
	// A last honest one: what was sent before it is through.
	conn, err := dial(f.outside.Namespace, "udp", netip.AddrPort{}, f.at(a.Underlay4, "udp"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	honest := []byte("honest")
	if _, err := conn.Write(honest); err != nil {
		t.Fatal(err)
	}
	victim.until(t, honest, marker)
}

// sendVXLAN sends a frame from the tunnel's first port of a node, which the daemon
// has, so by a raw socket.
func sendVXLAN(t *testing.T, from *lab.Node, to netip.Addr, vni uint32, inner []byte) {
	t.Helper()
	b := make([]byte, wire.UDPBytes+vxlan.HeaderBytes, wire.UDPBytes+vxlan.HeaderBytes+len(inner))
	binary.BigEndian.PutUint16(b, vxlan.DefaultPort)
	binary.BigEndian.PutUint16(b[2:], vxlan.DefaultPort)
	binary.BigEndian.PutUint16(b[4:], uint16(cap(b))) // no checksum, which IPv4 allows
	b[8] = 8
	binary.BigEndian.PutUint32(b[12:], vni<<8)
	b = append(b, inner...)
	err := from.Namespace.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: to.As4()})
	})
	if err != nil {
		t.Fatal(err)
	}
}
