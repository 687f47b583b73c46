package node

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vswitch/control"
	"vswitch/internal/wire"
	"vswitch/tunnel/vxlan"
	"vswitch/vswitch"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
	"vswitch/vswitch/gateway"
)

// peers is a tunnel that only keeps its list of members.
type peers struct {
	byID   map[uint32]vxlan.Peer
	err    error
	trains map[uint32]vxlan.TrainState
}

func (p *peers) Together(f func()) { f() }

func (p *peers) SetPeer(x vxlan.Peer) error {
	if p.err != nil {
		return p.err
	}
	p.byID[x.ID] = x
	return nil
}

func (p *peers) RemovePeer(id uint32) bool   { delete(p.byID, id); return true }
func (p *peers) TakesIngress(id uint32) bool { return p.byID[id].IngressVNI != 0 }
func (p *peers) Trains(id uint32) (vxlan.TrainState, uint64) {
	return p.trains[id], uint64(p.trains[id])
}

// table is a gateway that only keeps its services, and tells of every endpoint
// that goes as the real one does.
type table struct {
	services map[gateway.ServiceKey]gateway.Service
	gone     func(gateway.Gone)
	// listeners are what it says is open on the host.
	listeners []gateway.ListenerStatus
	err       error
}

func (g *table) PutService(s gateway.Service) error {
	if g.err != nil {
		return g.err
	}
	g.tell(g.services[s.ServiceKey], s)
	g.services[s.ServiceKey] = s
	return nil
}

func (g *table) DeleteService(k gateway.ServiceKey) error {
	g.tell(g.services[k], gateway.Service{})
	delete(g.services, k)
	return g.err
}

func (g *table) ProxyStats() []gateway.ProxyStats { return nil }

func (g *table) Listeners() []gateway.ListenerStatus { return g.listeners }

func (g *table) tell(old, next gateway.Service) {
	for _, e := range old.Endpoints {
		if !slices.Contains(next.Endpoints, e) {
			listed := slices.ContainsFunc(next.Endpoints, func(n gateway.Endpoint) bool { return n.ID == e.ID })
			g.gone(gateway.Gone{
				Endpoint: e.ID, Service: old.ServiceKey, Protocol: old.Protocol,
				VIPs: old.VIPs, Port: old.Port, NodePort: old.NodePort, Removed: !listed,
			})
		}
	}
}

// facts remembers what the switch was told last.
type facts struct{ last vswitch.Facts }

func (f *facts) SetFacts(x vswitch.Facts) { f.last = x }
func (f *facts) Settle()                  {}

type bench struct {
	*dataplane
	peers *peers
	table *table
	facts *facts
}

func newBench(t *testing.T) *bench {
	flows, err := flow.New(flow.Config{Connections: 64})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { flows.Close() })
	b := &bench{peers: &peers{byID: map[uint32]vxlan.Peer{}}, facts: &facts{}}
	b.dataplane = newDataplane("a", []netip.Addr{netip.MustParseAddr("192.0.2.1")}, fib.New(), flows, b.peers)
	b.serviceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	b.table = &table{services: map[gateway.ServiceKey]gateway.Service{}, gone: b.endpointGone}
	b.serve(b.table, b.facts, vswitch.Facts{TunnelPorts: []uint16{8472}})
	return b
}

// lookup is a route as text: "peer b", "node", "none".
func (b *bench) lookup(addr string) string {
	w := wire.AddrFrom(netip.MustParseAddr(addr))
	hop := b.fib.Lookup(&w)
	if hop.Kind == fib.Peer {
		return "peer " + b.peers.byID[hop.Index].Node
	}
	return hop.Kind.String()
}

func tunnel(node, underlay string, prefixes ...string) control.Tunnel {
	t := control.Tunnel{
		TunnelKey: control.TunnelKey{Node: node, Device: "vxlan"}, Underlay: netip.MustParseAddr(underlay),
		Ports: []uint16{8472, 8473}, VNI: 1, MAC: frame.MAC{2, 0, 0, 0, 0, 9},
	}
	for _, p := range prefixes {
		t.Prefixes = append(t.Prefixes, netip.MustParsePrefix(p))
	}
	return t
}

func (b *bench) put(t *testing.T, x control.Tunnel) {
	t.Helper()
	if err := b.PutTunnel(x); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) wantRoutes(t *testing.T, want map[string]string) {
	t.Helper()
	for _, addr := range slices.Sorted(maps.Keys(want)) {
		if got := b.lookup(addr); got != want[addr] {
			t.Errorf("%s leads to %q, want %q", addr, got, want[addr])
		}
	}
}

