package flow

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync/atomic"
	"unsafe"

	"vswitch/internal/wire"
)

// The mapping, all in host byte order and without pointers:
//
//	0            4096
//	+--------+---------+----------------------+---------------+---------------+
//	| header | (empty) | index                | records       | counters      |
//	|        |         | chunks x 64          | n x 128       | 2 x n x 16    |
//	+--------+---------+----------------------+---------------+---------------+
//
// Each part begins at a multiple of 128. Index, and which records are free, follow from
// the records, so whoever maps a table that a killed process left can make
// them anew; a record of even generation is void.

const (
	magic         = "vswflow\n"
	layoutVersion = 1 // changes with any change of what is drawn in this file
	headerBytes   = 4096
	slotsPerChunk = 7
	// loadPercent is how full the index is when all connections exist. At 60 one
	// entry in 34 lies outside its home chunk and one miss in twelve looks at a second,
	// which Warm does not reach (at 70 one in nineteen and one in six); two entries a
	// connection cost 31 bytes.
	loadPercent = 60
	// shardConnections is how many connections share a lock, up to maxShardBits:
	// 256 locks make it rare that two of a few dozen workers want one at once.
	shardConnections = 1024
	maxShardBits     = 8
)

// header is the mapping's first page.
type header struct {
	magic       [8]byte
	version     uint32
	shardBits   uint32 // the index has 1<<shardBits shards
	shardChunks uint32 // of so many chunks each
	records     uint32
	hashKey     hashKey
}

// plan is what a mapping's size follows from.
type plan struct {
	shardBits, shardChunks, records uint32
}

func planFor(connections int) plan {
	p := plan{records: uint32(connections)}
	p.shardBits = uint32(min(maxShardBits, bits.Len(uint(connections/shardConnections))))
	slots := 2 * connections * 100 / loadPercent
	chunks := slots/slotsPerChunk + 1
	// Small shards deviate more: two chunks on top cost nothing and spare a
	// table of few connections from filling one shard first.
	p.shardChunks = uint32(chunks>>p.shardBits) + 2
	return p
}

func (p plan) chunks() int        { return int(p.shardChunks) << p.shardBits }
func (p plan) recordsOffset() int { return align(headerBytes + p.chunks()*chunkBytes) }
func (p plan) countersOffset() int {
	return p.recordsOffset() + int(p.records)*recordBytes
}
func (p plan) bytes() int { return p.countersOffset() + 2*int(p.records)*counterBytes }

func align(n int) int { return (n + recordBytes - 1) &^ (recordBytes - 1) }

// chunk is one cache line of the index. A slot is zero when empty, and else
//
//	 63     62              32 31                     1        0
//	+---+---------------------+------------------------+-----------+
//	| 1 |  tag: hash bits 0-30 |  record                | direction |
//	+---+---------------------+------------------------+-----------+
type chunk struct {
	slots  [slotsPerChunk]atomic.Uint64
	passed atomic.Uint64 // entries that belong here or before and lie behind
}

func slotTag(hash uint64) uint64 { return hash&(1<<31-1) | 1<<31 }

func slotWord(hash uint64, rec uint32, dir Direction) uint64 {
	return slotTag(hash)<<32 | uint64(rec)<<1 | uint64(dir)
}

// record is one connection: two cache lines, all that a lookup reads in both.
// Lines that lookups of both directions read are written rarely: seen once a
// tick, state a few times a connection. What each frame writes is in counter.
type record struct {
	gen      atomic.Uint64 // odd: a connection. One more at each beginning and end.
	seen     atomic.Uint32 // tick of the last frame
	state    atomic.Uint32 // State in the low byte, above it the low bits of gen
	keys     [2]tuple      // what each direction enters the switch with: Orig, Reply
	endpoint atomic.Uint64 // Spec.Endpoint
	owner    atomic.Uint64 // Spec.Owner
	policy   atomic.Uint32 // Spec.Policy
	born     atomic.Uint32 // tick
	flags    atomic.Uint32 // Spec.Flags, and rewritten
	next     uint32        // of a free record: the next free one plus one; guarded by admission.mu
}

// rewritten in record.flags: the tuples leave otherwise than they came.
const rewritten = 1 << 31

// counter is what one direction carried. The directions lie apart, since
// different workers carry them.
type counter struct {
	frames, bytes atomic.Uint64
}

const (
	chunkBytes   = int(unsafe.Sizeof(chunk{}))
	recordBytes  = int(unsafe.Sizeof(record{}))
	counterBytes = int(unsafe.Sizeof(counter{}))
)

// A chunk is one line and a record two, and the header fits its page.
var (
	_ [chunkBytes - 64]struct{}
	_ [64 - chunkBytes]struct{}
	_ [recordBytes - 128]struct{}
	_ [128 - recordBytes]struct{}
	_ [headerBytes - unsafe.Sizeof(header{})]struct{}
)

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

// layout is a mapping's parts in place.
type layout struct {
	header   *header
	chunks   []chunk
	records  []record
	counters [2][]counter
}

// format writes the header of an empty table over mem, which must be zero.
func format(mem []byte, p plan) {
	h := (*header)(unsafe.Pointer(unsafe.SliceData(mem)))
	*h = header{
		version:   layoutVersion,
		shardBits: p.shardBits, shardChunks: p.shardChunks, records: p.records,
	}
	copy(h.magic[:], magic)
	var key [unsafe.Sizeof(hashKey{})]byte
	rand.Read(key[:]) // never fails: crypto/rand ends the process where there is no entropy
	for i := range h.hashKey {
		h.hashKey[i] = binary.NativeEndian.Uint64(key[8*i:])
	}
}

// attach finds a table's parts in mem. It believes no size that mem can't hold.
func attach(mem []byte) (layout, error) {
	if len(mem) < headerBytes {
		return layout{}, fmt.Errorf("flow: a mapping of %d bytes has no header", len(mem))
	}
	base := unsafe.Pointer(unsafe.SliceData(mem))
	h := (*header)(base)
	if string(h.magic[:]) != magic {
		return layout{}, fmt.Errorf("flow: not a flow table: it begins with %q", h.magic[:])
	}
	if h.version != layoutVersion {
		return layout{}, fmt.Errorf("flow: layout version %d, want %d", h.version, layoutVersion)
	}
	p := plan{shardBits: h.shardBits, shardChunks: h.shardChunks, records: h.records}
	if p.shardBits > maxShardBits || p.records > MaxConnections || p.shardChunks == 0 || p.bytes() != len(mem) {
		return layout{}, fmt.Errorf("flow: header and mapping disagree: %+v in %d bytes", p, len(mem))
	}
	counters := unsafe.Slice((*counter)(unsafe.Add(base, p.countersOffset())), 2*int(p.records))
	return layout{
		header:   h,
		chunks:   unsafe.Slice((*chunk)(unsafe.Add(base, headerBytes)), p.chunks()),
		records:  unsafe.Slice((*record)(unsafe.Add(base, p.recordsOffset())), int(p.records)),
		counters: [2][]counter{counters[:p.records], counters[p.records:]},
	}, nil
}
