package gateway

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
)

// pool is what one family of a service gives the clients of one kind. It is
// immutable but for what is remembered of its clients.
type pool struct {
	backends []flow.Endpoint       // sorted by comparePlaces
	allow    []netip.Prefix        // who may come; nil: everybody
	noWay    func(netip.Addr) bool // Config.Unreachable
	pins     *pins                 // nil: no affinity
	proxy    *proxied              // nil: flows are rewritten
	service  ServiceKey
}

// pools are a service's, by family. Who gets which: pods at a ClusterIP internal,
// pods elsewhere cluster, and clients from outside external. At a load balancer's
// address SourceRanges count as well, for pods too (lb), as with kube-proxy.
type pools struct {
	internal, cluster, external, lb, lbExternal [2]*pool
}

// familyOf is 0 for IPv4 and 1 for IPv6.
func familyOf(a netip.Addr) int {
	if a.Is6() {
		return 1
	}
	return 0
}

// newPools makes what s asks for. The pools of one policy share their backends.
func newPools(s *Service, t *services, proxy *proxied) *pools {
	p := &pools{}
	for family := range 2 {
		made := [2]*pool{}
		get := func(local bool) *pool {
			i := 0
			if local {
				i = 1
			}
			if made[i] == nil {
				made[i] = &pool{backends: s.backends(family, local), pins: pinsOf(s, local, t.memory), noWay: t.noWay, proxy: proxy, service: s.ServiceKey}
			}
			return made[i]
		}
		p.internal[family] = get(s.InternalLocal)
		p.cluster[family] = get(false)
		p.external[family] = get(s.ExternalLocal)
		p.lb[family], p.lbExternal[family] = p.cluster[family], p.external[family]
		if s.SourceRanges != nil {
			limit := func(q pool) *pool { q.allow = s.SourceRanges; return &q }
			p.lb[family], p.lbExternal[family] = limit(*p.cluster[family]), limit(*p.external[family])
		}
	}
	return p
}

// backends are the endpoints of one family that the policy Local or Cluster gives,
// in the order of Endpoints, which is that of comparePlaces.
func (s *Service) backends(family int, local bool) []flow.Endpoint {
	takes := func(e *Endpoint) bool {
		return familyOf(e.Addr) == family && (local && e.Local || !local && e.Cluster)
	}
	n := 0
	for i := range s.Endpoints {
		if takes(&s.Endpoints[i]) {
			n++
		}
	}
	b := make([]flow.Endpoint, 0, n)
	for i := range s.Endpoints {
		if e := &s.Endpoints[i]; takes(e) {
			b = append(b, flow.Endpoint{Addr: wire.AddrFrom(e.Addr), Port: e.Port, ID: e.ID})
		}
	}
	return b
}

// comparePlaces orders endpoints as Endpoint.compare does. The same pod at another
// port is another place: the flows to the first lead nowhere.
func comparePlaces(a, b flow.Endpoint) int {
	return cmp.Or(cmp.Compare(a.ID, b.ID), slices.Compare(a.Addr[:], b.Addr[:]), cmp.Compare(a.Port, b.Port))
}

// Has reports whether the pool still sends to an endpoint.
func (p *pool) Has(e flow.Endpoint) bool {
	_, ok := slices.BinarySearchFunc(p.backends, e, comparePlaces)
	return ok && p.reaches(&e)
}

// reaches reports whether there is a way to an endpoint. A pod that is deleted has none
// from that moment on, while its services learn of it a little later.
func (p *pool) reaches(e *flow.Endpoint) bool { return p.noWay == nil || !p.noWay(e.Addr.Netip()) }

// pick chooses the endpoint for a client's new flow: each with equal probability,
// or with affinity the one it had.
func (p *pool) pick(client *wire.Addr, tick uint32) (flow.Endpoint, drop.Reason) {
	return p.choose(client, tick, true)
}

// choose is pick; unless the choice is to be remembered it leaves no trace.
func (p *pool) choose(client *wire.Addr, tick uint32, remember bool) (flow.Endpoint, drop.Reason) {
	if r := p.refuses(client); r != drop.None {
		return flow.Endpoint{}, r
	}
	if p.pins != nil {
		return p.pins.choose(p, client, tick, remember), drop.None
	}
	return p.Random(), drop.None
}

// refuses says why a client gets no endpoint; drop.None: it gets one.
func (p *pool) refuses(client *wire.Addr) drop.Reason {
	switch {
	case p.allow != nil && !contains(p.allow, client.Netip()):
		return drop.SourceRange
	case len(p.backends) == 0:
		return drop.NoEndpoint
	}
	return drop.None
}

// pickAnother is pick for a client whose tried endpoints did not answer: one of the
// others, which it keeps.
func (p *pool) pickAnother(client *wire.Addr, tick uint32, tried []flow.Endpoint) (flow.Endpoint, drop.Reason) {
	if len(tried) == 0 {
		return p.pick(client, tick)
	}
	if r := p.refuses(client); r != drop.None {
		return flow.Endpoint{}, r
	}
	others := slices.DeleteFunc(slices.Clone(p.backends), func(e flow.Endpoint) bool { return slices.Contains(tried, e) })
	if len(others) == 0 {
		return flow.Endpoint{}, drop.NoEndpoint
	}
	e := others[rand.IntN(len(others))]
	if p.pins != nil {
		p.pins.move(client, &e, tick)
	}
	return e, drop.None
}

// Random takes one that is reached; if none is, the switch will say so. math/rand/v2's
// generator is the runtime's own, per thread: no lock, a few ns.
func (p *pool) Random() flow.Endpoint {
	n := len(p.backends)
	first := int(rand.Uint64N(uint64(n)))
	for i := range n {
		if e := &p.backends[(first+i)%n]; p.reaches(e) {
			return *e
		}
	}
	return p.backends[first]
}
