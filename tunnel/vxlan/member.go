//go:build linux

package vxlan

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"

	"vswitch/internal/wire"
	"vswitch/tunnel/udp"
	"vswitch/vswitch/frame"
)

// Members are the other ends of the tunnel. Workers read an immutable snapshot
// through one atomic pointer, loaded once per batch; a change copies the maps
// (thousands of entries, rare) and publishes the copy.
//
// A member is known by address and port, since several nodes may live behind one
// underlay address. Flannel's nodes send from any port and are known by address
// alone: an exact match goes first.

// Peer describes a member.
type Peer struct {
	// ID names the member to the switch: frame.Frame.Peer and the FIB's next hop. Not zero.
	ID uint32
	// Node is its name, for logs.
	Node string
	// Underlay is its address; its family must be one this tunnel has.
	Underlay netip.Addr
	// Ports are the UDP ports it receives at, one per flow chosen by hash, and,
	// without AnyPort, the only ones it sends from. Empty: the tunnel's own port number.
	Ports []uint16
	// AnyPort accepts any source port of its address: a Linux VXLAN device picks one per flow.
	AnyPort bool
	// VNI is its network identifier, both ways; 0: the tunnel's own.
	VNI uint32
	// IngressVNI is the identifier it takes frames from outside the cluster by; 0:
	// it takes none, and sends none.
	IngressVNI uint32
	// MAC is its VTEP's, unicast.
	MAC frame.MAC
}

// ErrPeerTaken: another member has the address and port. Remove that one first.
var ErrPeerTaken = errors.New("underlay address and port belong to another member")

type member struct {
	Peer
	v6    bool
	dests []*udp.Dest // by Ports

	pathMTU atomic.Int32 // see PathMTU

	trains        atomic.Uint32 // TrainState, from the governor
	trainFailures atomic.Uint64 // how often they were found not to arrive
	answers       answerBudget
}

// sameWay reports whether packets to both take the same way.
func (m *member) sameWay(o *member) bool {
	return m.Underlay == o.Underlay && slices.Equal(m.Ports, o.Ports) && m.AnyPort == o.AnyPort
}

// inherit takes over what is known of the way to the member that m replaces.
func (m *member) inherit(old *member) {
	if old == nil || !m.sameWay(old) {
		return
	}
	m.trains.Store(old.trains.Load())
	m.trainFailures.Store(old.trainFailures.Load())
	for i, d := range old.dests {
		m.dests[i].SetTrains(d.TakesTrains())
	}
}

// members is a snapshot; never changed once published.
type members struct {
	byID     map[uint32]*member
	bySource map[udp.Addr]*member  // those with exact ports
	byAddr   map[wire.Addr]*member // those with AnyPort
}

// from finds the member that sends from a.
func (ms *members) from(a udp.Addr) *member {
	if m := ms.bySource[a]; m != nil {
		return m
	}
	return ms.byAddr[a.IP]
}

// dest is where frames with this hash go: always the same port for a flow.
func (m *member) dest(hash uint32) *udp.Dest {
	return m.dests[uint64(hash)*uint64(len(m.dests))>>32]
}

// SetPeer adds a member, or replaces the one with the same ID. It may be called
// while workers run; they see the change with their next batch.
func (t *Tunnel) SetPeer(p Peer) error {
	m, err := t.newMember(p)
	if err != nil {
		return fmt.Errorf("vxlan: peer %q: %w", p.Node, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	m.pathMTU.Store(int32(t.paths.podMTUTo(wire.AddrFrom(m.Underlay))))
	next, done := t.edit()
	defer done()
	old := next.byID[p.ID]
	m.inherit(old)
	if err := next.vacant(m); err != nil {
		return fmt.Errorf("vxlan: peer %q: %w", p.Node, err)
	}
	next.remove(old)
	next.add(m)
	return nil
}

// Together publishes what f changes of the members at once, at its end: each change by
// itself copies them all, which for every node of a large cluster is the square of their
// number. One goroutine calls it and, within f, the tunnel's methods.
func (t *Tunnel) Together(f func()) {
	t.mu.Lock()
	t.draft = t.members.Load().clone()
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.catchUp(t.draft)
		t.members.Store(t.draft)
		t.draft = nil
		t.governor.changed()
	}()
	f()
}

// catchUp tells the members of a draft what was learnt of the ways to those that they
// replace since they were put into it. Callers hold mu.
func (t *Tunnel) catchUp(draft *members) {
	published := t.members.Load().byID
	for id, m := range draft.byID {
		if old := published[id]; old != m {
			m.inherit(old)
			m.pathMTU.Store(int32(t.paths.podMTUTo(wire.AddrFrom(m.Underlay))))
		}
	}
}

// edit gives the members to change, and what publishes them afterwards. Callers hold mu.
func (t *Tunnel) edit() (next *members, done func()) {
	if t.draft != nil {
		return t.draft, func() {}
	}
	next = t.members.Load().clone()
	return next, func() {
		t.members.Store(next)
		t.governor.changed()
	}
}

// RemovePeer removes a member and reports whether it was there.
func (t *Tunnel) RemovePeer(id uint32) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	next, done := t.edit()
	defer done()
	m := next.byID[id]
	next.remove(m)
	return m != nil
}

