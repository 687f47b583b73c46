package flow

// Direction is which way a packet of a connection goes.
type Direction uint8

// Directions.
const (
	Forward Direction = iota // as the connection's first packet
	Reply                    // its answers
)

func (d Direction) String() string {
	if d == Forward {
		return "forward"
	}
	return "reply"
}

// Flags is what a connection asks of the switch besides its rewrite.
type Flags uint8

// Flags. Whatever the FIB says of a packet's destination, a flow can lead
// elsewhere: the netstack speaks with addresses that are not its own.
const (
	ReplyToGateway Flags = 1 << iota // answers go to the gateway
	ToGateway                        // packets of the forward direction do
	ReplyToPeer                      // answers go to the tunnel member that the flow came from
)

// Hit is what a lookup found. It stays true only as of the lookup: the
// connection may end at any time, and Ref then fits none.
type Hit struct {
	Ref     uint64 // record and generation, for Track
	Dir     Direction
	Flags   Flags
	State   State
	Rewrite bool // To is not the tuple the packet came with
	To      Key  // tuple the packet leaves with
}

// ToGateway reports whether packets of the hit's direction go to the gateway.
func (h *Hit) ToGateway() bool {
	if h.Dir == Reply {
		return h.Flags&ReplyToGateway != 0
	}
	return h.Flags&ToGateway != 0
}

// Owner is who pays for the connection of a hit (Spec.Owner), or 0 when it has ended.
func (t *Table) Owner(hit *Hit) uint64 {
	r := &t.records[uint32(hit.Ref)]
	owner := r.owner.Load()
	if uint32(r.gen.Load()) != uint32(hit.Ref>>32) {
		return 0
	}
	return owner
}

// Reopens reports whether a packet with these TCP flags begins a new connection
// where the hit is an old one that has ended: a SYN to a tuple in TIME-WAIT or
// after a reset (RFC 9293 section 3.6.1, RFC 6191). The caller treats it as a
// miss, judges it afresh and calls Insert, which puts the new one in the old one's place.
func (h *Hit) Reopens(tcpFlags uint8) bool { return reopens(h.State, tcpFlags) }

// Lookup finds the connection and direction whose packets enter the switch with
// tuple k, fills hit and marks the connection seen at tick. hash is Hash(k). On a
// miss hit is undefined. It takes no lock, allocates nothing and never waits.
func (t *Table) Lookup(k *Key, hash uint64, tick uint32, hit *Hit) bool {
	r := t.find(k, hash, hit)
	if r == nil {
		return false
	}
	if r.seen.Load() != tick { // once a tick, not once a frame: the line is shared
		r.seen.Store(tick)
	}
	return true
}

func (t *Table) find(k *Key, hash uint64, hit *Hit) *record {
	src0, src1, dst0, dst1, ports := k.words()
	tag, mask := t.tag(hash)
	c, first, end := t.home(hash)
	for range end - first {
		ch := &t.chunks[c]
		for i := range ch.slots {
			s := ch.slots[i].Load()
			if (s^tag)&mask != 0 {
				continue
			}
			rec, dir := s&^mask>>1, Direction(s&1)
			r := &t.records[rec]
			gen := r.gen.Load()
			if gen&1 == 1 && r.keys[dir].is(src0, src1, dst0, dst1, ports) && r.fill(hit, rec, dir, gen) {
				return r
			}
		}
		if ch.passed.Load() == 0 {
			return nil
		}
		if c++; c == end {
			c = first
		}
	}
	return nil
}

// fill copies the record into hit, and reports whether it was the connection
// of generation gen all the while. Where not, the one found has ended.
func (r *record) fill(hit *Hit, rec uint32, dir Direction, gen uint64) bool {
	flags := r.flags.Load()
	hit.Ref = refOf(rec, gen)
	hit.Dir = dir
	hit.Flags = Flags(flags)
	hit.State = State(r.state.Load())
	hit.Rewrite = flags&rewritten != 0
	r.keys[dir^1].loadReversed(&hit.To)
	return r.gen.Load() == gen
}

