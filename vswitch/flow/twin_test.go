package flow

import (
	"math/rand/v2"
	"testing"

	"vswitch/internal/wire"
)

// twin is the table in plain maps: what it holds, whom it refuses, what expires.
// It takes the protocol from first and next, which the transcripts judge.
type twin struct {
	cap, perOwner int
	idle          [states]uint32
	byKey         map[Key]*twinFlow
	flows         map[*twinFlow]bool
}

type twinFlow struct {
	Spec
	state      State
	born, seen uint32
	frames     [2]uint64
}

func (w *twin) find(k Key) (*twinFlow, Direction) {
	f := w.byKey[k]
	if f != nil && k == f.Reply {
		return f, Reply
	}
	return f, Forward
}

func (w *twin) expired(f *twinFlow, tick uint32) bool { return tick-f.seen > w.idle[f.state] }

func (w *twin) remove(f *twinFlow) {
	delete(w.byKey, f.Orig)
	delete(w.byKey, f.Reply)
	delete(w.flows, f)
}

func (w *twin) insert(s *Spec, flags uint8, tick uint32) Result {
	if s.Orig == s.Reply {
		return ReplyTaken
	}
	if f, _ := w.find(s.Orig); f != nil {
		if !w.expired(f, tick) && !reopens(f.state, flags) {
			return Exists
		}
		w.remove(f)
	}
	if f, _ := w.find(s.Reply); f != nil {
		if !w.expired(f, tick) {
			return ReplyTaken
		}
		w.remove(f)
	}
	owned := 0
	for f := range w.flows {
		if f.Owner == s.Owner {
			owned++
		}
	}
	if s.Owner != 0 && owned >= w.perOwner {
		return OwnerFull
	}
	if len(w.flows) >= w.cap {
		return TableFull
	}
	f := &twinFlow{Spec: *s, state: first(s.Orig.Proto, flags), born: tick, seen: tick}
	w.flows[f] = true
	w.byKey[s.Orig], w.byKey[s.Reply] = f, f
	return Inserted
}

// randomSpec draws from few hosts and ports, so that tuples meet in every way.
func randomSpec(r *rand.Rand) *Spec {
	end := func() (wire.Addr, uint16) { return v4(192<<24 + 2<<8 + r.Uint32N(4)), uint16(1 + r.IntN(4)) }
	proto := []uint8{wire.ProtoTCP, wire.ProtoUDP}[r.IntN(2)]
	s := &Spec{Owner: uint64(r.IntN(4)), Endpoint: r.Uint64(), Policy: r.Uint32(), Flags: Flags(r.IntN(2))}
	s.Orig.Proto, s.Reply.Proto = proto, proto
	s.Orig.Src, s.Orig.SrcPort = end()
	s.Orig.Dst, s.Orig.DstPort = end()
	switch r.IntN(3) {
	case 0:
		s.Reply = s.Orig.Reverse()
	case 1:
		s.Reply.Dst, s.Reply.DstPort = s.Orig.Src, s.Orig.SrcPort
		s.Reply.Src, s.Reply.SrcPort = end()
	case 2:
		s.Reply.Dst, s.Reply.DstPort = end()
		s.Reply.Src, s.Reply.SrcPort = end()
	}
	return s
}

func newTwin(table *Table, cfg Config) *twin {
	return &twin{cap: cfg.Connections, perOwner: cfg.PerOwner, idle: table.idleTicks, byKey: map[Key]*twinFlow{}, flows: map[*twinFlow]bool{}}
}

// step does the same random things with a table and its twin, n times, and gives
// what Insert answered.
func (w *twin) step(t *testing.T, table *Table, r *rand.Rand, tick *uint32, n int) (seen [len(resultNames)]int) {
	t.Helper()
	for range n {
		s := randomSpec(r)
		flags := uint8(r.IntN(32))
		if r.IntN(20) == 0 {
			*tick += r.Uint32N(200)
		}
		switch n := r.IntN(100); {
		case n < 40:
			got, want := table.Insert(s, flags, *tick), w.insert(s, flags, *tick)
			if got != want {
				t.Fatalf("Insert = %v, want %v", got, want)
			}
			seen[got]++
		case n < 97:
			w.lookup(t, table, s.Orig, flags, *tick)
		case n < 99:
			expired := 0
			for f := range w.flows {
				if w.expired(f, *tick) {
					w.remove(f)
					expired++
				}
			}
			if got := table.Expire(*tick, w.cap); got != expired {
				t.Fatalf("Expire = %d, want %d", got, expired)
			}
		default:
			deleted := 0
			for f := range w.flows {
				if f.Owner == s.Owner {
					w.remove(f)
					deleted++
				}
			}
			if got := table.DeleteFunc(func(i *Info) bool { return i.Owner == s.Owner }); got != deleted {
				t.Fatalf("DeleteFunc = %d, want %d", got, deleted)
			}
		}
	}
	return seen
}

// lookup looks k up in both and tracks a packet of what they find.
func (w *twin) lookup(t *testing.T, table *Table, k Key, flags uint8, tick uint32) {
	t.Helper()
	var hit Hit
	ok := table.Lookup(&k, table.Hash(&k), tick, &hit)
	f, dir := w.find(k)
	if ok != (f != nil) {
		t.Fatalf("Lookup = %v, want %v", ok, f != nil)
	}
	if !ok {
		return
	}
	to := f.Reply.Reverse()
	if dir == Reply {
		to = f.Orig.Reverse()
	}
	want := Hit{Ref: hit.Ref, Dir: dir, Flags: f.Flags, State: f.state, Rewrite: f.Reply != f.Orig.Reverse(), To: to}
	if hit != want {
		t.Fatalf("got %+v\nwant %+v", hit, want)
	}
	table.Track(&hit, flags, 1, 0, tick)
	f.seen, f.state = tick, next(f.state, dir, flags, tick-f.born)
	f.frames[dir]++
}

func TestTableEqualsItsTwinUnderRandomOperations(t *testing.T) {
	var seen [len(resultNames)]int
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 1))
		cfg := Config{Connections: 40, PerOwner: 15}
		table := newTable(t, cfg)
		want := newTwin(table, cfg)
		tick := uint32(1<<32 - 5000)
		for range 60 {
			for result, n := range want.step(t, table, r, &tick, 500) {
				seen[result] += n
			}
			compare(t, table, want)
		}
		table.DeleteFunc(func(*Info) bool { return true })
		checkEmpty(t, table)
	}
	for result, n := range seen {
		if n < 100 {
			t.Errorf("%v came up %d times only: the test does not try it", Result(result), n)
		}
	}
}

func compare(t *testing.T, table *Table, want *twin) {
	t.Helper()
	n := 0
	for got := range table.All() {
		n++
		f := want.byKey[got.Orig]
		if f == nil || got.Spec != f.Spec || got.State != f.state || got.Frames != f.frames {
			t.Fatalf("All has %+v\nwant %+v", got, f)
		}
	}
	if n != len(want.flows) || table.Len() != n {
		t.Fatalf("All has %d, Len is %d, want %d", n, table.Len(), len(want.flows))
	}
}
