// Package affinity remembers which endpoint of a service each client was given
// (sessionAffinity ClientIP): a client keeps it until it has opened no flow for the
// service's timeout, or the endpoint takes no more. Other endpoints may come and go
// meanwhile. A hash of the address instead of a memory would move clients whenever the
// set changes, and never at the timeout.
//
// It knows neither services nor endpoints: a service is a number that its caller makes
// of it, and whether an endpoint still takes flows the caller says. The gateway asks it
// once a flow. Times are ticks that the caller passes in; they are counted
// from the machine's start, modulo 2^32, in a unit that is always the same, so that they mean
// the same to the process that maps the memory next.
//
// # Shape
//
// The records lie in memory that outlives the process (internal/lasting), without
// pointers or locks, in sets of sixteen: a client's record is in the one set that a
// keyed hash of client and service names, so no index has to be made anew. A record
// is 64 bytes, one cache line. A check word, keyed as well, says that it is whole: what a
// writer that was killed has half written is none.
//
// # Bounds
//
// Clients outside the cluster choose their addresses, over UDP at will, so there is room
// for 131,072 clients in all, in 8 MiB that are taken as they are used. In a set that is
// full the service that has most of it gives up the client that was away for
// longest: whoever floods one service displaces that service's clients. Nothing is removed
// otherwise: what has expired is worth no more than a free record, and is overwritten
// like one that is the oldest.
package affinity

import (
	"encoding/binary"
	"sync"
	"unsafe"

	"vswitch/internal/lasting"
	"vswitch/internal/wire"
	"vswitch/vswitch/flow"
)

const (
	ways  = 16      // records of a set
	sets  = 1 << 13 // 131,072 records
	locks = 64      // several sets share one
)

// Memory is the memory of all services of a node. Its methods may be called from any
// goroutine.
type Memory struct {
	memory *lasting.Memory // nil when closed
	sets   []set
	key    hashKey // a copy
	locks  [locks]lock
}

// lock has a cache line of its own.
type lock struct {
	sync.Mutex
	_ [64 - unsafe.Sizeof(sync.Mutex{})]byte
}

// Client is who is remembered: an address, for each service by itself.
type Client struct {
	Service uint64 // what the caller makes of a service; evenly spread
	Addr    wire.Addr
}

// Choice is what a client can be given.
type Choice interface {
	// Has reports whether an endpoint takes flows.
	Has(flow.Endpoint) bool
	// Random is one of those that do.
	Random() flow.Endpoint
}

// Choose gives a client the endpoint it had, or a random one that it keeps from now on.
// Timeout is in ticks, below 2^31.
func (m *Memory) Choose(c *Client, from Choice, now, timeout uint32) flow.Endpoint {
	k := keyOf(c)
	s, l := m.setOf(&k)
	l.Lock()
	defer l.Unlock()
	r := s.find(&k)
	if r != nil {
		if e := r.endpoint(); !r.expired(now, timeout) && from.Has(e) {
			r.used = now
			return e
		}
	} else {
		r = s.victim()
	}
	e := from.Random()
	m.write(r, &k, &e, now)
	return e
}

// Look gives the endpoint that Choose would give a client because it had it, and leaves
// no trace; false: it would be a random one.
func (m *Memory) Look(c *Client, from Choice, now, timeout uint32) (flow.Endpoint, bool) {
	k := keyOf(c)
	s, l := m.setOf(&k)
	l.Lock()
	defer l.Unlock()
	r := s.find(&k)
	if r == nil || r.expired(now, timeout) {
		return flow.Endpoint{}, false
	}
	e := r.endpoint()
	return e, from.Has(e)
}

// Move gives a client that is remembered another endpoint.
func (m *Memory) Move(c *Client, to *flow.Endpoint, now uint32) {
	k := keyOf(c)
	s, l := m.setOf(&k)
	l.Lock()
	defer l.Unlock()
	if r := s.find(&k); r != nil {
		m.write(r, &k, to, now)
	}
}

// key is a Client as a record has it.
type key struct {
	service uint64
	addr    [2]uint64
}

func keyOf(c *Client) key { return key{c.Service, words(&c.Addr)} }

func words(a *wire.Addr) [2]uint64 {
	return [2]uint64{binary.NativeEndian.Uint64(a[:8]), binary.NativeEndian.Uint64(a[8:])}
}

// setOf is where a client's record is, if there is one, and the lock to hold for it.
func (m *Memory) setOf(k *key) (*set, *lock) {
	i := m.key.hash(k) % sets
	return &m.sets[i], &m.locks[i%locks]
}

// write makes r the record of a client. Callers hold its lock. Whenever the process is
// killed within, the check word does not fit.
func (m *Memory) write(r *record, k *key, e *flow.Endpoint, now uint32) {
	*r = record{key: *k, addr: words(&e.Addr), id: e.ID, port: e.Port, used: now}
	r.check = m.key.check(r)
}
