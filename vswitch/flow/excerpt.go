package flow

import (
	"fmt"

	"vswitch/internal/wire"
)

// Excerpt is a table of its own with those connections for which keep says so, each
// as it is now, and as full as t is: one more finds room in it where it would in t,
// as far as its owner's connections are all kept. t is left as it is. It is for looking ahead;
// the caller closes it.
func (t *Table) Excerpt(keep func(*Info) bool) (*Table, error) {
	var kept []uint32 // records
	for info, ref := range t.each() {
		if keep(info) {
			kept = append(kept, uint32(ref))
		}
	}
	cfg := Config{Connections: len(kept) + 1, PerOwner: int(t.admission.perOwner)}
	if t.Len() >= t.Cap() {
		cfg.Connections = max(len(kept), 1)
	}
	x, err := New(cfg)
	if err != nil {
		return nil, fmt.Errorf("flow: excerpt: %w", err)
	}
	x.idleTicks = t.idleTicks
	x.now.Store(t.now.Load())
	for _, rec := range kept {
		t.copyTo(x, rec)
	}
	if len(kept) == 0 && t.Len() >= t.Cap() {
		// Somebody else's, between addresses that no packet has.
		other := Key{Src: wire.Addr{15: 1}, Dst: wire.Addr{15: 2}, Proto: wire.ProtoTCP}
		x.Insert(&Spec{Orig: other, Reply: other.Reverse()}, wire.SYN, x.now.Load())
	}
	return x, nil
}

// copyTo adds a record's connection to x, if it still is one.
func (t *Table) copyTo(x *Table, rec uint32) {
	var info Info
	if _, ok := t.read(rec, &info); !ok {
		return
	}
	from := &t.records[rec]
	if x.Insert(&info.Spec, 0, from.born.Load()) != Inserted {
		return
	}
	var hit Hit
	to := x.find(&info.Orig, x.Hash(&info.Orig), &hit)
	to.state.Store(stateWord(info.State, to.gen.Load()))
	to.seen.Store(from.seen.Load())
	for dir := range info.Frames {
		c := &x.counters[dir][uint32(hit.Ref)]
		c.frames.Store(info.Frames[dir])
		c.bytes.Store(info.Bytes[dir])
	}
}

// Find is the connection whose packets enter the switch with tuple k, and which
// way they go. Unlike Lookup it leaves no trace.
func (t *Table) Find(k *Key) (_ Info, _ Direction, ok bool) {
	var hit Hit
	if t.find(k, t.Hash(k), &hit) == nil {
		return Info{}, 0, false
	}
	var info Info
	_, ok = t.read(uint32(hit.Ref), &info)
	return info, hit.Dir, ok
}
