package fib

import (
	"encoding/binary"
	"iter"
	"net/netip"
	"sync/atomic"
)

// IPv4 routes of one prefix length, by exact match (line.go): seven slots and the
// tags in a cache line, one word a slot.
//
//	 63            32 31   28 27             0
//	+----------------+-------+----------------+
//	|    address     | kind  |     index      |    zero: empty
//	+----------------+-------+----------------+
//
// A reader gets a whole entry or none and has nothing to validate. 1,000,000
// routes take 17 MB.

type exact4 struct {
	array atomic.Pointer[array4]
	fill  fill
}

const slots4 = 7

type line4 struct {
	slots [slots4]atomic.Uint64
	tags  tags
}

type array4 struct {
	lines []line4 // a power of two
	seed  seed
}

func (e *exact4) init() {
	e.fill.init(slots4)
	e.array.Store(newArray4(e.fill.lines))
}

func newArray4(lines int) *array4 {
	return &array4{lines: hugeSlice[line4](lines), seed: newSeed()}
}

func (a *array4) hash(key uint32) uint64 {
	return a.seed.mix((uint64(key) ^ a.seed[0]) * a.seed[1])
}

// lookup is for readers, without a lock. Zero: no route.
func (e *exact4) lookup(key uint32) packed {
	a := e.array.Load()
	hash := a.hash(key)
	for i := hash; ; i++ {
		l := a.line(i)
		word := l.tags.Load()
		for marks := candidates(word, tagOf(hash)); marks != 0; marks &= marks - 1 {
			if w := l.slots[slotOf(marks)].Load(); uint32(w>>32) == key && w != 0 {
				return packed(w)
			}
		}
		if !isPassed(word) {
			return 0
		}
	}
}

// warm brings the line where key's search begins into the cache.
func (e *exact4) warm(key uint32) {
	if a := e.array.Load(); len(a.lines) > cachedLines {
		a.line(a.hash(key)).tags.Load()
	}
}

// set, delete and the functions below are for one writer at a time.
func (e *exact4) set(key uint32, p packed) {
	if l, slot, _ := e.array.Load().find(key); l != nil {
		l.slots[slot].Store(word4(key, p))
		return
	}
	if e.fill.add() {
		e.rebuild()
	}
	e.array.Load().add(key, p)
}

func (e *exact4) delete(key uint32) bool {
	a := e.array.Load()
	l, slot, lines := a.find(key)
	if l == nil {
		return false
	}
	l.slots[slot].Store(0)
	l.tags.set(slot, 0)
	for i := range lines {
		a.line(a.hash(key) + i).tags.unpass()
	}
	if e.fill.remove() {
		e.rebuild()
	}
	return true
}

func (e *exact4) len() int { return e.fill.live }

func (a *array4) line(i uint64) *line4 { return &a.lines[i&uint64(len(a.lines)-1)] }

// find gives the slot that holds key, and how many lines its entry passed; a nil
// line where none holds it.
func (a *array4) find(key uint32) (l *line4, slot int, passed uint64) {
	hash := a.hash(key)
	for {
		l := a.line(hash + passed)
		for slot := range l.slots {
			if w := l.slots[slot].Load(); w != 0 && uint32(w>>32) == key {
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
func (a *array4) add(key uint32, p packed) {
	hash := a.hash(key)
	for i := hash; ; i++ {
		l := a.line(i)
		if slot := l.tags.free(slots4); slot < slots4 {
			l.slots[slot].Store(word4(key, p))
			l.tags.set(slot, tagOf(hash))
			return
		}
		l.tags.pass()
	}
}

// rebuild publishes an array of fitting size.
func (e *exact4) rebuild() {
	e.fill.resize()
	next := newArray4(e.fill.lines)
	for key, p := range e.all() {
		next.add(key, p)
	}
	e.array.Store(next)
}

func (e *exact4) all() iter.Seq2[uint32, packed] {
	return func(yield func(uint32, packed) bool) {
		a := e.array.Load()
		for n := range a.lines {
			for slot := range slots4 {
				w := a.lines[n].slots[slot].Load()
				if w != 0 && !yield(uint32(w>>32), packed(w)) {
					return
				}
			}
		}
	}
}

func word4(key uint32, p packed) uint64 { return uint64(key)<<32 | uint64(p) }

func addr4(key uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], key)
	return netip.AddrFrom4(b)
}
