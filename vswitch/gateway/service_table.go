package gateway

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"sync"

	"vswitch/internal/wire"
	"vswitch/vswitch/affinity"
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

type services struct {
	fronts *index // changed under mu
	memory *affinity.Memory
	noWay  func(netip.Addr) bool // Config.Unreachable

	mu  sync.Mutex
	all map[ServiceKey]*served // guarded by mu; values are never changed
}

// served is a service as it is in force.
type served struct {
	*Service
	*pools
	proxy *proxied // nil: flows are rewritten
}

// service is what was put; nil of nil.
func (s *served) service() *Service {
	if s == nil {
		return nil
	}
	return s.Service
}

func newServices(memory *affinity.Memory) *services {
	return &services{fronts: newIndex(), memory: memory, all: make(map[ServiceKey]*served)}
}

// at is the pool for pods' flows to a service's own address; nil: there is none.
func (t *services) at(k *flow.Key) *pool {
	return t.fronts.pool(&vip{k.Dst, k.DstPort, k.Proto})
}

// atNodePort is the pool for pods' flows to a node's address; nil: there is none.
func (t *services) atNodePort(k *flow.Key) *pool {
	return t.fronts.pool(&vip{anyNode(!k.Dst.Is4()), k.DstPort, k.Proto})
}

// anyNode stands for every node's address of a family: no service has it as its own.
func anyNode(v6 bool) wire.Addr {
	if v6 {
		return wire.AddrFrom(netip.IPv6Unspecified())
	}
	return wire.AddrFrom(netip.IPv4Unspecified())
}

// ofNodes reports whether v is a port of every node's addresses.
func (v *vip) ofNodes() bool { return v.addr == anyNode(false) || v.addr == anyNode(true) }

func (t *services) hasVIP(a *wire.Addr) bool { return t.fronts.find(&vip{addr: *a}) != nil }

// count notes that one port more, or fewer, is served at an address. Callers hold mu.
func (t *services) count(a wire.Addr, by int) {
	f := front{vip: vip{addr: a}}
	if old := t.fronts.find(&f.vip); old != nil {
		f.ports = old.ports
	}
	if f.ports += by; f.ports == 0 {
		t.fronts.remove(&f.vip)
		return
	}
	t.fronts.set(&f)
}

// put makes next the service of its key. It returns what was there before, or nil,
// what is now, and who that sent to and this does not.
func (t *services) put(next *Service) (prev, now *served, gone []Gone, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for v := range next.fronts() {
		if p := t.fronts.pool(&v); p != nil && p.service != next.ServiceKey {
			if v.ofNodes() {
				return nil, nil, nil, fmt.Errorf("node port %d belongs to service %v", v.port, p.service)
			}
			return nil, nil, nil, fmt.Errorf("VIP %v port %d belongs to service %v", v.addr.Netip(), v.port, p.service)
		}
	}
	prev = t.all[next.ServiceKey]
	now = &served{Service: next, proxy: proxyFor(prev, next)}
	now.pools = newPools(next, t, now.proxy)
	t.all[next.ServiceKey] = now
	gone = endpointsGone(prev.service(), next)
	t.setAll(now)
	t.removeAll(prev, next)
	return prev, now, gone, nil
}

// setAll makes a service known by its addresses and its node port. Callers hold mu.
func (t *services) setAll(s *served) {
	for v, to := range s.fronts() {
		if old := t.fronts.pool(&v); old == nil && !v.ofNodes() {
			t.count(v.addr, 1)
		}
		t.fronts.set(&front{vip: v, pool: *to(s.pools)})
	}
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
	return prev, endpointsGone(prev.Service, nil)
}

// removeAll takes away where prev was known and next is not; either may be nil.
// Callers hold mu.
func (t *services) removeAll(prev *served, next *Service) {
	if prev == nil {
		return
	}
	keep := make(map[vip]bool)
	if next != nil {
		for v := range next.fronts() {
			keep[v] = true
		}
	}
	for v := range prev.fronts() {
		if keep[v] || t.fronts.pool(&v) == nil {
			continue
		}
		t.fronts.remove(&v)
		if !v.ofNodes() {
			t.count(v.addr, -1)
		}
	}
}

// fronts are where pods find a service, and which of its pools they get there. An
// address in several lists comes several times, and what comes last stands.
func (s *Service) fronts() iter.Seq2[vip, func(*pools) *pool] {
	return func(yield func(vip, func(*pools) *pool) bool) {
		lists := []struct {
			addrs []netip.Addr
			pools func(*pools) *[2]*pool
		}{
			{s.ExternalIPs, func(p *pools) *[2]*pool { return &p.cluster }},
			{s.LoadBalancerIPs, func(p *pools) *[2]*pool { return &p.lb }},
			{s.VIPs, func(p *pools) *[2]*pool { return &p.internal }},
		}
		for _, l := range lists {
			for _, a := range l.addrs {
				if !yield(vip{wire.AddrFrom(a), s.Port, s.Protocol}, func(p *pools) *pool { return l.pools(p)[familyOf(a)] }) {
					return
				}
			}
		}
		if s.NodePort == 0 {
			return
		}
		for family, v6 := range []bool{false, true} {
			if !yield(vip{anyNode(v6), s.NodePort, s.Protocol}, func(p *pools) *pool { return p.cluster[family] }) {
				return
			}
		}
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
