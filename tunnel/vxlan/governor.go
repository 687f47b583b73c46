//go:build linux

package vxlan

import (
	"container/heap"
	"errors"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"vswitch/internal/wire"
	"vswitch/tunnel/udp"
	"vswitch/vswitch/drop"
)

// The offload governor finds out, peer by peer, whether trains (UDP_SEGMENT)
// arrive as they were sent. Kernels, drivers and cards have cut them wrongly, and
// udp.VerifyGSO sees only this kernel's own way to itself. A peer to which they
// do not arrive is sent every packet by itself, which is slow and right.
//
// A *round* is a train of datagrams, each with a checksum over all of it, or the
// same datagrams one by one; the peer answers which came intact. An *attempt* is a
// round of each kind, a *series* up to three attempts, or eight where the way loses
// some: where one sent by itself was missing, or another place of the train than before.
//
//   - some datagram sent by itself never arrived: nothing is learnt (the peer is
//     away, or older, or the path too narrow);
//   - all arrived in trains, in one attempt or another, and none damaged: good;
//   - else trains are bad: damaged once, or the same place of the train missing each time.
//     With one packet in ten lost each way, that happens by chance in three attempts once in twenty
//     series, and in eight once in 70,000.
//
// One series runs at a time. Workers know of it only what they know anyway: the
// flag of the destination that they send to (udp.Dest).

const (
	probeSegments    = 8 // of a train; the last is half as long, as real trains end
	attemptsOfSeries = 3
	attemptsWithLoss = 8
	allSegments      = 1<<probeSegments - 1
)

// probeTimes are the governor's intervals.
type probeTimes struct {
	first   time.Duration // from a member's arrival, so that it knows us, too
	wait    time.Duration // for the answers to a round
	again   time.Duration // between attempts, and between two members' series
	good    time.Duration // until a good peer is tried again
	bad     time.Duration // until a bad or silent peer is, at first; doubles up to good
	stagger bool          // spread what is due at the same time
}

var defaultProbeTimes = probeTimes{
	first: 2 * time.Second, wait: 500 * time.Millisecond, again: 20 * time.Millisecond,
	good: time.Hour, bad: time.Minute, stagger: true,
}

// TrainState is what is known of trains to a peer.
type TrainState uint32

// Trains to a peer.
const (
	TrainsUnchecked TrainState = iota // sent; not known to arrive
	TrainsOn                          // sent; probes say that they arrive
	TrainsOff                         // not sent: they don't arrive, the kernel refuses them, or they are turned off
)

func (s TrainState) String() string { return [...]string{"unchecked", "on", "off"}[s] }

// governor probes members. The zero value probes none, and takes no answers. Its
// goroutine ends with close.
type governor struct {
	t       *Tunnel
	senders []*probeSender // one for each underlay with trains
	times   atomic.Pointer[probeTimes]
	wake    chan struct{}
	stop    chan struct{}
	done    chan struct{}
	once    sync.Once

	// The goroutine's own: the members as last seen, and those of them that are
	// probed, by id and by when they are due.
	seen  *members
	known map[uint32]*probed
	queue probeQueue

	round atomic.Pointer[round] // under way
}

// probeSender is a pair of handles on the first queue's socket.
type probeSender struct {
	v6            bool
	alone, trains *udp.Conn
}

// probed is a member as the governor knows it.
type probed struct {
	m    *member
	due  time.Time
	wait time.Duration // after the last series that was not good; 0: none
}

// round is a set of datagrams that is being answered.
type round struct {
	member       uint32
	nonce        uint32
	got, damaged atomic.Uint32 // by index: answered, and of those, damaged
	all          chan struct{} // closed by the answer that completes it
}

// startGovernor opens handles where trains are sent at all, and starts the goroutine.
func (t *Tunnel) startGovernor() error {
	g := &t.governor
	g.t, g.known = t, map[uint32]*probed{}
	g.times.Store(&defaultProbeTimes)
	g.wake, g.stop, g.done = make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	quiet := slog.New(slog.DiscardHandler) // the governor says itself what it found
	for _, u := range t.links {
		l := t.queues[0].link(u.v6)
		if !u.gso || !l.conn.SendsTrains() {
			continue
		}
		s := &probeSender{v6: u.v6}
		var err error
		if s.alone, err = l.conn.Sender(quiet); err == nil {
			s.trains, err = l.conn.Sender(quiet)
		}
		if err != nil {
			close(g.done)
			return errors.Join(err, s.close())
		}
		s.alone.DisableGSO()
		g.senders = append(g.senders, s)
	}
	if len(g.senders) == 0 {
		close(g.done)
		return nil
	}
	go g.run()
	return nil
}

