package gateway

import (
	"net/netip"
	"sync/atomic"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
)

// EntranceKind says why a port of the host is open. Where several want one address,
// port and protocol, the kind listed first has it: what a service promises goes
// before what a pod asks for, and what names its address before what takes all.
type EntranceKind uint8

// Kinds, in order of precedence. Of one kind the one that came first stays.
const (
	LoadBalancerIP EntranceKind = iota // a service's port at its load balancer's address
	ExternalIP                         // the same at an external address
	NodePort
	HealthCheckNodePort
	HostPortAtAddress // a pod's host port at one address
	HostPortAnywhere
	entranceKinds
)

var entranceNames = [entranceKinds]string{
	LoadBalancerIP: "load balancer address", ExternalIP: "external address", NodePort: "node port",
	HealthCheckNodePort: "health check node port", HostPortAtAddress: "host port", HostPortAnywhere: "host port",
}

func (k EntranceKind) String() string { return entranceNames[k] }

// entrance is one way in for clients outside: a port, the addresses at which it is
// wanted, and where it leads.
type entrance struct {
	kind  EntranceKind
	owner string // whom it belongs to, for people: a service's port or a pod
	// service is whose it is; zero for a pod's host port.
	service ServiceKey
	proto   uint8
	port    uint16
	age     uint64 // the lower, the older

	// at are the addresses, as far as this host has them; none: those of node
	// ports. Guarded by listeners.mu.
	at     []netip.Addr
	pools  [2]atomic.Pointer[pool] // by family: where it leads
	health *health                 // answers itself; nil: leads to the pools
}

// lead sets where an entrance leads.
func (e *entrance) lead(to *[2]*pool) {
	for family := range to {
		e.pools[family].Store(to[family])
	}
}

// isOpen reports whether a client of a family would be served at all. An entrance
// that leads nowhere is not open, so that the host's kernel refuses at once and a
// load balancer that probes it sees the truth.
func (e *entrance) isOpen(family int) bool {
	return e.health != nil || len(e.pools[family].Load().backends) > 0
}

// pick chooses an endpoint for a client.
func (e *entrance) pick(client netip.Addr, tick uint32) (flow.Endpoint, drop.Reason) {
	a := wire.AddrFrom(client)
	return e.pools[familyOf(client)].Load().pick(&a, tick)
}

// keeps reports whether the entrance would still take a session's client, and still
// leads to its endpoint.
func (e *entrance) keeps(s *session) bool {
	p := e.pools[familyOf(s.remote.Addr())].Load()
	return p.Has(flow.Endpoint{ID: s.endpoint, Addr: s.inside.Src, Port: s.inside.SrcPort}) &&
		(p.allow == nil || contains(p.allow, s.remote.Addr()))
}

// backend is an endpoint as a connection's other end; zero for a host port, whose
// pod's flows are forgotten with the pod.
func (e *entrance) backend(endpoint uint64) backend {
	if e.service == (ServiceKey{}) {
		return backend{}
	}
	return backend{e.service, endpoint}
}

// before is the order of precedence.
func (e *entrance) before(o *entrance) int {
	if e.kind != o.kind {
		return int(e.kind) - int(o.kind)
	}
	if e.age < o.age {
		return -1
	}
	return 1
}
