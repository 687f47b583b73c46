// Package flow holds the connections a node carries: one record for both
// directions, with the tuple each direction enters and leaves the switch with.
//
// It decides nothing: which connections exist and how they are rewritten is its
// callers' business, and it reads and changes no packet. Workers look up, track
// and insert; the sweeper expires; the control side deletes and lists. Times are
// ticks of 100 ms that the caller passes in: the package reads no clock. They are
// counted from the machine's start, modulo 2^32, so that a table means the same to
// the process that maps it next.
//
// # Shape
//
// The records and counters lie in shared memory without pointers, so that the garbage
// collector never walks it and another process can map it again (layout.go
// draws it): what a process that was killed leaves, Open makes a table of.
//
// The index (index.go) is each process's own: a hash table of 64-byte chunks, one
// cache line each, of fifteen slots and a count. A slot is 32 bits: the number of the record and of
// the direction whose tuple it stands for, and the rest of it bits of the hash as
// a tag. A tuple whose home chunk is
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
// killed leaves none locked; and since a record's generation turns odd last and
// even first, it leaves no half of a connection either.
//
// # Limits
//
// Connections is a hard bound. A connection costs 128 bytes of record, 32 of counters
// and 12 of index (two entries at 7/10 of the slots), 172 in all. A shard
// can be full before the table is; with a keyed hash (hash.go) that takes a deviation
// of more than ten sigma. The generation in Hit.Ref is 32 bits: a hit would have
// to be held for 2^31 lives of one record to be taken for another's.
package flow

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"vswitch/internal/lasting"
)

// TickDuration is the length of a tick.
const TickDuration = 100 * time.Millisecond

const (
	// DefaultConnections is Config.Connections where that is zero: what Linux
	// gives conntrack on a machine of 4 GiB and more, in 45 MB.
	DefaultConnections = 262144
	// MaxConnections is bounded by the 32 bits of a slot of the index: at this size
	// six are left to tell connections apart, and the table has 2.8 GB.
	MaxConnections = 1 << 24
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

// Table is a flow table. Make it with New or Open.
type Table struct {
	layout
	index
	idleTicks [states]uint32 // how long a connection may be idle, by state
	admission admission
	now       atomic.Uint32 // latest tick that Insert, Expire or Open was told

	// Fragments knows which tuple the pieces of a datagram belong to.
	Fragments *Fragments

	sweepMu sync.Mutex
	cursor  uint32 // next record that Expire looks at; guarded by sweepMu

	memory *lasting.Memory // nil when closed
}

// New makes an empty table in shared memory of its own.
func New(cfg Config) (*Table, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	n := mappingBytes(cfg.Connections)
	m, err := lasting.New("vswitch-flows", n)
	if err != nil {
		return nil, fmt.Errorf("flow: share %d bytes for %d connections: %w", n, cfg.Connections, err)
	}
	t, err := newOver(m, cfg)
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return t, nil
}

// Create makes an empty table in fd, a file as lasting.Create takes it. It takes fd if
// it succeeds.
func Create(fd int, cfg Config) (*Table, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	n := mappingBytes(cfg.Connections)
	m, err := lasting.Create(fd, n)
	if err != nil {
		return nil, fmt.Errorf("flow: make a table of %d bytes in a file: %w", n, err)
	}
	t, err := newOver(m, cfg)
	if err != nil {
		return nil, errors.Join(err, m.GiveBack())
	}
	return t, nil
}

// newOver makes an empty table over memory, which must be zero. It takes the memory
// only if it succeeds.
func newOver(m *lasting.Memory, cfg Config) (*Table, error) {
	format(m.Bytes, cfg.Connections)
	return over(m, cfg)
}

// over puts a table without connections over memory. It takes the memory
// only if it succeeds.
func over(m *lasting.Memory, cfg Config) (*Table, error) {
	l, err := attach(m.Bytes)
	if err != nil {
		return nil, err
	}
	x, err := newIndex(len(l.records))
	if err != nil {
		return nil, fmt.Errorf("flow: map the index for %d connections: %w", len(l.records), err)
	}
	t := &Table{layout: l, index: x, idleTicks: cfg.Timeouts.ticks(), memory: m}
	t.admission.init(l.records, cfg.PerOwner)
	t.Fragments = newFragments(&t.hashKey)
	return t, nil
}

// FD is the descriptor of the table's memory, for whoever is to keep it beyond
// this process's life. It is the table's: Close closes it.
func (t *Table) FD() int { return t.memory.FD() }

// Close lets go of the table. Nothing may use it at that time or later, so
// every worker must have let go of it. Its connections live on while another
// descriptor of its memory does.
func (t *Table) Close() error {
	if t.memory == nil {
		return nil
	}
	err := errors.Join(t.memory.Close(), t.index.release())
	t.memory, t.layout, t.index = nil, layout{}, index{}
	return err
}

// Len is the number of connections.
func (t *Table) Len() int { return t.admission.len() }

// Cap is the number of connections there is room for.
func (t *Table) Cap() int { return len(t.records) }

// observe moves the table's idea of now forward.
func (t *Table) observe(tick uint32) {
	for {
		now := t.now.Load()
		if int32(tick-now) <= 0 || t.now.CompareAndSwap(now, tick) {
			return
		}
	}
}
