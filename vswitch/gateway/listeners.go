package gateway

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vswitch/internal/bound"
	"vswitch/internal/wire"
)

// What is open on the host for clients outside. Each entrance is bound to every
// address at which it is wanted, one by one and never to the wildcard, which
// would take addresses that are not ours to take and answer UDP from the wrong one.
//
// What is open follows from what is wanted: after every change of an entrance, when
// an address of the host comes or goes, and every NodePortRetry for the ports that
// another program held. All that is about one port number and protocol lies in one
// slot, so that a change looks at its own slot alone.

// slot is a port number and protocol of the host.
type slot struct {
	entrances []*entrance // by precedence
	open      map[netip.Addr]opened
	failed    map[netip.Addr]error // what an address could not be bound for
}

type opened struct {
	io.Closer
	by   *entrance
	port uint16 // the slot's, or the one that stands for it (see lowport.go)
}

type portKey struct {
	port  uint16
	proto uint8
}

// ListenerStatus is what became of one entrance at one address of the host.
type ListenerStatus struct {
	Kind     EntranceKind
	Owner    string     // for people: the service's port, or the pod
	Service  ServiceKey // zero for a pod's host port
	Protocol uint8
	Addr     netip.AddrPort
	OpenAt   uint16 // the port that is open; another than Addr's stands for a low one. 0: none
	Err      error  // nil: open
}

// TakenError says that another entrance has the address and port.
type TakenError struct {
	Kind  EntranceKind
	Owner string
}

func (e *TakenError) Error() string { return fmt.Sprintf("taken by the %s of %s", e.Kind, e.Owner) }

type listeners struct {
	g    *Gateway
	open func(network string, at netip.AddrPort) (fd int, err error) // bound.Open, or a test's

	mu        sync.Mutex
	slots     map[portKey]*slot          // guarded by mu, as are the rest
	byService map[ServiceKey][]*entrance // a service's own
	hostPorts map[HostPortKey]*entrance  // pods'
	health    map[namespacedName]*health // of services, see healthcheck.go
	ages      uint64
	closed    bool
	draining  bool // TCP ports are closed
	tidied    bool // what an earlier process left and nobody wants has been closed

	serving   sync.WaitGroup // accept loops and clients
	accepting sync.WaitGroup // accept loops
	clients   atomic.Int64   // TCP clients, from when they are let in to their end
}

func newListeners(g *Gateway) *listeners {
	return &listeners{
		g: g, open: bound.Open, slots: make(map[portKey]*slot), byService: make(map[ServiceKey][]*entrance),
		hostPorts: make(map[HostPortKey]*entrance), health: make(map[namespacedName]*health),
	}
}

// conflict says which other service has s's node port.
func (l *listeners) conflict(s *Service) error {
	if s.NodePort == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if sl := l.slots[portKey{s.NodePort, s.Protocol}]; sl != nil {
		for _, e := range sl.entrances {
			if e.kind == NodePort && e.service != s.ServiceKey {
				return fmt.Errorf("node port %d belongs to service %v", s.NodePort, e.service)
			}
		}
	}
	return nil
}

// wantedBy are the entrances that a service asks for.
func wantedBy(s *served) []*entrance {
	if s == nil || s.Protocol == wire.ProtoSCTP { // which no host socket carries
		return nil
	}
	var all []*entrance
	want := func(kind EntranceKind, port uint16, at []netip.Addr, to *[2]*pool) {
		e := &entrance{kind: kind, owner: s.ServiceKey.String(), service: s.ServiceKey, proto: s.Protocol, port: port, at: at}
		e.lead(to)
		all = append(all, e)
	}
	if len(s.LoadBalancerIPs) > 0 {
		want(LoadBalancerIP, s.Port, s.LoadBalancerIPs, &s.lbExternal)
	}
	if len(s.ExternalIPs) > 0 {
		want(ExternalIP, s.Port, s.ExternalIPs, &s.external)
	}
	if s.NodePort != 0 {
		want(NodePort, s.NodePort, nil, &s.external)
	}
	return all
}

