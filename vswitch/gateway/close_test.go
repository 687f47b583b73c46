package gateway

import (
	"io"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

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

// Each path a frame can take, many times: what one frame leaves behind shows.
func TestFramesLeaveNothingBehind(t *testing.T) {
	g, n := start(t, nil)
	fam := families[0]
	sink, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	sinkPort := sink.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	paths := map[string]struct {
		packet wiretest.Packet
		want   drop.Reason
	}{
		"UDP to the host":      {wiretest.Packet{Proto: wire.ProtoUDP, Dst: fam.host, SrcPort: 1000, DstPort: sinkPort, Payload: make([]byte, 100)}, drop.None},
		"UDP to nowhere":       {wiretest.Packet{Proto: wire.ProtoUDP, Dst: netip.MustParseAddr("127.0.0.1"), SrcPort: 1, DstPort: 2}, drop.EgressDenied},
		"SYN to nowhere":       {wiretest.Packet{Proto: wire.ProtoTCP, Dst: netip.MustParseAddr("127.0.0.1"), Flags: wire.SYN, SrcPort: 1, DstPort: 2}, drop.EgressDenied},
		"a segment of no flow": {wiretest.Packet{Proto: wire.ProtoTCP, Dst: fam.host, Flags: wire.ACK, SrcPort: 1, DstPort: 2}, drop.None},
		"an error about none":  {wiretest.Packet{Proto: wire.ProtoICMP, Dst: fam.host, ICMPType: 3, Payload: make([]byte, 28)}, drop.None},
		"half a datagram":      {wiretest.Packet{Proto: wire.ProtoUDP, Dst: fam.host, SrcPort: 1, DstPort: 2, MoreFragments: true, ID: 7, Payload: make([]byte, 64)}, drop.None},
		"SCTP":                 {wiretest.Packet{Proto: wire.ProtoSCTP, Dst: fam.host, SrcPort: 1, DstPort: 2, Payload: make([]byte, 16)}, drop.UnsupportedL4},
	}
	frames := make(map[string]*frame.Frame)
	for name, p := range paths {
		p.packet.Src = pod4
		frames[name] = frame.New()
		frames[name].Set(p.packet.Frame())
	}
	rounds := func(k int) uint64 {
		for range k {
			for name, f := range frames {
				if r := n.Inject(f); r != paths[name].want {
					t.Fatalf("%s: %v, want %v", name, r, paths[name].want)
				}
			}
		}
		runtime.GC()
		runtime.GC() // pools keep what they hold for one collection
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapObjects
	}
	before := rounds(500)
	after := rounds(20_000)
	t.Logf("%d heap objects, then %d; %+v", before, after, g.Stats())
	if after > before+2000 {
		t.Fatalf("%d heap objects became %d after 20,000 frames on each path", before, after)
	}
}
