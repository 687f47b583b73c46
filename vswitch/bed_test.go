package vswitch_test

import (
	"context"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
	"vswitch/vswitch/queuetest"
)

// The test bed is one node: pods a and b, a member node (peer 7) that owns
// 10.244.2.0/24 behind the tunnel, the gateway, and one service.
var (
	macA = frame.MAC{2, 0, 0, 0, 0, 0xa}
	macB = frame.MAC{2, 0, 0, 0, 0, 0xb}

	podA4, podA6     = netip.MustParseAddr("10.244.1.10"), netip.MustParseAddr("fd00:10:244:1::a")
	podB4, podB6     = netip.MustParseAddr("10.244.1.11"), netip.MustParseAddr("fd00:10:244:1::b")
	remote4, remote6 = netip.MustParseAddr("10.244.2.20"), netip.MustParseAddr("fd00:10:244:2::20")
	router4, router6 = netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("fd00:10:244:1::1")
	vip4, vip6       = netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")
	outside4         = netip.MustParseAddr("198.51.100.7")
	outside6         = netip.MustParseAddr("2001:db8:1::7")
	node4            = netip.MustParseAddr("192.0.2.1")
)

const (
	peerIndex = 7
	bedMTU    = 1450
)

// stubServices sends every flow to vip4/vip6 port 80 to one endpoint per family.
type stubServices struct {
	mu sync.Mutex
	to map[netip.Addr]netip.AddrPort // by VIP; guarded by mu
	// own are those that the gateway serves itself; guarded by mu.
	own map[netip.Addr]bool
	// choose, where it is set, answers Pick instead; guarded by mu.
	choose func(*flow.Key) (flow.Endpoint, drop.Reason)
}

// serve makes the gateway itself serve an address.
func (s *stubServices) serve(vip netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.own[vip] = true
}

// Exposed: port 80 of every pod, over TCP and UDP.
func (s *stubServices) Exposed(_ *wire.Addr, port uint16, proto uint8) bool {
	return port == 80 && (proto == wire.ProtoTCP || proto == wire.ProtoUDP)
}

func (s *stubServices) set(vip netip.Addr, ep netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to[vip] = ep
}

func (s *stubServices) Pick(k *flow.Key, _ *wire.Headers) (flow.Endpoint, drop.Reason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.choose != nil {
		return s.choose(k)
	}
	if s.own[k.Dst.Netip()] && k.DstPort == 80 {
		return flow.Endpoint{Addr: k.Dst, Port: k.DstPort, ID: 2, Gateway: true}, drop.None
	}
	ep, ok := s.to[k.Dst.Netip()]
	if !ok || k.DstPort != 80 {
		return flow.Endpoint{}, drop.NoService
	}
	if !ep.IsValid() {
		return flow.Endpoint{}, drop.NoEndpoint
	}
	return flow.Endpoint{Addr: wire.AddrFrom(ep.Addr()), Port: ep.Port(), ID: 1}, drop.None
}

func (s *stubServices) HasVIP(a *wire.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.to[a.Netip()]
	return ok
}

type bed struct {
	t        *testing.T
	sw       *vswitch.Switch
	fib      *fib.Table
	flows    *flow.Table
	services *stubServices
	queues   map[string]*queuetest.Queue
	ids      map[string]uint32
}

func newBed(t *testing.T) *bed {
	t.Helper()
	return newBedOf(t, vswitch.Config{})
}

// newBedOf is newBed with a switch of another configuration.
func newBedOf(t *testing.T, cfg vswitch.Config) *bed {
	t.Helper()
	return newBedWith(t, cfg, flow.Config{Connections: 1 << 12})
}

// newBedWith is newBedOf with another flow table.
func newBedWith(t *testing.T, cfg vswitch.Config, table flow.Config) *bed {
	t.Helper()
	flows, err := flow.New(table)
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{
		t: t, fib: fib.New(), flows: flows,
		services: &stubServices{to: map[netip.Addr]netip.AddrPort{
			vip4: netip.AddrPortFrom(podB4, 8080),
			vip6: netip.AddrPortFrom(podB6, 8080),
		}, own: map[netip.Addr]bool{}},
		queues: map[string]*queuetest.Queue{}, ids: map[string]uint32{},
	}
	cfg.FIB, cfg.Flows, cfg.Services = b.fib, flows, b.services
	b.sw, err = vswitch.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.sw.Close(); err != nil {
			t.Errorf("close switch: %v", err)
		}
		if err := flows.Close(); err != nil {
			t.Errorf("close flows: %v", err)
		}
	})
	b.sw.SetFacts(vswitch.Facts{Routers: []netip.Addr{router4, router6}, TunnelPorts: []uint16{8472}})
	b.add("gateway", vswitch.PortConfig{Kind: vswitch.PortGateway, MTUBytes: bedMTU})
	b.add("tunnel", vswitch.PortConfig{Kind: vswitch.PortTunnel, MTUBytes: bedMTU})
	b.add("a", vswitch.PortConfig{Kind: vswitch.PortPod, MAC: macA, Addrs: []netip.Addr{podA4, podA6}, MTUBytes: bedMTU})
	b.add("b", vswitch.PortConfig{Kind: vswitch.PortPod, MAC: macB, Addrs: []netip.Addr{podB4, podB6}, MTUBytes: bedMTU})

	for _, a := range []netip.Addr{podA4, podA6} {
		b.fib.SetHost(a, fib.NextHop{Kind: fib.Port, Index: b.ids["a"]})
	}
	for _, a := range []netip.Addr{podB4, podB6} {
		b.fib.SetHost(a, fib.NextHop{Kind: fib.Port, Index: b.ids["b"]})
	}
	b.fib.SetHost(router4, fib.NextHop{Kind: fib.Router})
	b.fib.SetHost(router6, fib.NextHop{Kind: fib.Router})
	b.fib.SetHost(node4, fib.NextHop{Kind: fib.Node})
	for prefix, hop := range map[string]fib.NextHop{
		"10.244.0.0/16":      {Kind: fib.Unreachable},
		"fd00:10:244::/48":   {Kind: fib.Unreachable},
		"10.244.2.0/24":      {Kind: fib.Peer, Index: peerIndex},
		"fd00:10:244:2::/64": {Kind: fib.Peer, Index: peerIndex},
		"10.96.0.0/16":       {Kind: fib.VIP},
		"fd00:10:96::/112":   {Kind: fib.VIP},
		"0.0.0.0/0":          {Kind: fib.Egress},
		"::/0":               {Kind: fib.Egress},
	} {
		b.fib.SetPrefix(netip.MustParsePrefix(prefix), hop)
	}
	return b
}

