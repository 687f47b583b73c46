package vswitch_test

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
)

// The switch against a model that has no cache: whatever packets, services and
// pods come and go, a frame leaves where the model says and as it says. The
// model remembers connections in a plain map, because the answer to "where" is, for a
// packet of a connection, "where the first one went".

// tuple5 is a packet's, as it enters or leaves.
type tuple5 struct {
	proto    uint8
	src, dst netip.AddrPort
}

func (k tuple5) String() string { return fmt.Sprintf("protocol %d, %v to %v", k.proto, k.src, k.dst) }

func (k tuple5) reverse() tuple5 { return tuple5{k.proto, k.dst, k.src} }

// leg is how packets of one direction of a connection leave.
type leg struct {
	as   tuple5
	port string
}

type model struct {
	pods      map[netip.Addr]string // the port behind an address, now
	endpoints map[netip.AddrPort][]netip.AddrPort
	known     map[tuple5]leg
}

// verdict is where a packet goes; false: nowhere. It is a fresh one unless the
// packet's connection is known.
func (m *model) verdict(k tuple5, from string, flags uint8) (leg, bool) {
	if l, ok := m.known[k]; ok {
		return l, true
	}
	to := k
	if isVIP(k.dst.Addr()) {
		eps := m.endpoints[k.dst]
		if len(eps) == 0 || k.proto == wire.ProtoTCP && flags != wire.SYN {
			return leg{}, false
		}
		to.dst = choice(k.src.Port(), eps)
		if to.dst.Addr() == k.src.Addr() {
			to.src = netip.AddrPortFrom(routerOf(k.src.Addr()), k.src.Port())
		}
	}
	port, ok := m.pods[to.dst.Addr()]
	return leg{to, port}, ok && (port != from || to != k)
}

// learn notes the connection of a packet that left as l.
func (m *model) learn(k tuple5, from string, l leg) {
	m.known[k], m.known[l.as.reverse()] = l, leg{k.reverse(), from}
}

// forget is what becomes of connections when an address changes hands.
func (m *model) forget(gone func(in, out tuple5) bool) {
	for k, l := range m.known {
		if gone(k, l.as) {
			delete(m.known, k)
			delete(m.known, l.as.reverse())
		}
	}
}

func choice(srcPort uint16, eps []netip.AddrPort) netip.AddrPort { return eps[int(srcPort)%len(eps)] }

var vips = []netip.Addr{vip4, vip6}

func isVIP(a netip.Addr) bool { return slices.Contains(vips, a) }

func vipOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return vip4
	}
	return vip6
}

func routerOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return router4
	}
	return router6
}

// world drives the bed and the model through the same changes.
type world struct {
	*bed
	model
	lives   map[netip.Addr]uint64 // identity of the pod at an address: none has another's
	lastID  uint64
	results map[string]int // what came up, so that the test can say what it tried
}

// place is where the pods of the test live, at two addresses each.
func place(slot int) []netip.Addr {
	a4, a6 := podB4.As4(), podB6.As16()
	a4[3], a6[15] = byte(20+slot), byte(20+slot)
	return []netip.Addr{netip.AddrFrom4(a4), netip.AddrFrom16(a6)}
}

const slots = 4

func (w *world) reset() {
	for slot := range slots {
		if _, ok := w.pods[place(slot)[0]]; ok {
			w.leave(slot)
		}
	}
	w.flows.DeleteFunc(func(*flow.Info) bool { return true })
	w.model = model{
		pods:      map[netip.Addr]string{remote4: "tunnel", remote6: "tunnel"},
		endpoints: map[netip.AddrPort][]netip.AddrPort{}, known: map[tuple5]leg{},
	}
	w.lives = map[netip.Addr]uint64{remote4: 1, remote6: 2}
	w.lastID = max(w.lastID, 2)
}

