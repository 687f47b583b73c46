//go:build linux

package vxlan

import (
	"net/netip"
	"time"

	"vswitch/internal/wire"
	"vswitch/tunnel/udp"
)

// SetPathLifetime changes how long a path's MTU is kept.
func (t *Tunnel) SetPathLifetime(d time.Duration) { t.paths.lifetime = d }

// Learn is a report that packets to an address may be at most mtuBytes long.
func (t *Tunnel) Learn(to netip.Addr, mtuBytes int) {
	t.learn(udp.Addr{IP: wire.AddrFrom(to)}, mtuBytes)
}

// SetProbeTimes changes the governor's intervals, before members are set.
func (t *Tunnel) SetProbeTimes(first, wait, good, bad time.Duration) {
	t.governor.times.Store(&probeTimes{first: first, wait: wait, again: time.Millisecond, good: good, bad: bad})
}

// What tests build probes of.
const (
	AnswersPerSecond = answersPerSecond
	MinProbeBytes    = minProbeBytes
)

// SealProbe makes b a probe.
func SealProbe(b []byte, index uint8, nonce uint32) {
	probe{kind: probeAsks, index: index, nonce: nonce}.seal(b)
}

// ReadAnswer reads an answer to a probe.
func ReadAnswer(b []byte) (index uint8, nonce uint32, damaged, ok bool) {
	p, intact, ok := parseProbe(b)
	return p.index, p.nonce, p.kind == probeDamaged, ok && intact && p.kind != probeAsks
}

// Probes reports whether the governor asks anybody.
func (t *Tunnel) Probes() bool { return len(t.governor.senders) > 0 }