func (g *governor) close() error {
	if g.t == nil {
		return nil
	}
	g.once.Do(func() { close(g.stop) })
	<-g.done
	var errs []error
	for _, s := range g.senders {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

func (s *probeSender) close() error {
	var errs []error
	for _, c := range []*udp.Conn{s.alone, s.trains} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// changed tells that members came or went.
func (g *governor) changed() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// answered takes a member's answer, on a worker's thread.
func (g *governor) answered(member uint32, p probe) {
	r := g.round.Load()
	if r == nil || r.member != member || r.nonce != p.nonce || p.index >= probeSegments {
		return
	}
	bit := uint32(1) << p.index
	if p.kind == probeDamaged {
		r.damaged.Or(bit)
	}
	before := r.got.Or(bit)
	if before != allSegments && before|bit == allSegments {
		close(r.all)
	}
}

func (g *governor) run() {
	defer close(g.done)
	for {
		next := g.learnMembers()
		wait := time.Duration(math.MaxInt64)
		if next != nil {
			wait = time.Until(next.due)
		}
		timer := time.NewTimer(wait)
		select {
		case <-g.stop:
			timer.Stop()
			return
		case <-g.wake:
			timer.Stop()
			continue
		case <-timer.C:
		}
		g.series(next)
		heap.Fix(&g.queue, 0)
		if !g.sleep(g.times.Load().again) {
			return
		}
	}
}

// sleep reports false when the governor is to stop.
func (g *governor) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-g.stop:
		return false
	case <-timer.C:
		return true
	}
}

// learnMembers brings known and queue up to date and gives the member that is due
// first; nil: there is none. Of thousands, one is due every few milliseconds: they are
// looked through only when some came or went.
func (g *governor) learnMembers() (next *probed) {
	if all := g.t.members.Load(); all != g.seen {
		g.seen = all
		g.learn(all.byID)
	}
	if len(g.queue) == 0 {
		return nil
	}
	return g.queue[0]
}

func (g *governor) learn(all map[uint32]*member) {
	for id := range g.known {
		if m := all[id]; m == nil || !m.sameWay(g.known[id].m) {
			delete(g.known, id)
		}
	}
	times := g.times.Load()
	g.queue = g.queue[:0]
	for id, m := range all {
		if m.AnyPort || g.sender(m) == nil {
			continue
		}
		p := g.known[id]
		if p == nil {
			p = &probed{due: time.Now().Add(times.after(times.first))}
			g.known[id] = p
		}
		p.m = m
		g.queue = append(g.queue, p)
	}
	clear(g.queue[len(g.queue):cap(g.queue)])
	heap.Init(&g.queue)
}

// probeQueue has who is due first at its front (container/heap). Nobody is taken out:
// members that have been probed are due again.
type probeQueue []*probed

func (q probeQueue) Len() int           { return len(q) }
func (q probeQueue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q probeQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *probeQueue) Push(p any)        { *q = append(*q, p.(*probed)) }
func (q *probeQueue) Pop() any          { panic("vxlan: nobody is taken out of the queue") }

// after is d, or up to half as long again.
func (ts *probeTimes) after(d time.Duration) time.Duration {
	if !ts.stagger {
		return d
	}
	return d + rand.N(d/2)
}

func (g *governor) sender(m *member) *probeSender {
	for _, s := range g.senders {
		if s.v6 == m.v6 {
			return s
		}
	}
	return nil
}

// series finds out about one member and says when it is due again.
func (g *governor) series(p *probed) {
	s := g.sender(p.m)
	var alone, inTrains, damaged, firstTrain uint32
	attempts := attemptsOfSeries
	for attempt := 0; attempt < attempts; attempt++ {
		if attempt > 0 && !g.sleep(g.times.Load().again) {
			return
		}
		byItself, bad := g.ask(p.m, s.alone)
		alone |= byItself &^ bad
		if alone == 0 {
			break // nobody there, or nobody who knows probes
		}
		train, bad := g.ask(p.m, s.trains)
		inTrains |= train &^ bad
		damaged |= bad
		if alone == allSegments && (inTrains == allSegments || damaged != 0) {
			break
		}
		if attempt == 0 {
			firstTrain = train
		}
		if byItself != allSegments || train != firstTrain {
			attempts = attemptsWithLoss
		}
	}
	times := g.times.Load()
	good := inTrains == allSegments && damaged == 0
	if alone == allSegments {
		g.t.setTrains(p.m, good)
	}
	if alone == allSegments && good {
		p.wait = 0
		p.due = time.Now().Add(times.after(times.good))
		return
	}
	p.wait = min(max(2*p.wait, times.bad), times.good)
	p.due = time.Now().Add(times.after(p.wait))
}

// ask sends one round by a handle and gives which of its datagrams were answered,
// and which of those had come damaged.
func (g *governor) ask(m *member, c *udp.Conn) (got, damaged uint32) {
	r := &round{member: m.ID, nonce: rand.Uint32(), all: make(chan struct{})}
	g.round.Store(r)
	defer g.round.Store(nil)
	// A destination of its own: what the kernel refused before is tried anew.
	dest := udp.NewDest(m.dests[0].AddrPort())
	var lost drop.Reason
	fill := rand.NewChaCha8([32]byte{0: byte(r.nonce), 1: byte(r.nonce >> 8), 2: byte(r.nonce >> 16), 3: byte(r.nonce >> 24)})
	for i := range probeSegments {
		n := g.t.probeBytes(m)
		if i == probeSegments-1 {
			n /= 2
		}
		b := make([]byte, n)
		fill.Read(b[probeHeaderBytes:]) // always all of it
		probe{kind: probeAsks, index: uint8(i), nonce: r.nonce}.seal(b)
		c.Stage(dest, 0, b, nil, &lost)
	}
	c.Flush()
	if c.SendsTrains() && !dest.TakesTrains() {
		return 0, 0 // they went one by one, which proves nothing
	}
	timer := time.NewTimer(g.times.Load().wait)
	defer timer.Stop()
	select {
	case <-r.all:
	case <-timer.C:
	case <-g.stop:
	}
	return r.got.Load(), r.damaged.Load()
}

// probeBytes is the size of datagrams to a member: as long as those of bulk
// traffic, and such that a train of them fits one message.
func (t *Tunnel) probeBytes(m *member) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	mtu := t.linkPodMTU(m.v6)
	if path := int(m.pathMTU.Load()); path > 0 {
		mtu = min(mtu, path)
	}
	return min(HeaderBytes+wire.EthernetBytes+mtu, udp.MaxDatagramBytes/probeSegments)
}