// arrive puts a pod that was never seen before where there is none.
func (w *world) arrive(slot int) {
	w.lastID++
	name, mac := fmt.Sprintf("pod-%d", w.lastID), frame.MAC{2, 0, 0, 0, 1, byte(slot)}
	w.add(name, vswitch.PortConfig{Kind: vswitch.PortPod, MAC: mac, Addrs: place(slot), MTUBytes: bedMTU})
	for _, a := range place(slot) {
		w.pods[a], w.lives[a] = name, w.lastID
		w.fib.SetHost(a, fib.NextHop{Kind: fib.Port, Index: w.ids[name]})
	}
}

// leave takes a pod away as the node does: no service sends to it, no route leads to
// it, no connection names it, and then its addresses are free.
func (w *world) leave(slot int) {
	name, addrs := w.pods[place(slot)[0]], place(slot)
	for vip, eps := range w.endpoints {
		w.putService(vip, slices.DeleteFunc(slices.Clone(eps), func(e netip.AddrPort) bool { return slices.Contains(addrs, e.Addr()) }))
	}
	for _, a := range addrs {
		delete(w.pods, a)
		w.fib.DeleteHost(a)
	}
	if err := w.sw.RemovePort(w.ids[name]); err != nil {
		w.t.Fatal(err)
	}
	delete(w.queues, name)
	w.flows.DeleteFunc(func(i *flow.Info) bool {
		return slices.ContainsFunc([]wire.Addr{i.Orig.Src, i.Orig.Dst, i.Reply.Src, i.Reply.Dst},
			func(a wire.Addr) bool { return slices.Contains(addrs, a.Netip()) })
	})
	w.forget(func(in, out tuple5) bool {
		return slices.ContainsFunc([]netip.AddrPort{in.src, in.dst, out.src, out.dst},
			func(a netip.AddrPort) bool { return slices.Contains(addrs, a.Addr()) })
	})
}

// putService changes a service's endpoints. UDP flows to one that it no longer sends
// to move at once; others stay with their pod.
func (w *world) putService(vip netip.AddrPort, eps []netip.AddrPort) {
	gone := slices.DeleteFunc(slices.Clone(w.endpoints[vip]), func(e netip.AddrPort) bool { return slices.Contains(eps, e) })
	w.endpoints[vip] = eps
	w.services.mu.Lock()
	w.services.choose = func(k *flow.Key) (flow.Endpoint, drop.Reason) {
		eps, ok := w.endpoints[netip.AddrPortFrom(k.Dst.Netip(), k.DstPort)]
		switch {
		case !ok:
			return flow.Endpoint{}, drop.NoService
		case len(eps) == 0:
			return flow.Endpoint{}, drop.NoEndpoint
		}
		e := choice(k.SrcPort, eps)
		return flow.Endpoint{Addr: wire.AddrFrom(e.Addr()), Port: e.Port(), ID: w.lives[e.Addr()]}, drop.None
	}
	w.services.mu.Unlock()
	stale := func(vip2, ep netip.AddrPort, proto uint8) bool {
		return vip2 == vip && proto == wire.ProtoUDP && slices.Contains(gone, ep)
	}
	w.flows.DeleteFunc(func(i *flow.Info) bool {
		ep := netip.AddrPortFrom(i.Reply.Src.Netip(), i.Reply.SrcPort)
		if stale(netip.AddrPortFrom(i.Orig.Dst.Netip(), i.Orig.DstPort), ep, i.Orig.Proto) {
			if i.Endpoint != w.lives[ep.Addr()] {
				w.t.Errorf("flow %+v to %v is another pod's: %d lives there", i.Spec, ep, w.lives[ep.Addr()])
			}
			return true
		}
		return false
	})
	w.forget(func(in, out tuple5) bool { return stale(in.dst, out.dst, in.proto) })
}

