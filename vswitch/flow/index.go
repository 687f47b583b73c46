package flow

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"unsafe"
)

// index leads from the hash of a tuple to the record that has it. It is this
// process's own: the records say all that it does, so that whoever maps them
// makes it anew, and no other process can damage it.
//
// It is as small as can be, since whatever of it the processor's cache does not
// hold costs a lookup a wait as long as the record's own: 12 bytes a connection, where
// slots of 64 bits took 31, and one lookup in a full table of 262,144 finds it in 3 MB.
type index struct {
	chunks      []chunk
	shards      []shard
	shardBits   uint32 // there are 1<<shardBits shards
	shardChunks uint32 // of so many chunks each
	recordBits  uint32 // of a slot
	release     func() error
}

// chunk is one cache line of the index. A slot is zero when empty, and else
//
//	 31                                                                       0
//	+---+-------------------------------+-------------------------+-----------+
//	| 1 | tag: the lowest bits of the hash | record: recordBits    | direction |
//	+---+-------------------------------+-------------------------+-----------+
//
// Of a million connections, ten bits of tag are left: one search in a hundred
// looks at a record in vain.
type chunk struct {
	slots  [slotsPerChunk]atomic.Uint32
	passed atomic.Uint32 // entries that belong here or before and lie behind
}

const (
	slotsPerChunk = 15
	chunkBytes    = int(unsafe.Sizeof(chunk{}))
	// loadPercent is how full the index is when all connections exist. At 70 one
	// entry in a hundred lies outside its home chunk and one miss in fifteen looks at
	// a second.
	loadPercent = 70
	// shardConnections is how many connections share a lock, up to maxShardBits:
	// 256 locks make it rare that two of a few dozen workers want one at once.
	shardConnections = 1024
	maxShardBits     = 8
)

// A chunk is one line.
var (
	_ [chunkBytes - 64]struct{}
	_ [64 - chunkBytes]struct{}
)

// shard serialises the writers of one range of chunks. Padded to a cache line
// of its own.
type shard struct {
	mu sync.Mutex
	_  [64 - 8]byte
}

// plan sizes the index for so many connections.
func (x *index) plan(connections int) {
	x.shardBits = uint32(min(maxShardBits, bits.Len(uint(connections/shardConnections))))
	slots := 2 * connections * 100 / loadPercent
	chunks := slots/slotsPerChunk + 1
	// Small shards deviate more: two chunks on top cost nothing and spare a
	// table of few connections from filling one shard first.
	x.shardChunks = uint32(chunks>>x.shardBits) + 2
	x.recordBits = uint32(bits.Len(uint(connections - 1)))
}

func (x *index) bytes() int { return int(x.shardChunks) << x.shardBits * chunkBytes }

func newIndex(connections int) (index, error) {
	var x index
	x.plan(connections)
	mem, release, err := allocate(x.bytes())
	if err != nil {
		return index{}, err
	}
	x.release = release
	x.chunks = unsafe.Slice((*chunk)(unsafe.Pointer(unsafe.SliceData(mem))), len(mem)/chunkBytes)
	x.shards = make([]shard, 1<<x.shardBits)
	return x, nil
}

// tag is what a slot of this hash has above the record, and mask where.
func (x *index) tag(hash uint64) (tag, mask uint32) {
	shift := (x.recordBits + 1) & 31
	return uint32(hash)<<shift | 1<<31, ^uint32(0) << shift
}

func (x *index) slotWord(hash uint64, rec uint32, dir Direction) uint32 {
	tag, _ := x.tag(hash)
	return tag | rec<<1 | uint32(dir)
}

// home is the chunk where the search for a hash begins, and the bounds of its
// shard. The top bits choose the shard and those below them the chunk; the tag
// is made of the lowest.
func (x *index) home(hash uint64) (chunk, first, end uint32) {
	n := x.shardChunks
	first = x.shardOf(hash) * n
	in, _ := bits.Mul64(hash<<(x.shardBits&63), uint64(n))
	return first + uint32(in), first, first + n
}

// shardOf is hash >> (64 - shardBits), in shifts that the compiler need not guard
// against widths of 64 and more.
func (x *index) shardOf(hash uint64) uint32 {
	return uint32(hash >> 1 >> ((63 - x.shardBits) & 63))
}

// lockPair locks the shards of two hashes, the lower first so that two writers
// never wait for each other. hi is nil where both hashes share one shard.
func (x *index) lockPair(a, b uint64) (lo, hi *sync.Mutex) {
	i, j := x.shardOf(a), x.shardOf(b)
	if i > j {
		i, j = j, i
	}
	lo = &x.shards[i].mu
	lo.Lock()
	if i != j {
		hi = &x.shards[j].mu
		hi.Lock()
	}
	return lo, hi
}

func unlockPair(lo, hi *sync.Mutex) {
	if hi != nil {
		hi.Unlock()
	}
	lo.Unlock()
}

// place puts an entry into the first chunk with room, from its home on; false
// where its whole shard is full. The full chunks that it passes count it first, so
// that no reader stops before it.
func (x *index) place(hash uint64, rec uint32, dir Direction) bool {
	home, first, end := x.home(hash)
	c := home
	for range end - first {
		if slot := x.chunks[c].slotOf(0); slot >= 0 {
			x.countPassed(home, c, first, end, 1)
			x.chunks[c].slots[slot].Store(x.slotWord(hash, rec, dir))
			return true
		}
		if c++; c == end {
			c = first
		}
	}
	return false
}

// unplace takes an entry out again. It must be there.
func (x *index) unplace(hash uint64, rec uint32, dir Direction) {
	home, first, end := x.home(hash)
	word := x.slotWord(hash, rec, dir)
	c := home
	for range end - first {
		if slot := x.chunks[c].slotOf(word); slot >= 0 {
			x.chunks[c].slots[slot].Store(0)
			x.countPassed(home, c, first, end, ^uint32(0))
			return
		}
		if c++; c == end {
			c = first
		}
	}
	panic("flow: a connection is not in the index")
}

// slotOf is the slot that holds word, or -1.
func (c *chunk) slotOf(word uint32) int {
	for i := range c.slots {
		if c.slots[i].Load() == word {
			return i
		}
	}
	return -1
}

// countPassed adds delta to the counts of the chunks from home up to, but not
// with, until.
func (x *index) countPassed(home, until, first, end uint32, delta uint32) {
	for c := home; c != until; {
		x.chunks[c].passed.Add(delta)
		if c++; c == end {
			c = first
		}
	}
}
