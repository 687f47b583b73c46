package gateway

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// These tests need a node with a real outside: the test binary runs itself in a
// network namespace of its own, the node, joined by a veth pair with another, the
// outside. Both vanish with the process.

var (
	node4, outside4 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.7")
	node6, outside6 = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::7")
)

var outsideFamilies = []family{
	{name: "IPv4", pod: pod4, host: outside4, loopback: node4.String(), router: router4, network: "tcp4", udp: "udp4"},
	{name: "IPv6", pod: pod6, host: outside6, loopback: node6.String(), router: router6, network: "tcp6", udp: "udp6"},
}

const onNodeEnv = "VSWITCH_TEST_ON_NODE"

// onNode runs the calling test in the node's namespace; in the outer process it
// returns false, when all is done.
func onNode(t *testing.T) (*outside, bool) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	if os.Getenv(onNodeEnv) != "" {
		return newOutside(t), true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), onNodeEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("on the node: %v\n%s", err, out)
	}
	return nil, false
}

// outside is the namespace at the veth pair's other end.
type outside struct {
	t    *testing.T
	ns   netns.NsHandle
	node netns.NsHandle
}

func newOutside(t *testing.T) *outside {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	o := &outside{t: t}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	o.node, err = netns.Get()
	must(err)
	o.ns, err = netns.New()
	must(err)
	must(netns.Set(o.node))
	t.Cleanup(func() { o.ns.Close(); o.node.Close() })
	must(os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0))

	here, err := netlink.NewHandleAt(o.node)
	must(err)
	defer here.Close()
	there, err := netlink.NewHandleAt(o.ns)
	must(err)
	defer there.Close()
	must(here.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "up"}, PeerName: "down", PeerNamespace: netlink.NsFd(o.ns),
	}))
	for _, end := range []struct {
		h     *netlink.Handle
		link  string
		addrs []string
	}{
		{here, "lo", nil}, {here, "up", []string{node4.String() + "/24", node6.String() + "/64"}},
		{there, "lo", nil}, {there, "down", []string{outside4.String() + "/24", outside6.String() + "/64"}},
	} {
		l, err := end.h.LinkByName(end.link)
		must(err)
		for _, a := range end.addrs {
			addr, err := netlink.ParseAddr(a)
			must(err)
			if addr.IP.To4() == nil {
				addr.Flags = unix.IFA_F_NODAD
			}
			must(end.h.AddrAdd(l, addr))
		}
		must(end.h.LinkSetUp(l))
	}
	return o
}

// do runs f on a thread in the outside namespace: the sockets it opens belong there.
func (o *outside) do(f func() error) {
	o.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := netns.Set(o.ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	if err := <-done; err != nil {
		o.t.Fatal(err)
	}
}

func (o *outside) dial(network, addr string) (c net.Conn) {
	o.t.Helper()
	eventually(o.t, "route to "+addr, func() (ok bool) {
		o.do(func() error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			var err error
			c, err = new(net.Dialer).DialContext(ctx, network, addr)
			ok = err == nil
			return nil
		})
		return ok
	})
	o.t.Cleanup(func() { c.Close() })
	return c
}

func hostPorts(c *Config) { c.NoNodePorts, c.HostLoopback = false, nil }

