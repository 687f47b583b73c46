package gateway

import (
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
)

// The service table answers two questions: which endpoint gets a new flow to a
// VIP (Pick, from every switch worker, once a flow) and which get the clients of
// a node port. Both read an immutable backends value. Putting a service touches
// its own VIPs and nothing else, so that 10,000 load in a fraction of a second.
//
// The VIP map is split in shards with a lock each. A map behind one atomic
// pointer would cost a copy of all VIPs a change; sync.Map would put each key
// looked up on the heap.

// Endpoint is one backend of a service port.
type Endpoint struct {
	Addr netip.Addr
	Port uint16
	// ID is the identity of the pod behind the address: another pod with the same
	// address has another.
	ID uint64
	// Cluster and Local: it takes new flows where the policy is Cluster, or Local.
	// An endpoint with neither keeps its connections and takes no new ones.
	Cluster, Local bool
	// OnNode: it runs on this node.
	OnNode bool
}

// takesNew reports whether some new flow may go to the endpoint.
func (e *Endpoint) takesNew() bool { return e.Cluster || e.Local }

// ServiceKey names one port of one service.
type ServiceKey struct {
	Namespace, Name, PortName string
}

func (k ServiceKey) String() string {
	if k.PortName == "" {
		return k.Namespace + "/" + k.Name
	}
	return k.Namespace + "/" + k.Name + ":" + k.PortName
}

// Service is one port of one service, both families.
type Service struct {
	ServiceKey
	Protocol uint8        // wire.ProtoTCP, ProtoUDP or ProtoSCTP
	VIPs     []netip.Addr // ClusterIPs
	Port     uint16
	NodePort uint16 // zero: none; SCTP has none
	// LoadBalancerIPs and ExternalIPs are addresses for clients outside the cluster.
	// Pods use them too, whatever the policy for outside clients.
	LoadBalancerIPs, ExternalIPs []netip.Addr
	// SourceRanges are the clients that may come to LoadBalancerIPs; none: all may.
	SourceRanges []netip.Prefix
	// Endpoints of either family: a VIP is served by those of its own.
	Endpoints []Endpoint
	// InternalLocal and ExternalLocal keep VIP traffic, or node port traffic, on
	// this node: a node without a local endpoint refuses (Kubernetes
	// internalTrafficPolicy and externalTrafficPolicy).
	InternalLocal, ExternalLocal bool
	// Affinity is for how long a client stays with the endpoint it was given (sessionAffinity
	// ClientIP); zero: every flow is given one afresh.
	Affinity time.Duration
	// HealthCheckNodePort tells load balancers whether this node has endpoints that
	// outside clients reach; zero: none.
	HealthCheckNodePort uint16
	// Proxy makes the gateway terminate the connections; nil: flows are rewritten.
	Proxy *Proxy
}

// Proxy is what a service in proxy mode asks for.
type Proxy struct {
	ProtocolV2 bool // tell endpoints the client's address by a PROXY protocol v2 header
}

// Gone says that a service stopped sending to an endpoint: it was removed, takes no
// new flows any more, or the service itself is gone. TCP flows may run to their end
// while the pod lives; UDP flows to Endpoint by way of VIPs and Port must be
// forgotten, or their client never finds another.
type Gone struct {
	Endpoint uint64
	Service  ServiceKey
	Protocol uint8
	VIPs     []netip.Addr // of the endpoint's family, by which nothing goes to it any more
	Port     uint16
	// Removed: the service no longer lists the endpoint at all, ready or not.
	Removed bool
}

// validate refuses what the datapath could not carry out.
func (s *Service) validate() error {
	switch s.Protocol {
	case wire.ProtoTCP, wire.ProtoUDP, wire.ProtoSCTP:
	default:
		return fmt.Errorf("protocol %d, want TCP, UDP or SCTP", s.Protocol)
	}
	if s.Port == 0 {
		return errors.New("port 0")
	}
	for _, a := range s.VIPs {
		if !a.IsValid() || a.Is4In6() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() {
			return fmt.Errorf("VIP %v is no service address", a)
		}
	}
	for _, e := range s.Endpoints {
		if err := e.validate(); err != nil {
			return err
		}
	}
	return nil
}

