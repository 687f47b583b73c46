package gateway

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
)

var dnsVIPs = []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")}

func dnsVIP(fam family) netip.AddrPort {
	if fam.pod.Is4() {
		return netip.AddrPortFrom(dnsVIPs[0], portDNS)
	}
	return netip.AddrPortFrom(dnsVIPs[1], portDNS)
}

// testDNS answers with the question, who asked, and how; "wait" after its gate
// opens, "silence" not at all, "long N" with N bytes.
type testDNS struct {
	gate chan struct{}
	seen sync.Map // question -> true
}

func (d *testDNS) ServeDNS(ctx context.Context, query []byte, pod netip.Addr, tcp bool) []byte {
	d.seen.Store(string(query), true)
	var n int
	switch q := string(query); {
	case strings.HasPrefix(q, "wait"):
		select {
		case <-d.gate:
		case <-ctx.Done():
			return nil
		}
	case q == "silence":
		return nil
	default:
		if _, err := fmt.Sscanf(q, "long %d", &n); err == nil {
			return make([]byte, n)
		}
	}
	return fmt.Appendf(nil, "%s %v %v", query, pod, tcp)
}

func withDNS(d *testDNS) func(*Config) {
	d.gate = make(chan struct{})
	return func(c *Config) { c.DNS, c.DNSAddrs = d, dnsVIPs }
}

func TestDNSByUDP(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		g, n := start(t, withDNS(&testDNS{}))
		c := n.Pod(fam.pod.String()).DialUDP(dnsVIP(fam))
		c.SetDeadline(time.Now().Add(20 * time.Second))
		buf := make([]byte, 2048)
		// The third is cut into fragments on its way: the netstack joins them.
		for _, q := range []string{"one", "two", strings.Repeat("three", 400)} {
			c.Write([]byte("silence"))
			c.Write([]byte("long 1233")) // more than a datagram may have
			c.Write([]byte(q))
			want := fmt.Sprintf("%s %v false", q, fam.pod)
			if len(want) > dnsAnswerBytes {
				eventually(t, "long question seen", func() bool { return g.Stats().DNSQueries == 9 })
				continue
			}
			got, err := c.Read(buf)
			if err != nil || string(buf[:got]) != want {
				t.Fatalf("got %q, %v; want %q", buf[:got], err, want)
			}
		}
		c.Write([]byte("long 1232"))
		if got, err := c.Read(buf); got != 1232 || err != nil {
			t.Errorf("the longest answer: %d bytes, %v", got, err)
		}
		eventually(t, "all answered", func() bool { s := g.Stats(); return s.DNSQueries == 10 && s.DNSInProgress == 0 })
	})
}

func TestDNSByTCP(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		g, n := start(t, withDNS(&testDNS{}))
		c, err := n.Pod(fam.pod.String()).DialTCP(soon(t), dnsVIP(fam))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		ask := func(q string) { c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)) }
		answer := func() string {
			t.Helper()
			var length [2]byte
			if _, err := io.ReadFull(c, length[:]); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, binary.BigEndian.Uint16(length[:]))
			if _, err := io.ReadFull(c, b); err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		ask("one")
		ask("two") // before the answer to the first
		for _, q := range []string{"one", "two"} {
			if got, want := answer(), fmt.Sprintf("%s %v true", q, fam.pod); got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		}
		ask("long 65535")
		c.CloseWrite()
		if got := answer(); len(got) != 65535 {
			t.Errorf("%d bytes, want 65535", len(got))
		}
		if rest, err := io.ReadAll(c); len(rest) != 0 || err != nil {
			t.Errorf("then %q, %v; want the end", rest, err)
		}
		eventually(t, "connection forgotten", func() bool { return g.Stats().DNSConnections == 0 })
	})
}

func TestDNSConnectionsThatAreEnded(t *testing.T) {
	longIdle := uint32(dnsIdleTicks)
	for _, c := range []struct {
		name string
		send []byte
		wait bool // for the sweep
	}{
		{"nothing is asked", nil, true},
		{"half a length", []byte{0}, true},
		{"half a question", []byte{0, 9, 'x'}, true},
		{"a question that is too long", []byte{0xff, 0xff}, false},
		{"a question without an answer", append([]byte{0, 7}, "silence"...), false},
		{"answers are not taken", bytes.Repeat(append([]byte{0, 10}, "long 65535"...), 100), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &testDNS{}
			g, n := start(t, withDNS(d))
			conn, err := n.Pod(pod4.String()).DialTCP(soon(t), dnsVIP(families[0]))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			eventually(t, "accepted", func() bool { return g.Stats().DNSConnections == 1 })
			conn.Write(c.send)
			if c.wait {
				if len(c.send) > 10 {
					eventually(t, "an answer waits", func() bool { _, ok := d.seen.Load("long 65535"); return ok })
				}
				g.sweep(g.tick.Load() + longIdle - 1)
				if g.Stats().DNSConnections != 1 {
					t.Error("ended too soon")
				}
				eventually(t, "ended", func() bool {
					g.sweep(g.tick.Load() + 2*longIdle)
					return g.Stats().DNSConnections == 0
				})
				return
			}
			eventually(t, "ended", func() bool { return g.Stats().DNSConnections == 0 })
		})
	}
}

