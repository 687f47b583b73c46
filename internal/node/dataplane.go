package node

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"vswitch/control"
	"vswitch/internal/wire"
	"vswitch/tunnel/vxlan"
	"vswitch/vswitch"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/gateway"
)

// dataplane makes what the reconciler wants true in the tunnel, the FIB and the
// gateway. Order is what matters in it: a member exists before a route leads to
// it, and no route leads to a member that is going.
type dataplane struct {
	node    string // this node's name
	fib     *fib.Table
	flows   *flow.Table
	tunnel  tunnelPeers
	gateway serviceTable
	sw      switcher
	facts   vswitch.Facts // of this node alone; peers' tunnel ports are added

	serviceCIDRs []netip.Prefix // what leads to the gateway as a whole
	forgetting   *forgetting    // flows to endpoints that have gone

	mu       sync.Mutex // guards all below
	members  map[control.TunnelKey]*peer
	ids      map[uint32]control.TunnelKey // members' keys
	ports    map[uint16]int               // by how many members' a tunnel port is used
	together bool                         // facts are published later
	prefixes map[netip.Prefix]uint32      // by whom each is routed now
	hosts    map[netip.Addr]int           // how many nodes have an underlay address, this one among them
	vips     map[netip.Addr]int           // how many service ports have an outside address
	services map[control.ServiceKey]control.Service
}

// tunnelPeers and serviceTable are the parts of the tunnel and the gateway that
// the reconciler's wishes go to.
type tunnelPeers interface {
	Together(func())
	SetPeer(vxlan.Peer) error
	RemovePeer(id uint32) bool
	TakesIngress(id uint32) bool
	Trains(id uint32) (_ vxlan.TrainState, failures uint64)
}

type serviceTable interface {
	PutService(gateway.Service) error
	DeleteService(gateway.ServiceKey) error
	Listeners() []gateway.ListenerStatus
	ProxyStats() []gateway.ProxyStats
}

// peer is a member as programmed.
type peer struct {
	id uint32
	control.Tunnel
}

var _ control.Dataplane = (*dataplane)(nil)

// switcher is the part of the switch that the dataplane tells things.
type switcher interface {
	SetFacts(vswitch.Facts)
	Settle()
}

// newDataplane makes the dataplane of a node at the underlay addresses given.
func newDataplane(node string, underlays []netip.Addr, f *fib.Table, flows *flow.Table, t tunnelPeers) *dataplane {
	d := &dataplane{
		node: node, fib: f, flows: flows, tunnel: t,
		members: map[control.TunnelKey]*peer{}, ids: map[uint32]control.TunnelKey{}, ports: map[uint16]int{}, prefixes: map[netip.Prefix]uint32{},
		hosts: map[netip.Addr]int{}, vips: map[netip.Addr]int{}, services: map[control.ServiceKey]control.Service{},
	}
	for _, a := range underlays {
		d.host(a) // another node may be behind it and go, or a service be served at it
	}
	d.forgetting = newForgetting(flows, d.isNode)
	return d
}

// serve lets the dataplane reach gateway and switch, which are made after it.
func (d *dataplane) serve(g serviceTable, sw switcher, facts vswitch.Facts) {
	d.forgetting.serve(sw.Settle)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gateway, d.sw, d.facts = g, sw, facts
	d.publishFacts()
}

// Together implements control.Dataplane.
func (d *dataplane) Together(f func()) {
	d.setTogether(true)
	defer d.setTogether(false)
	d.tunnel.Together(f)
}

func (d *dataplane) setTogether(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.together = on
	d.publishFacts()
}

