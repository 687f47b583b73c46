// Package fib answers where a packet to an address goes next. It holds routes
// and nothing else: it does not know what a port or a peer is, and it never
// learns an address by itself.
//
// Longest prefix match is a series of exact ones: each prefix length in use has a
// table of its own that is changed in place (exact4.go, exact6.go), and a lookup
// asks them from the longest on (prefixes.go). The host routes (/32, /128), up to
// millions, come first; a route found there is the longest there is. The prefixes,
// one or two a node and thousands in all, have few lengths.
//
// With 5,000 node prefixes a lookup costs 12 to 20 ns in IPv4 and 17 to 28 in IPv6; with
// 1,000,000 host routes 33 and 50 in batches (Warm), 57 and 77 singly. A trie
// (github.com/gaissmai/bart, which the tests hold this table against) took 25 and 49
// for the prefixes and 290 for the hosts, and a change of it made 14 kB of garbage.
//
// Lookup takes no lock, allocates nothing and never waits: any number of
// workers may call it while routes change. Everything else may be called from
// anywhere; writers wait for each other. A lookup sees each single change
// entirely or not at all, but two changes are two changes: who moves an address
// from one port to another sets it once more, and does not delete it first.
package fib

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"sync"

	"vswitch/internal/wire"
)

// Table is a forwarding table. Make it with New.
type Table struct {
	hosts4    exact4
	prefixes4 prefixes[uint32, exact4, *exact4]
	hosts6    exact6
	prefixes6 prefixes[key6, exact6, *exact6]

	mu sync.Mutex // guards all writing, that is everything above but for lookups
}

// New makes an empty table.
func New() *Table {
	t := &Table{}
	t.hosts4.init()
	t.hosts6.init()
	t.prefixes4.init()
	t.prefixes6.init()
	return t
}

// Lookup gives the next hop of packets to a by longest prefix match; the zero
// NextHop, of kind None, where there is no route.
func (t *Table) Lookup(a *wire.Addr) NextHop {
	if a.Is4() {
		return t.lookup4(a.V4()).nextHop()
	}
	return t.lookup6(key6Of(a)).nextHop()
}

// Warm brings what lookups of these addresses will read into the cache, for a
// worker to call with a batch's destinations before it looks them up one by one:
// among a million host routes each lookup waits for memory, and here all wait
// together. It changes nothing, costs little where there are few host routes, and need not be called.
func (t *Table) Warm(addrs []wire.Addr) {
	for i := range addrs {
		if a := &addrs[i]; a.Is4() {
			t.hosts4.warm(a.V4())
		} else {
			t.hosts6.warm(key6Of(a))
		}
	}
}

func (t *Table) lookup4(key uint32) packed {
	for {
		before := t.prefixes4.changes.Load()
		p := t.hosts4.lookup(key)
		if p != 0 {
			return p
		}
		for _, l := range *t.prefixes4.longestFirst.Load() {
			if p = l.table.lookup(key & l.mask); p != 0 {
				break
			}
		}
		if t.prefixes4.changes.Load() == before {
			return p
		}
	}
}

func (t *Table) lookup6(key key6) packed {
	for {
		before := t.prefixes6.changes.Load()
		p := t.hosts6.lookup(key)
		if p != 0 {
			return p
		}
		for _, l := range *t.prefixes6.longestFirst.Load() {
			if p = l.table.lookup(key.and(l.mask)); p != 0 {
				break
			}
		}
		if t.prefixes6.changes.Load() == before {
			return p
		}
	}
}

// SetHost routes the single address a to nh, in place of any next hop it had.
// An IPv4-mapped a counts as IPv4, and a zone as absent. It panics when a is not
// valid or nh can't be stored (NextHop).
func (t *Table) SetHost(a netip.Addr, nh NextHop) {
	a, p := canonical(a), pack(nh)
	t.mu.Lock()
	defer t.mu.Unlock()
	addr := wire.AddrFrom(a)
	if a.Is4() {
		t.hosts4.set(addr.V4(), p)
	} else {
		t.hosts6.set(key6Of(&addr), p)
	}
}

