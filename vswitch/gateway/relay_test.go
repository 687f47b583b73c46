package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
)

// udpServer answers each datagram with its payload, in capitals, and says from
// whom it came.
func udpServer(t testing.TB, fam family) (as netip.AddrPort, from chan netip.AddrPort) {
	t.Helper()
	c, err := net.ListenPacket(fam.udp, net.JoinHostPort(fam.loopback, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	from = make(chan netip.AddrPort, 1024)
	go func() {
		b := make([]byte, 65536)
		for {
			n, a, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			select {
			case from <- a.(*net.UDPAddr).AddrPort():
			default:
			}
			c.WriteTo(bytes.ToUpper(b[:n]), a)
		}
	}()
	return netip.AddrPortFrom(fam.host, c.LocalAddr().(*net.UDPAddr).AddrPort().Port()), from
}

// ask sends a datagram and returns the answer.
func ask(t testing.TB, c *gonet.UDPConn, question []byte) []byte {
	t.Helper()
	if _, err := c.Write(question); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 65536)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

func TestPodReachesHostOverUDP(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		g, n := start(t, nil)
		pod := n.Pod(fam.pod.String())
		to, _ := udpServer(t, fam)
		c := pod.DialUDP(to)
		// One byte, one packet, and several fragments each way.
		for _, size := range []int{1, 1000, 9000, 60000} {
			question := bytes.Repeat([]byte("a"), size)
			if got := ask(t, c, question); !bytes.Equal(got, bytes.ToUpper(question)) {
				t.Fatalf("%d bytes: another answer came back, of %d bytes", size, len(got))
			}
		}
		if s := g.Stats(); s.Sessions != 1 || s.HostSockets != 1 {
			t.Errorf("%d sessions on %d sockets, want 1 on 1", s.Sessions, s.HostSockets)
		}
	})
}

func TestSessionsShareHostSockets(t *testing.T) {
	g, n := start(t, nil)
	fam := families[0]
	a, b := n.Pod(pod4.String()), n.Pod("10.244.1.6")
	server1, from1 := udpServer(t, fam)
	server2, from2 := udpServer(t, fam)

	// One port of a pod to two servers: one socket, and the same port for both.
	port := netip.AddrPortFrom(pod4, 5000)
	c := a.ListenUDP(port)
	for _, to := range []netip.AddrPort{server1, server2} {
		if _, err := c.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(to)); err != nil {
			t.Fatal(err)
		}
	}
	if p1, p2 := <-from1, <-from2; p1 != p2 {
		t.Errorf("one source port of a pod was seen as %v and as %v", p1, p2)
	}
	eventually(t, "two sessions", func() bool { return g.Stats().Sessions == 2 })
	if s := g.Stats(); s.HostSockets != 1 {
		t.Errorf("%d host sockets, want 1", s.HostSockets)
	}

	// Another pod to the first server can't share: the answers would look alike.
	if got := ask(t, b.DialUDP(server1), []byte("b")); string(got) != "B" {
		t.Errorf("answer %q", got)
	}
	if s := g.Stats(); s.HostSockets != 2 {
		t.Errorf("%d host sockets, want 2", s.HostSockets)
	}
	// But with a server that it alone speaks to.
	server3, _ := udpServer(t, fam)
	ask(t, b.DialUDP(server3), []byte("b"))
	if s := g.Stats(); s.HostSockets != 2 {
		t.Errorf("%d host sockets, want 2", s.HostSockets)
	}
}

func TestSessionsExpire(t *testing.T) {
	g, n := start(t, nil)
	fam := families[0]
	pod := n.Pod(pod4.String())
	to, _ := udpServer(t, fam)
	once, stream := pod.DialUDP(to), pod.DialUDP(to)
	ask(t, once, []byte("x"))
	ask(t, stream, []byte("x"))
	ask(t, stream, []byte("x"))
	tick := g.tick.Load()
	g.sweep(tick + ticksOf(29*time.Second))
	if s := g.Stats(); s.Sessions != 2 || s.HostSockets != 2 {
		t.Fatalf("after 29 s: %d sessions, %d sockets, want 2 and 2", s.Sessions, s.HostSockets)
	}
	g.sweep(tick + ticksOf(32*time.Second))
	if s := g.Stats(); s.Sessions != 1 || s.HostSockets != 1 {
		t.Fatalf("after 32 s: %d sessions, %d sockets, want the stream's alone", s.Sessions, s.HostSockets)
	}
	g.sweep(tick + ticksOf(182*time.Second))
	if s := g.Stats(); s.Sessions != 0 || s.HostSockets != 0 {
		t.Fatalf("after 182 s: %d sessions, %d sockets, want none", s.Sessions, s.HostSockets)
	}
	if len(g.usage.pods) != 0 || len(g.relay.homes) != 0 {
		t.Error("something is still accounted to the pod")
	}
	if got := ask(t, once, []byte("again")); string(got) != "AGAIN" {
		t.Errorf("answer %q after expiry", got)
	}
}

