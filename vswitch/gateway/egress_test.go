package gateway

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
	"vswitch/vswitch/gateway/gatewaytest"
)

func TestPodReachesHostOverTCP(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		_, n := start(t, nil)
		pod := n.Pod(pod4.String(), pod6.String())
		c, err := pod.DialTCP(soon(t), hostServer(t, fam, echo))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		exchange(t, c, 8<<20)
	})
}

// exchange sends n bytes to a peer that sends back what it gets, both at once,
// and ends by half-closing.
func exchange(t *testing.T, c interface {
	io.ReadWriter
	CloseWrite() error
}, n int) {
	t.Helper()
	sent := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(sent)
	go func() {
		c.Write(sent)
		c.CloseWrite()
	}()
	h := sha256.New()
	if got, err := io.Copy(h, c); err != nil || got != int64(n) {
		t.Fatalf("%d bytes came back, %v; want %d", got, err, n)
	}
	if want := sha256.Sum256(sent); !bytes.Equal(h.Sum(nil), want[:]) {
		t.Fatal("other bytes came back than were sent")
	}
}

// dial is a connection from pod to a host server, and the server's end.
func dial(t *testing.T, fam family, n *gatewaytest.Net) (*gonet.TCPConn, *net.TCPConn) {
	t.Helper()
	served, over := make(chan *net.TCPConn, 1), make(chan struct{})
	to := hostServer(t, fam, func(c *net.TCPConn) {
		served <- c
		<-over
	})
	t.Cleanup(func() { close(over) })
	c, err := n.Pod(fam.pod.String()).DialTCP(soon(t), to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, <-served
}

func TestHalfCloseReachesTheOtherSide(t *testing.T) {
	for _, first := range []string{"pod", "host"} {
		t.Run(first+" finishes first", func(t *testing.T) {
			_, n := start(t, nil)
			pod, host := dial(t, families[0], n)
			type end interface {
				io.ReadWriter
				CloseWrite() error
			}
			var a, b end = pod, host
			if first == "host" {
				a, b = host, pod
			}
			a.Write([]byte("question"))
			a.CloseWrite()
			if got, err := io.ReadAll(b); string(got) != "question" || err != nil {
				t.Fatalf("read %q, %v", got, err)
			}
			b.Write([]byte("answer"))
			b.CloseWrite()
			if got, err := io.ReadAll(a); string(got) != "answer" || err != nil {
				t.Fatalf("read %q, %v", got, err)
			}
		})
	}
}

// A pod whose server closed first has nothing to wait for, and may take the port again:
// Linux comes back to one after some 3,000 connections to a server.
func TestAPortIsTakenAgainSoon(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		_, n := start(t, nil)
		to := hostServer(t, fam, func(c *net.TCPConn) { c.Close() })
		pod := n.Pod(fam.pod.String())
		from := netip.AddrPortFrom(fam.pod, 40000)
		for i := range 3 {
			c, err := pod.DialTCPFrom(soon(t), from, to)
			if err != nil {
				t.Fatalf("connection %d: %v", i+1, err)
			}
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Fatalf("connection %d: read %v, want the end", i+1, err)
			}
			c.Close()
			time.Sleep(2 * timeWait) // of the gateway's, which nobody outside can see end
		}
	})
}

func TestResetReachesTheOtherSide(t *testing.T) {
	t.Run("host resets", func(t *testing.T) {
		g, n := start(t, nil)
		pod, host := dial(t, families[0], n)
		reset(host)
		if _, err := pod.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Fatalf("the pod read %v, want a reset", err)
		}
		eventually(t, "connection forgotten", func() bool { return g.Stats().EgressOpen == 0 })
	})
	t.Run("pod resets", func(t *testing.T) {
		_, n := start(t, nil)
		_, host := dial(t, families[0], n)
		n.AbortPods()
		host.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := host.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Fatalf("the host read %v, want a reset", err)
		}
	})
}

// A pod's reset must reach a host that reads nothing, whose socket is full.
func TestResetReachesAHostThatDoesNotRead(t *testing.T) {
	g, n := start(t, nil)
	pod, _ := dial(t, families[0], n)
	stuck := make(chan struct{})
	go func() {
		defer close(stuck)
		for buf := make([]byte, 1<<20); ; {
			if _, err := pod.Write(buf); err != nil {
				return
			}
		}
	}()
	for last, same := uint64(0), 0; same < 5; time.Sleep(20 * time.Millisecond) {
		if same++; g.Stats().Bytes != last {
			last, same = g.Stats().Bytes, 0
		}
	}
	n.AbortPods()
	<-stuck
	eventually(t, "connection forgotten", func() bool { return g.Stats().EgressOpen == 0 })
}

