package gateway

import (
	"io"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"vswitch/internal/lab/labtest"
	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// Close finds something of everything under way; goleak, in TestMain, sees what
// it leaves running. The first round opens what the runtime keeps, its poller.
func TestCloseEndsEverything(t *testing.T) {
	t.Run("first round", closeWithEverythingOpen)
	before := openFDs(t)
	t.Run("second round", closeWithEverythingOpen)
	eventually(t, "no descriptor left open", func() bool { return openFDs(t) <= before })
}

func closeWithEverythingOpen(t *testing.T) {
	g, n := start(t, func(c *Config) { onLoopback(c); c.DialTimeout = time.Hour })
	fam := families[0]
	pod := n.Pod(pod4.String())
	l := pod.ListenTCP(netip.AddrPortFrom(pod4, 8080))
	go func() {
		for {
			if _, err := l.Accept(); err != nil {
				return
			}
		}
	}()

	egress, err := pod.DialTCP(soon(t), hostServer(t, fam, func(c *net.TCPConn) { io.Copy(io.Discard, c) }))
	if err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	tcp, udp := published(wire.ProtoTCP, port), published(wire.ProtoUDP, port)
	udp.PortName = "udp"
	for _, s := range []Service{tcp, udp} {
		if err := g.PutService(s); err != nil {
			t.Fatal(err)
		}
	}
	ingress, err := net.Dial("tcp", fam.hostPort(port))
	if err != nil {
		t.Fatal(err)
	}
	defer ingress.Close()
	to, _ := udpServer(t, fam)
	ask(t, pod.DialUDP(to), []byte("x"))
	hanging := make(chan error, 1)
	go func() {
		_, err := pod.DialTCP(soon(t), netip.AddrPortFrom(hostV4, deafPort(t)))
		hanging <- err
	}()
	eventually(t, "all under way", func() bool {
		g.usage.mu.Lock()
		defer g.usage.mu.Unlock()
		p := g.usage.pods[wire.AddrFrom(pod4)]
		return p != nil && len(p.pending) == 1 && g.Stats().EgressOpen == 1 && g.Stats().IngressOpen == 1
	})

	begin := time.Now()
	g.Close()
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("closing took %v", d)
	}
	if err := <-hanging; err == nil {
		t.Error("the dial under way succeeded")
	}
	if _, err := egress.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("the pod read %v, want a reset", err)
	}
	ingress.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := ingress.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("the client read %v, want a reset", err)
	}
	if s := g.Stats(); s.EgressOpen != 0 || s.IngressOpen != 0 || s.Sessions != 0 || s.HostSockets != 0 {
		t.Errorf("still counted as open: %+v", s)
	}
	if len(g.usage.pods) != 0 {
		t.Error("something is still accounted to a pod")
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
}

func TestAPortThatWasNeverAttachedCloses(t *testing.T) {
	g, err := New(testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	g.Close()
	g.Queue(0).Close()
	g.Queue(1).Close()
}

// Each path a frame can take, many times: what one frame leaves behind shows (case
// 29), through the netstack or past it.
func TestFramesLeaveNothingBehind(t *testing.T) {
	rounds := 20_000
	if labtest.Long() {
		rounds = 1_000_000
	}
	eachFamily(t, func(t *testing.T, fam family) {
		g, n := start(t, withDNS(&testDNS{}))
		sink, err := net.ListenPacket(fam.udp, net.JoinHostPort(fam.loopback, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer sink.Close()
		to, vip := sink.LocalAddr().(*net.UDPAddr).AddrPort().Port(), dnsVIP(fam)
		loopback, icmp, unreachable := netip.MustParseAddr(fam.loopback), uint8(wire.ProtoICMP), uint8(3)
		if fam.pod.Is6() {
			icmp, unreachable = wire.ProtoICMPv6, 1
		}
		type path struct {
			frame *frame.Frame
			want  drop.Reason
		}
		paths := map[string]path{}
		add := func(name string, p wiretest.Packet, want drop.Reason) {
			p.Src = fam.pod
			f := frame.New()
			f.Set(p.Frame())
			paths[name] = path{f, want}
		}
		add("UDP to the host", wiretest.Packet{Proto: wire.ProtoUDP, Dst: fam.host, SrcPort: 1000, DstPort: to, Payload: make([]byte, 100)}, drop.None)
		add("UDP to nowhere", wiretest.Packet{Proto: wire.ProtoUDP, Dst: loopback, SrcPort: 1, DstPort: 2}, drop.EgressDenied)
		add("SYN to nowhere", wiretest.Packet{Proto: wire.ProtoTCP, Dst: loopback, Flags: wire.SYN, SrcPort: 1, DstPort: 2}, drop.EgressDenied)
		add("a segment of no flow", wiretest.Packet{Proto: wire.ProtoTCP, Dst: fam.host, Flags: wire.ACK, SrcPort: 1, DstPort: 2}, drop.None)
		add("an error about none", wiretest.Packet{Proto: icmp, Dst: fam.host, ICMPType: unreachable, Payload: make([]byte, 48)}, drop.None)
		add("SCTP", wiretest.Packet{Proto: wire.ProtoSCTP, Dst: fam.host, SrcPort: 1, DstPort: 2, Payload: make([]byte, 16)}, drop.UnsupportedL4)
		half := frame.New()
		half.Set(wiretest.Fragments(wiretest.Packet{Src: fam.pod, Proto: wire.ProtoUDP, Dst: fam.host, SrcPort: 1, DstPort: 2, Payload: make([]byte, 100)}.Frame(), 7, 64, 0)[0])
		paths["half a datagram"] = path{half, drop.None}
		add("a question", wiretest.Packet{Proto: wire.ProtoUDP, Dst: vip.Addr(), SrcPort: 1000, DstPort: vip.Port(), Payload: []byte("silence")}, drop.None)
		inject := func(k int) uint64 {
			for range k {
				for name, p := range paths {
					r := n.Inject(p.frame)
					for r == drop.ConnectionCap { // questions come faster than they are answered
						eventually(t, "room for a question", func() bool { return g.Stats().DNSInProgress < dnsQueries/4 })
						r = n.Inject(p.frame)
					}
					if r == drop.EgressFull && p.frame == half { // its share of a minute
						g.sweep(g.tick.Load() + joinMinute)
						r = n.Inject(p.frame)
					}
					if r != p.want {
						t.Fatalf("%s: %v, want %v", name, r, p.want)
					}
				}
			}
			eventually(t, "no question in progress", func() bool { return g.Stats().DNSInProgress == 0 })
			runtime.GC()
			runtime.GC() // pools keep what they hold for one collection
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapObjects
		}
		before := inject(500)
		after := inject(rounds)
		t.Logf("%d heap objects, then %d; %+v", before, after, g.Stats())
		if after > before+2000+uint64(rounds)/200 { // pools and rings fill; a leak leaves one for each frame
			t.Fatalf("%d heap objects became %d after %d frames on each path", before, after, rounds)
		}
	})
}