func TestSessionsOfAPodAreCapped(t *testing.T) {
	_, n := start(t, func(c *Config) { c.SessionsPerPod = 2 })
	fam := families[0]
	pod, other := n.Pod(pod4.String()), n.Pod("10.244.1.6")
	to, _ := udpServer(t, fam)
	ask(t, pod.DialUDP(to), []byte("x"))
	ask(t, pod.DialUDP(to), []byte("x"))
	pod.DialUDP(to).Write([]byte("x"))
	eventually(t, "a drop for the cap", func() bool { return n.Drops(drop.ConnectionCap) == 1 })
	ask(t, other.DialUDP(to), []byte("x"))
}

func TestAScarceSocketGoesToTheNextQuestion(t *testing.T) {
	g, n := start(t, func(c *Config) { c.HostSockets = 1 })
	fam := families[0]
	pod := n.Pod(pod4.String())
	to, _ := udpServer(t, fam)
	first := pod.DialUDP(to)
	ask(t, first, []byte("x"))

	second := pod.DialUDP(to)
	second.Write([]byte("x"))
	eventually(t, "the second session refused while the first is fresh", func() bool { return n.Drops(drop.EgressFull) == 1 })

	local := first.LocalAddr().(*net.UDPAddr).AddrPort()
	s := g.relay.lookup(&flow.Key{
		Src: wire.AddrFrom(pod4), SrcPort: local.Port(), Dst: wire.AddrFrom(to.Addr()), DstPort: to.Port(), Proto: wire.ProtoUDP,
	})
	s.used.Store(s.used.Load() - 5*ticksPerSec) // as if it had rested for five seconds
	if got := ask(t, second, []byte("y")); string(got) != "Y" {
		t.Fatalf("answer %q", got)
	}
	if st := g.Stats(); st.SessionsRecycled != 1 || st.Sessions != 1 {
		t.Errorf("%d recycled, %d sessions, want 1 and 1", st.SessionsRecycled, st.Sessions)
	}
}

func TestDNSQuestionsNeedNoRest(t *testing.T) {
	for _, c := range []struct {
		name           string
		port           uint16
		fromPod, toPod uint32
		rested         uint32
		want           bool
	}{
		{"an answered DNS question", 53, 1, 1, 0, true},
		{"a DNS question without answer", 53, 1, 0, 100, false},
		{"a resolver with a question open", 53, 9, 8, 100, false},
		{"another protocol, just answered", 123, 1, 1, 0, false},
		{"another protocol, answered and rested", 123, 1, 1, 5 * ticksPerSec, true},
	} {
		s := &session{inside: flow.Key{DstPort: c.port, Proto: wire.ProtoUDP}}
		s.fromPod.Store(c.fromPod)
		s.toPod.Store(c.toPod)
		s.used.Store(1000)
		if got := s.recyclable(1000 + c.rested); got != c.want {
			t.Errorf("%s: recyclable is %v, want %v", c.name, got, c.want)
		}
	}
}

func TestUDPRefusalReachesThePod(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		_, n := start(t, nil)
		pod := n.Pod(fam.pod.String())
		l, err := net.ListenPacket(fam.udp, net.JoinHostPort(fam.loopback, "0"))
		if err != nil {
			t.Fatal(err)
		}
		port := l.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		l.Close()
		answers := make(chan []byte, 1)
		n.Watch(func(f *frame.Frame, fromGateway bool) {
			if fromGateway {
				select {
				case answers <- bytes.Clone(f.Bytes()):
				default: // the first is enough
				}
			}
		})
		c := pod.DialUDP(netip.AddrPortFrom(fam.host, port))
		c.Write([]byte("anybody?"))
		b := <-answers
		var h, quoted wire.Headers
		if r := wire.Parse(b, &h); r != drop.None || !wiretest.TransportIntact(b) {
			t.Fatalf("the answer is malformed: %v", r)
		}
		want := portUnreachable.of(fam.pod.Is6())
		if got := (icmpKind{h.ICMPType, h.ICMPCode}); got != want || h.Src.Netip() != fam.host {
			t.Errorf("answered %+v from %v, want %+v from %v", got, h.Src, want, fam.host)
		}
		if r := wire.ParseQuoted(b[h.PayloadOff:h.End], &quoted); r != drop.None {
			t.Fatal(r)
		}
		local := c.LocalAddr().(*net.UDPAddr).AddrPort()
		if quoted.Src.Netip() != fam.pod || quoted.SrcPort != local.Port() || quoted.Dst.Netip() != fam.host || quoted.DstPort != port {
			t.Errorf("the answer quotes %+v", quoted)
		}
		eventually(t, "the pod's socket told", func() bool {
			_, err := c.Write([]byte("and now?"))
			return err != nil && strings.Contains(err.Error(), (&tcpip.ErrConnectionRefused{}).String())
		})
	})
}