func TestNodePortOutside(t *testing.T) {
	o, here := onNode(t)
	if !here {
		return
	}
	for _, fam := range outsideFamilies {
		t.Run(fam.name, func(t *testing.T) {
			g, n := start(t, hostPorts)
			from := podServer(n, fam)
			tcp, udp := published(wire.ProtoTCP, 30080), published(wire.ProtoUDP, 30080)
			udp.PortName = "udp"
			for _, s := range []Service{tcp, udp} {
				if err := g.PutService(s); err != nil {
					t.Fatal(err)
				}
			}
			// Neither the wildcard nor loopback nor the link-local address.
			var open []netip.AddrPort
			for _, s := range g.Listeners() {
				if s.Err == nil && s.Protocol == wire.ProtoTCP {
					open = append(open, s.Addr)
				}
			}
			if want := []netip.AddrPort{netip.AddrPortFrom(node4, 30080), netip.AddrPortFrom(node6, 30080)}; !slices.Equal(open, want) {
				t.Errorf("open at %v, want %v", open, want)
			}
			if _, err := net.Dial("tcp", "127.0.0.1:30080"); !refused(err) {
				t.Errorf("dial to loopback gave %v, want connection refused", err)
			}

			c := o.dial(fam.network, fam.hostPort(30080))
			exchange(t, c.(*net.TCPConn), 1<<20)
			if got, want := <-from, c.LocalAddr().(*net.TCPAddr).AddrPort(); got != want {
				t.Errorf("the pod saw %v, want the client %v", got, want)
			}
			// From the node itself the address can't be kept.
			c, err := net.Dial(fam.network, fam.hostPort(30080))
			if err != nil {
				t.Fatal(err)
			}
			exchange(t, c.(*net.TCPConn), 1<<10)
			if got := (<-from).Addr(); got != fam.router {
				t.Errorf("the pod saw %v, want the router address %v", got, fam.router)
			}
			c.Close()

			server := n.Pods()[0].ListenUDP(netip.AddrPortFrom(fam.pod, 8080))
			seen := make(chan net.Addr, 1)
			go func() {
				b := make([]byte, 100)
				k, a, err := server.ReadFrom(b)
				if err == nil {
					seen <- a
					server.WriteTo(b[:k], a)
				}
			}()
			u := o.dial(fam.udp, fam.hostPort(30080))
			u.Write([]byte("question"))
			u.SetReadDeadline(time.Now().Add(20 * time.Second))
			b := make([]byte, 100)
			if k, err := u.Read(b); err != nil || string(b[:k]) != "question" {
				t.Fatalf("read %q, %v", b[:k], err)
			}
			if got, want := (<-seen).String(), u.LocalAddr().String(); got != want {
				t.Errorf("the pod saw %v over UDP, want the client %v", got, want)
			}
		})
	}
}

func TestNodePortsFollowTheHostsAddresses(t *testing.T) {
	_, here := onNode(t)
	if !here {
		return
	}
	g, _ := start(t, func(c *Config) { hostPorts(c); c.NodePortRetry = time.Hour }) // the kernel tells
	if err := g.PutService(published(wire.ProtoTCP, 30080)); err != nil {
		t.Fatal(err)
	}
	l, err := netlink.LinkByName("up")
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := netlink.ParseAddr("198.51.100.1/32")
	if err := netlink.AddrAdd(l, addr); err != nil {
		t.Fatal(err)
	}
	open := func() bool {
		return slices.ContainsFunc(g.Listeners(), func(s ListenerStatus) bool {
			return s.Addr == netip.MustParseAddrPort("198.51.100.1:30080") && s.Err == nil
		})
	}
	eventually(t, "open at the new address", open)
	if err := netlink.AddrDel(l, addr); err != nil {
		t.Fatal(err)
	}
	eventually(t, "closed at the address that went", func() bool { return !open() })
}

func TestNodePortToAnotherNodesProgram(t *testing.T) {
	o, here := onNode(t)
	if !here {
		return
	}
	for _, fam := range outsideFamilies {
		t.Run(fam.name, func(t *testing.T) {
			var l net.Listener
			o.do(func() (err error) {
				l, err = net.Listen(fam.network, net.JoinHostPort(fam.host.String(), "8080"))
				return err
			})
			defer l.Close()
			go func() {
				c, err := l.Accept()
				if err == nil {
					echo(c.(*net.TCPConn))
					c.Close()
				}
			}()
			g, _ := start(t, hostPorts)
			s := published(wire.ProtoTCP, 30080)
			s.Endpoints = []Endpoint{{Addr: fam.host, Port: 8080, ID: 9, Cluster: true}}
			if err := g.PutService(s); err != nil {
				t.Fatal(err)
			}
			exchange(t, o.dial(fam.network, fam.hostPort(30080)).(*net.TCPConn), 1<<20)
		})
	}
}

func TestPingOutside(t *testing.T) {
	_, here := onNode(t)
	if !here {
		return
	}
	for _, fam := range outsideFamilies {
		t.Run(fam.name, func(t *testing.T) {
			g, n := start(t, hostPorts)
			answers := make(chan []byte, 16)
			n.Watch(func(f *frame.Frame, fromGateway bool) {
				if fromGateway {
					answers <- bytes.Clone(f.Bytes())
				}
			})
			request := echoRequest(fam, 1000)
			if r := n.Inject(request); r != drop.None {
				t.Fatal(r)
			}
			var h wire.Headers
			b := <-answers
			if r := wire.Parse(b, &h); r != drop.None || !wiretest.TransportIntact(b) {
				t.Fatalf("the reply is malformed: %v", r)
			}
			if !h.IsEcho() || h.Src.Netip() != fam.host || h.Dst.Netip() != fam.pod || h.SrcPort != 77 {
				t.Fatalf("the reply is %+v", h)
			}
			if want := request.Bytes()[len(request.Bytes())-1002:]; !bytes.Equal(b[h.L4Off+6:h.End], want) {
				t.Error("sequence or payload differ")
			}
			// Another identifier is another session, on another socket: the same remote.
			second := echoRequest(fam, 10)
			p := wiretest.Packet{Src: fam.pod, Dst: fam.host, Proto: h.Proto, ICMPType: request.Bytes()[h.L4Off], EchoID: 78, EchoSeq: 1}
			second.Set(p.Frame())
			if r := n.Inject(second); r != drop.None {
				t.Fatal(r)
			}
			wire.Parse(<-answers, &h)
			if s := g.Stats(); h.SrcPort != 78 || s.Sessions != 2 || s.HostSockets != 2 {
				t.Errorf("identifier %d, %d sessions on %d sockets", h.SrcPort, s.Sessions, s.HostSockets)
			}
		})
	}
}