func TestTunnelComesChangesAndGoes(t *testing.T) {
	b := newBench(t)
	b.put(t, tunnel("b", "192.0.2.2", "10.244.1.0/24", "fd00:10:244:1::/64"))
	b.wantRoutes(t, map[string]string{"10.244.1.7": "peer b", "fd00:10:244:1::7": "peer b", "192.0.2.2": "node", "10.244.2.7": "none"})
	if want := []uint16{8472, 8473}; !slices.Equal(b.facts.last.TunnelPorts, want) {
		t.Errorf("tunnel ports %v, want %v", b.facts.last.TunnelPorts, want)
	}

	b.put(t, tunnel("b", "192.0.2.3", "10.244.1.0/24", "10.244.2.0/24"))
	b.wantRoutes(t, map[string]string{
		"10.244.1.7": "peer b", "10.244.2.7": "peer b", "fd00:10:244:1::7": "none", "192.0.2.2": "none", "192.0.2.3": "node",
	})
	if len(b.peers.byID) != 1 {
		t.Errorf("%d members, want the one that changed", len(b.peers.byID))
	}

	for range 2 { // deleting what is not there is no error
		if err := b.DeleteTunnel(control.TunnelKey{Node: "b", Device: "vxlan"}); err != nil {
			t.Fatal(err)
		}
	}
	b.wantRoutes(t, map[string]string{"10.244.1.7": "none", "10.244.2.7": "none", "192.0.2.3": "none"})
	if len(b.peers.byID) != 0 || !slices.Equal(b.facts.last.TunnelPorts, []uint16{8472}) {
		t.Errorf("left: members %v, ports %v", b.peers.byID, b.facts.last.TunnelPorts)
	}
}

func TestMemberThatIsRefusedGetsNoRoute(t *testing.T) {
	b := newBench(t)
	b.peers.err = errors.New("no underlay of that family")
	if err := b.PutTunnel(tunnel("b", "192.0.2.2", "10.244.1.0/24")); err == nil {
		t.Error("no error")
	}
	b.wantRoutes(t, map[string]string{"10.244.1.7": "none", "192.0.2.2": "none"})
}

func TestNodesBehindOneAddressShareItsRoute(t *testing.T) {
	b := newBench(t)
	b.put(t, tunnel("b", "192.0.2.2", "10.244.1.0/24"))
	b.put(t, tunnel("c", "192.0.2.2", "10.244.2.0/24"))
	if err := b.DeleteTunnel(control.TunnelKey{Node: "b", Device: "vxlan"}); err != nil {
		t.Fatal(err)
	}
	b.wantRoutes(t, map[string]string{"192.0.2.2": "node", "10.244.1.7": "none", "10.244.2.7": "peer c"})
}

func TestPrefixThatWentToAnotherNodeStaysThere(t *testing.T) {
	b := newBench(t)
	b.put(t, tunnel("b", "192.0.2.2", "10.244.1.0/24"))
	b.put(t, tunnel("c", "192.0.2.3", "10.244.1.0/24"))
	if err := b.DeleteTunnel(control.TunnelKey{Node: "b", Device: "vxlan"}); err != nil {
		t.Fatal(err)
	}
	b.wantRoutes(t, map[string]string{"10.244.1.7": "peer c"})
}

// Outside addresses lead to the gateway as long as a service port has them, unless
// they are nodes'.
func TestOutsideAddressesLeadToTheGateway(t *testing.T) {
	b := newBench(t)
	web, other := service(false, "10.96.0.10", control.TCP), service(false, "10.96.0.11", control.TCP)
	other.Name, other.NodePort = "other", 0
	web.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}
	web.ExternalIPs = []netip.Addr{netip.MustParseAddr("198.51.100.2")}
	web.VIPs = append(web.VIPs, netip.MustParseAddr("10.112.0.10"))       // of a range that came later
	other.ExternalIPs = []netip.Addr{netip.MustParseAddr("198.51.100.1")} // at another port
	put := func(s control.Service) {
		t.Helper()
		if err := b.PutService(s); err != nil {
			t.Fatal(err)
		}
	}
	put(web)
	put(web) // again is not twice
	put(other)
	b.wantRoutes(t, map[string]string{
		"198.51.100.1": "vip", "198.51.100.2": "vip", "192.0.2.1": "node", "192.0.2.2": "vip", "10.112.0.10": "vip", "10.96.0.10": "none",
	})
	b.put(t, tunnel("b", "192.0.2.2"))
	b.put(t, tunnel("c", "192.0.2.1")) // behind this node's own address
	b.wantRoutes(t, map[string]string{"192.0.2.1": "node", "192.0.2.2": "node"})

	web.LoadBalancerIPs = web.LoadBalancerIPs[2:]
	put(web)
	b.wantRoutes(t, map[string]string{"198.51.100.1": "vip", "198.51.100.2": "vip", "192.0.2.1": "node"})
	b.table.err = errors.New("not now")
	if err := b.DeleteService(web.ServiceKey); err == nil {
		t.Error("no error")
	}
	b.wantRoutes(t, map[string]string{"198.51.100.2": "vip"})
	b.table.err = nil
	for _, node := range []string{"b", "c"} {
		if err := b.DeleteTunnel(control.TunnelKey{Node: node, Device: "vxlan"}); err != nil {
			t.Fatal(err)
		}
	}
	b.wantRoutes(t, map[string]string{"192.0.2.1": "node", "192.0.2.2": "vip"})
	for _, s := range []control.Service{web, other} {
		if err := b.DeleteService(s.ServiceKey); err != nil {
			t.Fatal(err)
		}
	}
	b.wantRoutes(t, map[string]string{"198.51.100.1": "none", "198.51.100.2": "none", "192.0.2.1": "node", "192.0.2.2": "none", "10.112.0.10": "none"})
}