// TakesIngress reports whether a member takes frames from outside the cluster. It
// takes no lock.
func (t *Tunnel) TakesIngress(id uint32) bool {
	m := t.members.Load().byID[id]
	return m != nil && m.IngressVNI != 0
}

func (t *Tunnel) newMember(p Peer) (*member, error) {
	p.Underlay = p.Underlay.Unmap()
	if len(p.Ports) == 0 {
		p.Ports = []uint16{t.cfg.Port}
	}
	if p.VNI == 0 {
		p.VNI = t.cfg.VNI
	}
	switch {
	case p.ID == 0:
		return nil, errors.New("id 0: want another")
	case !p.Underlay.IsValid() || p.Underlay.IsUnspecified() || p.Underlay.IsMulticast() || p.Underlay.Zone() != "":
		return nil, fmt.Errorf("underlay address %v: want a unicast address without zone", p.Underlay)
	case !t.hasFamily(p.Underlay):
		return nil, fmt.Errorf("underlay address %v: this node has no underlay address of that family", p.Underlay)
	case p.VNI > MaxVNI:
		return nil, fmt.Errorf("VNI %d: want at most %d", p.VNI, MaxVNI)
	case p.IngressVNI > MaxVNI || p.IngressVNI == p.VNI:
		return nil, fmt.Errorf("ingress VNI %d: want at most %d and not its VNI", p.IngressVNI, MaxVNI)
	case p.MAC.IsZero() || p.MAC.IsMulticast():
		return nil, fmt.Errorf("VTEP MAC %v: want a unicast address", p.MAC)
	}
	m := &member{Peer: p, v6: p.Underlay.Is6()}
	m.Ports = append([]uint16(nil), p.Ports...)
	for _, port := range m.Ports {
		if port == 0 {
			return nil, errors.New("port 0: want 1 to 65535")
		}
		m.dests = append(m.dests, udp.NewDest(netip.AddrPortFrom(p.Underlay, port)))
	}
	return m, nil
}

// clone copies a snapshot, to be changed.
func (ms *members) clone() *members {
	return &members{byID: maps.Clone(ms.byID), bySource: maps.Clone(ms.bySource), byAddr: maps.Clone(ms.byAddr)}
}

// The three below are for a snapshot that is not published yet.

// remove takes a member out; nil: none.
func (ms *members) remove(m *member) {
	if m == nil {
		return
	}
	delete(ms.byID, m.ID)
	if m.AnyPort {
		delete(ms.byAddr, wire.AddrFrom(m.Underlay))
		return
	}
	for _, a := range m.sources() {
		delete(ms.bySource, a)
	}
}

// vacant reports whether no member but the one with m's ID sends from where m does.
func (ms *members) vacant(m *member) error {
	if m.AnyPort {
		if other := ms.byAddr[wire.AddrFrom(m.Underlay)]; other != nil && other.ID != m.ID {
			return fmt.Errorf("%v, any port: %w (%s)", m.Underlay, ErrPeerTaken, other.Node)
		}
		return nil
	}
	for _, a := range m.sources() {
		if other := ms.bySource[a]; other != nil && other.ID != m.ID {
			return fmt.Errorf("%v: %w (%s)", a, ErrPeerTaken, other.Node)
		}
	}
	return nil
}

// add puts in a member for which there is room.
func (ms *members) add(m *member) {
	ms.byID[m.ID] = m
	if m.AnyPort {
		ms.byAddr[wire.AddrFrom(m.Underlay)] = m
		return
	}
	for _, a := range m.sources() {
		ms.bySource[a] = m
	}
}

// sources are the addresses it sends from, where they are known.
func (m *member) sources() []udp.Addr {
	var as []udp.Addr
	for _, port := range m.Ports {
		as = append(as, udp.Addr{IP: wire.AddrFrom(m.Underlay), Port: port})
	}
	return as
}
