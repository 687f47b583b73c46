package fib

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"net/netip"
	"sync/atomic"

	"vswitch/internal/wire"
)

// IPv6 routes of one prefix length, by exact match (line.go): five slots and the
// tags in two cache lines, three words a slot, since an address does not fit one.
//
//	+------------------------------+
//	|  address, upper half         |
//	+------------------------------+
//	|  address, lower half         |   63       32 31   28 27         0
//	+------------------------------+  +-----------+-------+------------+
//	|  state                       |  |  version  | kind  |   index    |   kind 0: empty
//	+------------------------------+  +-----------+-------+------------+
//
// The version goes up with each change of the slot. A reader takes the state,
// the address and the state again: equal states mean that the address
// belongs to the state, and unequal ones that the slot changed, so it is read
// again. It would take 2^32 changes of one slot between two loads to fool it. A
// writer changes the address only under the state that no reader trusts, empty.
// 1,000,000 routes take 67 MB.

type key6 struct{ hi, lo uint64 }

type slot6 struct {
	hi, lo atomic.Uint64
	state  atomic.Uint64
}

const slots6 = 5

type line6 struct {
	tags  tags
	slots [slots6]slot6
}

type exact6 struct {
	array atomic.Pointer[array6]
	fill  fill
}

type array6 struct {
	lines []line6 // a power of two
	seed  seed
}

func (e *exact6) init() {
	e.fill.init(slots6)
	e.array.Store(newArray6(e.fill.lines))
}

func newArray6(lines int) *array6 {
	return &array6{lines: hugeSlice[line6](lines), seed: newSeed()}
}

func (a *array6) hash(k key6) uint64 {
	hi, lo := bits.Mul64(k.hi^a.seed[0], k.lo^a.seed[1])
	return a.seed.mix(hi ^ lo)
}

// lookup is for readers, without a lock. Zero: no route.
func (e *exact6) lookup(k key6) packed {
	a := e.array.Load()
	hash := a.hash(k)
	for i := hash; ; i++ {
		l := a.line(i)
		word := l.tags.Load()
		for marks := candidates(word, tagOf(hash)); marks != 0; marks &= marks - 1 {
			if key, p := l.slots[slotOf(marks)].read(); key == k && p != 0 {
				return p
			}
		}
		if !isPassed(word) {
			return 0
		}
	}
}

// warm brings the line where k's search begins into the cache.
func (e *exact6) warm(k key6) {
	if a := e.array.Load(); len(a.lines) > cachedLines {
		l := a.line(a.hash(k))
		l.tags.Load()
		l.slots[slots6-1].state.Load() // on the second cache line
	}
}

// read gives a slot's key and next hop as they were at one moment.
func (s *slot6) read() (key6, packed) {
	for {
		state := s.state.Load()
		k := key6{s.hi.Load(), s.lo.Load()}
		if s.state.Load() == state {
			return k, packed(state)
		}
	}
}

// put changes a slot whose state is empty or already k's.
func (s *slot6) put(k key6, p packed) {
	s.hi.Store(k.hi)
	s.lo.Store(k.lo)
	s.mark(p)
}

// mark changes a slot's state and leaves its address.
func (s *slot6) mark(p packed) {
	version := s.state.Load()>>32 + 1
	s.state.Store(version<<32 | uint64(p))
}

// set, delete and the functions below are for one writer at a time.
func (e *exact6) set(k key6, p packed) {
	if l, slot, _ := e.array.Load().find(k); l != nil {
		l.slots[slot].mark(p)
		return
	}
	if e.fill.add() {
		e.rebuild()
	}
	e.array.Load().add(k, p)
}

func (e *exact6) delete(k key6) bool {
	a := e.array.Load()
	l, slot, lines := a.find(k)
	if l == nil {
		return false
	}
	l.slots[slot].mark(0)
	l.tags.set(slot, 0)
	for i := range lines {
		a.line(a.hash(k) + i).tags.unpass()
	}
	if e.fill.remove() {
		e.rebuild()
	}
	return true
}

func (e *exact6) len() int { return e.fill.live }

func (a *array6) line(i uint64) *line6 { return &a.lines[i&uint64(len(a.lines)-1)] }

// find gives the slot that holds k, and how many lines its entry passed; a nil
// line where none holds it.
func (a *array6) find(k key6) (l *line6, slot int, passed uint64) {
	hash := a.hash(k)
	for {
		l := a.line(hash + passed)
		for slot := range l.slots {
			if key, p := l.slots[slot].read(); p != 0 && key == k {
				return l, slot, passed
			}
		}
		if !isPassed(l.tags.Load()) {
			return nil, 0, 0
		}
		passed++
	}
}

// add puts a key in that the array does not hold.
func (a *array6) add(k key6, p packed) {
	hash := a.hash(k)
	for i := hash; ; i++ {
		l := a.line(i)
		if slot := l.tags.free(slots6); slot < slots6 {
			l.slots[slot].put(k, p)
			l.tags.set(slot, tagOf(hash))
			return
		}
		l.tags.pass()
	}
}

// rebuild publishes an array of fitting size.
func (e *exact6) rebuild() {
	e.fill.resize()
	next := newArray6(e.fill.lines)
	for k, p := range e.all() {
		next.add(k, p)
	}
	e.array.Store(next)
}

func (e *exact6) all() iter.Seq2[key6, packed] {
	return func(yield func(key6, packed) bool) {
		a := e.array.Load()
		for n := range a.lines {
			for slot := range slots6 {
				if k, p := a.lines[n].slots[slot].read(); p != 0 && !yield(k, p) {
					return
				}
			}
		}
	}
}

func key6Of(a *wire.Addr) key6 {
	return key6{binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])}
}

func (k key6) and(m key6) key6 { return key6{k.hi & m.hi, k.lo & m.lo} }

func (k key6) addr() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], k.hi)
	binary.BigEndian.PutUint64(b[8:], k.lo)
	return netip.AddrFrom16(b)
}