func service(v6 bool, vip string, proto control.Protocol, endpoints ...control.Endpoint) control.Service {
	return control.Service{
		ServiceKey: control.ServiceKey{Namespace: "default", Name: "web", PortName: "p", IPv6: v6},
		Protocol:   proto, VIPs: []netip.Addr{netip.MustParseAddr(vip)}, Port: 80, NodePort: 30080, Endpoints: endpoints,
	}
}

func endpointAt(addr string, id uint64, node string) control.Endpoint {
	return control.Endpoint{Addr: netip.MustParseAddr(addr), Port: 8080, ID: id, Node: node, Cluster: true, Ready: true, Serving: true}
}

// TestFamiliesOfAServiceShareItsNodePort: the gateway has one service port for both.
func TestFamiliesOfAServiceShareItsNodePort(t *testing.T) {
	b := newBench(t)
	for _, s := range []control.Service{
		service(false, "10.96.0.10", control.TCP, endpointAt("10.244.0.2", 1, "a"), endpointAt("10.244.1.2", 2, "b")),
		service(true, "fd00:10:96::10", control.TCP, endpointAt("fd00:10:244::2", 1, "a")),
	} {
		if err := b.PutService(s); err != nil {
			t.Fatal(err)
		}
	}
	key := gateway.ServiceKey{Namespace: "default", Name: "web", PortName: "p"}
	got := b.table.services[key]
	if len(b.table.services) != 1 || len(got.VIPs) != 2 || got.NodePort != 30080 || len(got.Endpoints) != 3 {
		t.Fatalf("services %+v", b.table.services)
	}
	if !got.Endpoints[0].OnNode || got.Endpoints[1].OnNode {
		t.Errorf("on the node: %v and %v, want the one on node a", got.Endpoints[0].OnNode, got.Endpoints[1].OnNode)
	}
	if err := b.DeleteService(service(false, "10.96.0.10", control.TCP).ServiceKey); err != nil {
		t.Fatal(err)
	}
	if got := b.table.services[key]; len(got.VIPs) != 1 || !got.VIPs[0].Is6() {
		t.Errorf("after one family went: %+v", got)
	}
	if err := b.DeleteService(service(true, "fd00:10:96::10", control.TCP).ServiceKey); err != nil {
		t.Fatal(err)
	}
	if len(b.table.services) != 0 {
		t.Errorf("after both went: %+v", b.table.services)
	}
}

func TestServiceThatIsRefusedIsTriedAgainWhole(t *testing.T) {
	b := newBench(t)
	b.table.err = errors.New("VIP taken")
	s := service(false, "10.96.0.10", control.TCP)
	if err := b.PutService(s); err == nil {
		t.Fatal("no error")
	}
	b.table.err = nil
	if err := b.PutService(service(true, "fd00:10:96::10", control.TCP)); err != nil {
		t.Fatal(err)
	}
	for _, got := range b.table.services {
		if len(got.VIPs) != 1 {
			t.Errorf("the refused family came along: %+v", got)
		}
	}
}

// flowTo puts a flow from a pod, by way of an address and port, to an endpoint into
// the table.
func (b *bench) flowTo(t *testing.T, proto uint8, at, endpoint string, id uint64, clientPort uint16) {
	t.Helper()
	to := netip.MustParseAddrPort(at)
	orig := flow.Key{
		Src: wire.AddrFrom(netip.MustParseAddr("10.244.0.9")), SrcPort: clientPort,
		Dst: wire.AddrFrom(to.Addr()), DstPort: to.Port(), Proto: proto,
	}
	reply := flow.Key{Src: wire.AddrFrom(netip.MustParseAddr(endpoint)), SrcPort: 8080, Dst: orig.Src, DstPort: clientPort, Proto: proto}
	if r := b.flows.Insert(&flow.Spec{Orig: orig, Reply: reply, Endpoint: id}, 0, 0); r != flow.Inserted {
		t.Fatalf("insert: %v", r)
	}
}

