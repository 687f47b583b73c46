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

// Diff is what turns have into want, in an order in which no traffic that both
// carry is cut: ways first, then services, whose endpoints are reached by those
// ways; after that what is no longer wanted, services before the ways they use.
//
// One thing must come before: an address, a port or a prefix that passes from one
// key to another is taken from the first, or the second could not have it. Two
// services can so exchange their VIPs.
func Diff(have, want State) []Change {
	var free, put, drop []Change

	tunnels := match(have.Tunnels, want.Tunnels, func(t Tunnel) TunnelKey { return t.TunnelKey }, TunnelKey.compare)
	claims := map[tunnelClaim]TunnelKey{}
	for _, t := range want.Tunnels {
		for c := range t.claims {
			claims[c] = t.TunnelKey
		}
	}
	for _, m := range tunnels {
		collides := m.have != nil && collide(m.have.claims, claims, m.have.TunnelKey)
		switch {
		case collides:
			free = append(free, Change{Op: DeleteTunnel, Tunnel: *m.have, Collides: true})
		case m.have != nil && m.want == nil:
			drop = append(drop, Change{Op: DeleteTunnel, Tunnel: *m.have})
		}
		if m.want != nil && (m.have == nil || collides || !m.have.equal(m.want)) {
			put = append(put, Change{Op: PutTunnel, Tunnel: *m.want})
		}
	}

	services := match(have.Services, want.Services, func(s Service) ServiceKey { return s.ServiceKey }, ServiceKey.compare)
	fronts := map[serviceClaim]ServiceKey{}
	for _, s := range want.Services {
		for c := range s.claims {
			fronts[c] = s.ServiceKey
		}
	}
	var dropServices []Change
	for _, m := range services {
		collides := m.have != nil && collide(m.have.claims, fronts, m.have.ServiceKey)
		switch {
		case collides:
			free = append(free, Change{Op: DeleteService, Service: *m.have, Collides: true})
		case m.have != nil && m.want == nil:
			dropServices = append(dropServices, Change{Op: DeleteService, Service: *m.have})
		}
		if m.want != nil && (m.have == nil || collides || !m.have.equal(m.want)) {
			put = append(put, Change{Op: PutService, Service: *m.want})
		}
	}
	return slices.Concat(free, put, dropServices, drop)
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

// collide reports whether something of what key has is wanted by another key.
func collide[C, K comparable](has func(func(C) bool), wanted map[C]K, key K) bool {
	for c := range has {
		if k, ok := wanted[c]; ok && k != key {
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
