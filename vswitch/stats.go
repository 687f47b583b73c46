package vswitch

import (
	"sync/atomic"

	"vswitch/vswitch/drop"
)

// counters are one worker's figures for one port. The worker is their only
// writer, so an add needs no locked instruction: it loads and stores, and the
// atomics are there for the readers. The padding keeps two workers' figures off
// one cache line.
type counters struct {
	ingressFrames, ingressBytes counter
	egressFrames, egressBytes   counter
	drops                       [drop.Count]counter
	_                           [64]byte
}

// counter has one writer and any number of readers.
type counter struct{ v atomic.Uint64 }

func (c *counter) add(n uint64) { c.v.Store(c.v.Load() + n) }

// Stats are a port's counters since it was added, summed over workers. A frame
// of segments (TSO, USO) counts once; bytes are Ethernet bytes without the FCS.
// Drops are attributed to the port a frame entered by, egress drops included,
// so that they name who lost the frame.
type Stats struct {
	IngressFrames, IngressBytes uint64
	EgressFrames, EgressBytes   uint64
	Drops                       map[drop.Reason]uint64 // non-zero ones only
}

func (p *port) stats() Stats {
	s := Stats{Drops: map[drop.Reason]uint64{}}
	for i := range p.counters {
		c := &p.counters[i]
		s.IngressFrames += c.ingressFrames.v.Load()
		s.IngressBytes += c.ingressBytes.v.Load()
		s.EgressFrames += c.egressFrames.v.Load()
		s.EgressBytes += c.egressBytes.v.Load()
		for r := range c.drops {
			if n := c.drops[r].v.Load(); n != 0 {
				s.Drops[drop.Reason(r)] += n
			}
		}
	}
	return s
}