// setTrains makes known what a series found.
func (t *Tunnel) setTrains(m *member, good bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.members.Load().byID[m.ID]
	if now == nil || !now.sameWay(m) {
		return
	}
	was, is := TrainState(now.trains.Load()), TrainsOn
	if !good {
		is = TrainsOff
	}
	switch {
	case is == TrainsOff && was != TrainsOff:
		now.trainFailures.Add(1)
		t.cfg.Log.Warn("vxlan: trains do not arrive as they are sent, packets to this peer are sent alone",
			"peer", now.Node, "addr", now.Underlay)
	case is == TrainsOn && was == TrainsOff:
		t.cfg.Log.Info("vxlan: trains arrive again", "peer", now.Node, "addr", now.Underlay)
	}
	now.trains.Store(uint32(is))
	for _, d := range now.dests {
		d.SetTrains(good)
	}
}

// Trains tells whether trains are sent to a member and known to arrive, and how
// often they were found not to.
func (t *Tunnel) Trains(id uint32) (s TrainState, failures uint64) {
	m := t.members.Load().byID[id]
	if m == nil {
		return TrainsUnchecked, 0
	}
	l := t.queues[0].link(m.v6)
	if l == nil || !l.conn.SendsTrains() || !m.dests[0].TakesTrains() {
		return TrainsOff, m.trainFailures.Load()
	}
	return TrainState(m.trains.Load()), m.trainFailures.Load()
}