// DeleteHost removes the route of the single address a and reports whether
// there was one.
func (t *Table) DeleteHost(a netip.Addr) bool {
	a = canonical(a)
	t.mu.Lock()
	defer t.mu.Unlock()
	addr := wire.AddrFrom(a)
	if a.Is4() {
		return t.hosts4.delete(addr.V4())
	}
	return t.hosts6.delete(key6Of(&addr))
}

// SetPrefix routes p to nh, in place of any next hop p had. Host bits of p count
// as zero. A prefix of one address is that address's host route: SetPrefix of
// 192.0.2.1/32 and SetHost of 192.0.2.1 set the same route. It panics when p is
// not valid or nh can't be stored.
func (t *Table) SetPrefix(p netip.Prefix, nh NextHop) {
	p = canonicalPrefix(p)
	if p.IsSingleIP() {
		t.SetHost(p.Addr(), nh)
		return
	}
	v := pack(nh)
	addr := wire.AddrFrom(p.Addr())
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.Addr().Is4() {
		t.prefixes4.set(p.Bits(), mask4(p.Bits()), addr.V4(), v)
	} else {
		t.prefixes6.set(p.Bits(), mask6(p.Bits()), key6Of(&addr), v)
	}
}

// DeletePrefix removes the route of exactly p and reports whether there was one.
func (t *Table) DeletePrefix(p netip.Prefix) bool {
	p = canonicalPrefix(p)
	if p.IsSingleIP() {
		return t.DeleteHost(p.Addr())
	}
	addr := wire.AddrFrom(p.Addr())
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.Addr().Is4() {
		return t.prefixes4.delete(p.Bits(), addr.V4())
	}
	return t.prefixes6.delete(p.Bits(), key6Of(&addr))
}

// All yields every route: prefixes in order, IPv4 before IPv6, then host routes
// in none. It takes no lock, so the loop may change the table. A route that is
// changed meanwhile is yielded as it was or as it is, once, twice or not at all.
func (t *Table) All() iter.Seq2[netip.Prefix, NextHop] {
	return func(yield func(netip.Prefix, NextHop) bool) {
		for _, r := range t.sortedPrefixes() {
			if !yield(r.prefix, r.hop) {
				return
			}
		}
		for key, v := range t.hosts4.all() {
			if !yield(netip.PrefixFrom(addr4(key), 32), v.nextHop()) {
				return
			}
		}
		for key, v := range t.hosts6.all() {
			if !yield(netip.PrefixFrom(key.addr(), 128), v.nextHop()) {
				return
			}
		}
	}
}

type route struct {
	prefix netip.Prefix
	hop    NextHop
}

func (t *Table) sortedPrefixes() (out []route) {
	for _, l := range *t.prefixes4.longestFirst.Load() {
		for key, v := range l.table.all() {
			out = append(out, route{netip.PrefixFrom(addr4(key), l.bits), v.nextHop()})
		}
	}
	for _, l := range *t.prefixes6.longestFirst.Load() {
		for key, v := range l.table.all() {
			out = append(out, route{netip.PrefixFrom(key.addr(), l.bits), v.nextHop()})
		}
	}
	slices.SortFunc(out, func(a, b route) int { return a.prefix.Compare(b.prefix) })
	return out
}

func canonical(a netip.Addr) netip.Addr {
	if !a.IsValid() {
		panic("fib: invalid address")
	}
	return a.Unmap().WithZone("")
}

// canonicalPrefix masks p and turns prefixes of IPv4-mapped addresses
// (::ffff:0:0/96 and longer) into those of IPv4, as Lookup reads addresses.
func canonicalPrefix(p netip.Prefix) netip.Prefix {
	if !p.IsValid() {
		panic(fmt.Sprintf("fib: invalid prefix %v", p))
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}