// try sends a packet and holds what comes of it against the model.
func (w *world) try(rt *rapid.T, k tuple5, flags uint8) {
	from, ok := w.pods[k.src.Addr()]
	if !ok {
		return // nobody is there to send it
	}
	p := wiretest.Packet{
		DstMAC: vswitch.GatewayMAC, Src: k.src.Addr(), Dst: k.dst.Addr(), Proto: k.proto,
		SrcPort: k.src.Port(), DstPort: k.dst.Port(), Flags: flags, Payload: []byte("payload."),
	}
	in := tunnelled(peerIndex, p)
	if from != "tunnel" {
		p.SrcMAC = frame.MAC{2, 0, 0, 0, 1, k.src.Addr().AsSlice()[len(k.src.Addr().AsSlice())-1] - 20}
		in = owned(p.Frame())
	}
	_, known := w.known[k]
	want, ok := w.verdict(k, from, flags)
	if from == "tunnel" && want.port == "tunnel" {
		ok = false // nodes are no transit
	}
	o := w.send(from, in)
	if !ok {
		w.results["refused"]++
		for port, fs := range o.sent {
			for _, f := range fs {
				if h := w.headers(f); port != from || h.Dst.Netip() != k.src.Addr() || h.Proto != wire.ProtoICMP && h.Proto != wire.ProtoICMPv6 && h.TCPFlags&wire.RST == 0 {
					rt.Fatalf("%v from %s was sent out of %s: %+v; want it refused", k, from, port, h)
				}
			}
		}
		return
	}
	if len(o.sent[want.port]) != 1 || len(o.sent) != 1 {
		rt.Fatalf("%v from %s: sent %v, drops %v; want %+v (known: %v)", k, from, ports(o), o.drops, want, known)
	}
	h := w.headers(o.sent[want.port][0])
	got := tuple5{h.Proto, netip.AddrPortFrom(h.Src.Netip(), h.SrcPort), netip.AddrPortFrom(h.Dst.Netip(), h.DstPort)}
	if _, taken := w.known[want.as.reverse()]; !known && taken {
		w.results["another source port"]++
		if got.src.Port() == want.as.src.Port() {
			rt.Fatalf("%v left as %v, whose answers are another connection's", k, got)
		}
		want.as.src = netip.AddrPortFrom(want.as.src.Addr(), got.src.Port())
	}
	if got != want.as {
		rt.Fatalf("%v from %s left as %v, want %v (known: %v)", k, from, got, want.as, known)
	}
	switch {
	case known:
		w.results["known"]++
	case got != k:
		w.results["new, rewritten"]++
	default:
		w.results["new, direct"]++
	}
	if !known {
		w.learn(k, from, want)
	}
}

// draw makes a packet: of a connection that is known, one whose answers would look
// like those of a known one, or any among few hosts and ports.
func (w *world) draw(rt *rapid.T) tuple5 {
	if kind := rapid.IntRange(0, 3).Draw(rt, "kind"); len(w.known) > 0 && kind > 0 {
		all := slices.SortedFunc(maps.Keys(w.known), func(a, b tuple5) int {
			return cmp.Or(a.src.Compare(b.src), a.dst.Compare(b.dst), cmp.Compare(a.proto, b.proto))
		})
		k := all[rapid.IntRange(0, len(all)-1).Draw(rt, "which")]
		switch as := w.known[k].as; {
		case w.pods[k.src.Addr()] == "tunnel": // resolves VIPs by itself
		case kind == 1 && as == k: // directly, then by a service
			k.dst = netip.AddrPortFrom(vipOf(k.dst.Addr()), 80)
		case kind == 1: // by a service, then directly
			k.dst = as.dst
		}
		return k
	}
	family := rapid.IntRange(0, 1).Draw(rt, "family")
	hosts := []netip.Addr{[]netip.Addr{remote4, remote6}[family]}
	for slot := range slots {
		hosts = append(hosts, place(slot)[family])
	}
	k := tuple5{proto: rapid.SampledFrom([]uint8{6, 17, 132}).Draw(rt, "proto")}
	k.src = netip.AddrPortFrom(rapid.SampledFrom(hosts).Draw(rt, "src"), rapid.SampledFrom([]uint16{1000, 8080}).Draw(rt, "srcPort"))
	targets := hosts
	if k.src.Addr() != hosts[0] {
		for range len(hosts) {
			targets = append(targets, vips[family])
		}
	}
	k.dst = netip.AddrPortFrom(rapid.SampledFrom(targets).Draw(rt, "dst"), rapid.SampledFrom([]uint16{80, 8080}).Draw(rt, "dstPort"))
	return k
}