// validate keeps traffic off the host's loopback and off link-local services
// such as cloud metadata, whatever an EndpointSlice says (CVE-2021-25737).
func (e *Endpoint) validate() error {
	a := e.Addr
	if !a.IsValid() || a.Is4In6() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() ||
		a.IsLinkLocalUnicast() || a == broadcast4 {
		return fmt.Errorf("endpoint %v: the address is none that a pod can have", a)
	}
	if e.Port == 0 {
		return fmt.Errorf("endpoint %v: port 0", a)
	}
	return nil
}

// vip is what a flow's destination is looked up by.
type vip struct {
	addr  wire.Addr
	port  uint16
	proto uint8
}

// backends are the endpoints that one family of a service sends new flows to.
type backends []flow.Endpoint

// pick takes one at random. math/rand/v2's generator is the runtime's own, per
// thread: no lock, a few ns.
//
// Client affinity would be decided here: the choice has to be remembered by
// client address for a time, which needs a table with its own bound and expiry.
// A hash of the client's address is not it: it moves clients whenever the set of
// endpoints changes.
func (b backends) pick() (flow.Endpoint, drop.Reason) {
	if len(b) == 0 {
		return flow.Endpoint{}, drop.NoEndpoint
	}
	return b[rand.Uint64N(uint64(len(b)))], drop.None
}

const vipShards = 64

type vipShard struct {
	mu    sync.RWMutex
	vips  map[vip]backends  // guarded by mu
	addrs map[wire.Addr]int // guarded by mu; VIP address -> how many ports use it
}

type services struct {
	seed   maphash.Seed
	shards [vipShards]vipShard

	mu  sync.Mutex
	all map[ServiceKey]*Service // guarded by mu; values are never changed
	own map[vip]ServiceKey      // guarded by mu: who put a VIP, so that two can't share it
}

func newServices() *services {
	t := &services{seed: maphash.MakeSeed(), all: make(map[ServiceKey]*Service), own: make(map[vip]ServiceKey)}
	for i := range t.shards {
		t.shards[i].vips = make(map[vip]backends)
		t.shards[i].addrs = make(map[wire.Addr]int)
	}
	return t
}

// shard is chosen by address alone, so that an address's ports lie together.
func (t *services) shard(a *wire.Addr) *vipShard {
	return &t.shards[maphash.Bytes(t.seed, a[:])%vipShards]
}

func (t *services) pick(k *flow.Key) (flow.Endpoint, drop.Reason) {
	s := t.shard(&k.Dst)
	s.mu.RLock()
	b, ok := s.vips[vip{k.Dst, k.DstPort, k.Proto}]
	s.mu.RUnlock()
	if !ok {
		return flow.Endpoint{}, drop.NoService
	}
	return b.pick()
}

func (t *services) hasVIP(a *wire.Addr) bool {
	s := t.shard(a)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.addrs[*a] != 0
}

func (s *vipShard) set(v vip, b backends) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.vips[v]; !ok {
		s.addrs[v.addr]++
	}
	s.vips[v] = b
}

func (s *vipShard) remove(v vip) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.vips[v]; !ok {
		return
	}
	delete(s.vips, v)
	if s.addrs[v.addr]--; s.addrs[v.addr] == 0 {
		delete(s.addrs, v.addr)
	}
}

