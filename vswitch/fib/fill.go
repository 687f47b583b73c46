package fib

import "math/bits"

// minSlots is the size of an empty host table: enough for a node's usual 110
// pods without growing, 2 kB of IPv4 that stays in the first-level cache.
const minSlots = 256

// fill counts what a host table's array holds and says when to build another.
type fill struct {
	slots int // of the array, a power of two
	live  int // entries
	used  int // slots that are not empty: entries and graves
}

// add counts a new entry, in an empty slot or in a grave, and reports whether
// the array is due for rebuilding: beyond 5/8 full, chains grow quickly (linear
// probing visits 1.8 slots a hit and 4 a miss there, 2.5 and 8.5 at 3/4; Knuth
// volume 3, section 6.4).
func (f *fill) add(emptySlot bool) (rebuild bool) {
	f.live++
	if emptySlot {
		f.used++
	}
	return f.used > f.slots/8*5
}

// remove counts an entry's end, which left freed slots empty, and reports
// whether the array has become much too large.
func (f *fill) remove(freed int) (rebuild bool) {
	f.live--
	f.used -= freed
	return f.slots > minSlots && f.live < f.slots/16
}

// resize gives the array's next size: a load between 1/4 and 1/2, so that at
// least an eighth of the slots changes hands before the next rebuilding.
func (f *fill) resize() {
	f.slots = max(minSlots, 1<<bits.Len(uint(2*f.live)))
	f.used = f.live
}
