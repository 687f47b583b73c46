package flow

// Spec is a connection to be.
type Spec struct {
	Orig  Key // tuple of the first packet as it enters the switch
	Reply Key // tuple of its answers as they enter the switch; Orig.Reverse() if nothing is rewritten

	Owner    uint64 // who pays for it (Config.PerOwner); 0: nobody, and no cap
	Endpoint uint64 // identity of the service endpoint it was given (Endpoint.ID), or 0
	Policy   uint32 // generation of the policy it was judged under
	Flags    Flags
}

// Result is what Insert did.
type Result uint8

// Results. Nothing changed but for Inserted.
const (
	Inserted Result = iota
	// Exists: Orig is a tuple of a connection already, in either direction:
	// another worker was quicker. Look it up again.
	Exists
	// ReplyTaken: Reply is a tuple of another connection, or Orig itself: answers
	// could not be told apart. Try another source port.
	ReplyTaken
	TableFull
	OwnerFull
)

var resultNames = [...]string{"inserted", "exists", "reply-taken", "table-full", "owner-full"}

func (r Result) String() string { return resultNames[r] }

// insertTries bounds how often Insert clears old connections out of its way: one
// behind each tuple, and as often again where others put new ones there.
const insertTries = 4

// Insert adds the connection whose first packet was seen at tick with tcpFlags
// (0 for other protocols). A connection that is idle beyond its timeout, or that has
// ended where the packet is a SYN with the same Orig (Hit.Reopens), makes room
// for the new one.
func (t *Table) Insert(s *Spec, tcpFlags uint8, tick uint32) Result {
	t.observe(tick)
	if s.Orig == s.Reply {
		return ReplyTaken
	}
	orig, reply := t.Hash(&s.Orig), t.Hash(&s.Reply)
	for range insertTries {
		lo, hi := t.lockPair(orig, reply)
		result, dead := t.insertLocked(s, orig, reply, tcpFlags, tick)
		unlockPair(lo, hi)
		if dead == noRef {
			return result
		}
		t.remove(dead) // only now: its tuples may lie in other shards
	}
	return Exists
}

// noRef is no Ref, since those of connections hold an odd generation.
const noRef = 0

// insertLocked inserts, or says what is in the way: a result, or the Ref of a
// connection to remove before the next try.
func (t *Table) insertLocked(s *Spec, orig, reply uint64, tcpFlags uint8, tick uint32) (_ Result, dead uint64) {
	var hit Hit
	if r := t.find(&s.Orig, orig, &hit); r != nil {
		if hit.Reopens(tcpFlags) || t.expired(r, tick) {
			return Exists, hit.Ref
		}
		return Exists, noRef
	}
	if r := t.find(&s.Reply, reply, &hit); r != nil {
		if t.expired(r, tick) {
			return ReplyTaken, hit.Ref
		}
		return ReplyTaken, noRef
	}
	rec, result := t.admission.reserve(s.Owner)
	if result != Inserted {
		return result, noRef
	}
	t.write(rec, s, orig, reply, tcpFlags, tick)
	if !t.place(orig, rec, Forward) {
		t.void(rec, s.Owner)
		return TableFull, noRef
	}
	if !t.place(reply, rec, Reply) {
		t.unplace(orig, rec, Forward)
		t.void(rec, s.Owner)
		return TableFull, noRef
	}
	return Inserted, noRef
}

// write makes a reserved record a connection. No slot leads to it yet. The
// generation comes last: a writer that is killed before leaves a void record.
func (t *Table) write(rec uint32, s *Spec, orig, reply uint64, tcpFlags uint8, tick uint32) {
	r := &t.records[rec]
	gen := r.gen.Load() + 1
	r.seen.Store(tick)
	r.born.Store(tick)
	r.state.Store(stateWord(first(s.Orig.Proto, tcpFlags), gen))
	r.keys[Forward].store(&s.Orig)
	r.keys[Reply].store(&s.Reply)
	r.endpoint.Store(s.Endpoint)
	r.owner.Store(s.Owner)
	r.policy.Store(s.Policy)
	flags := uint32(s.Flags)
	if s.Reply != s.Orig.Reverse() {
		flags |= rewritten
	}
	r.flags.Store(flags)
	r.check.Store(r.checkWord(&t.hashKey, orig, reply, gen))
	for dir := range t.counters {
		t.counters[dir][rec].frames.Store(0)
		t.counters[dir][rec].bytes.Store(0)
	}
	r.gen.Store(gen)
}

// void ends a record's connection; no slot leads to it any more.
func (t *Table) void(rec uint32, owner uint64) {
	t.records[rec].gen.Add(1)
	t.admission.giveBack(rec, owner)
}

// remove ends the connection of ref and reports whether it did: someone else
// may have been quicker.
func (t *Table) remove(ref uint64) bool {
	rec := uint32(ref)
	r := &t.records[rec]
	var orig, reply Key
	r.keys[Forward].load(&orig)
	r.keys[Reply].load(&reply)
	if uint32(r.gen.Load()) != uint32(ref>>32) {
		return false
	}
	hashOrig, hashReply := t.Hash(&orig), t.Hash(&reply)
	lo, hi := t.lockPair(hashOrig, hashReply)
	defer unlockPair(lo, hi)
	if uint32(r.gen.Load()) != uint32(ref>>32) {
		return false
	}
	t.unplace(hashOrig, rec, Forward)
	t.unplace(hashReply, rec, Reply)
	t.void(rec, r.owner.Load())
	return true
}
