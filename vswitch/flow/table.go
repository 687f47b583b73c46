// Package flow holds the connections a node carries: one record for both
// directions, with the tuple each direction enters and leaves the switch with.
//
// It decides nothing: which connections exist and how they are rewritten is its
// callers' business, and it reads and changes no packet. Workers look up, track
// and insert; the sweeper expires; the control side deletes and lists. Times are
// ticks of 100 ms that the caller passes in: the package reads no clock.
//
// # Shape
//
// All of it lies in one mapping without pointers, so that the garbage collector
// never walks it and another process can map it again (layout.go draws it): an
// index, the records, and counters.
//
// The index is a hash table of 64-byte chunks, one cache line each: seven slots
// and a count. A slot is one word, 31 bits of the hash as a tag and the number of
// the record and of the direction whose tuple it stands for. A tuple whose home chunk is
// full goes to the next with room, and each full chunk that it passes counts it:
// a search ends at the first chunk that counts none, and deleting takes the
// counts back (F14 of Facebook's folly keeps such counts). So there are no
// tombstones and an entry never moves, which is what lets readers walk it without a
// lock: a connection that exists for as long as a search takes is found by it.
//
// # Reading
//
// A record's generation is odd while it stands for a connection. A reader
// takes the generation, compares and copies, and takes the generation again: the
// same odd number twice means that all it read belongs to one connection. It
// never waits and never begins again, since a record that changed meanwhile held
// a connection that ended meanwhile. State, the time last seen and the counters
// change during a connection, each a word of its own.
//
// # Writing
//
// Inserting and deleting, once a connection and not once a frame, lock the
// shards of the index that the two tuples fall into, the lower first. A shard is
// a range of chunks with its own wrap-around. The free records and the numbers of
// connections by owner have one lock of their own (admit.go), taken last and held
// for some tens of instructions. No lock lies in the mapping, so a process that is
// killed leaves none locked.
//
// # Limits
//
// Connections is a hard bound. A connection costs 128 bytes of record, 32 of counters
// and 31 of index (two entries at 6/10 of the slots), 191 in all. A shard
// can be full before the table is; with a keyed hash (hash.go) that takes a deviation
// of more than ten sigma. The generation in Hit.Ref is 32 bits: a hit would have
// to be held for 2^31 lives of one record to be taken for another's.
package flow

import (
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

// TickDuration is the length of a tick.
const TickDuration = 100 * time.Millisecond

const (
	// DefaultConnections is Config.Connections where that is zero: what Linux
	// gives conntrack on a machine of 4 GiB and more, in 49 MB.
	DefaultConnections = 262144
	// MaxConnections is bounded by the 31 bits a slot has for a record's number.
	MaxConnections = 1<<31 - 1
	// defaultOwnerShare is the part of all connections one owner may have: an
	// eighth of the default, 32,768, lets a pod use Linux's whole range of ephemeral
	// ports (28,232, ip_local_port_range) towards one server, and eight
	// pods that misbehave before the table is full.
	defaultOwnerShare = 8
)

// Config sizes a table. Zero fields mean their defaults.
type Config struct {
	Connections int // 1 to MaxConnections; DefaultConnections
	PerOwner    int // connections of one Spec.Owner; an eighth of Connections, at least 1
	Timeouts    Timeouts
}

func (c *Config) validate() error {
	if c.Connections == 0 {
		c.Connections = DefaultConnections
	}
	if c.Connections < 1 || c.Connections > MaxConnections {
		return fmt.Errorf("flow: %d connections, want 1 to %d", c.Connections, MaxConnections)
	}
	if c.PerOwner == 0 {
		c.PerOwner = max(1, c.Connections/defaultOwnerShare)
	}
	if c.PerOwner < 1 {
		return fmt.Errorf("flow: %d connections an owner, want 1 or more", c.PerOwner)
	}
	return c.Timeouts.validate()
}

// Table is a flow table. Make it with New.
type Table struct {
	layout
	idleTicks [states]uint32 // how long a connection may be idle, by state
	admission admission
	now       atomic.Uint32 // latest tick that Insert or Expire was told

	// Fragments knows which tuple the pieces of a datagram belong to.
	Fragments *Fragments

	shards []shard

	sweepMu sync.Mutex
	cursor  uint32 // next record that Expire looks at; guarded by sweepMu

	release func() error // gives the memory back; nil when closed
}

// shard serialises the writers of one range of chunks. Padded to a cache line
// of its own.
type shard struct {
	mu sync.Mutex
	_  [64 - 8]byte
}

// New makes an empty table in a mapping of its own.
func New(cfg Config) (*Table, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	plan := planFor(cfg.Connections)
	mem, release, err := allocate(plan.bytes())
	if err != nil {
		return nil, fmt.Errorf("flow: map %d bytes for %d connections: %w", plan.bytes(), cfg.Connections, err)
	}
	format(mem, plan)
	l, err := attach(mem)
	if err != nil {
		return nil, err
	}
	t := &Table{layout: l, release: release, shards: make([]shard, 1<<plan.shardBits)}
	t.idleTicks = cfg.Timeouts.ticks()
	t.admission.init(l.records, cfg.PerOwner)
	t.Fragments = newFragments(&l.header.hashKey)
	return t, nil
}

// Close gives the table's memory back. Nothing may use the table at that time
// or later, so every worker must have let go of it.
func (t *Table) Close() error {
	if t.release == nil {
		return nil
	}
	err := t.release()
	t.release, t.layout = nil, layout{}
	return err
}

// Len is the number of connections.
func (t *Table) Len() int { return t.admission.len() }

// Cap is the number of connections there is room for.
func (t *Table) Cap() int { return len(t.records) }

// home is the chunk where the search for a hash begins, and the bounds of its
// shard. The top bits choose the shard and those below them the chunk; the tag
// is made of the lowest.
func (t *Table) home(hash uint64) (chunk, first, end uint32) {
	n := t.header.shardChunks
	first = t.shardOf(hash) * n
	in, _ := bits.Mul64(hash<<(t.header.shardBits&63), uint64(n))
	return first + uint32(in), first, first + n
}

// shardOf is hash >> (64 - shardBits), in shifts that the compiler need not guard
// against widths of 64 and more.
func (t *Table) shardOf(hash uint64) uint32 {
	return uint32(hash >> 1 >> ((63 - t.header.shardBits) & 63))
}

// lockPair locks the shards of two hashes, the lower first so that two writers
// never wait for each other. hi is nil where both hashes share one shard.
func (t *Table) lockPair(a, b uint64) (lo, hi *sync.Mutex) {
	i, j := t.shardOf(a), t.shardOf(b)
	if i > j {
		i, j = j, i
	}
	lo = &t.shards[i].mu
	lo.Lock()
	if i != j {
		hi = &t.shards[j].mu
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

// observe moves the table's idea of now forward.
func (t *Table) observe(tick uint32) {
	for {
		now := t.now.Load()
		if int32(tick-now) <= 0 || t.now.CompareAndSwap(now, tick) {
			return
		}
	}
}