// put makes next the service of its key. It returns what was there before, or nil,
// and who that sent to and next does not.
func (t *services) put(next *Service) (prev *Service, gone []Gone, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, a := range next.VIPs {
		v := vip{wire.AddrFrom(a), next.Port, next.Protocol}
		if k, taken := t.own[v]; taken && k != next.ServiceKey {
			return nil, nil, fmt.Errorf("VIP %v port %d belongs to service %v", a, next.Port, k)
		}
	}
	prev = t.all[next.ServiceKey]
	gone = endpointsGone(prev, next)
	t.all[next.ServiceKey] = next

	keep := make(map[vip]bool, len(next.VIPs))
	for _, a := range next.VIPs {
		v := vip{wire.AddrFrom(a), next.Port, next.Protocol}
		keep[v] = true
		t.own[v] = next.ServiceKey
		t.shard(&v.addr).set(v, next.backends(a.Is6(), next.InternalLocal))
	}
	t.removeVIPs(prev, keep)
	return prev, gone, nil
}

// delete forgets a service; one that is not there is no error.
func (t *services) delete(key ServiceKey) (prev *Service, gone []Gone) {
	t.mu.Lock()
	defer t.mu.Unlock()
	prev = t.all[key]
	if prev == nil {
		return nil, nil
	}
	delete(t.all, key)
	t.removeVIPs(prev, nil)
	return prev, endpointsGone(prev, nil)
}

// removeVIPs takes away the VIPs of s that keep does not name. Callers hold mu.
func (t *services) removeVIPs(s *Service, keep map[vip]bool) {
	if s == nil {
		return
	}
	for _, a := range s.VIPs {
		v := vip{wire.AddrFrom(a), s.Port, s.Protocol}
		if !keep[v] {
			delete(t.own, v)
			t.shard(&v.addr).remove(v)
		}
	}
}

// backends are the endpoints of one family that the policy Local or Cluster gives.
func (s *Service) backends(v6, local bool) backends {
	b := backends{}
	for _, e := range s.Endpoints {
		if takes := local && e.Local || !local && e.Cluster; takes && e.Addr.Is6() == v6 {
			b = append(b, flow.Endpoint{Addr: wire.AddrFrom(e.Addr), Port: e.Port, ID: e.ID})
		}
	}
	return b
}

// place is an endpoint as flows see it. The same pod at another port is another
// place: the flows to the first lead nowhere.
type place struct {
	addr netip.Addr
	port uint16
	id   uint64
}

// endpointsGone lists what prev sent to and next does not; either may be nil. An
// endpoint that stays is gone all the same for a VIP that does not.
func endpointsGone(prev, next *Service) []Gone {
	if prev == nil {
		return nil
	}
	takesNew, listed := make(map[place]bool), make(map[uint64]bool)
	var vips []netip.Addr // that stay
	if next != nil && next.Protocol == prev.Protocol && next.Port == prev.Port {
		vips = next.VIPs
		for _, e := range next.Endpoints {
			listed[e.ID] = true
			if e.takesNew() {
				takesNew[place{e.Addr, e.Port, e.ID}] = true
			}
		}
	}
	var gone []Gone
	for _, e := range prev.Endpoints {
		if !e.takesNew() {
			continue
		}
		stays := takesNew[place{e.Addr, e.Port, e.ID}]
		g := Gone{
			Endpoint: e.ID, Service: prev.ServiceKey, Protocol: prev.Protocol, Port: prev.Port, Removed: !listed[e.ID],
		}
		for _, a := range prev.VIPs {
			if a.Is6() == e.Addr.Is6() && !(stays && slices.Contains(vips, a)) {
				g.VIPs = append(g.VIPs, a)
			}
		}
		if !stays || g.VIPs != nil {
			gone = append(gone, g)
		}
	}
	return gone
}

// clone detaches a service from the caller's slices.
func (s *Service) clone() *Service {
	c := *s
	c.VIPs = slices.Clone(s.VIPs)
	c.LoadBalancerIPs = slices.Clone(s.LoadBalancerIPs)
	c.ExternalIPs = slices.Clone(s.ExternalIPs)
	c.SourceRanges = slices.Clone(s.SourceRanges)
	if s.Proxy != nil {
		c.Proxy = new(*s.Proxy)
	}
	c.Endpoints = slices.Clone(s.Endpoints)
	return &c
}