func TestUDPSuperFrameBecomesDatagrams(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		_, n := start(t, nil)
		c, err := net.ListenPacket(fam.udp, net.JoinHostPort(fam.loopback, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		const size, last = 1000, 500
		payload := bytes.Repeat([]byte("0123456789"), (5*size+last)/10)
		f := frame.New()
		f.Set(wiretest.Packet{
			Src: fam.pod, Dst: fam.host, Proto: wire.ProtoUDP, SrcPort: 5000,
			DstPort: c.LocalAddr().(*net.UDPAddr).AddrPort().Port(), Payload: payload,
		}.Frame())
		l4 := uint16(34)
		if fam.pod.Is6() {
			l4 = 54
		}
		f.VNet = frame.VNet{Flags: frame.NeedsCsum, GSOType: frame.GSOUDPL4, GSOSize: size, CsumStart: l4, CsumOffset: 6}
		if r := n.Inject(f); r != drop.None {
			t.Fatal(r)
		}
		b := make([]byte, 65536)
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		for i := range 6 {
			want := payload[i*size : min((i+1)*size, len(payload))]
			if n, _, err := c.ReadFrom(b); err != nil || !bytes.Equal(b[:n], want) {
				t.Fatalf("datagram %d: %d bytes, %v; want %d", i, n, err, len(want))
			}
		}
	})
}

// pingAllowed reports whether this host lets this process have ping sockets.
func pingAllowed(t *testing.T, fam family) bool {
	s, err := openHostSocket(kindOf(true, fam.pod.Is6()))
	if err != nil {
		if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
			t.Fatal(err)
		}
		return false
	}
	s.close()
	return true
}

func echoRequest(fam family, size int) *frame.Frame {
	p := wiretest.Packet{
		Src: fam.pod, Dst: fam.host, Proto: wire.ProtoICMP, ICMPType: wire.ICMPEcho, EchoID: 77, EchoSeq: 5,
		Payload: bytes.Repeat([]byte("p"), size),
	}
	if fam.pod.Is6() {
		p.Proto, p.ICMPType = wire.ProtoICMPv6, wire.ICMPv6Echo
	}
	f := frame.New()
	f.Set(p.Frame())
	return f
}

// Where the host forbids ping sockets the pod must be told; TestPingOutside, in a
// namespace of its own, covers where it allows them.
func TestForbiddenPingIsNotPretended(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		if pingAllowed(t, fam) {
			t.Skip("this host allows ping sockets (net.ipv4.ping_group_range)")
		}
		g, n := start(t, nil)
		answers := make(chan []byte, 4)
		n.Watch(func(f *frame.Frame, fromGateway bool) { answers <- bytes.Clone(f.Bytes()) })
		if r := n.Inject(echoRequest(fam, 56)); r != drop.EchoForbidden {
			t.Fatalf("%v, want %v", r, drop.EchoForbidden)
		}
		var h wire.Headers
		wire.Parse(<-answers, &h)
		want := adminProhibited.of(fam.pod.Is6())
		if got := (icmpKind{h.ICMPType, h.ICMPCode}); got != want {
			t.Errorf("answered %+v, want %+v", got, want)
		}
		if s := g.Stats(); s.EchoForbidden != 1 || s.Sessions != 0 {
			t.Errorf("forbidden %d, sessions %d; want 1 and 0", s.EchoForbidden, s.Sessions)
		}
	})
}

func TestUnsolicitedDatagramsAreDropped(t *testing.T) {
	g, n := start(t, nil)
	fam := families[0]
	pod := n.Pod(pod4.String())
	to, from := udpServer(t, fam)
	c := pod.DialUDP(to)
	ask(t, c, []byte("x"))
	stranger, err := net.Dial("udp4", fmt.Sprint("127.0.0.1:", (<-from).Port()))
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	stranger.Write([]byte("let me in"))
	eventually(t, "the stranger's datagram counted", func() bool { return g.Stats().Unsolicited == 1 })
	if got := ask(t, c, []byte("y")); string(got) != "Y" {
		t.Errorf("the pod got %q", got)
	}
}