// PutTunnel implements control.Dataplane.
func (d *dataplane) PutTunnel(t control.Tunnel) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.members[t.TunnelKey]
	p := &peer{Tunnel: t}
	if old != nil {
		p.id = old.id
	} else {
		p.id = d.newID(t.TunnelKey)
	}
	err := d.tunnel.SetPeer(vxlan.Peer{
		ID: p.id, Node: t.Node, Underlay: t.Underlay, Ports: t.Ports, AnyPort: t.AnyPort, VNI: t.VNI,
		IngressVNI: t.IngressVNI, MAC: t.MAC,
	})
	if err != nil {
		return err
	}
	d.members[t.TunnelKey] = p
	d.ids[p.id] = t.TunnelKey
	d.usePorts(t.Ports, 1)
	d.host(t.Underlay)
	for _, prefix := range t.Prefixes {
		d.prefixes[prefix] = p.id
		d.fib.SetPrefix(prefix, fib.NextHop{Kind: fib.Peer, Index: p.id})
	}
	if old != nil {
		d.usePorts(old.Ports, -1)
		d.unroute(old, t.Prefixes)
		d.unhost(old.Underlay)
	}
	d.publishFacts()
	return nil
}

// newID is a member's id, from 1 to fib.MaxIndex: a hash of its key, so that in the
// flow table, which may outlive this process, it means the same member to the next.
// Of two members with one hash, once in 2^28 pairs, the later gets another.
func (d *dataplane) newID(k control.TunnelKey) uint32 {
	sum := sha256.Sum256([]byte(k.String()))
	id := binary.BigEndian.Uint32(sum[:]) & fib.MaxIndex
	for {
		if _, taken := d.ids[id]; id != 0 && !taken {
			return id
		}
		id = (id + 1) & fib.MaxIndex
	}
}

// usePorts counts a member's tunnel ports, or discounts them.
func (d *dataplane) usePorts(ports []uint16, by int) {
	for _, p := range ports {
		if d.ports[p] += by; d.ports[p] == 0 {
			delete(d.ports, p)
		}
	}
}

// DeleteTunnel implements control.Dataplane.
func (d *dataplane) DeleteTunnel(k control.TunnelKey) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.members[k]
	if p == nil {
		return nil
	}
	d.unroute(p, nil)
	d.tunnel.RemovePeer(p.id)
	d.unhost(p.Underlay)
	delete(d.members, k)
	delete(d.ids, p.id)
	d.usePorts(p.Ports, -1)
	d.publishFacts()
	return nil
}

// unroute removes the prefixes of a member that are not in keep and have not
// gone to another member meanwhile. What is left is the cluster's own route,
// which refuses.
func (d *dataplane) unroute(p *peer, keep []netip.Prefix) {
	for _, prefix := range p.Prefixes {
		if !slices.Contains(keep, prefix) && d.prefixes[prefix] == p.id {
			delete(d.prefixes, prefix)
			d.fib.DeletePrefix(prefix)
		}
	}
}

// host and unhost count the nodes at an underlay address: several can live behind
// one. A service may be served there too; the address stays the node's, whose
// other ports are no business of the gateway's.
func (d *dataplane) host(a netip.Addr) {
	if d.hosts[a]++; d.hosts[a] == 1 {
		d.fib.SetHost(a, fib.NextHop{Kind: fib.Node})
	}
}

func (d *dataplane) unhost(a netip.Addr) {
	if d.hosts[a]--; d.hosts[a] > 0 {
		return
	}
	delete(d.hosts, a)
	if d.vips[a] > 0 {
		d.fib.SetHost(a, fib.NextHop{Kind: fib.VIP})
	} else {
		d.fib.DeleteHost(a)
	}
}

// serveAt and unserveAt count the service ports at an outside address: it leads to
// the gateway as long as there is one, unless it is a node's.
func (d *dataplane) serveAt(a netip.Addr) {
	if d.vips[a]++; d.vips[a] == 1 && d.hosts[a] == 0 {
		d.fib.SetHost(a, fib.NextHop{Kind: fib.VIP})
	}
}

func (d *dataplane) unserveAt(a netip.Addr) {
	if d.vips[a]--; d.vips[a] > 0 {
		return
	}
	delete(d.vips, a)
	if d.hosts[a] == 0 {
		d.fib.DeleteHost(a)
	}
}

