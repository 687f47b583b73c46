package fib

import (
	"slices"
	"sync/atomic"
)

// Prefixes: an exact-match table for each prefix length in use, asked from the longest to
// the shortest with the address masked to it.
//
// It is quick because lengths are few: a cluster gives its nodes prefixes of one
// length, service ranges have another, the default route a third. A length costs
// 2 to 4 ns a lookup, whether it has one route or thousands, and nothing when it
// has none any more.
//
// A change is one store into one table. A lookup reads several, so two changes
// might take place between its reads, a longer route's coming behind it and a shorter
// one's going before it, and it would find neither. So each change of a prefix counts,
// before its store, and a lookup during which the count moved begins again: what it
// gives was all true at one moment. A host route need not count, since hosts are
// looked at first: what makes its coming behind a lookup matter is a change of a prefix
// after it. Readers do not wait, since only a change sends them back, and once.
//
// K is an address and T a table by exact match. Lookups are written out for each family
// (fib.go), since a generic one would call through a dictionary.
type prefixes[K, T any, PT exact[K, T]] struct {
	longestFirst atomic.Pointer[[]*length[K, T]]
	changes      atomic.Uint32
}

type length[K, T any] struct {
	bits  int
	mask  K
	table T
}

type exact[K, T any] interface {
	*T
	init()
	set(K, packed)
	delete(K) bool
	len() int
}

func (p *prefixes[K, T, PT]) init() { p.longestFirst.Store(new([]*length[K, T])) }

// set and delete are for one writer at a time. A length comes into use and goes
// out of it while its table is empty, so that no reader sees a difference.
func (p *prefixes[K, T, PT]) set(bits int, mask, key K, v packed) {
	l := p.of(bits)
	if l == nil {
		l = &length[K, T]{bits: bits, mask: mask}
		PT(&l.table).init()
		next := append(slices.Clone(*p.longestFirst.Load()), l)
		slices.SortFunc(next, func(a, b *length[K, T]) int { return b.bits - a.bits })
		p.longestFirst.Store(&next)
	}
	p.changes.Add(1)
	PT(&l.table).set(key, v)
}

func (p *prefixes[K, T, PT]) delete(bits int, key K) bool {
	l := p.of(bits)
	if l == nil {
		return false
	}
	p.changes.Add(1)
	if !PT(&l.table).delete(key) {
		return false
	}
	if PT(&l.table).len() == 0 {
		next := slices.DeleteFunc(slices.Clone(*p.longestFirst.Load()), func(have *length[K, T]) bool { return have == l })
		p.longestFirst.Store(&next)
	}
	return true
}

// of gives a length in use, or nil.
func (p *prefixes[K, T, PT]) of(bits int) *length[K, T] {
	for _, l := range *p.longestFirst.Load() {
		if l.bits == bits {
			return l
		}
	}
	return nil
}

func mask4(bits int) uint32 { return ^uint32(0) << (32 - bits) }

func mask6(bits int) key6 {
	if bits <= 64 {
		return key6{hi: ^uint64(0) << (64 - bits)}
	}
	return key6{^uint64(0), ^uint64(0) << (128 - bits)}
}
