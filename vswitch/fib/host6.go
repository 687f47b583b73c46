package fib

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"

	"vswitch/internal/wire"
)

// IPv6 host routes: the table of host4.go with slots of three words, since an
// address does not fit one.
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
// writer changes the address only under a state that no reader trusts, empty or
// grave. 24 bytes a slot rather than 32: a quarter of the slots lies across two
// cache lines, but a third more of them fit the cache.

type key6 struct{ hi, lo uint64 }

type slot6 struct {
	hi, lo atomic.Uint64
	state  atomic.Uint64
}

type hosts6 struct {
	array atomic.Pointer[array6]
	fill  fill
}

type array6 struct {
	slots []slot6 // a power of two
	seed  [3]uint64
}

func (h *hosts6) init() {
	h.fill = fill{slots: minSlots}
	h.array.Store(newArray6(minSlots))
}

func newArray6(slots int) *array6 {
	return &array6{slots: make([]slot6, slots), seed: [3]uint64{rand.Uint64(), rand.Uint64(), rand.Uint64() | 1}}
}

func (a *array6) home(k key6) uint64 {
	hi, lo := bits.Mul64(k.hi^a.seed[0], k.lo^a.seed[1])
	hi, lo = bits.Mul64(hi^lo^k.lo, a.seed[2])
	return hi ^ lo
}

// lookup is for readers, without a lock. Zero: no route.
func (h *hosts6) lookup(k key6) packed {
	a := h.array.Load()
	slots := a.slots
	mask := uint64(len(slots) - 1)
	for i := a.home(k); ; i++ {
		key, p := slots[i&mask].read()
		if key == k && p != grave || p == 0 {
			return p
		}
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

// put changes a slot whose state is empty, grave or already k's.
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
func (h *hosts6) set(k key6, p packed) {
	a := h.array.Load()
	i, found := a.find(k)
	was := packed(a.slots[i].state.Load())
	a.slots[i].put(k, p)
	if found {
		return
	}
	if h.fill.add(was == 0) {
		h.rebuild()
	}
}

func (h *hosts6) delete(k key6) bool {
	a := h.array.Load()
	i, found := a.find(k)
	if !found {
		return false
	}
	a.slots[i].mark(grave)
	mask := uint64(len(a.slots) - 1)
	freed := 0
	if packed(a.slots[(i+1)&mask].state.Load()) == 0 {
		for ; packed(a.slots[i].state.Load()) == grave; i = (i - 1) & mask {
			a.slots[i].mark(0)
			freed++
		}
	}
	if h.fill.remove(freed) {
		h.rebuild()
	}
	return true
}

// find gives the slot that holds k or, where none does, the one to put it in.
func (a *array6) find(k key6) (slot uint64, found bool) {
	mask := uint64(len(a.slots) - 1)
	free, haveFree := uint64(0), false
	for i := a.home(k) & mask; ; i = (i + 1) & mask {
		key, p := a.slots[i].read()
		switch {
		case p == 0 && haveFree:
			return free, false
		case p == 0:
			return i, false
		case p == grave:
			if !haveFree {
				free, haveFree = i, true
			}
		case key == k:
			return i, true
		}
	}
}

// rebuild publishes an array of fitting size without graves.
func (h *hosts6) rebuild() {
	h.fill.resize()
	next := newArray6(h.fill.slots)
	for k, p := range h.all() {
		i, _ := next.find(k)
		next.slots[i].put(k, p)
	}
	h.array.Store(next)
}

func (h *hosts6) all() iter.Seq2[key6, packed] {
	return func(yield func(key6, packed) bool) {
		a := h.array.Load()
		for i := range a.slots {
			k, p := a.slots[i].read()
			if p != 0 && p != grave && !yield(k, p) {
				return
			}
		}
	}
}

func key6Of(a *wire.Addr) key6 {
	return key6{binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])}
}

func (k key6) addr() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], k.hi)
	binary.BigEndian.PutUint64(b[8:], k.lo)
	return netip.AddrFrom16(b)
}
