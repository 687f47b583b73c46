//go:build linux

package vxlan

import (
	"sync/atomic"
	"time"

	"vswitch/internal/wire"
	"vswitch/tunnel/udp"
)

// What the way to a member carries may be less than what the underlay's link does:
// a narrower link between, or one that becomes so. Every packet has DF set, so
// whatever router it does not fit says so (RFC 1191, RFC 8201); the sockets read
// that from their error queues, and the switch asks here before it sends.
//
// A report is believed for ten minutes, then tried anew. It may be forged by
// whoever guesses addresses and ports, so it can't push pods below 1,280
// bytes, which every link that pods can use carries.

// pathLifetime is how long a path's MTU is kept (RFC 1191 section 6.3).
const pathLifetime = 10 * time.Minute

// paths are the narrow ones, by underlay address: members behind one address share the way.
type paths struct {
	lifetime time.Duration
	narrow   atomic.Int32 // how many there are, so that workers need not look
	known    map[wire.Addr]*path
	closed   bool
}

type path struct {
	podMTU int // bytes of inner IP packet
	timer  *time.Timer
}

// PathMTU is the longest inner packet that the way to a member carries, where that
// is known to be less than what its underlay's link does; 0: it is not. Workers
// call it for every frame; it takes no lock.
func (t *Tunnel) PathMTU(id uint32) int {
	if t.paths.narrow.Load() == 0 {
		return 0
	}
	if m := t.members.Load().byID[id]; m != nil {
		return int(m.pathMTU.Load())
	}
	return 0
}

// learn takes a report that packets to an address may be at most mtuBytes long. A
// report of more than is known already is about a packet sent before: it tells
// nothing new.
func (t *Tunnel) learn(to udp.Addr, mtuBytes int) {
	underlay := to.IP.Netip()
	podMTU := max(mtuBytes-Overhead(underlay), minPodMTUBytes)
	t.mu.Lock()
	defer t.mu.Unlock()
	p := &t.paths
	old := p.known[to.IP]
	if p.closed || podMTU >= t.linkPodMTU(underlay.Is6()) || old != nil && old.podMTU <= podMTU || !t.hasMemberAt(to.IP) {
		return
	}
	if old != nil {
		old.timer.Stop()
	}
	now := &path{podMTU: podMTU}
	now.timer = time.AfterFunc(p.lifetime, func() { t.forgetPath(to.IP, now) })
	p.known[to.IP] = now
	p.narrow.Store(int32(len(p.known)))
	t.setPathMTU(to.IP, podMTU)
	t.cfg.Log.Info("vxlan: path carries less than the link", "addr", underlay, "mtu", podMTU)
}

// forgetPath lets larger packets be tried again.
func (t *Tunnel) forgetPath(addr wire.Addr, was *path) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.paths.known[addr] != was {
		return
	}
	delete(t.paths.known, addr)
	t.paths.narrow.Store(int32(len(t.paths.known)))
	t.setPathMTU(addr, 0)
}

// closePaths stops the timers.
func (t *Tunnel) closePaths() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.paths.closed = true
	for _, p := range t.paths.known {
		p.timer.Stop()
	}
}

// The rest is for holders of t.mu.

// podMTUTo is what is known of the way to an address; 0: nothing.
func (p *paths) podMTUTo(addr wire.Addr) int {
	if k := p.known[addr]; k != nil {
		return k.podMTU
	}
	return 0
}

// setPathMTU tells the members at an address.
func (t *Tunnel) setPathMTU(addr wire.Addr, podMTU int) {
	for _, m := range t.members.Load().byID {
		if wire.AddrFrom(m.Underlay) == addr {
			m.pathMTU.Store(int32(podMTU))
		}
	}
}

func (t *Tunnel) hasMemberAt(addr wire.Addr) bool {
	for _, m := range t.members.Load().byID {
		if wire.AddrFrom(m.Underlay) == addr {
			return true
		}
	}
	return false
}

// linkPodMTU is what the link of a family's underlay address leaves to pods.
func (t *Tunnel) linkPodMTU(v6 bool) int {
	for _, u := range t.links {
		if u.v6 == v6 {
			return u.mtuBytes - Overhead(u.addr)
		}
	}
	return 0
}
