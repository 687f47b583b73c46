package fib

import (
	"math/bits"
	"math/rand/v2"
	"sync/atomic"
)

// The tables by exact match, exact4 and exact6, are open-addressing hash tables of
// lines of a few slots. An entry lies in the line that its hash gives or, where
// that is full, in the next with room. Each line has a word of tags, a byte a slot
// and one on top:
//
//	 63   56 55    48        15     8 7      0
//	+-------+--------+- ... +--------+--------+
//	| passed| tag 6  |      | tag 1  | tag 0  |    tag 0: the slot is empty
//	+-------+--------+- ... +--------+--------+
//
// A tag is seven more bits of the hash and one that is always set. All are compared
// in one go, so a lookup of what is not there costs one word of memory, and of
// what is there that word and, 97 times of 100, one slot, in the same line. What
// counts is not only the memory: slot by slot, one lookup in three ends where the
// processor did not expect it to, and it forgets what it did beyond; and compared
// without branches, eight slots are so many instructions that few lookups are under
// way at once.
//
// Passed counts the entries that belong in this line or one before and lie behind
// it (F14 of Facebook's folly keeps such counts). A search ends at a line that none
// has passed. So there are no tombstones, and an entry never moves within its
// array: whoever searches without a lock finds each entry that was there all the while.
//
// A writer stores a new entry's slot before its tag, and the counts of the lines it
// passes before both. When the load is too high, a new array is filled and
// published; readers still in the old one see the table as it was, which is as
// it was when they began.
//
// The hash is keyed by random, so that nobody can choose addresses that collide.
// Its second multiplication (mix) is for regular addresses: with the first alone,
// consecutive ones fall into the lines in clusters.

type seed [3]uint64

func newSeed() seed { return seed{rand.Uint64(), rand.Uint64() | 1, rand.Uint64() | 1} }

func (s *seed) mix(x uint64) uint64 {
	x = (x ^ x>>32) * s[2]
	return x ^ x>>32
}

type tags struct{ atomic.Uint64 }

const (
	passedShift = 56
	// A line whose count is at its end keeps it until the array is rebuilt. With a
	// keyed hash no line gets there.
	maxPassed = 1<<8 - 1
	// cachedLines is up to how many lines a table is small enough to be in the
	// processor's second-level cache: 256 kB of IPv4, 512 kB of IPv6.
	cachedLines = 4096

	bytesLow  = 0x0101010101010101
	bytesHigh = 0x8080808080808080
)

// tagOf takes bits of the hash that the line's number does not use: an array has
// fewer than 2^56 lines.
func tagOf(hash uint64) uint64 { return hash>>57 | 0x80 }

// candidates marks the slots that have the tag, each at its byte's highest bit,
// and, rarely, others above them (a borrow in the subtraction): the slot decides.
func candidates(word, tag uint64) uint64 {
	differ := word ^ tag*bytesLow
	return (differ - bytesLow) &^ differ & (bytesHigh >> 8)
}

// slotOf is the first slot that candidates marks.
func slotOf(marks uint64) int { return bits.TrailingZeros64(marks) >> 3 }

func isPassed(word uint64) bool { return word>>passedShift != 0 }

// free is an empty slot of the line, or one that is not below slots.
func (t *tags) free(slots int) int {
	word := t.Load()
	for i := range slots {
		if word>>(8*i)&0xff == 0 {
			return i
		}
	}
	return slots
}

func (t *tags) set(slot int, tag uint64) {
	t.Store(t.Load()&^(0xff<<(8*slot)) | tag<<(8*slot))
}

// pass counts an entry that lies behind, and unpass one that no longer does.
func (t *tags) pass() {
	if t.Load()>>passedShift < maxPassed {
		t.Add(1 << passedShift)
	}
}

func (t *tags) unpass() {
	if t.Load()>>passedShift < maxPassed {
		t.Add(^uint64(1<<passedShift - 1))
	}
}