// Where the host allows no ping sockets each ping is answered with an error, in both
// families, and the log says why once.
func TestForbiddenPingIsSaidOnce(t *testing.T) {
	_, here := onNode(t)
	if !here {
		return
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("1 0"), 0); err != nil { // nobody, as by default
		t.Fatal(err)
	}
	var log bytes.Buffer
	_, n := start(t, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	answers := make(chan []byte, 16)
	n.Watch(func(f *frame.Frame, fromGateway bool) { answers <- bytes.Clone(f.Bytes()) })
	for _, fam := range outsideFamilies {
		for range 3 {
			if r := n.Inject(echoRequest(fam, 56)); r != drop.EchoForbidden {
				t.Fatalf("%s: %v, want %v", fam.name, r, drop.EchoForbidden)
			}
			var h wire.Headers
			wire.Parse(<-answers, &h)
			want := adminProhibited.of(fam.pod.Is6())
			if got := (icmpKind{h.ICMPType, h.ICMPCode}); got != want || h.Dst.Netip() != fam.pod {
				t.Errorf("%s: answered %+v to %v, want %+v to %v", fam.name, got, h.Dst, want, fam.pod)
			}
		}
	}
	if said := strings.Count(log.String(), "net.ipv4.ping_group_range"); said != 1 {
		t.Errorf("said %d times, want once:\n%s", said, &log)
	}
}

// A ping larger than the MTU comes in fragments and is answered in fragments,
// which the netstacks at both ends join.
func TestLargePingOutside(t *testing.T) {
	_, here := onNode(t)
	if !here {
		return
	}
	for _, fam := range outsideFamilies {
		t.Run(fam.name, func(t *testing.T) {
			_, n := start(t, hostPorts)
			reply, err := n.Pod(fam.pod.String()).Ping(soon(t), fam.host, bytes.Repeat([]byte("large "), 1000))
			if err != nil || len(reply) != 6000 {
				t.Fatalf("%d bytes came back, %v", len(reply), err)
			}
		})
	}
}

func TestHopLimitIsPassedOn(t *testing.T) {
	o, here := onNode(t)
	if !here {
		return
	}
	for _, fam := range outsideFamilies {
		t.Run(fam.name, func(t *testing.T) {
			var c *net.UDPConn
			o.do(func() (err error) {
				c, err = net.ListenUDP(fam.udp, net.UDPAddrFromAddrPort(netip.AddrPortFrom(fam.host, 0)))
				return err
			})
			defer c.Close()
			raw, err := c.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			raw.Control(func(fd uintptr) {
				err = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTTL, 1))
				if fam.host.Is6() {
					err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			_, n := start(t, hostPorts)
			f := frame.New()
			f.Set(wiretest.Packet{
				Src: fam.pod, Dst: fam.host, Proto: wire.ProtoUDP, TTL: 17, SrcPort: 5000,
				DstPort: c.LocalAddr().(*net.UDPAddr).AddrPort().Port(), Payload: []byte("x"),
			}.Frame())
			if r := n.Inject(f); r != drop.None {
				t.Fatal(r)
			}
			oob := make([]byte, 64)
			c.SetReadDeadline(time.Now().Add(20 * time.Second))
			_, oobn, _, _, err := c.ReadMsgUDP(make([]byte, 10), oob)
			if err != nil {
				t.Fatal(err)
			}
			ms, err := unix.ParseSocketControlMessage(oob[:oobn])
			if err != nil || len(ms) != 1 || ms[0].Data[0] != 17 {
				t.Errorf("arrived with %+v (%v), want hop limit 17", ms, err)
			}
		})
	}
}
