package flow

import "iter"

// Info is a connection as the command line shows it.
type Info struct {
	Spec
	State     State
	Frames    [2]uint64 // by Direction
	Bytes     [2]uint64
	AgeTicks  uint32 // as of the latest tick that Insert or Expire was told
	IdleTicks uint32
}

// Expire looks at the next budget records and forgets the connections among
// them that have been idle beyond their timeout. Called once a tick with a
// budget of n, it visits all of them within Cap()/n ticks; a record costs some
// nanoseconds, an expired one some hundred. It holds a lock only for one connection
// at a time.
func (t *Table) Expire(tick uint32, budget int) (removed int) {
	t.observe(tick)
	t.sweepMu.Lock()
	defer t.sweepMu.Unlock()
	used := t.admission.used()
	for range min(budget, int(used)) {
		if t.cursor >= used {
			t.cursor = 0
		}
		r := &t.records[t.cursor]
		gen := r.gen.Load()
		if gen&1 == 1 && t.expired(r, tick) && t.remove(refOf(t.cursor, gen)) {
			removed++
		}
		t.cursor++
	}
	return removed
}

// expired reports whether a record's connection is idle beyond its timeout.
// Frames may be ahead of the sweeper's tick: idle for less than nothing.
func (t *Table) expired(r *record, tick uint32) bool {
	idle := int32(tick - r.seen.Load())
	return idle > 0 && uint32(idle) > t.idleTicks[State(r.state.Load())]
}

// DeleteFunc forgets every connection for which del says so, and gives their
// number. The Info is lent for the call. Connections inserted meanwhile may be missed, so
// whoever deletes those of an endpoint stops handing it out first.
func (t *Table) DeleteFunc(del func(*Info) bool) (removed int) {
	for info, ref := range t.each() {
		if del(info) && t.remove(ref) {
			removed++
		}
	}
	return removed
}

// All yields the connections, in no order, each as it was at one moment.
func (t *Table) All() iter.Seq[Info] {
	return func(yield func(Info) bool) {
		for info := range t.each() {
			if !yield(*info) {
				return
			}
		}
	}
}

func (t *Table) each() iter.Seq2[*Info, uint64] {
	return func(yield func(*Info, uint64) bool) {
		var info Info
		for rec := range t.admission.used() {
			if ref, ok := t.read(rec, &info); ok && !yield(&info, ref) {
				return
			}
		}
	}
}

// read fills info with what a record says, if it is a connection.
func (t *Table) read(rec uint32, info *Info) (ref uint64, ok bool) {
	r := &t.records[rec]
	gen := r.gen.Load()
	if gen&1 == 0 {
		return 0, false
	}
	r.keys[Forward].load(&info.Orig)
	r.keys[Reply].load(&info.Reply)
	info.Owner = r.owner.Load()
	info.Endpoint = r.endpoint.Load()
	info.Policy = r.policy.Load()
	info.Flags = Flags(r.flags.Load())
	info.State = State(r.state.Load())
	for dir := range info.Frames {
		c := &t.counters[dir][rec]
		info.Frames[dir], info.Bytes[dir] = c.frames.Load(), c.bytes.Load()
	}
	now := t.now.Load()
	info.AgeTicks = since(r.born.Load(), now)
	info.IdleTicks = since(r.seen.Load(), now)
	return refOf(rec, gen), r.gen.Load() == gen
}

// since is now - tick, and zero where tick is the later one.
func since(tick, now uint32) uint32 {
	return uint32(max(0, int32(now-tick)))
}