func (b *bed) add(name string, c vswitch.PortConfig) {
	b.t.Helper()
	q, err := queuetest.New(1024)
	if err != nil {
		b.t.Fatal(err)
	}
	c.Name, c.Queues = name, []vswitch.Queue{q}
	id, err := b.sw.AddPort(c)
	if err != nil {
		b.t.Fatal(err)
	}
	b.queues[name], b.ids[name] = q, id
}

func (b *bed) stats(name string) vswitch.Stats {
	for _, s := range b.sw.Stats() {
		if s.Name == name {
			return s.Stats
		}
	}
	b.t.Fatalf("no port %q", name)
	return vswitch.Stats{}
}

// outcome is what became of one frame.
type outcome struct {
	sent  map[string][]*frame.Frame // by port
	drops map[drop.Reason]uint64
}

// send injects one frame at a port and waits until the switch is done with it.
func (b *bed) send(from string, f *frame.Frame) outcome {
	b.t.Helper()
	before := b.stats(from)
	b.queues[from].Inject(f)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for ; b.stats(from).IngressFrames == before.IngressFrames; runtime.Gosched() {
		if ctx.Err() != nil {
			b.t.Fatal("the switch did not take the frame within 5 s")
		}
	}
	after := b.stats(from)
	o := outcome{sent: map[string][]*frame.Frame{}, drops: map[drop.Reason]uint64{}}
	for r, n := range after.Drops {
		if n != before.Drops[r] {
			o.drops[r] = n - before.Drops[r]
		}
	}
	for name, q := range b.queues {
		if fs := q.Sent(); len(fs) > 0 {
			o.sent[name] = fs
		}
	}
	return o
}

// only is the one frame that went out, through the port named and with no drop
// but those in counted.
func (b *bed) only(o outcome, port string, counted ...drop.Reason) *frame.Frame {
	b.t.Helper()
	if len(o.sent) != 1 || len(o.sent[port]) != 1 {
		b.t.Fatalf("sent %v, drops %v; want one frame out of %s", ports(o), o.drops, port)
	}
	want := map[drop.Reason]uint64{}
	for _, r := range counted {
		want[r]++
	}
	if len(want) != len(o.drops) {
		b.t.Fatalf("drops %v, want %v", o.drops, want)
	}
	for r, n := range want {
		if o.drops[r] != n {
			b.t.Fatalf("drops %v, want %v", o.drops, want)
		}
	}
	return o.sent[port][0]
}

// dropped checks that nothing went out and one frame was counted for r.
func (b *bed) dropped(o outcome, r drop.Reason) {
	b.t.Helper()
	if len(o.sent) != 0 || len(o.drops) != 1 || o.drops[r] != 1 {
		b.t.Fatalf("sent %v, drops %v; want one %v", ports(o), o.drops, r)
	}
}

func ports(o outcome) map[string]int {
	n := map[string]int{}
	for name, fs := range o.sent {
		n[name] = len(fs)
	}
	return n
}

// fromA completes a packet that pod a sends by its gateway.
func fromA(p wiretest.Packet) wiretest.Packet {
	p.SrcMAC, p.DstMAC = macA, vswitch.GatewayMAC
	if !p.Src.IsValid() {
		p.Src = podA4
		if p.Dst.Is6() {
			p.Src = podA6
		}
	}
	return p
}

func fromB(p wiretest.Packet) wiretest.Packet {
	p.SrcMAC, p.DstMAC = macB, vswitch.GatewayMAC
	if !p.Src.IsValid() {
		p.Src = podB4
		if p.Dst.Is6() {
			p.Src = podB6
		}
	}
	return p
}

func owned(raw []byte) *frame.Frame {
	f := frame.New()
	f.Set(raw)
	return f
}

// tunnelled is a frame as member peer delivers it.
func tunnelled(peer uint32, p wiretest.Packet) *frame.Frame {
	f := owned(p.Frame())
	f.Peer = peer
	return f
}

// headers parses a frame the switch sent and checks that it is sound.
func (b *bed) headers(f *frame.Frame) wire.Headers {
	b.t.Helper()
	var h wire.Headers
	if r := wire.Parse(f.Bytes(), &h); r != drop.None {
		b.t.Fatalf("sent frame does not parse: %v", r)
	}
	if f.VNet.Flags&frame.NeedsCsum == 0 && !wiretest.TransportIntact(f.Bytes()) {
		b.t.Fatal("sent frame has a wrong transport checksum")
	}
	return h
}