// replace makes next's entrances, if any, stand for prev's; either may be nil.
func (l *listeners) replace(prev, next *served) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := keyOfEither(prev.service(), next.service())
	old := l.byService[key]
	now := wantedBy(next)
	for i, e := range now {
		now[i] = l.take(e, &old)
	}
	l.remove(old)
	if len(now) == 0 {
		delete(l.byService, key)
	} else {
		l.byService[key] = now
	}
	l.replaceHealth(prev.service(), next.service())
}

func keyOfEither(prev, next *Service) ServiceKey {
	if next != nil {
		return next.ServiceKey
	}
	if prev != nil {
		return prev.ServiceKey
	}
	return ServiceKey{}
}

// take makes the entrance in old that e is a change of like e, or adds e, and
// opens what is to be open. What stays open misses no client. Callers hold mu.
func (l *listeners) take(e *entrance, old *[]*entrance) *entrance {
	i := slices.IndexFunc(*old, func(o *entrance) bool { return o.kind == e.kind && o.port == e.port && o.proto == e.proto })
	if i < 0 {
		l.add(e)
		return e
	}
	o := (*old)[i]
	*old = slices.Delete(*old, i, i+1)
	o.at = e.at
	for family := range o.pools {
		o.pools[family].Store(e.pools[family].Load())
	}
	if o.proto == wire.ProtoUDP {
		l.g.relay.endIf(func(s *session) bool { return s.by == o && !o.keeps(s) })
	}
	l.reconcile(portKey{o.port, o.proto})
	return o
}

// add puts an entrance where it is wanted. Callers hold mu.
func (l *listeners) add(e *entrance) {
	l.ages++
	e.age = l.ages
	k := portKey{e.port, e.proto}
	sl := l.slots[k]
	if sl == nil {
		sl = &slot{open: make(map[netip.Addr]opened), failed: make(map[netip.Addr]error)}
		l.slots[k] = sl
	}
	sl.entrances = append(sl.entrances, e)
	slices.SortFunc(sl.entrances, (*entrance).before)
	l.reconcile(k)
}

// remove takes entrances away. Callers hold mu.
func (l *listeners) remove(es []*entrance) {
	for _, e := range es {
		k := portKey{e.port, e.proto}
		sl := l.slots[k]
		sl.entrances = slices.DeleteFunc(sl.entrances, func(o *entrance) bool { return o == e })
		l.reconcile(k)
		if len(sl.entrances) == 0 {
			delete(l.slots, k)
		}
		if low, ok := l.lowOf(k); ok {
			l.reconcile(low) // the port may stand for it now
		}
	}
}

// refresh looks at the host's addresses again and tries again what failed.
func (l *listeners) refresh() {
	l.g.policy.refreshHostAddrs()
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.slots {
		l.reconcile(k)
	}
	if !l.tidied { // by the first time everything is there that was before
		l.tidied = true
		l.giveUpRest()
	}
}

// wanted are the addresses of a slot and who has each. Callers hold mu.
func (l *listeners) wanted(sl *slot) map[netip.Addr]*entrance {
	has := make(map[netip.Addr]*entrance)
	for _, e := range sl.entrances {
		for _, a := range l.addrsOf(e) {
			if has[a] == nil {
				has[a] = e
			}
		}
	}
	return has
}

// reconcile opens what is wanted in a slot and closes what is not. Callers hold mu.
func (l *listeners) reconcile(k portKey) {
	if l.closed || l.g.cfg.NoNodePorts || l.draining && k.proto == wire.ProtoTCP {
		return
	}
	sl := l.slots[k]
	wanted := l.wanted(sl)
	for a, o := range sl.open {
		if wanted[a] != o.by {
			l.shut(k, a)
		}
	}
	for a := range sl.failed {
		if wanted[a] == nil {
			delete(sl.failed, a)
		}
	}
	low, displaced := l.displace(k, wanted)
	for a, e := range wanted {
		if _, ok := sl.open[a]; !ok {
			l.bind(sl, netip.AddrPortFrom(a, k.port), e)
		}
	}
	if displaced {
		l.reconcile(low)
	}
}

