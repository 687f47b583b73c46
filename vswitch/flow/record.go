package flow

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"
	"unsafe"

	"vswitch/internal/wire"
)

// record is one connection: two cache lines. The first is all that a lookup reads of a
// connection that nothing is rewritten of; the other one it reads besides for the rest.
// Both are written rarely: seen once a tick, state a few times a connection. What
// each frame writes is in counter.
type record struct {
	gen   atomic.Uint64 // odd: a connection. One more at each beginning and end.
	seen  atomic.Uint32 // tick of the last frame
	state atomic.Uint32 // State in the low byte, above it the low bits of gen
	flags atomic.Uint32 // Spec.Flags, and rewritten
	born  atomic.Uint32 // tick
	keys  [2]tuple      // what each direction enters the switch with: Orig, Reply

	endpoint atomic.Uint64 // Spec.Endpoint
	owner    atomic.Uint64 // Spec.Owner
	policy   atomic.Uint32 // Spec.Policy
	check    atomic.Uint32 // of a connection: checkWord; of a free record: the next free one plus one
}

// rewritten in record.flags: the tuples leave otherwise than they came.
const rewritten = 1 << 31

// counter is what one direction carried. The directions lie apart, since
// different workers carry them.
type counter struct {
	frames, bytes atomic.Uint64
}

const (
	recordBytes  = int(unsafe.Sizeof(record{}))
	counterBytes = int(unsafe.Sizeof(counter{}))
)

// A record is two lines, and the first of them ends with the first tuple.
var (
	_ [recordBytes - 128]struct{}
	_ [128 - recordBytes]struct{}
	_ [unsafe.Offsetof(record{}.keys) + unsafe.Sizeof(tuple{}) - 64]struct{}
	_ [64 - unsafe.Offsetof(record{}.keys) - unsafe.Sizeof(tuple{})]struct{}
)

// checkWord ties together what a connection never changes, so that whoever maps a
// table that another process left takes no record for a connection that is none.
// It is keyed as the hash of tuples is, and costs three multiplications.
func (r *record) checkWord(key *hashKey, orig, reply, gen uint64) uint32 {
	hi1, lo1 := bits.Mul64(orig^key[0], reply^key[1])
	hi2, lo2 := bits.Mul64(r.endpoint.Load()+key[2], r.owner.Load()+key[3])
	hi3, lo3 := bits.Mul64(uint64(r.policy.Load())<<32+uint64(r.flags.Load())+key[4], gen+key[5])
	return uint32((hi1 + lo1 + hi2 ^ lo2 + hi3 ^ lo3) >> 32)
}

// tuple is a Key in five words, each read and written in one piece.
type tuple struct {
	src, dst [2]atomic.Uint64
	ports    atomic.Uint64 // source port, destination port, 24 zero bits, protocol, from the top
}

// words takes k apart as tuple stores it. Five results and not an array: an array
// would go through memory, in sizes that defeat store forwarding.
func (k *Key) words() (src0, src1, dst0, dst1, ports uint64) {
	return binary.NativeEndian.Uint64(k.Src[:8]), binary.NativeEndian.Uint64(k.Src[8:]),
		binary.NativeEndian.Uint64(k.Dst[:8]), binary.NativeEndian.Uint64(k.Dst[8:]),
		uint64(k.SrcPort)<<48 | uint64(k.DstPort)<<32 | uint64(k.Proto)
}

// is compares ports first: they differ most.
func (t *tuple) is(src0, src1, dst0, dst1, ports uint64) bool {
	return t.ports.Load() == ports &&
		t.src[1].Load() == src1 && t.dst[1].Load() == dst1 &&
		t.src[0].Load() == src0 && t.dst[0].Load() == dst0
}

func (t *tuple) store(k *Key) {
	src0, src1, dst0, dst1, ports := k.words()
	t.src[0].Store(src0)
	t.src[1].Store(src1)
	t.dst[0].Store(dst0)
	t.dst[1].Store(dst1)
	t.ports.Store(ports)
}

// load fills k with the tuple.
func (t *tuple) load(k *Key) {
	loadAddr(&t.src, &k.Src)
	loadAddr(&t.dst, &k.Dst)
	ports := t.ports.Load()
	k.SrcPort, k.DstPort, k.Proto = uint16(ports>>48), uint16(ports>>32), uint8(ports)
}

// loadReversed fills k with the tuple of the answers.
func (t *tuple) loadReversed(k *Key) {
	loadAddr(&t.dst, &k.Src)
	loadAddr(&t.src, &k.Dst)
	ports := t.ports.Load()
	k.SrcPort, k.DstPort, k.Proto = uint16(ports>>32), uint16(ports>>48), uint8(ports)
}

func loadAddr(from *[2]atomic.Uint64, to *wire.Addr) {
	binary.NativeEndian.PutUint64(to[:8], from[0].Load())
	binary.NativeEndian.PutUint64(to[8:], from[1].Load())
}
