package flow

import (
	"sync"
	"sync/atomic"
)

// admission decides who gets a record: it holds the free ones and counts each
// owner's connections. Records that were never used lie beyond fresh, so the memory of
// a table that stays small is never touched; used ones are taken first, the
// latest given back before others.
type admission struct {
	perOwner int32
	records  []record

	live atomic.Int32 // records in use; changed under mu, read by anyone

	mu     sync.Mutex // guards all below, and the check word of free records
	owners map[uint64]int32
	free   uint32 // first free record that was used before, plus one; 0: none
	fresh  uint32 // records from here on were never used
}

func (a *admission) init(records []record, perOwner int) {
	a.records, a.perOwner = records, int32(min(perOwner, MaxConnections))
	a.owners = make(map[uint64]int32)
}

// reserve takes a record for owner. Result: Inserted, TableFull or OwnerFull.
func (a *admission) reserve(owner uint64) (rec uint32, _ Result) {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.owners[owner]
	switch {
	case owner != 0 && n >= a.perOwner:
		return 0, OwnerFull
	case a.free != 0:
		rec = a.free - 1
		a.free = a.records[rec].check.Load()
	case int(a.fresh) < len(a.records):
		rec = a.fresh
		a.fresh++
	default:
		return 0, TableFull
	}
	a.owners[owner] = n + 1
	a.live.Add(1)
	return rec, Inserted
}

// giveBack returns a record that owner had.
func (a *admission) giveBack(rec uint32, owner uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.records[rec].check.Store(a.free)
	a.free = rec + 1
	if n := a.owners[owner]; n > 1 {
		a.owners[owner] = n - 1
	} else {
		delete(a.owners, owner)
	}
	a.live.Add(-1)
}

func (a *admission) len() int { return int(a.live.Load()) }

// used is how many records were ever used: those from 0 on.
func (a *admission) used() uint32 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.fresh
}

// restore makes the free list anew: of the first used records, those that are void.
// It leaves the first of them on top.
func (a *admission) restore(used uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fresh, a.free = used, 0
	for rec := used; rec > 0; rec-- {
		if r := &a.records[rec-1]; r.gen.Load()&1 == 0 {
			r.check.Store(a.free)
			a.free = rec
		}
	}
}
