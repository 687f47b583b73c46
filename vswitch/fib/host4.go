package fib

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
)

// IPv4 host routes: open addressing, linear probing, one 64-bit word a slot.
//
//	 63            32 31   28 27             0
//	+----------------+-------+----------------+
//	|    address     | kind  |     index      |    zero: empty
//	+----------------+-------+----------------+
//
// A slot is one word, so a reader gets a whole entry or none and has nothing to
// validate. Eight slots share a cache line: at a load of at most 5/8 nearly every
// lookup touches one line, and 1,000,000 routes take 16 MB.
//
// An entry never moves within its array. Deleting it leaves a grave that later
// entries may take; the grave goes at once where the next slot is empty, since
// no probe goes on past it. So a reader that walks a chain finds every route that
// was there all the while it walked. When entries and graves fill 5/8 of
// the array, a new one is filled from it and published; readers still in the old
// one see the table as it was, which is as it was when they began.
//
// The hash is keyed by random, so that nobody can choose addresses that collide.
// Backward shift instead of graves was not taken: an entry in motion can be
// missed by a reader, who would then have to notice and begin again.

type hosts4 struct {
	array atomic.Pointer[array4]
	fill  fill
}

type array4 struct {
	slots []atomic.Uint64 // a power of two
	seed  [2]uint64
}

func (h *hosts4) init() {
	h.fill = fill{slots: minSlots}
	h.array.Store(newArray4(minSlots))
}

func newArray4(slots int) *array4 {
	return &array4{slots: make([]atomic.Uint64, slots), seed: [2]uint64{rand.Uint64(), rand.Uint64() | 1}}
}

func (a *array4) home(key uint32) uint64 {
	hi, lo := bits.Mul64(uint64(key)^a.seed[0], a.seed[1])
	return hi ^ lo
}

// lookup is for readers, without a lock. Zero: no route.
func (h *hosts4) lookup(key uint32) packed {
	a := h.array.Load()
	slots := a.slots
	mask := uint64(len(slots) - 1)
	for i := a.home(key); ; i++ {
		w := slots[i&mask].Load()
		if uint32(w>>32) == key && packed(w) != grave || w == 0 {
			return packed(w)
		}
	}
}

// set, delete and the functions below are for one writer at a time.
func (h *hosts4) set(key uint32, p packed) {
	a := h.array.Load()
	i, found := a.find(key)
	was := a.slots[i].Load()
	a.slots[i].Store(word4(key, p))
	if found {
		return
	}
	if h.fill.add(was == 0) {
		h.rebuild()
	}
}

func (h *hosts4) delete(key uint32) bool {
	a := h.array.Load()
	i, found := a.find(key)
	if !found {
		return false
	}
	a.slots[i].Store(uint64(grave))
	mask := uint64(len(a.slots) - 1)
	freed := 0
	if a.slots[(i+1)&mask].Load() == 0 {
		for ; a.slots[i].Load() == uint64(grave); i = (i - 1) & mask {
			a.slots[i].Store(0)
			freed++
		}
	}
	if h.fill.remove(freed) {
		h.rebuild()
	}
	return true
}

// find gives the slot that holds key or, where none does, the one to put it in.
func (a *array4) find(key uint32) (slot uint64, found bool) {
	mask := uint64(len(a.slots) - 1)
	free, haveFree := uint64(0), false
	for i := a.home(key) & mask; ; i = (i + 1) & mask {
		w := a.slots[i].Load()
		switch {
		case w == 0 && haveFree:
			return free, false
		case w == 0:
			return i, false
		case packed(w) == grave:
			if !haveFree {
				free, haveFree = i, true
			}
		case uint32(w>>32) == key:
			return i, true
		}
	}
}

// rebuild publishes an array of fitting size without graves.
func (h *hosts4) rebuild() {
	h.fill.resize()
	next := newArray4(h.fill.slots)
	for key, p := range h.all() {
		i, _ := next.find(key)
		next.slots[i].Store(word4(key, p))
	}
	h.array.Store(next)
}

func (h *hosts4) all() iter.Seq2[uint32, packed] {
	return func(yield func(uint32, packed) bool) {
		a := h.array.Load()
		for i := range a.slots {
			w := a.slots[i].Load()
			if w != 0 && packed(w) != grave && !yield(uint32(w>>32), packed(w)) {
				return
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
