package gateway

import (
	"fmt"
	"io"
	"math"
	"net/netip"
)

// A port that neither this process nor whoever binds for it may open, as those below
// net.ipv4.ip_unprivileged_port_start are to an ordinary user, is opened LowPortOffset
// higher: port 80 at 10080. What asks for that port itself goes first. Which it was is
// decided when it is opened, address by address, and stays so until it is closed.

// insteadOf is the port that stands for one that may not be opened.
func (l *listeners) insteadOf(port uint16) (uint16, bool) {
	offset := l.g.cfg.LowPortOffset
	return port + offset, offset != 0 && port <= math.MaxUint16-offset
}

// lowOf is the slot that k's port may stand for, if something asks for that. Callers
// hold mu.
func (l *listeners) lowOf(k portKey) (portKey, bool) {
	if l.g.cfg.LowPortOffset == 0 || k.port <= l.g.cfg.LowPortOffset {
		return portKey{}, false
	}
	low := portKey{k.port - l.g.cfg.LowPortOffset, k.proto}
	return low, l.slots[low] != nil
}

// listenInstead opens the port that stands for at's, which was refused.
func (l *listeners) listenInstead(at netip.AddrPort, e *entrance, refused error) (io.Closer, netip.AddrPort, error) {
	port, ok := l.insteadOf(at.Port())
	if !ok {
		return nil, at, refused
	}
	instead := netip.AddrPortFrom(at.Addr(), port)
	if sl := l.slots[portKey{port, e.proto}]; sl != nil {
		if by := l.wanted(sl)[at.Addr()]; by != nil {
			return nil, at, fmt.Errorf("%w; port %d in its stead is %w", refused, port, &TakenError{by.kind, by.owner})
		}
	}
	c, err := l.listen(instead, e)
	if err != nil {
		return nil, at, fmt.Errorf("%w; in its stead: %w", refused, err)
	}
	return c, instead, nil
}

// displace closes k's port where it stands for a low one and is wanted for itself. The
// low slot is then to be reconciled. Callers hold mu.
func (l *listeners) displace(k portKey, wanted map[netip.Addr]*entrance) (low portKey, displaced bool) {
	low, ok := l.lowOf(k)
	if !ok {
		return low, false
	}
	for a, o := range l.slots[low].open {
		if o.port == k.port && wanted[a] != nil {
			l.shut(low, a)
			displaced = true
		}
	}
	return low, displaced
}