// outsideAddrs are the addresses of a service port that no prefix leads to the
// gateway: ClusterIPs too, as a cluster of Kubernetes' may be given further ranges
// while it runs.
func (d *dataplane) outsideAddrs(s *control.Service) []netip.Addr {
	out := slices.Concat(s.LoadBalancerIPs, s.ExternalIPs)
	for _, a := range s.VIPs {
		if !slices.ContainsFunc(d.serviceCIDRs, func(p netip.Prefix) bool { return p.Contains(a) }) {
			out = append(out, a)
		}
	}
	return out
}

// isNode reports whether a belongs to a node of the cluster. It takes no lock.
func (d *dataplane) isNode(a netip.Addr) bool { return d.leadsTo(a, fib.Node) }

// leadsOut reports whether the only way to a is by the host to the outside. It takes
// no lock.
func (d *dataplane) leadsOut(a netip.Addr) bool { return d.leadsTo(a, fib.Egress) }

// unreachable reports whether nothing leads to a, as to a pod that was just deleted. It
// takes no lock.
func (d *dataplane) unreachable(a netip.Addr) bool { return d.leadsTo(a, fib.Unreachable) }

// isLocalPod reports whether a is a pod of this node. It takes no lock.
func (d *dataplane) isLocalPod(a netip.Addr) bool { return d.leadsTo(a, fib.Port) }

// takesIngress reports whether a is a pod of a node that takes clients' own
// addresses from this one. It takes no lock.
func (d *dataplane) takesIngress(a netip.Addr) bool {
	w := wire.AddrFrom(a)
	hop := d.fib.Lookup(&w)
	return hop.Kind == fib.Peer && d.tunnel.TakesIngress(hop.Index)
}

func (d *dataplane) leadsTo(a netip.Addr, k fib.Kind) bool {
	w := wire.AddrFrom(a)
	return d.fib.Lookup(&w).Kind == k
}

// publishFacts tells the switch every port at which some node accepts tunnelled
// frames, so that no pod can send such a frame itself.
func (d *dataplane) publishFacts() {
	if d.sw == nil || d.together {
		return
	}
	f := d.facts
	f.TunnelPorts = slices.Concat(f.TunnelPorts, slices.Collect(maps.Keys(d.ports)))
	slices.Sort(f.TunnelPorts)
	f.TunnelPorts = slices.Compact(f.TunnelPorts)
	d.sw.SetFacts(f)
}

// PutService implements control.Dataplane.
func (d *dataplane) PutService(s control.Service) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gateway == nil {
		return errors.New("the gateway is not up yet")
	}
	old, had := d.services[s.ServiceKey]
	d.services[s.ServiceKey] = s
	err := d.programService(s.ServiceKey)
	switch {
	case err != nil && had:
		d.services[s.ServiceKey] = old
	case err != nil:
		delete(d.services, s.ServiceKey)
	default:
		// The gateway knows an address before packets come, and as long as they do.
		for _, a := range d.outsideAddrs(&s) {
			d.serveAt(a)
		}
		for _, a := range d.outsideAddrs(&old) {
			d.unserveAt(a)
		}
	}
	return err
}

// DeleteService implements control.Dataplane.
func (d *dataplane) DeleteService(k control.ServiceKey) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	s, ok := d.services[k]
	if !ok {
		return nil
	}
	delete(d.services, k)
	if err := d.programService(k); err != nil {
		d.services[k] = s
		return err
	}
	for _, a := range d.outsideAddrs(&s) {
		d.unserveAt(a)
	}
	return nil
}

