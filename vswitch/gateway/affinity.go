package gateway

import (
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"

	"vswitch/internal/wire"
	"vswitch/vswitch/flow"
)

// sessionAffinity ClientIP: a client address keeps the endpoint it was given until
// it has opened no flow for the service's timeout, or the endpoint takes no more.
// Other endpoints may come and go meanwhile. A hash of the address instead of a
// memory would move clients whenever the set changes, and never at the timeout.
//
// What is remembered is bounded, by service and in all, since clients outside the
// cluster choose their addresses, over UDP at will: beyond the bound an old entry
// gives way, the oldest of a few looked at. A service at its bound displaces its own
// clients only; one that has room where the whole has none displaces those of the
// largest. Time is the gateway's tick. The entries are without pointers: the
// garbage collector does not walk them.

const (
	pinShards      = 8       // of one service's memory, a lock each
	pinsPerService = 1 << 15 // 3 MiB
	pinsInAll      = 1 << 17 // 12 MiB
	pinsPerShard   = pinsPerService / pinShards
	evictionSample = 8  // entries looked at for the oldest, and tables for the largest
	pinSweepTicks  = 20 // between two looks for what has expired
)

// affinity is what the memories of all services have in common.
type affinity struct {
	seed maphash.Seed
	used atomic.Int64 // entries of all tables

	mu    sync.Mutex
	inUse []*pins // guarded by mu: the tables with entries
	swept uint32  // tick of the last sweep; the janitor's
}

func newAffinity() *affinity { return &affinity{seed: maphash.MakeSeed()} }

// pins is the memory of one service port: which client got which endpoint.
//
// A shard's lock is taken before affinity.mu; nobody waits for another shard's
// lock while holding either.
type pins struct {
	all     *affinity
	timeout atomic.Uint32 // ticks
	listed  bool          // guarded by all.mu: it is in all.inUse
	shards  [pinShards]pinShard
}

type pinShard struct {
	mu     sync.Mutex
	pins   map[client]pin // guarded by mu; nil: none
	closed bool           // guarded by mu: the table is no longer any service's
}

// client is who is remembered: an address, under each policy by itself, since the
// endpoint under one may be none under the other.
type client struct {
	addr  wire.Addr
	local bool
}

type pin struct {
	endpoint flow.Endpoint
	used     uint32 // tick of the last flow
}

// tableFor is the memory for next, which is prev's if it had one; nil without
// affinity. prev may be nil.
func (a *affinity) tableFor(prev *served, next *Service) *pins {
	var t *pins
	if prev != nil {
		t = prev.pins
	}
	if next.Affinity == 0 {
		a.drop(t)
		return nil
	}
	if t == nil {
		t = &pins{all: a}
	}
	t.timeout.Store(ticksOf(next.Affinity))
	return t
}

// drop ends a table; nil is none. Workers that still hold it remember nothing more.
func (a *affinity) drop(t *pins) {
	if t == nil {
		return
	}
	a.unlist(t)
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		a.used.Add(-int64(len(s.pins)))
		s.pins, s.closed = nil, true
		s.mu.Unlock()
	}
}

func (t *pins) shard(addr *wire.Addr) *pinShard {
	return &t.shards[maphash.Bytes(t.all.seed, addr[:])%pinShards]
}

// choose gives the client the endpoint it had, or one at random that it keeps if
// that is to be remembered.
func (t *pins) choose(p *pool, addr *wire.Addr, tick uint32, remember bool) flow.Endpoint {
	who := client{*addr, p.local}
	s := t.shard(addr)
	s.mu.Lock()
	defer s.mu.Unlock()
	had, known := s.pins[who]
	if known && !t.expired(&had, tick) && p.has(had.endpoint) {
		if remember && had.used != tick {
			had.used = tick
			s.pins[who] = had
		}
		return had.endpoint
	}
	e := p.random()
	if !remember {
		return e
	}
	if known || !s.closed && t.room(s) {
		if s.pins == nil {
			s.pins = make(map[client]pin)
			t.all.list(t)
		}
		s.pins[who] = pin{e, tick}
	}
	return e
}

// move gives a client that is remembered another endpoint.
func (t *pins) move(p *pool, addr *wire.Addr, e flow.Endpoint, tick uint32) {
	who := client{*addr, p.local}
	s := t.shard(addr)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.pins[who]; known {
		s.pins[who] = pin{e, tick}
	}
}

// expired reports whether a client has been away for longer than the timeout, by
// up to a tick.
func (t *pins) expired(p *pin, tick uint32) bool {
	away := int32(tick - p.used) // workers may read the clock out of order
	return away > 0 && uint32(away) > t.timeout.Load()
}

// room makes room for one more entry in s, whose lock the caller holds; false:
// there is none just now.
func (t *pins) room(s *pinShard) bool {
	if len(s.pins) >= pinsPerShard {
		s.evict()
		return true
	}
	if t.all.used.Add(1) <= pinsInAll {
		return true
	}
	t.all.used.Add(-1)
	if len(s.pins) > 0 {
		s.evict()
		return true
	}
	return t.all.evictElsewhere(s)
}

// evict forgets the oldest of a few entries; a map's order begins anywhere. Callers
// hold mu.
func (s *pinShard) evict() {
	var oldest client
	var used uint32
	looked := 0
	for who, p := range s.pins {
		if looked == 0 || int32(p.used-used) < 0 {
			oldest, used = who, p.used
		}
		if looked++; looked == evictionSample {
			break
		}
	}
	delete(s.pins, oldest)
}

// evictElsewhere forgets an entry of the fullest of a few shards, for one that
// needs a first entry and whose lock the caller holds. It waits for none.
func (a *affinity) evictElsewhere(than *pinShard) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.inUse) == 0 {
		return false
	}
	var fullest *pinShard
	most := 0
	for range evictionSample {
		s := &a.inUse[rand.IntN(len(a.inUse))].shards[rand.IntN(pinShards)]
		if s == than || !s.mu.TryLock() {
			continue
		}
		if n := len(s.pins); n > most {
			fullest, most = s, n
		}
		s.mu.Unlock()
	}
	if fullest == nil || !fullest.mu.TryLock() {
		return false
	}
	defer fullest.mu.Unlock()
	if len(fullest.pins) == 0 {
		return false
	}
	fullest.evict()
	return true
}

// sweep forgets what has expired, now and then.
func (a *affinity) sweep(tick uint32) {
	if tick-a.swept < pinSweepTicks {
		return
	}
	a.swept = tick
	a.mu.Lock()
	tables := slices.Clone(a.inUse)
	a.mu.Unlock()
	for _, t := range tables {
		a.unlist(t) // first: whoever enters the first client of a shard meanwhile lists it again
		if t.forgetExpired(tick) > 0 {
			a.list(t)
		}
	}
}

// forgetExpired gives the number of entries left.
func (t *pins) forgetExpired(tick uint32) (left int) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		before := len(s.pins)
		maps.DeleteFunc(s.pins, func(_ client, p pin) bool { return t.expired(&p, tick) })
		t.all.used.Add(int64(len(s.pins) - before))
		if len(s.pins) == 0 {
			s.pins = nil // a map does not shrink
		}
		left += len(s.pins)
		s.mu.Unlock()
	}
	return left
}

func (a *affinity) list(t *pins) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !t.listed {
		t.listed = true
		a.inUse = append(a.inUse, t)
	}
}

func (a *affinity) unlist(t *pins) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if i := slices.Index(a.inUse, t); i >= 0 {
		t.listed = false
		a.inUse = slices.Delete(a.inUse, i, i+1)
	}
}
