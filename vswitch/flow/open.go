package flow

import (
	"errors"
	"fmt"

	"vswitch/internal/lasting"
)

// Report says what Open found in a table that another process left.
type Report struct {
	Kept int // connections
	// Discarded are records that were no whole connection: damaged, or with a
	// tuple that another connection has.
	Discarded int
}

// Open maps the table in fd, which New made in another process. That process has
// closed it or is dead, killed at any moment; while it lives and has not, Open
// fails (lasting.ErrInUse). tick is now: ticks must be counted from the same moment in both
// processes. It takes fd if it succeeds.
//
// The table has the size that New gave it, and cfg.Connections counts only where
// cfg.PerOwner follows from it. A table of another layout is a *VersionError.
//
// Every connection that Insert had inserted and nothing had ended is there, with
// its state and counters. A record that the other process was writing
// when it was killed is void; one that a fault has damaged is discarded: what Open returns
// is whole, whatever fd holds. Owners, endpoints and policy generations mean what they
// meant to the other process. Fragments are not kept.
//
// It takes some 200 to 270 ns a connection: 60 to 67 ms for 262,144 (BenchmarkOpen).
func Open(fd int, cfg Config, tick uint32) (*Table, Report, error) {
	if err := cfg.validate(); err != nil {
		return nil, Report{}, err
	}
	m, err := lasting.Open(fd, headerBytes, mappingBytes(MaxConnections))
	if err != nil {
		return nil, Report{}, fmt.Errorf("flow: open the table in descriptor %d: %w", fd, err)
	}
	t, err := over(m, cfg)
	if err != nil {
		return nil, Report{}, errors.Join(err, m.GiveBack())
	}
	t.now.Store(tick)
	return t, t.restore(tick), nil
}

// restoreBatch is how many records are looked at before they are put into the index,
// so that their places in it, which are anywhere, are fetched at once.
const restoreBatch = 32

// restore makes anew what follows from the records.
func (t *Table) restore(tick uint32) (report Report) {
	var hashes [2 * restoreBatch]uint64
	var recs [restoreBatch]uint32
	n := 0
	settle := func() {
		t.warm(hashes[:2*n])
		for i := range n {
			if t.adopt(recs[i], hashes[2*i], hashes[2*i+1]) {
				report.Kept++
			} else {
				report.Discarded++
				t.records[recs[i]].gen.Add(1)
			}
		}
		n = 0
	}
	used := 0
	for _, part := range t.memory.Written(headerBytes) {
		first := (part[0] - headerBytes) / recordBytes
		if first >= len(t.records) {
			break // counters
		}
		used = min((part[1]-headerBytes+recordBytes-1)/recordBytes, len(t.records))
		for rec := first; rec < used; rec++ {
			r := &t.records[rec]
			if r.gen.Load()&1 == 0 {
				continue
			}
			orig, reply, ok := t.examine(r, tick)
			if !ok {
				report.Discarded++
				r.gen.Add(1)
				continue
			}
			recs[n], hashes[2*n], hashes[2*n+1] = uint32(rec), orig, reply
			if n++; n == restoreBatch {
				settle()
			}
		}
	}
	settle()
	t.admission.restore(uint32(used))
	return report
}

// examine reports whether a record is a whole connection, and gives the hashes of
// its tuples. Times that lie ahead of now, as after the clock was set back, become now.
func (t *Table) examine(r *record, tick uint32) (orig, reply uint64, ok bool) {
	var k [2]Key
	for dir := range k {
		r.keys[dir].load(&k[dir])
	}
	orig, reply = t.Hash(&k[Forward]), t.Hash(&k[Reply])
	gen, state := r.gen.Load(), r.state.Load()
	const unused = 0xffff_ff00 // bits of tuple.ports, which the hash does not cover
	if (r.keys[Forward].ports.Load()|r.keys[Reply].ports.Load())&unused != 0 ||
		r.check.Load() != r.checkWord(&t.hashKey, orig, reply, gen) || k[Forward] == k[Reply] ||
		state != stateWord(State(state), gen) || !State(state).of(k[Forward].Proto) {
		return 0, 0, false
	}
	if int32(tick-r.seen.Load()) < 0 {
		r.seen.Store(tick)
	}
	if int32(tick-r.born.Load()) < 0 {
		r.born.Store(tick)
	}
	return orig, reply, true
}

// adopt gives a whole record its place in the index, and false where another
// connection has one of its tuples.
func (t *Table) adopt(rec uint32, orig, reply uint64) bool {
	r := &t.records[rec]
	var k Key
	var hit Hit
	r.keys[Forward].load(&k)
	if t.find(&k, orig, &hit) != nil {
		return false
	}
	r.keys[Reply].load(&k)
	if t.find(&k, reply, &hit) != nil {
		return false
	}
	if !t.place(orig, rec, Forward) {
		return false
	}
	if !t.place(reply, rec, Reply) {
		t.unplace(orig, rec, Forward)
		return false
	}
	t.admission.owners[r.owner.Load()]++
	t.admission.live.Add(1)
	return true
}