func TestRefusalIsPassedOnAtOnce(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		g, n := start(t, nil)
		pod := n.Pod(fam.pod.String())
		_, err := pod.DialTCP(soon(t), netip.AddrPortFrom(fam.host, closedPort(t, fam)))
		if !gatewaytest.Refused(err) {
			t.Fatalf("dial gave %v, want connection refused", err)
		}
		if s := g.Stats(); s.EgressRefused != 1 {
			t.Fatalf("refused %d connections, want 1", s.EgressRefused)
		}
	})
}

// closedPort is one that nobody listens on: it was ours a moment ago.
func closedPort(t *testing.T, fam family) uint16 {
	t.Helper()
	l, err := net.Listen(fam.network, net.JoinHostPort(fam.loopback, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func TestConnectionsOfAPodAreCapped(t *testing.T) {
	g, n := start(t, func(c *Config) { c.ConnectionsPerPod = 2 })
	fam := families[0]
	to := hostServer(t, fam, echo)
	pod, other := n.Pod(pod4.String()), n.Pod("10.244.1.6")
	var open []*gonet.TCPConn
	for range 2 {
		c, err := pod.DialTCP(soon(t), to)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	if _, err := pod.DialTCP(soon(t), to); !gatewaytest.Refused(err) {
		t.Fatalf("the third connection gave %v, want connection refused", err)
	}
	if n.Drops(drop.ConnectionCap) == 0 {
		t.Fatal("the refusal was not counted as connection-cap")
	}
	c, err := other.DialTCP(soon(t), to)
	if err != nil {
		t.Fatalf("another pod is refused too: %v", err)
	}
	c.Close()
	open[0].Close()
	eventually(t, "room again", func() bool {
		c, err := pod.DialTCP(soon(t), to)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
	open[1].Close()
	eventually(t, "nothing accounted", func() bool {
		g.usage.mu.Lock()
		defer g.usage.mu.Unlock()
		return len(g.usage.pods) == 0
	})
}

// deafPort accepts no more: its backlog is full, and SYNs to it go unanswered.
func deafPort(t *testing.T) uint16 {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := sa.(*unix.SockaddrInet4).Port
	for { // backlog 0 holds one; then dials hang
		c, err := net.DialTimeout("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), 200*time.Millisecond)
		if err != nil {
			return uint16(port)
		}
		t.Cleanup(func() { c.Close() })
	}
}

func TestDialsUnderWayAreCapped(t *testing.T) {
	g, n := start(t, func(c *Config) { c.HalfOpenPerPod = 2; c.DialTimeout = time.Second })
	to := netip.AddrPortFrom(hostV4, deafPort(t))
	pod := n.Pod(pod4.String())
	results := make(chan error, 3)
	for range 3 {
		go func() {
			_, err := pod.DialTCP(soon(t), to)
			results <- err
		}()
	}
	eventually(t, "a SYN dropped for the cap", func() bool { return n.Drops(drop.ConnectionCap) > 0 })
	for range 3 { // the third gets its turn when the first two have given up
		if err := <-results; !gatewaytest.Refused(err) {
			t.Errorf("dial gave %v, want a reset after the time limit", err)
		}
	}
	if s := g.Stats(); s.EgressFailed < 3 { // a SYN sent again as its reset is on the way begins anew
		t.Errorf("%d dials failed, want 3 at least", s.EgressFailed)
	}
}

func TestForbiddenDestinationsAreRefused(t *testing.T) {
	forbidden := []string{
		"127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "169.254.169.254", "169.254.1.1",
		"224.0.0.1", "239.255.255.250", "255.255.255.255", "240.0.0.1",
		"10.244.2.9", "10.96.0.1", "10.244.1.1",
		"::", "::1", "::127.0.0.1", "fe80::1", "fe80::5054:ff:fe12:3456", "ff02::1", "ff0e::1",
		"fd00:10:244:2::9", "fd00:10:96::a",
	}
	g, n := start(t, nil)
	answers := make(chan []byte, 1)
	n.Watch(func(f *frame.Frame, fromGateway bool) {
		if fromGateway {
			answers <- bytes.Clone(f.Bytes())
		}
	})
	for _, to := range forbidden {
		dst := netip.MustParseAddr(to)
		src, unreachable, prohibited := pod4, byte(3), byte(13)
		icmp, echoType := uint8(wire.ProtoICMP), uint8(wire.ICMPEcho)
		if dst.Is6() {
			src, unreachable, prohibited = pod6, 1, 1
			icmp, echoType = wire.ProtoICMPv6, wire.ICMPv6Echo
		}
		for _, p := range []wiretest.Packet{
			{Proto: wire.ProtoTCP, Flags: wire.SYN, Seq: 7, SrcPort: 40000, DstPort: 80},
			{Proto: wire.ProtoUDP, SrcPort: 40000, DstPort: 53, Payload: []byte("q")},
			{Proto: icmp, ICMPType: echoType, EchoID: 3, EchoSeq: 1, Payload: []byte("ping")},
		} {
			p.Src, p.Dst = src, dst
			f := frame.New()
			f.Set(p.Frame())
			if r := n.Inject(f); r != drop.EgressDenied {
				t.Errorf("protocol %d to %s: %v, want %v", p.Proto, to, r, drop.EgressDenied)
				continue
			}
			var h wire.Headers
			b := <-answers
			if r := wire.Parse(b, &h); r != drop.None || !wiretest.TransportIntact(b) {
				t.Errorf("protocol %d to %s: answer is malformed (%v)", p.Proto, to, r)
			}
			if p.Proto == wire.ProtoTCP {
				if h.TCPFlags != wire.RST|wire.ACK || h.Src.Netip() != dst || h.DstPort != 40000 {
					t.Errorf("TCP to %s: answer %+v, want a reset from it", to, h)
				}
			} else if h.ICMPType != unreachable || h.ICMPCode != prohibited {
				t.Errorf("protocol %d to %s: answer type %d code %d, want %d and %d", p.Proto, to, h.ICMPType, h.ICMPCode, unreachable, prohibited)
			}
		}
	}
	if s := g.Stats(); s.Sessions != 0 || s.HostSockets != 0 || s.EgressDialed != 0 {
		t.Errorf("a forbidden packet left something behind: %+v", s)
	}
}

// An IPv6 packet to a v4-mapped address would reach the IPv4 loopback through a
// dual-stack socket.
func TestMappedAddressesAreNoWayAround(t *testing.T) {
	_, n := start(t, nil)
	f := frame.New()
	p := wiretest.Packet{Src: pod6, Dst: netip.MustParseAddr("2001:db8::1"), Proto: wire.ProtoTCP, Flags: wire.SYN, SrcPort: 1, DstPort: 2}
	b := p.Frame()
	mapped := netip.MustParseAddr("::ffff:127.0.0.1").As16()
	copy(b[14+24:], mapped[:])
	f.Set(b)
	f.VNet = frame.VNet{Flags: frame.NeedsCsum, CsumStart: 54, CsumOffset: 16} // the checksum is not the question
	if r := n.Inject(f); r != drop.MartianTarget {
		t.Fatalf("%v, want %v", r, drop.MartianTarget)
	}
}

func TestIdleConnectionsAreEnded(t *testing.T) {
	g, n := start(t, func(c *Config) { c.TCPIdle = time.Hour; c.TCPHalfClosedIdle = time.Minute })
	pod, host := dial(t, families[0], n)
	eventually(t, "connection known", func() bool { return g.Stats().EgressOpen == 1 })
	g.sweep(g.tick.Load() + ticksOf(time.Minute))
	host.Write([]byte("x"))
	if _, err := pod.Read(make([]byte, 1)); err != nil {
		t.Fatalf("an open connection ended after the half-closed limit: %v", err)
	}
	host.CloseWrite()
	if _, err := pod.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
	g.sweep(g.tick.Load() + ticksOf(time.Minute) + 1)
	eventually(t, "half-closed connection ended", func() bool { return g.Stats().EgressOpen == 0 })
}

// A pod that opens connections and never finishes the handshake holds what its
// cap allows and nothing of other pods.
func TestSYNFloodStaysWithinItsPod(t *testing.T) {
	const cap = 8
	g, n := start(t, func(c *Config) { c.HalfOpenPerPod = cap })
	fam := families[0]
	to := hostServer(t, fam, echo)
	f := frame.New()
	flood := func() (dropped int) {
		for port := range uint16(2000) {
			f.Set(wiretest.Packet{
				Src: netip.MustParseAddr("10.244.1.66"), Dst: to.Addr(), Proto: wire.ProtoTCP, Flags: wire.SYN,
				Seq: uint32(port), SrcPort: 10000 + port, DstPort: to.Port(),
			}.Frame())
			switch r := n.Inject(f); r {
			case drop.ConnectionCap:
				dropped++
			case drop.None:
			default:
				t.Fatal(r)
			}
		}
		return dropped
	}
	if dropped := flood(); dropped != 2000-cap {
		t.Errorf("%d of 2,000 SYNs dropped, want all but %d", dropped, cap)
	}
	other := n.Pod(pod4.String())
	c, err := other.DialTCP(soon(t), to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	exchange(t, c, 1<<10)
	g.usage.mu.Lock()
	defer g.usage.mu.Unlock()
	if held := len(g.usage.pods[wire.AddrFrom(netip.MustParseAddr("10.244.1.66"))].pending); held != cap {
		t.Errorf("the flooding pod holds %d connections under way, want %d", held, cap)
	}
}
