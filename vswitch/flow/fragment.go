package flow

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"

	"vswitch/internal/wire"
)

// Fragments remembers the ports of datagrams that travel in pieces. Only a
// datagram's first fragment has its transport header; the others are told apart
// by source, destination, identification and, with IPv4, protocol (RFC 791
// section 3.2, RFC 8200 section 4.5). What the first fragment said, its tuple, is
// kept here for those behind it, and with the tuple they find their flow.
//
// # Shape
//
// A fixed number of entries of one cache line, in sets of 16. The source address
// alone chooses the set, by a keyed hash: whoever sends more first fragments than
// a set holds loses its own oldest, and reaches the entries of no one but the few sources
// that share its set. Sixteen are plenty, since a sender's fragments follow each
// other: an entry is of use from the first fragment to the last, and is
// never deleted, only replaced or too old.
//
// An entry's generation is odd while it is being written. A writer claims an entry
// by making it odd, and passes to the next oldest if another writer was faster; a
// reader that sees the same even number before and after has read one
// datagram's. Nobody waits, and nothing is allocated after New.
//
// # What an attacker can do
//
// Two first fragments with one identification and different ports: the later of
// them decides, for identifications are used again, after 65,536 datagrams at
// the latest. Fragments carry no ports but in the first, so none can get by a
// judgement of ports; what their overlaps are worth is for the receiver, who
// puts them together.
type Fragments struct {
	key     [4]uint64
	entries []fragment // sets of fragmentWays
}

const (
	fragmentWays = 16
	fragmentSets = 512 // with ways and 64 bytes: 512 KiB, touched as it is used

	// FragmentTicks is how long a first fragment speaks for the others, Linux's
	// ipfrag_time (30 s). A receiver that puts datagrams together waits no longer.
	FragmentTicks = 300
)

// fragment is one datagram's entry.
type fragment struct {
	gen      atomic.Uint32 // odd: being written; 0: never used
	seen     atomic.Uint32 // tick of the first fragment
	src, dst [2]atomic.Uint64
	id       atomic.Uint64 // identification, and protocol where that tells datagrams apart
	tuple    atomic.Uint64 // source port, destination port, transport protocol
	_        [8]byte
}

// newFragments makes an empty tracker with a hash key of its own.
func newFragments(key *hashKey) *Fragments {
	return &Fragments{key: [4]uint64(key[:4]), entries: make([]fragment, fragmentSets*fragmentWays)}
}

// set is where entries of a source lie.
func (fs *Fragments) set(src0, src1 uint64) []fragment {
	hi, lo := bits.Mul64(src0+fs.key[0], src1+fs.key[1])
	hi, lo = bits.Mul64(hi^fs.key[2], lo^fs.key[3])
	i := int((hi^lo)>>32%fragmentSets) * fragmentWays
	return fs.entries[i : i+fragmentWays]
}

// datagramID tells the datagrams of a source and destination apart. IPv6 leaves
// the protocol out, since its fragments name the header that follows, which
// may be an extension header.
func datagramID(h *wire.Headers) uint64 {
	if h.V6 {
		return uint64(h.FragID) | 1<<63
	}
	return uint64(h.FragID) | uint64(h.Proto)<<32
}

// Note remembers a first fragment, whose ports are known (h.HasL4).
func (fs *Fragments) Note(h *wire.Headers, tick uint32) {
	src0, src1 := addrWords(&h.Src)
	dst0, dst1 := addrWords(&h.Dst)
	id := datagramID(h)
	set := fs.set(src0, src1)
	// The same datagram's entry, else one never used, else the oldest. One that
	// another writer takes meanwhile is left to it, and the next best taken.
	for range fragmentWays {
		e, gen := victim(set, tick, func(e *fragment) bool { return e.is(src0, src1, dst0, dst1, id) })
		if e == nil {
			return // sixteen writers at once: the others of the datagram are strays
		}
		if !e.gen.CompareAndSwap(gen, gen+1) {
			continue
		}
		e.seen.Store(tick)
		e.src[0].Store(src0)
		e.src[1].Store(src1)
		e.dst[0].Store(dst0)
		e.dst[1].Store(dst1)
		e.id.Store(id)
		e.tuple.Store(uint64(h.SrcPort)<<48 | uint64(h.DstPort)<<32 | uint64(h.Proto))
		e.gen.Store(max(gen+2, 2)) // 0 is for entries never used
		return
	}
}

// victim chooses the entry to write and gives the generation it had.
func victim(set []fragment, tick uint32, same func(*fragment) bool) (*fragment, uint32) {
	var best *fragment
	var bestGen uint32
	oldest := int32(-1)
	for i := range set {
		e := &set[i]
		gen := e.gen.Load()
		switch {
		case gen&1 == 1:
			continue
		case gen == 0:
			return e, gen // entries are used in order: none behind it is the datagram's
		case same(e):
			return e, gen
		}
		if age := e.age(tick); age > oldest {
			best, bestGen, oldest = e, gen, age
		}
	}
	return best, bestGen
}

// Find gives the tuple of the datagram that a later fragment belongs to, and
// reports whether its first fragment is known.
func (fs *Fragments) Find(h *wire.Headers, tick uint32, k *Key) bool {
	src0, src1 := addrWords(&h.Src)
	dst0, dst1 := addrWords(&h.Dst)
	id := datagramID(h)
	set := fs.set(src0, src1)
	found, youngest := false, int32(FragmentTicks)
	for i := range set {
		e := &set[i]
		if e.id.Load() != id {
			continue
		}
		gen := e.gen.Load()
		if gen == 0 || gen&1 == 1 {
			continue
		}
		same, age, tuple := e.is(src0, src1, dst0, dst1, id), e.age(tick), e.tuple.Load()
		// Two writers may have noted one datagram at once: the younger counts.
		if !same || e.gen.Load() != gen || age >= youngest {
			continue
		}
		found, youngest = true, age
		k.SrcPort, k.DstPort, k.Proto = uint16(tuple>>48), uint16(tuple>>32), uint8(tuple)
	}
	if found {
		k.Src, k.Dst = h.Src, h.Dst
	}
	return found
}

func (e *fragment) is(src0, src1, dst0, dst1, id uint64) bool {
	return e.id.Load() == id && e.src[0].Load() == src0 && e.src[1].Load() == src1 &&
		e.dst[0].Load() == dst0 && e.dst[1].Load() == dst1
}

// age is in ticks. The worker that wrote the entry may be a tick ahead.
func (e *fragment) age(tick uint32) int32 { return max(int32(tick-e.seen.Load()), 0) }

func addrWords(a *wire.Addr) (hi, lo uint64) {
	return binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])
}