// warmBatch is how many hashes Warm keeps in flight; a core has some twenty to
// fifty buffers for lines under way.
const warmBatch = 32

// warmFrom is how many connections there must be for Warm to pay. Some 220 bytes
// each, so many take a core's cache of the second level (1 MiB where this was
// measured) to themselves; with fewer it cost 20 ns a frame and saved none.
const warmFrom = 5000

// Warm brings what lookups of these hashes, and Track, will read into the cache, for
// a worker to call with a batch's hashes before it looks them up one by one. A
// lookup waits for two misses, the second at an address that the first gives; here
// all of the first are under way at once, and then all of the second. It changes
// nothing and need not be called.
func (t *Table) Warm(hashes []uint64) {
	if t.admission.live.Load() >= warmFrom {
		t.warm(hashes)
	}
}

func (t *Table) warm(hashes []uint64) {
	// Addresses first, then nothing but reads: the fewer instructions lie between
	// them, the more of them are under way at once.
	var chunks [warmBatch]*chunk
	var records [warmBatch]*record
	var counters [warmBatch]*counter
	for len(hashes) > 0 {
		n := min(len(hashes), warmBatch)
		for i, h := range hashes[:n] {
			c, _, _ := t.home(h)
			chunks[i] = &t.chunks[c]
		}
		for _, c := range chunks[:n] {
			c.passed.Load()
		}
		for i, h := range hashes[:n] {
			found := chunks[i].guess(t.tag(h))
			records[i], counters[i] = &t.records[found>>1], &t.counters[found&1][found>>1]
		}
		for i, r := range records[:n] {
			r.gen.Load()   // the record's first line
			r.owner.Load() // and its second
			counters[i].frames.Load()
		}
		hashes = hashes[n:]
	}
}

// guess is the record and direction of a slot with this tag, or zero. It has no branch that
// depends on a slot: a wrong guess of the processor's would end its reading ahead.
func (c *chunk) guess(tag, mask uint32) (found uint32) {
	for i := range c.slots {
		s := c.slots[i].Load()
		same := uint32((uint64((s^tag)&mask) - 1) >> 32) // all ones where equal, else zero
		found = found&^same | s&same
	}
	return found &^ mask
}

// Track counts frames of a hit and moves the connection's protocol state by
// them; tcpFlags means nothing for other protocols. frames is 1, or how many a
// super-frame stands for. If the connection ended after the lookup nothing
// happens, but for a count that may in a rare race go to the record's next user.
// It takes no lock.
func (t *Table) Track(hit *Hit, tcpFlags uint8, frames, bytes int, tick uint32) {
	rec := uint32(hit.Ref)
	r := &t.records[rec]
	// An odd generation: the zero Hit, which stands for no connection, fits none.
	if gen := uint32(r.gen.Load()); gen != uint32(hit.Ref>>32) || gen&1 == 0 {
		return
	}
	c := &t.counters[hit.Dir][rec]
	c.frames.Add(uint64(frames))
	c.bytes.Add(uint64(bytes))
	r.advance(hit.Ref>>32, hit.Dir, tcpFlags, tick)
}

// advance moves the state by one packet of the connection of generation gen.
func (r *record) advance(gen uint64, dir Direction, tcpFlags uint8, tick uint32) {
	for {
		old := r.state.Load()
		s := next(State(old), dir, tcpFlags, since(r.born.Load(), tick))
		if s == State(old) || old != stateWord(State(old), gen) {
			return
		}
		if r.state.CompareAndSwap(old, stateWord(s, gen)) {
			return
		}
	}
}

func refOf(rec uint32, gen uint64) uint64 { return uint64(rec) | gen<<32 }

// stateWord carries the generation beside the state, so that a change meant for
// one connection can't hit the next in the same record.
func stateWord(s State, gen uint64) uint32 { return uint32(s) | uint32(gen)<<8 }