// programService gives the gateway what both families of a service port make
// together: it has one node port for both.
func (d *dataplane) programService(k control.ServiceKey) error {
	key := gateway.ServiceKey{Namespace: k.Namespace, Name: k.Name, PortName: k.PortName}
	var merged *gateway.Service
	for _, v6 := range []bool{false, true} {
		k.IPv6 = v6
		s, ok := d.services[k]
		if !ok {
			continue
		}
		if merged == nil {
			merged = &gateway.Service{
				ServiceKey: key, Protocol: uint8(s.Protocol), Port: s.Port, NodePort: s.NodePort, SourceRanges: s.SourceRanges,
				InternalLocal: s.InternalLocal, ExternalLocal: s.ExternalLocal, Affinity: s.Affinity,
				HealthCheckNodePort: s.HealthCheckNodePort,
			}
			if s.Proxy != nil {
				merged.Proxy = &gateway.Proxy{ProtocolV2: s.Proxy.ProtocolV2}
			}
		} else if merged.Protocol != uint8(s.Protocol) || merged.Port != s.Port {
			return fmt.Errorf("service %v: its families differ in port or protocol", k)
		}
		merged.VIPs = append(merged.VIPs, s.VIPs...)
		merged.LoadBalancerIPs = append(merged.LoadBalancerIPs, s.LoadBalancerIPs...)
		merged.ExternalIPs = append(merged.ExternalIPs, s.ExternalIPs...)
		for _, e := range s.Endpoints {
			merged.Endpoints = append(merged.Endpoints, gateway.Endpoint{
				Addr: e.Addr, Port: e.Port, ID: e.ID, Cluster: e.Cluster, Local: e.Local, OnNode: e.Node == d.node, Ready: e.Ready,
			})
		}
	}
	var err error
	if merged == nil {
		err = d.gateway.DeleteService(key)
	} else {
		err = d.gateway.PutService(*merged)
	}
	return err
}

// endpointGone is called by the gateway within PutService and DeleteService.
func (d *dataplane) endpointGone(g gateway.Gone) { d.forgetting.add(&g) }

// forgetPod deletes the flows that name an address of a pod that has gone.
func (d *dataplane) forgetPod(addrs []netip.Addr) {
	var gone []wire.Addr
	for _, a := range addrs {
		gone = append(gone, wire.AddrFrom(a))
	}
	d.flows.DeleteFunc(func(i *flow.Info) bool {
		for _, a := range gone {
			if i.Orig.Src == a || i.Orig.Dst == a || i.Reply.Src == a || i.Reply.Dst == a {
				return true
			}
		}
		return false
	})
}

// listeners are what the gateway opens on the host for clients outside.
func (d *dataplane) listeners() []gateway.ListenerStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gateway == nil {
		return nil
	}
	return d.gateway.Listeners()
}

// proxies are the services in proxy mode.
func (d *dataplane) proxies() []gateway.ProxyStats {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gateway == nil {
		return nil
	}
	return d.gateway.ProxyStats()
}

// trains tells how packets go to a node: in trains, which probes say arrive or which
// are not checked yet, or alone; and how often trains were found not to arrive. A
// node that can be reached over both families is as good as the worse. Nothing is
// known of this node itself.
func (d *dataplane) trains(node string) (state string, failures uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	worst, known := vxlan.TrainsOn, false
	for k, p := range d.members {
		if k.Node != node {
			continue
		}
		s, n := d.tunnel.Trains(p.id)
		if s == vxlan.TrainsOff || s == vxlan.TrainsUnchecked && worst == vxlan.TrainsOn {
			worst = s
		}
		known, failures = true, failures+n
	}
	if !known {
		return "", 0
	}
	return worst.String(), failures
}

// peersByTrains counts the addresses of other nodes by how packets go to them.
func (d *dataplane) peersByTrains() map[string]int {
	count := map[string]int{}
	for _, s := range []vxlan.TrainState{vxlan.TrainsOn, vxlan.TrainsOff, vxlan.TrainsUnchecked} {
		count[s.String()] = 0
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.members {
		s, _ := d.tunnel.Trains(p.id)
		count[s.String()]++
	}
	return count
}

// nodeOf is the name of the node a member id stands for.
func (d *dataplane) nodeOf(id uint32) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ids[id].Node
}
