package fib

import (
	"net/netip"

	"vswitch/internal/wire"
)

// Route is Lookup for people: the route that is found, too. It costs as little, however
// many routes there are. A prefix that is not valid: there is none. A change meanwhile
// may hide the route from it; Lookup looks again.
func (t *Table) Route(a *wire.Addr) (netip.Prefix, NextHop) {
	if a.Is4() {
		key := a.V4()
		if v := t.hosts4.lookup(key); v != 0 {
			return netip.PrefixFrom(addr4(key), 32), v.nextHop()
		}
		for _, l := range *t.prefixes4.longestFirst.Load() {
			if v := l.table.lookup(key & l.mask); v != 0 {
				return netip.PrefixFrom(addr4(key&l.mask), l.bits), v.nextHop()
			}
		}
		return netip.Prefix{}, NextHop{}
	}
	key := key6Of(a)
	if v := t.hosts6.lookup(key); v != 0 {
		return netip.PrefixFrom(key.addr(), 128), v.nextHop()
	}
	for _, l := range *t.prefixes6.longestFirst.Load() {
		if v := l.table.lookup(key.and(l.mask)); v != 0 {
			return netip.PrefixFrom(key.and(l.mask).addr(), l.bits), v.nextHop()
		}
	}
	return netip.Prefix{}, NextHop{}
}