// dnsFrame is a question as a pod's kernel sends it.
func dnsFrame(src netip.Addr, port uint16, question string) *frame.Frame {
	f := frame.New()
	f.Set(wiretest.Packet{Src: src, Dst: dnsVIPs[0], Proto: wire.ProtoUDP, SrcPort: port, DstPort: portDNS, Payload: []byte(question)}.Frame())
	return f
}

func TestOnePodsQuestionsLeaveRoomForOthers(t *testing.T) {
	d := &testDNS{}
	g, n := start(t, withDNS(d))
	flood := netip.MustParseAddr("10.244.1.66")
	taken := 0
	for i := range dnsQueries {
		switch r := n.Inject(dnsFrame(flood, uint16(i+1), "wait")); r {
		case drop.None:
			taken++
		case drop.ConnectionCap:
		default:
			t.Fatalf("question %d: %v", i, r)
		}
	}
	if taken != dnsQueries/2 {
		t.Errorf("%d of one pod's questions taken, want half of %d", taken, dnsQueries)
	}
	c := n.Pod(pod4.String()).DialUDP(dnsVIP(families[0]))
	c.SetDeadline(time.Now().Add(20 * time.Second))
	c.Write([]byte("other"))
	buf := make([]byte, 100)
	if got, err := c.Read(buf); err != nil {
		t.Errorf("another pod: %q, %v", buf[:got], err)
	}
	close(d.gate)
	eventually(t, "all answered", func() bool { return g.Stats().DNSInProgress == 0 })
	if s := g.Stats(); s.DNSCapped != uint64(dnsQueries-taken) {
		t.Errorf("%d capped, want %d", s.DNSCapped, dnsQueries-taken)
	}
}

func TestCloseEndsQuestionsInProgress(t *testing.T) {
	g, n := start(t, withDNS(&testDNS{}))
	for i := range 10 {
		n.Inject(dnsFrame(pod4, uint16(i+1), "wait"))
	}
	c, err := n.Pod(pod4.String()).DialTCP(soon(t), dnsVIP(families[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write(append([]byte{0, 4}, "wait"...))
	g.Close()
	if s := g.Stats(); s.DNSInProgress != 0 || s.DNSConnections != 0 {
		t.Errorf("after Close: %d questions, %d connections", s.DNSInProgress, s.DNSConnections)
	}
	if r := g.dns.fromPod(&flow.Key{Src: wire.AddrFrom(pod4)}, []byte("one")); r != drop.EgressDown {
		t.Errorf("after Close a question is %v, want %v", r, drop.EgressDown)
	}
}

func TestAServiceGoesBeforeTheNodesOwnDNS(t *testing.T) {
	g, _ := start(t, withDNS(&testDNS{}))
	vip, client := wire.AddrFrom(dnsVIPs[0]), wire.AddrFrom(pod4)
	pick := func(port uint16, proto uint8) (flow.Endpoint, drop.Reason) {
		return g.Pick(&flow.Key{Src: client, Dst: vip, SrcPort: 1234, DstPort: port, Proto: proto}, nil)
	}
	own := flow.Endpoint{Addr: vip, Port: portDNS, Gateway: true}
	for _, proto := range []uint8{wire.ProtoUDP, wire.ProtoTCP} {
		if ep, r := pick(portDNS, proto); ep != own || r != drop.None {
			t.Errorf("protocol %d: %+v, %v", proto, ep, r)
		}
	}
	if _, r := pick(portDNS, wire.ProtoSCTP); r != drop.NoService {
		t.Errorf("SCTP: %v", r)
	}
	if _, r := pick(80, wire.ProtoTCP); r != drop.NoService {
		t.Errorf("port 80: %v", r)
	}
	if !g.HasVIP(&vip) {
		t.Error("the address is not known")
	}
	s := Service{ServiceKey: ServiceKey{"kube-system", "kube-dns", "dns"}, Protocol: wire.ProtoUDP, VIPs: dnsVIPs[:1], Port: portDNS}
	if err := g.PutService(s); err != nil {
		t.Fatal(err)
	}
	if _, r := pick(portDNS, wire.ProtoUDP); r != drop.NoEndpoint {
		t.Errorf("with a service: %v, want its refusal", r)
	}
	if ep, _ := pick(portDNS, wire.ProtoTCP); ep != own {
		t.Errorf("the service has no TCP port: %+v", ep)
	}
	if err := g.DeleteService(s.ServiceKey); err != nil {
		t.Fatal(err)
	}
	if ep, r := pick(portDNS, wire.ProtoUDP); ep != own || r != drop.None {
		t.Errorf("after the service: %+v, %v", ep, r)
	}
}

func TestWithoutDNSNothingAnswers(t *testing.T) {
	g, n := start(t, nil)
	if r := n.Inject(dnsFrame(pod4, 1, "one")); r != drop.EgressDenied {
		t.Errorf("got %v, want %v", r, drop.EgressDenied)
	}
	vip := wire.AddrFrom(dnsVIPs[0])
	if g.HasVIP(&vip) {
		t.Error("the address is known")
	}
}