// drawService puts a service with any endpoints that live, or none.
func (w *world) drawService(rt *rapid.T) {
	family := rapid.IntRange(0, 1).Draw(rt, "family")
	vip := netip.AddrPortFrom(vips[family], rapid.SampledFrom([]uint16{80, 8080}).Draw(rt, "port"))
	var eps []netip.AddrPort
	for _, a := range append([]netip.Addr{[]netip.Addr{remote4, remote6}[family]}, place(0)[family], place(1)[family], place(2)[family], place(3)[family]) {
		if _, lives := w.pods[a]; lives && rapid.Bool().Draw(rt, "endpoint") {
			eps = append(eps, netip.AddrPortFrom(a, 8080))
		}
	}
	w.putService(vip, eps)
}

func TestVerdictsAreThoseOfAModelWithoutCache(t *testing.T) {
	w := &world{bed: newBed(t), results: map[string]int{}}
	rapid.Check(t, func(rt *rapid.T) {
		w.reset()
		for slot := range slots {
			w.arrive(slot)
		}
		for range 3 {
			w.drawService(rt)
		}
		for range rapid.IntRange(1, 100).Draw(rt, "steps") {
			switch op := rapid.IntRange(0, 29).Draw(rt, "op"); op {
			case 0: // a pod leaves, or another comes in its place
				slot := rapid.IntRange(0, slots-1).Draw(rt, "slot")
				if _, there := w.pods[place(slot)[0]]; there {
					w.leave(slot)
					w.results["left"]++
				} else {
					w.arrive(slot)
					w.results["recycled"]++
				}
			case 1, 2:
				w.drawService(rt)
			default:
				w.try(rt, w.draw(rt), rapid.SampledFrom([]uint8{wire.SYN, wire.ACK}).Draw(rt, "flags"))
			}
		}
	})
	for _, what := range []string{"known", "new, rewritten", "new, direct", "another source port", "refused", "left", "recycled"} {
		if w.results[what] < 20 {
			t.Errorf("%q came up %d times only: the test does not try it", what, w.results[what])
		}
	}

}

// A worker that was given an endpoint just before it went installs the flow after
// that; whoever settles first finds it.
func TestSettleWaitsForFirstPacketsUnderWay(t *testing.T) {
	b := newBed(t)
	picking, gone := make(chan struct{}), make(chan struct{})
	b.services.mu.Lock()
	b.services.choose = func(*flow.Key) (flow.Endpoint, drop.Reason) {
		close(picking)
		<-gone
		return flow.Endpoint{Addr: wire.AddrFrom(podB4), Port: 8080, ID: 7}, drop.None
	}
	b.services.mu.Unlock()
	b.queues["a"].Inject(owned(fromA(wiretest.Packet{Dst: vip4, Proto: 17, SrcPort: 40000, DstPort: 80}).Frame()))
	<-picking // from here on nobody is given the endpoint any more
	settled := make(chan struct{})
	go func() { b.sw.Settle(); close(settled) }()
	select {
	case <-settled:
		t.Fatal("settled with a first packet under way")
	default:
	}
	close(gone)
	<-settled
	if n := b.flows.DeleteFunc(func(i *flow.Info) bool { return i.Endpoint == 7 }); n != 1 {
		t.Errorf("%d flows to the endpoint found, want 1", n)
	}
	b.sw.Close()
	b.sw.Settle() // does not wait for workers that have stopped
}
