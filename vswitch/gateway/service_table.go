package gateway

import (
	"cmp"
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"

	"vswitch/internal/wire"
	"vswitch/vswitch/flow"
)

// The service table says which pool of endpoints a new flow of a pod draws from,
// by the address and port it is for. Every switch worker asks it, once a flow.
// Putting a service touches its own addresses and nothing else, so that 10,000
// load in a fraction of a second and a change to one costs what that one is.
//
// Where a packet could be meant for several, the narrower wins: a service's own
// address and port, then a node's address at a node port (Gateway.Pick). Two
// services can't share either.
//
// The map of addresses is split in shards with a lock each. A map behind one
// atomic pointer would cost a copy of all a change; sync.Map would put each key
// looked up on the heap.

// vip is what a flow's destination is looked up by.
type vip struct {
	addr  wire.Addr
	port  uint16
	proto uint8
}

const vipShards = 64

type vipShard struct {
	mu    sync.RWMutex
	vips  map[vip]*pool     // guarded by mu
	addrs map[wire.Addr]int // guarded by mu; VIP address -> how many ports use it
}

type services struct {
	seed   maphash.Seed
	shards [vipShards]vipShard
	memory *affinity

	nodePortMu sync.RWMutex
	nodePorts  map[portKey]*[2]*pool // guarded by nodePortMu; for pods

	mu  sync.Mutex
	all map[ServiceKey]*served // guarded by mu; values are never changed
	own map[vip]ServiceKey     // guarded by mu: who put a VIP, so that two can't share it
}

// served is a service as it is in force.
type served struct {
	*Service
	*pools
	pins  *pins    // nil: no affinity
	proxy *proxied // nil: flows are rewritten
}

// service is what was put; nil of nil.
func (s *served) service() *Service {
	if s == nil {
		return nil
	}
	return s.Service
}

func newServices() *services {
	t := &services{
		seed: maphash.MakeSeed(), memory: newAffinity(), nodePorts: make(map[portKey]*[2]*pool),
		all: make(map[ServiceKey]*served), own: make(map[vip]ServiceKey),
	}
	for i := range t.shards {
		t.shards[i].vips = make(map[vip]*pool)
		t.shards[i].addrs = make(map[wire.Addr]int)
	}
	return t
}

// shard is chosen by address alone, so that an address's ports lie together.
func (t *services) shard(a *wire.Addr) *vipShard {
	return &t.shards[maphash.Bytes(t.seed, a[:])%vipShards]
}

// at is the pool for pods' flows to a service's own address; nil: there is none.
func (t *services) at(k *flow.Key) *pool {
	s := t.shard(&k.Dst)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.vips[vip{k.Dst, k.DstPort, k.Proto}]
}

// atNodePort is the pool for pods' flows to a node's address; nil: there is none.
func (t *services) atNodePort(k *flow.Key) *pool {
	t.nodePortMu.RLock()
	families := t.nodePorts[portKey{k.DstPort, k.Proto}]
	t.nodePortMu.RUnlock()
	if families == nil {
		return nil
	}
	if k.Dst.Is4() {
		return families[0]
	}
	return families[1]
}

func (t *services) hasVIP(a *wire.Addr) bool {
	s := t.shard(a)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.addrs[*a] != 0
}

func (s *vipShard) set(v vip, p *pool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.vips[v]; !ok {
		s.addrs[v.addr]++
	}
	s.vips[v] = p
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
// what is now, and who that sent to and this does not.
func (t *services) put(next *Service) (prev, now *served, gone []Gone, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for a := range next.addresses() {
		v := vip{wire.AddrFrom(a), next.Port, next.Protocol}
		if k, taken := t.own[v]; taken && k != next.ServiceKey {
			return nil, nil, nil, fmt.Errorf("VIP %v port %d belongs to service %v", a, next.Port, k)
		}
	}
	prev = t.all[next.ServiceKey]
	now = &served{Service: next, pins: t.memory.tableFor(prev, next), proxy: proxyFor(prev, next)}
	now.pools = newPools(next, now.pins, now.proxy)
	t.all[next.ServiceKey] = now
	gone = endpointsGone(prev.service(), next)
	t.removeAll(prev, t.setAll(now))
	return prev, now, gone, nil
}

// setAll makes a service known by its addresses and its node port. It returns the
// former. Callers hold mu.
func (t *services) setAll(s *served) map[vip]bool {
	set := make(map[vip]bool, len(s.VIPs))
	to := func(families *[2]*pool, addrs []netip.Addr) {
		for _, a := range addrs {
			v := vip{wire.AddrFrom(a), s.Port, s.Protocol}
			if !set[v] { // the first list that names an address says who it is for
				set[v] = true
				t.own[v] = s.ServiceKey
				t.shard(&v.addr).set(v, families[familyOf(a)])
			}
		}
	}
	to(&s.internal, s.VIPs)
	to(&s.lb, s.LoadBalancerIPs)
	to(&s.cluster, s.ExternalIPs)
	if s.NodePort != 0 {
		t.nodePortMu.Lock()
		t.nodePorts[portKey{s.NodePort, s.Protocol}] = &s.cluster
		t.nodePortMu.Unlock()
	}
	return set
}

// delete forgets a service; one that is not there is no error.
func (t *services) delete(key ServiceKey) (prev *served, gone []Gone) {
	t.mu.Lock()
	defer t.mu.Unlock()
	prev = t.all[key]
	if prev == nil {
		return nil, nil
	}
	delete(t.all, key)
	t.removeAll(prev, nil)
	t.memory.drop(prev.pins)
	return prev, endpointsGone(prev.Service, nil)
}

// removeAll takes away the addresses of s that keep does not name, and its node
// port unless it is another's or its own successor's by now. Callers hold mu.
func (t *services) removeAll(s *served, keep map[vip]bool) {
	if s == nil {
		return
	}
	for a := range s.addresses() {
		v := vip{wire.AddrFrom(a), s.Port, s.Protocol}
		if !keep[v] && t.own[v] == s.ServiceKey {
			delete(t.own, v)
			t.shard(&v.addr).remove(v)
		}
	}
	if s.NodePort != 0 {
		t.nodePortMu.Lock()
		if k := (portKey{s.NodePort, s.Protocol}); t.nodePorts[k] == &s.cluster {
			delete(t.nodePorts, k)
		}
		t.nodePortMu.Unlock()
	}
}

// proxies are the services in proxy mode.
func (t *services) proxies() map[ServiceKey]*proxied {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make(map[ServiceKey]*proxied)
	for key, s := range t.all {
		if s.proxy != nil {
			all[key] = s.proxy
		}
	}
	return all
}

// lists reports whether a service still has an endpoint, for new flows or not.
func (t *services) lists(b backend) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.all[b.service]
	if s == nil {
		return false
	}
	_, ok := slices.BinarySearchFunc(s.Endpoints, b.endpoint, func(e Endpoint, id uint64) int { return cmp.Compare(e.ID, id) })
	return ok
}