// flowList is "proto>endpoint address" of every flow, sorted.
func (b *bench) flowList() string {
	var out []string
	for i := range b.flows.All() {
		out = append(out, fmt.Sprintf("%d>%v", i.Orig.Proto, i.Reply.Src))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// UDP flows leave an endpoint as soon as it takes no new ones, which kube-proxy
// forgot for years (case 14); TCP connections stay with one that terminates, until
// the service lists it no longer. Flows by way of other services stay.
func TestFlowsLeaveWithTheirEndpoint(t *testing.T) {
	const node = "192.0.2.1"
	for _, tt := range []struct {
		name   string
		change func(*control.Service)
		// Whether connections and datagrams to the first endpoint go on.
		tcp, udp bool
	}{
		{"nothing changes", func(*control.Service) {}, true, true},
		{"it terminates", func(s *control.Service) { s.Endpoints[0].Cluster = false }, true, false},
		{"it is removed", func(s *control.Service) { s.Endpoints = s.Endpoints[1:] }, false, false},
		{"another pod has its address", func(s *control.Service) { s.Endpoints[0].ID = 3 }, false, false},
		{"the service goes", nil, false, false},
	} {
		for _, proto := range []control.Protocol{control.UDP, control.TCP, control.SCTP} {
			for _, at := range []string{"10.96.0.10:80", node + ":30080"} {
				t.Run(fmt.Sprintf("%s, %v by way of %s", tt.name, proto, at), func(t *testing.T) {
					b := newBench(t)
					b.fib.SetHost(netip.MustParseAddr(node), fib.NextHop{Kind: fib.Node})
					one, two := endpointAt("10.244.0.2", 1, "a"), endpointAt("10.244.1.2", 2, "b")
					s := service(false, "10.96.0.10", proto, one, two)
					s.NodePort = 30080
					if err := b.PutService(s); err != nil {
						t.Fatal(err)
					}
					others := control.TCP
					if proto == control.TCP {
						others = control.UDP
					}
					b.flowTo(t, uint8(proto), at, "10.244.0.2", 1, 1001)
					b.flowTo(t, uint8(others), at, "10.244.0.2", 1, 1002)
					b.flowTo(t, uint8(proto), "10.96.0.99:80", "10.244.0.2", 1, 1003)
					b.flowTo(t, uint8(proto), "10.96.0.99:30080", "10.244.0.2", 1, 1004)
					b.flowTo(t, uint8(proto), at, "10.244.1.2", 2, 1005)

					var err error
					if s.Endpoints = slices.Clone(s.Endpoints); tt.change == nil {
						err = b.DeleteService(s.ServiceKey)
					} else {
						tt.change(&s)
						err = b.PutService(s)
					}
					if err != nil {
						t.Fatal(err)
					}
					b.forgetting.once()
					want := []string{"1002", "1003", "1004"}
					if proto == control.UDP && tt.udp || proto != control.UDP && tt.tcp {
						want = append(want, "1001")
					}
					if tt.change != nil { // the second endpoint is served as before
						want = append(want, "1005")
					}
					slices.Sort(want)
					if got := b.clientPorts(); !slices.Equal(got, want) {
						t.Errorf("flows from ports %v left, want %v", got, want)
					}
				})
			}
		}
	}
}

// clientPorts are those that flows come from, sorted.
func (b *bench) clientPorts() []string {
	var out []string
	for i := range b.flows.All() {
		out = append(out, fmt.Sprint(i.Orig.SrcPort))
	}
	slices.Sort(out)
	return out
}

func TestFlowsLeaveWithTheirPod(t *testing.T) {
	b := newBench(t)
	b.flowTo(t, wire.ProtoTCP, "10.96.0.10:80", "10.244.0.2", 1, 1001)
	b.flowTo(t, wire.ProtoTCP, "10.96.0.10:80", "10.244.1.2", 2, 1002)
	b.forgetPod([]netip.Addr{netip.MustParseAddr("10.244.0.2")})
	if got, want := b.flowList(), "6>10.244.1.2"; got != want {
		t.Errorf("flows %q, want %q", got, want)
	}
	b.forgetPod([]netip.Addr{netip.MustParseAddr("10.244.0.9")}) // the client
	if got := b.flowList(); got != "" {
		t.Errorf("flows %q, want none", got)
	}
}
