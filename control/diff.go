package control

import (
	"fmt"
	"net/netip"
	"slices"
)

// Op is what a Change does.
type Op uint8

// Operations on a Dataplane.
const (
	PutTunnel Op = iota + 1
	PutService
	DeleteService
	DeleteTunnel
)

func (o Op) String() string {
	switch o {
	case PutTunnel:
		return "put tunnel"
	case PutService:
		return "put service"
	case DeleteService:
		return "delete service"
	case DeleteTunnel:
		return "delete tunnel"
	}
	return fmt.Sprintf("Op(%d)", uint8(o))
}

// Change is one call on a Dataplane. Of a deletion only the key counts.
type Change struct {
	Op      Op
	Tunnel  Tunnel  // of PutTunnel and DeleteTunnel
	Service Service // of PutService and DeleteService
	// Collides marks a deletion without which a Put in the same list could not
	// succeed: what it frees is wanted elsewhere.
	Collides bool
}

// String reads "put service default/web:http/IPv4".
func (c Change) String() string {
	switch c.Op {
	case PutTunnel, DeleteTunnel:
		return c.Op.String() + " " + c.Tunnel.TunnelKey.String()
	}
	return c.Op.String() + " " + c.Service.ServiceKey.String()
}

// changes turn what there is into what is wanted, in an order in which no traffic that
// both carry is cut: ways first, then services, whose endpoints are reached by those
// ways; after that what is no longer wanted, services before the ways they use.
//
// One thing must come before: an address, a port or a prefix that passes from one
// key to another is taken from the first, or the second could not have it. Two
// services can so exchange their VIPs.
type changes struct {
	free, put, dropServices, dropTunnels []Change
}

func (c *changes) inOrder() []Change {
	return slices.Concat(c.free, c.put, c.dropServices, c.dropTunnels)
}

// tunnel adds what turns have into want, either of which may be nil. wanted says by
// whom something is wanted.
func (c *changes) tunnel(have, want *Tunnel, wanted func(tunnelClaim) (TunnelKey, bool)) {
	collides := have != nil && collide(have.claims, wanted, have.TunnelKey)
	switch {
	case collides:
		c.free = append(c.free, Change{Op: DeleteTunnel, Tunnel: *have, Collides: true})
	case have != nil && want == nil:
		c.dropTunnels = append(c.dropTunnels, Change{Op: DeleteTunnel, Tunnel: *have})
	}
	if want != nil && (have == nil || collides || !have.equal(want)) {
		c.put = append(c.put, Change{Op: PutTunnel, Tunnel: *want})
	}
}

// service does the same for a service.
func (c *changes) service(have, want *Service, wanted func(serviceClaim) (ServiceKey, bool)) {
	collides := have != nil && collide(have.claims, wanted, have.ServiceKey)
	switch {
	case collides:
		c.free = append(c.free, Change{Op: DeleteService, Service: *have, Collides: true})
	case have != nil && want == nil:
		c.dropServices = append(c.dropServices, Change{Op: DeleteService, Service: *have})
	}
	if want != nil && (have == nil || collides || !have.equal(want)) {
		c.put = append(c.put, Change{Op: PutService, Service: *want})
	}
}

// tunnelClaim is something one tunnel alone can have: a prefix, or an underlay
// address and port in one VNI.
type tunnelClaim struct {
	prefix netip.Prefix
	at     netip.AddrPort
	vni    uint32
}

func (t *Tunnel) claims(yield func(tunnelClaim) bool) {
	for _, p := range t.Prefixes {
		if !yield(tunnelClaim{prefix: p}) {
			return
		}
	}
	for _, p := range t.Ports {
		if !yield(tunnelClaim{at: netip.AddrPortFrom(t.Underlay, p), vni: t.VNI}) {
			return
		}
	}
}

// serviceClaim is something one service alone can have: an address and port, or a
// node port (of the zero address) in one family.
type serviceClaim struct {
	at    netip.AddrPort
	proto Protocol
	ipv6  bool
}

func (s *Service) claims(yield func(serviceClaim) bool) {
	for _, addrs := range [...][]netip.Addr{s.VIPs, s.LoadBalancerIPs, s.ExternalIPs} {
		for _, a := range addrs {
			if !yield(serviceClaim{netip.AddrPortFrom(a, s.Port), s.Protocol, s.IPv6}) {
				return
			}
		}
	}
	if s.NodePort != 0 {
		yield(serviceClaim{netip.AddrPortFrom(netip.Addr{}, s.NodePort), s.Protocol, s.IPv6})
	}
}

// sameClaims reports whether two have the same claims, in whatever else they differ.
func (s *Service) sameClaims(o *Service) bool {
	return s.ServiceKey == o.ServiceKey && s.Protocol == o.Protocol && s.Port == o.Port && s.NodePort == o.NodePort &&
		slices.Equal(s.VIPs, o.VIPs) && slices.Equal(s.LoadBalancerIPs, o.LoadBalancerIPs) && slices.Equal(s.ExternalIPs, o.ExternalIPs)
}

// collide reports whether something of what key has is wanted by another key.
func collide[C, K comparable](has func(func(C) bool), wanted func(C) (K, bool), key K) bool {
	for c := range has {
		if k, ok := wanted(c); ok && k != key {
			return true
		}
	}
	return false
}

type pair[T any] struct{ have, want *T }

// match walks two lists sorted by key side by side.
func match[T, K any](have, want []T, key func(T) K, compare func(K, K) int) []pair[T] {
	out := make([]pair[T], 0, max(len(have), len(want)))
	for len(have) > 0 || len(want) > 0 {
		c := 0
		switch {
		case len(have) == 0:
			c = 1
		case len(want) == 0:
			c = -1
		default:
			c = compare(key(have[0]), key(want[0]))
		}
		var p pair[T]
		if c <= 0 {
			p.have, have = &have[0], have[1:]
		}
		if c >= 0 {
			p.want, want = &want[0], want[1:]
		}
		out = append(out, p)
	}
	return out
}
