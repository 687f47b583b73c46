// Package fib answers where a packet to an address goes next. It holds routes
// and nothing else: it does not know what a port or a peer is, and it never
// learns an address by itself.
//
// Two tables stand behind one lookup:
//
//   - Host routes (/32, /128), up to millions, in open-addressing tables that
//     are changed in place (host4.go, host6.go).
//   - Prefixes, thousands, one or two a node, in a multibit trie of
//     github.com/gaissmai/bart that is never changed: a writer makes a new one
//     and publishes it.
//
// A host route is the longest prefix there is, so it is looked up first and the
// trie only where there is none. Why two: in the trie alone 1,000,000 random /32
// cost 290 ns a lookup, and one change 10 us and 14 kB of garbage; in a
// host table the lookup is one cache line and the change one store.
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
	"sync"
	"sync/atomic"

	"github.com/gaissmai/bart"

	"vswitch/internal/wire"
)

// Table is a forwarding table. Make it with New.
type Table struct {
	hosts4   hosts4
	hosts6   hosts6
	prefixes atomic.Pointer[bart.Fast[packed]]

	mu sync.Mutex // guards all writing, that is hosts4 and hosts6 but for their lookups, and storing prefixes
}

// New makes an empty table.
func New() *Table {
	t := &Table{}
	t.hosts4.init()
	t.hosts6.init()
	t.prefixes.Store(new(bart.Fast[packed]))
	return t
}

// Lookup gives the next hop of packets to a by longest prefix match; the zero
// NextHop, of kind None, where there is no route.
func (t *Table) Lookup(a *wire.Addr) NextHop {
	if a.Is4() {
		v4 := a.V4()
		if p := t.hosts4.lookup(v4); p != 0 {
			return p.nextHop()
		}
		p, _ := t.prefixes.Load().Lookup(netip.AddrFrom4([4]byte(a[12:])))
		return p.nextHop()
	}
	if p := t.hosts6.lookup(key6Of(a)); p != 0 {
		return p.nextHop()
	}
	p, _ := t.prefixes.Load().Lookup(netip.AddrFrom16(*a))
	return p.nextHop()
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
	t.mu.Lock()
	defer t.mu.Unlock()
	t.prefixes.Store(t.prefixes.Load().InsertPersist(p, v))
}

// DeletePrefix removes the route of exactly p and reports whether there was one.
func (t *Table) DeletePrefix(p netip.Prefix) bool {
	p = canonicalPrefix(p)
	if p.IsSingleIP() {
		return t.DeleteHost(p.Addr())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.prefixes.Load()
	if _, ok := old.Get(p); !ok {
		return false
	}
	t.prefixes.Store(old.DeletePersist(p))
	return true
}

// All yields every route: prefixes in order, IPv4 before IPv6, then host routes
// in none. It takes no lock, so the loop may change the table. A route that is
// changed meanwhile is yielded as it was or as it is, once, twice or not at all.
func (t *Table) All() iter.Seq2[netip.Prefix, NextHop] {
	return func(yield func(netip.Prefix, NextHop) bool) {
		for p, v := range t.prefixes.Load().AllSorted() {
			if !yield(p, v.nextHop()) {
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
