package fib

import "math/bits"

// minSlots is the least size of a table by exact match: enough for a node's
// usual 110 pods without growing, 2 kB of IPv4 that stays in the first-level cache.
const minSlots = 224

// fill counts what a table's array holds and says when to build another. The
// share of lines that overflow follows from the load, here for seven slots and for
// five (Poisson): 2 and 4 of 100 lines at half, 8 and 10 at 5/8, 15 and 18 at 3/4.
type fill struct {
	perLine int // slots
	lines   int // of the array, a power of two
	live    int // entries
}

func (f *fill) init(perLine int) {
	f.perLine = perLine
	f.resize()
}

func (f *fill) slots() int { return f.lines * f.perLine }

// add counts an entry to come and reports whether the array must be rebuilt first.
func (f *fill) add() (rebuild bool) {
	f.live++
	return f.live > f.slots()/4*3
}

// remove counts an entry's end and reports whether the array has become much too large.
func (f *fill) remove() (rebuild bool) {
	f.live--
	return f.slots() > 2*minSlots && f.live < f.slots()/16
}

// resize gives the array's next size: a load between 5/16 and 5/8, so that at
// least an eighth of the slots changes hands before the next rebuilding.
func (f *fill) resize() {
	atLeast := max(minSlots, f.live/5*8)
	f.lines = 1 << bits.Len(uint((atLeast-1)/f.perLine))
}
