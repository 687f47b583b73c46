package gateway

import (
	"hash/maphash"
	"sync/atomic"

	"vswitch/internal/wire"
)

// index finds the pool for an address and port. Readers take no lock and write
// nothing, so that workers don't disturb each other; a look costs three cache
// misses when 10,000 services don't fit into the cache: the slot, what it points
// to, and the endpoints. Go's maps, a lock each for one of 64 shards, took six.
//
// It is a hash table with open addressing, at most half full: a slot is a pointer to
// something immutable, or tombstone. A change of one service stores the pointers of
// that one. Changes are the caller's to serialize.
type index struct {
	seed  maphash.Seed
	slots atomic.Pointer[[]atomic.Pointer[front]]
	live  int // fronts
	used  int // slots that are not nil
}

// vip is what a flow's destination is looked up by. Ports of nodes' addresses are
// at the unspecified address of their family, and an address as such at port zero.
type vip struct {
	addr  wire.Addr
	port  uint16
	proto uint8
}

// front is a pool at an address and port; with port zero only that, and how many
// services' ports there are.
type front struct {
	vip
	pool
	ports int
}

// tombstone stands in slots that readers must not stop at.
var tombstone = new(front)

const minSlots = 64 // a power of two, as every size

func newIndex() *index {
	x := &index{seed: maphash.MakeSeed()}
	x.slots.Store(new(make([]atomic.Pointer[front], minSlots)))
	return x
}

func (x *index) hash(v *vip) uint64 {
	const n = len(wire.Addr{})
	var b [n + 3]byte
	copy(b[:], v.addr[:])
	b[n], b[n+1], b[n+2] = byte(v.port), byte(v.port>>8), v.proto
	return maphash.Bytes(x.seed, b[:])
}

// find is the front at v, or nil.
func (x *index) find(v *vip) *front {
	slots := *x.slots.Load()
	for i := x.hash(v); ; i++ {
		f := slots[i&uint64(len(slots)-1)].Load()
		if f == nil {
			return nil
		}
		if f.vip == *v && f != tombstone {
			return f
		}
	}
}

// pool is the pool at v, or nil.
func (x *index) pool(v *vip) *pool {
	if f := x.find(v); f != nil {
		return &f.pool
	}
	return nil
}

// set puts f at its place, instead of what was there.
func (x *index) set(f *front) {
	slots := *x.slots.Load()
	if 2*(x.used+1) > len(slots) {
		slots = x.resize()
	}
	var free *atomic.Pointer[front]
	for i := x.hash(&f.vip); ; i++ {
		slot := &slots[i&uint64(len(slots)-1)]
		old := slot.Load()
		switch {
		case old == nil:
			if x.live++; free == nil {
				free = slot
				x.used++
			}
			free.Store(f)
			return
		case old == tombstone:
			if free == nil {
				free = slot
			}
		case old.vip == f.vip:
			slot.Store(f)
			return
		}
	}
}

// remove takes away what is at v, which may be nothing.
func (x *index) remove(v *vip) {
	slots := *x.slots.Load()
	for i := x.hash(v); ; i++ {
		slot := &slots[i&uint64(len(slots)-1)]
		switch old := slot.Load(); {
		case old == nil:
			return
		case old.vip == *v && old != tombstone:
			slot.Store(tombstone)
			x.live--
			return
		}
	}
}

// resize makes another table, a quarter full, without tombstones. Readers of the
// former find in it what they would have found before.
func (x *index) resize() []atomic.Pointer[front] {
	n := minSlots
	for n < 4*(x.live+1) {
		n *= 2
	}
	next := make([]atomic.Pointer[front], n)
	for i := range *x.slots.Load() {
		f := (*x.slots.Load())[i].Load()
		if f == nil || f == tombstone {
			continue
		}
		at := x.hash(&f.vip)
		for next[at&uint64(n-1)].Load() != nil {
			at++
		}
		next[at&uint64(n-1)].Store(f)
	}
	x.used = x.live
	x.slots.Store(&next)
	return next
}
