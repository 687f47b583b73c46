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

func TestTableEqualsItsTwinUnderRandomOperations(t *testing.T) {
	seen := map[Result]int{}
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 1))
		cfg := Config{Connections: 40, PerOwner: 15}
		table := newTable(t, cfg)
		want := &twin{cap: 40, perOwner: 15, idle: table.idleTicks, byKey: map[Key]*twinFlow{}, flows: map[*twinFlow]bool{}}
		tick := uint32(1<<32 - 5000)
		for step := range 30000 {
			s := randomSpec(r)
			flags := uint8(r.IntN(32))
			if r.IntN(20) == 0 {
				tick += r.Uint32N(200)
			}
			switch n := r.IntN(100); {
			case n < 40:
				got, want := table.Insert(s, flags, tick), want.insert(s, flags, tick)
				if got != want {
					t.Fatalf("seed %d step %d: Insert = %v, want %v", seed, step, got, want)
				}
				seen[got]++
			case n < 97:
				var hit Hit
				ok := table.Lookup(&s.Orig, table.Hash(&s.Orig), tick, &hit)
				f, dir := want.find(s.Orig)
				if ok != (f != nil) {
					t.Fatalf("seed %d step %d: Lookup = %v, want %v", seed, step, ok, f != nil)
				}
				if !ok {
					break
				}
				to := f.Reply.Reverse()
				if dir == Reply {
					to = f.Orig.Reverse()
				}
				wantHit := Hit{Ref: hit.Ref, Dir: dir, Flags: f.Flags, State: f.state,
					Rewrite: f.Reply != f.Orig.Reverse(), To: to, Endpoint: f.Endpoint}
				if hit != wantHit {
					t.Fatalf("seed %d step %d: got %+v\nwant %+v", seed, step, hit, wantHit)
				}
				table.Track(&hit, flags, 1, 0, tick)
				f.seen, f.state = tick, next(f.state, dir, flags, tick-f.born)
				f.frames[dir]++
			case n < 99:
				expired := 0
				for f := range want.flows {
					if want.expired(f, tick) {
						want.remove(f)
						expired++
					}
				}
				if got := table.Expire(tick, cfg.Connections); got != expired {
					t.Fatalf("seed %d step %d: Expire = %d, want %d", seed, step, got, expired)
				}
			default:
				deleted := 0
				for f := range want.flows {
					if f.Owner == s.Owner {
						want.remove(f)
						deleted++
					}
				}
				if got := table.DeleteFunc(func(i *Info) bool { return i.Owner == s.Owner }); got != deleted {
					t.Fatalf("seed %d step %d: DeleteFunc = %d, want %d", seed, step, got, deleted)
				}
			}
			if step%500 == 0 {
				compare(t, table, want)
			}
		}
		table.DeleteFunc(func(*Info) bool { return true })
		checkEmpty(t, table)
	}
	for _, r := range []Result{Inserted, Exists, ReplyTaken, TableFull, OwnerFull} {
		if seen[r] < 100 {
			t.Errorf("%v came up %d times only: the test does not try it", r, seen[r])
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
