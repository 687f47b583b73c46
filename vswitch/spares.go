package vswitch

import (
	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// Spare frames, for what must outlive the batch it came in (fragments that wait for
// their datagram's first one) and for what there is more of than came in (the
// pieces of a packet that is cut). Each port has its own, for each worker, made when
// the first is needed, which for most ports is never. Nobody can take another
// port's, and there are never more.

const (
	// spareFrames of a port and worker: at an MTU of 1,450, 51 kB.
	spareFrames = 32
	// heldFrames of them may wait, so that some are always left for cutting: the
	// rest of a datagram of 34 kB, at that MTU, all of which overtook the first.
	heldFrames = 24
	// holdTicks is how long a fragment waits for the first. Fragments that overtake
	// each other do so by a queue's length, milliseconds; a second is
	// plenty, and a first fragment that is lost takes the others' places no longer.
	holdTicks = 10
)

type spareState uint8

const (
	spareFree    spareState = iota
	spareHeld               // a fragment that waits
	spareLeaving            // staged; free once it has been sent
)

// spare is one frame and what is known of the fragment in it.
type spare struct {
	frame *frame.Frame
	state spareState
	since uint32 // tick
	turn  uint32 // counts what was held, for the order
	of    datagram
}

type spares struct {
	all    [spareFrames]spare
	busy   int // not free
	held   int
	turns  uint32
	looked uint32 // tick at which held frames were last looked at
}

// datagram names what fragments belong together.
type datagram struct {
	src, dst wire.Addr
	id       uint32
	proto    uint8 // zero for IPv6, see flow.Fragments
}

func datagramOf(h *wire.Headers) datagram {
	d := datagram{src: h.Src, dst: h.Dst, id: h.FragID, proto: h.Proto}
	if h.V6 {
		d.proto = 0
	}
	return d
}

// spare finds a free frame of the port's, or nil.
func (w *worker) spare(p *port) *spare {
	s := p.spares[w.id]
	if s == nil {
		s = newSpares(p.mtuBytes)
		p.spares[w.id] = s
	}
	if s.busy == spareFrames {
		w.reclaim(s)
	}
	for i := range s.all {
		if s.all[i].state == spareFree {
			return &s.all[i]
		}
	}
	return nil
}

func newSpares(mtuBytes int) *spares {
	s := &spares{}
	for i := range s.all {
		s.all[i].frame = frame.NewSized(frame.EthernetBytes + mtuBytes)
	}
	return s
}

func (s *spares) set(one *spare, state spareState) {
	for _, change := range [2]struct {
		state spareState
		by    int
	}{{one.state, -1}, {state, +1}} {
		if change.state != spareFree {
			s.busy += change.by
		}
		if change.state == spareHeld {
			s.held += change.by
		}
	}
	one.state = state
}

// reclaim frees the frames that have been sent: all that left, when nothing is staged.
func (w *worker) reclaim(s *spares) {
	if len(w.touched) > 0 {
		return
	}
	for i := range s.all {
		if s.all[i].state == spareLeaving {
			s.set(&s.all[i], spareFree)
		}
	}
}

// tendSpares looks after what is not free, before a batch of the port is decided: sent
// frames are free again; once a tick, fragments whose first was seen by another
// worker go on, and those that have waited too long are dropped. A port that
// says nothing more keeps the last it said.
func (w *worker) tendSpares(in *port) {
	s := in.spares[w.id]
	if s == nil || s.busy == 0 {
		return
	}
	w.reclaim(s)
	if s.held == 0 || s.looked == w.tick {
		return
	}
	s.looked = w.tick
	for i := range s.all {
		one := &s.all[i]
		if one.state != spareHeld || w.forwardHeld(in, s, one) || w.tick-one.since < holdTicks {
			continue
		}
		w.lost(in, one.frame, drop.StrayFragment)
		s.set(one, spareFree)
	}
}

// hold keeps a copy of a fragment until its datagram's first one comes, and
// reports whether there was room.
func (w *worker) hold(in *port, f *frame.Frame, h *wire.Headers) bool {
	one := w.spare(in)
	s := in.spares[w.id]
	if one == nil || s.held >= heldFrames || h.End > frame.EthernetBytes+in.mtuBytes {
		return false
	}
	one.frame.Set(f.Bytes()[:h.End])
	one.frame.VNet, one.frame.Peer, one.frame.Ingress = f.VNet, f.Peer, f.Ingress
	one.since, one.turn, one.of = w.tick, s.turns, datagramOf(h)
	s.turns++
	s.set(one, spareHeld)
	return true
}

// release sends the fragments that waited for this datagram's first one, in the
// order of their coming. What w knows of the frame in hand is lost by it.
func (w *worker) release(in *port, d *datagram) {
	s := in.spares[w.id]
	if s == nil {
		return
	}
	for s.held > 0 {
		var next *spare
		for i := range s.all {
			if one := &s.all[i]; one.state == spareHeld && one.of == *d && (next == nil || int32(one.turn-next.turn) < 0) {
				next = one
			}
		}
		if next == nil || !w.forwardHeld(in, s, next) {
			return
		}
	}
}

// forwardHeld sends a fragment that waited, if its tuple is known by now.
func (w *worker) forwardHeld(in *port, s *spares, one *spare) bool {
	h := &w.waited
	if wire.Parse(one.frame.Bytes(), h) != drop.None || !w.sw.cfg.Flows.Fragments.Find(h, w.tick, &w.key) {
		return false
	}
	w.rewritten = false
	s.set(one, spareLeaving)
	if r := w.forwardRest(in, one.frame, h); r != drop.None {
		w.lost(in, one.frame, r)
	}
	return true
}
