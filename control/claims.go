package control

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Of two services that want one address and port, or one node port, the older has
// it, and of two as old the first by name: a service made later can take nothing
// away (CVE-2020-8554). The other keeps all else that it asks for. The store lets
// no two ask for the same; what comes from elsewhere may, as may load balancers
// that are served at the nodes' addresses.
//
// Who has what depends on each claim alone, so that a service that comes or goes
// concerns only those that want the same as it does.

// port is one port of a service in one family: as compiled, and as it stands after
// what others have was taken out.
type port struct {
	key   ServiceKey
	owner *serviceEntry
	born  time.Time // when the record was made that claims are made under
	want  *Service
	final *Service // nil: nothing is left of it
	lost  []Problem
}

func (p *port) before(q *port) bool {
	if c := p.born.Compare(q.born); c != 0 {
		return c < 0
	}
	return p.key.compare(q.key) < 0
}

// claims is who wants what: the first of those that do, and the others where there
// are any.
type claims struct {
	first map[serviceClaim]*port
	rest  map[serviceClaim][]*port
}

func newClaims() claims {
	return claims{first: map[serviceClaim]*port{}, rest: map[serviceClaim][]*port{}}
}

// add enters what p wants, and returns those that have something no longer.
func (c *claims) add(p *port) (concerned []*port) {
	for at := range p.want.claims {
		first := c.first[at]
		switch {
		case first == nil:
			c.first[at] = p
		case p.before(first):
			c.first[at] = p
			c.rest[at] = append(c.rest[at], first)
			concerned = append(concerned, c.rest[at]...) // who has it is in their problems
		default:
			c.rest[at] = append(c.rest[at], p)
		}
	}
	return concerned
}

// remove takes out what p wants, and returns those that have something now, or
// another above them.
func (c *claims) remove(p *port) (concerned []*port) {
	for at := range p.want.claims {
		rest := c.rest[at]
		if c.first[at] != p {
			rest = slices.DeleteFunc(rest, func(q *port) bool { return q == p })
		} else if len(rest) == 0 {
			delete(c.first, at)
		} else {
			next := rest[0]
			for _, q := range rest[1:] {
				if q.before(next) {
					next = q
				}
			}
			c.first[at] = next
			concerned = append(concerned, rest...)
			rest = slices.DeleteFunc(rest, func(q *port) bool { return q == next })
		}
		if c.rest[at] = rest; len(rest) == 0 {
			delete(c.rest, at)
		}
	}
	return concerned
}

// resolve brings p.final and p.lost up to date with who has what.
func (o *Objects) resolve(p *port) {
	s := *p.want
	var lost []Problem
	mine := func(at serviceClaim) bool {
		first := o.claims.first[at]
		if first == p {
			return true
		}
		what := fmt.Sprintf("%s %s", at.proto, at.at)
		if !at.at.Addr().IsValid() {
			what = fmt.Sprintf("node port %d/%s", at.at.Port(), at.proto)
		}
		lost = append(lost, Problem{p.object(), fmt.Sprintf("port %q: %s is %s's", p.key.PortName, what, first.object())})
		return false
	}
	addrs := func(all []netip.Addr) []netip.Addr {
		for i, a := range all {
			if !mine(serviceClaim{netip.AddrPortFrom(a, s.Port), s.Protocol, s.IPv6}) {
				kept := slices.Clone(all[:i])
				for _, a := range all[i+1:] {
					if mine(serviceClaim{netip.AddrPortFrom(a, s.Port), s.Protocol, s.IPv6}) {
						kept = append(kept, a)
					}
				}
				return kept
			}
		}
		return all
	}
	s.VIPs, s.LoadBalancerIPs, s.ExternalIPs = addrs(s.VIPs), addrs(s.LoadBalancerIPs), addrs(s.ExternalIPs)
	if s.NodePort != 0 && !mine(serviceClaim{netip.AddrPortFrom(netip.Addr{}, s.NodePort), s.Protocol, s.IPv6}) {
		s.NodePort = 0
	}
	final := p.want
	if len(lost) > 0 {
		final = &s
	}
	if len(s.VIPs)+len(s.LoadBalancerIPs)+len(s.ExternalIPs) == 0 && s.NodePort == 0 {
		final = nil
	}
	o.setFinal(p, final)
	if !slices.Equal(lost, p.lost) {
		p.lost, o.problemsChanged = lost, true
	}
}

// object is the service that p is a port of.
func (p *port) object() Key { return Key{KindService, p.key.Namespace, p.key.Name} }

// setFinal notes what p was when the state was last told.
func (o *Objects) setFinal(p *port, final *Service) {
	if p.final == final {
		return
	}
	if _, noted := o.changed[p.key]; !noted {
		o.changed[p.key] = p.final
	}
	p.final = final
}