// shut closes what is open in a slot at an address. Callers hold mu.
func (l *listeners) shut(k portKey, a netip.Addr) {
	sl := l.slots[k]
	o := sl.open[a]
	o.Close()
	l.giveUp(protocolName(k.proto), netip.AddrPortFrom(a, o.port))
	delete(sl.open, a)
}

// addrsOf are the addresses of this host at which an entrance is to be open.
// Callers hold mu.
func (l *listeners) addrsOf(e *entrance) []netip.Addr {
	var as []netip.Addr
	add := func(a netip.Addr) {
		if e.isOpen(familyOf(a)) && !slices.Contains(as, a) {
			as = append(as, a)
		}
	}
	c, own := &l.g.cfg, l.g.policy.own()
	if len(e.at) > 0 {
		for _, a := range e.at {
			if slices.Contains(own, a) {
				add(a)
			}
		}
		return as
	}
	selected := c.NodePortAddrs
	if selected == nil {
		selected = own
	}
	for _, a := range selected {
		if c.NodePortAddrs != nil || a.IsGlobalUnicast() && !slices.Contains(c.Routers, a) {
			add(a)
		}
	}
	if c.NodePortLoopback || e.kind == HostPortAnywhere {
		add(netip.AddrFrom4([4]byte{127, 0, 0, 1}))
		add(netip.IPv6Loopback())
	}
	return as
}

// bind opens an entrance at one address and logs a change of its state. Callers
// hold mu.
func (l *listeners) bind(sl *slot, at netip.AddrPort, e *entrance) {
	log := l.g.cfg.Log.With("kind", e.kind.String(), "for", e.owner, "addr", at.String(), "protocol", protocolName(e.proto))
	c, err := l.listen(at, e)
	open := at
	switch {
	case errors.Is(err, unix.EACCES):
		c, open, err = l.listenInstead(at, e, err)
	case errors.Is(err, unix.EADDRINUSE):
		err = fmt.Errorf("%w: by another program, or another node of this host", err)
	}
	before, failedBefore := sl.failed[at.Addr()]
	switch {
	case err == nil:
		sl.open[at.Addr()] = opened{c, e, open.Port()}
		delete(sl.failed, at.Addr())
		if open != at {
			log.Info("a low port is open at another: this process may not bind it, see net.ipv4.ip_unprivileged_port_start", "open", open.String())
		} else if failedBefore {
			log.Info("host port open after all")
		}
	case !failedBefore || before.Error() != err.Error():
		log.Warn("host port can't be opened, trying again", "err", err)
		fallthrough
	default:
		sl.failed[at.Addr()] = err
	}
}

// status lists all entrances at all addresses of this host.
func (l *listeners) status() []ListenerStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []ListenerStatus
	if l.g.cfg.NoNodePorts {
		return nil
	}
	for k, sl := range l.slots {
		wanted := l.wanted(sl)
		for _, e := range sl.entrances {
			for _, a := range l.addrsOf(e) {
				s := ListenerStatus{
					Kind: e.kind, Owner: e.owner, Service: e.service, Protocol: e.proto,
					Addr: netip.AddrPortFrom(a, k.port), OpenAt: sl.open[a].port, Err: sl.failed[a],
				}
				if by := wanted[a]; by != e {
					s.OpenAt, s.Err = 0, &TakenError{by.kind, by.owner}
				}
				all = append(all, s)
			}
		}
	}
	slices.SortFunc(all, func(a, b ListenerStatus) int {
		if c := a.Addr.Compare(b.Addr); c != 0 {
			return c
		}
		if a.Protocol != b.Protocol {
			return int(a.Protocol) - int(b.Protocol)
		}
		return int(a.Kind) - int(b.Kind)
	})
	return all
}

// close closes every port. Clients being served are waited for with serving.
func (l *listeners) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, sl := range l.slots {
		for a, o := range sl.open {
			o.Close()
			delete(sl.open, a)
		}
	}
}
