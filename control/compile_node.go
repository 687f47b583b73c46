package control

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// compileNodes makes the tunnels to every other node. A pod prefix belongs to one
// node, as does an underlay address and port: what loses is left out and named, as
// a prefix given to the wrong node would let it speak for the other's pods. This
// node comes first, then those that live and are not known to be unwell: of a machine that was set up anew under
// another name the former record stands for a day. Then vswitch nodes, whose claims
// the store has checked, then the younger record.
func (o *Objects) compileNodes() {
	o.tunnels, o.tunnelProblems, o.underlays = nil, nil, map[netip.Addr]string{}
	problem := func(node, format string, args ...any) {
		o.tunnelProblems = append(o.tunnelProblems, Problem{Key{Kind: KindNode, Name: node}, fmt.Sprintf(format, args...)})
	}
	members := holders[tunnelClaim, TunnelKey]{}
	taken := new(bart.Lite)
	o.podPrefixes = new(bart.Lite)
	for _, p := range o.self.ServiceCIDRs {
		taken.Insert(p.Masked())
	}
	order := slices.SortedFunc(maps.Keys(o.nodes), func(a, b string) int {
		x, y := o.nodes[a], o.nodes[b]
		return cmp.Or(
			compareBool(b == o.self.Node, a == o.self.Node),
			compareBool(o.Live(b), o.Live(a)),
			compareBool(x.view.notReady, y.view.notReady),
			compareBool(y.view.instance != "", x.view.instance != ""),
			y.record.CreationTimestamp.Compare(x.record.CreationTimestamp.Time),
			cmp.Compare(a, b))
	})
	for _, name := range order {
		e := o.nodes[name]
		if e.err != nil {
			problem(name, "%v", e.err)
			continue
		}
		for _, d := range e.view.devices {
			for _, a := range d.underlays {
				if other, ok := o.underlays[a]; !ok || name < other {
					o.underlays[a] = name
				}
			}
		}
		free := map[netip.Prefix]bool{}
		for _, p := range e.view.prefixes {
			if free[p] = !taken.OverlapsPrefix(p); !free[p] {
				problem(name, "pod prefix %s overlaps another node's or the service CIDR", p)
			}
		}
		for p, ok := range free {
			if ok {
				taken.Insert(p)
				o.podPrefixes.Insert(p)
			}
		}
		if name == o.self.Node {
			continue
		}
		tunnels, problems := e.view.tunnels(&o.self)
		for _, p := range problems {
			problem(name, "%s", p)
		}
		for _, t := range tunnels {
			t.Prefixes = slices.DeleteFunc(slices.Clone(t.Prefixes), func(p netip.Prefix) bool { return !free[p] })
			if holder, ok := members.take(t.claims, t.TunnelKey); !ok {
				problem(name, "its underlay address and port are those of %s", holder)
			} else if len(t.Prefixes) > 0 {
				o.tunnels = append(o.tunnels, t)
			}
		}
	}
	slices.SortFunc(o.tunnels, func(a, b Tunnel) int { return a.TunnelKey.compare(b.TunnelKey) })
}

// holders says by whom something that only one can have is held.
type holders[C, K comparable] map[C]K

// take gives key all of its claims, or none and the name of a holder.
func (h holders[C, K]) take(claims func(func(C) bool), key K) (holder K, ok bool) {
	for c := range claims {
		if k, taken := h[c]; taken {
			return k, false
		}
	}
	for c := range claims {
		h[c] = key
	}
	return key, true
}
