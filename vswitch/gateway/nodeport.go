package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
)

// Node ports. Each is bound to every address chosen, never to the wildcard, which
// would take addresses that are not ours to take and answer UDP from the wrong
// one. A port with no endpoint to go to is not open at all, so that the host's
// kernel refuses at once and a load balancer that probes it sees the truth.
//
// What is open follows from what is wanted by reconcile, after every change and
// every NodePortRetry: addresses come and go, and a port that another program
// holds may become free.

// nodePort is one service's port on the host.
type nodePort struct {
	service ServiceKey
	port    uint16
	proto   uint8
	v4, v6  atomic.Pointer[pool]
}

func (p *nodePort) family(v6 bool) *atomic.Pointer[pool] {
	if v6 {
		return &p.v6
	}
	return &p.v4
}

// pick chooses an endpoint for a client.
func (p *nodePort) pick(client netip.Addr, tick uint32) (flow.Endpoint, drop.Reason) {
	a := wire.AddrFrom(client)
	return p.family(client.Is6()).Load().pick(&a, tick)
}

func (p *nodePort) sendsTo(s *session) bool {
	return p.family(!s.inside.Src.Is4()).Load().has(flow.Endpoint{ID: s.endpoint, Addr: s.inside.Src, Port: s.inside.SrcPort})
}

// portKey is a host port over all addresses.
type portKey struct {
	port  uint16
	proto uint8
}

// binding is a host port at one address.
type binding struct {
	addr  netip.AddrPort
	proto uint8
}

func (b binding) network() string {
	if b.proto == wire.ProtoUDP {
		return "udp"
	}
	return "tcp"
}

// NodePortStatus is what became of one node port at one address.
type NodePortStatus struct {
	Service  ServiceKey
	Protocol uint8
	Addr     netip.AddrPort
	Err      error // nil: open
}

type nodePorts struct {
	g *Gateway

	mu     sync.Mutex
	want   map[portKey]*nodePort // guarded by mu, as are the rest
	open   map[binding]io.Closer
	failed map[binding]error
	closed bool

	serving sync.WaitGroup // accept loops and clients
}

func newNodePorts(g *Gateway) *nodePorts {
	return &nodePorts{g: g, want: make(map[portKey]*nodePort), open: make(map[binding]io.Closer), failed: make(map[binding]error)}
}

// conflict says which other service has s's node port.
func (n *nodePorts) conflict(s *Service) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.want[portKey{s.NodePort, s.Protocol}]; s.NodePort != 0 && p != nil && p.service != s.ServiceKey {
		return fmt.Errorf("node port %d belongs to service %v", s.NodePort, p.service)
	}
	return nil
}

// replace makes next's node port, if any, stand for prev's; either may be nil.
func (n *nodePorts) replace(prev, next *served) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var stays portKey
	if next != nil && next.NodePort != 0 && next.Protocol != wire.ProtoSCTP {
		stays = portKey{next.NodePort, next.Protocol}
		p := n.want[stays]
		if p == nil {
			p = &nodePort{service: next.ServiceKey, port: next.NodePort, proto: next.Protocol}
			n.want[stays] = p
		}
		for _, v6 := range []bool{false, true} {
			i := 0
			if v6 {
				i = 1
			}
			p.family(v6).Store(next.external[i])
		}
		if p.proto == wire.ProtoUDP {
			n.g.relay.endIf(func(s *session) bool { return s.port == p && !p.sendsTo(s) })
		}
	}
	if prev != nil && prev.NodePort != 0 {
		if k := (portKey{prev.NodePort, prev.Protocol}); k != stays {
			delete(n.want, k)
		}
	}
	n.reconcile()
}

// refresh looks at the host's addresses again and tries again what failed.
func (n *nodePorts) refresh() {
	n.g.policy.refreshHostAddrs()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reconcile()
}

// reconcile opens what is wanted and closes what is not. Callers hold mu.
func (n *nodePorts) reconcile() {
	if n.closed || n.g.cfg.NoNodePorts {
		return
	}
	wanted := make(map[binding]*nodePort)
	addrs := n.addrs()
	for _, p := range n.want {
		for _, a := range addrs {
			if len(p.family(a.Is6()).Load().backends) > 0 {
				wanted[binding{netip.AddrPortFrom(a, p.port), p.proto}] = p
			}
		}
	}
	for b, c := range n.open {
		if wanted[b] == nil {
			c.Close()
			delete(n.open, b)
		}
	}
	for b := range n.failed {
		if wanted[b] == nil {
			delete(n.failed, b)
		}
	}
	for b, p := range wanted {
		if n.open[b] == nil {
			n.bind(b, p)
		}
	}
}

// addrs are the host addresses that node ports are bound to.
func (n *nodePorts) addrs() []netip.Addr {
	c := &n.g.cfg
	as := slices.Clone(c.NodePortAddrs)
	if c.NodePortAddrs == nil {
		for _, a := range n.g.policy.own() {
			if a.IsGlobalUnicast() && !slices.Contains(c.Routers, a) {
				as = append(as, a)
			}
		}
	}
	if c.NodePortLoopback {
		as = append(as, netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback())
	}
	return as
}

// bind opens one host port and logs a change of its state. Callers hold mu.
func (n *nodePorts) bind(b binding, p *nodePort) {
	log := n.g.cfg.Log.With("service", p.service.String(), "addr", b.addr.String(), "protocol", b.network())
	listen := n.listenTCP
	if b.proto == wire.ProtoUDP {
		listen = n.listenUDP
	}
	c, err := listen(b.addr, p)
	before, failedBefore := n.failed[b]
	switch {
	case err == nil:
		n.open[b] = c
		if failedBefore {
			delete(n.failed, b)
			log.Info("node port open after all")
		}
	case !failedBefore || before.Error() != err.Error():
		log.Warn("node port can't be opened, trying again", "err", err)
		fallthrough
	default:
		n.failed[b] = err
	}
}

func (n *nodePorts) listenTCP(at netip.AddrPort, p *nodePort) (io.Closer, error) {
	lc := net.ListenConfig{KeepAliveConfig: hostKeepAlive}
	l, err := lc.Listen(context.Background(), "tcp", at.String())
	if err != nil {
		return nil, err
	}
	n.serving.Go(func() { n.accept(l.(*net.TCPListener), p) })
	return l, nil
}

// acceptPause is how long accepting rests when the process has run out of
// descriptors, which are given back as connections end.
const acceptPause = 100 * time.Millisecond

func (n *nodePorts) accept(l *net.TCPListener, p *nodePort) {
	for {
		c, err := l.AcceptTCP()
		switch {
		case err == nil:
			n.serving.Go(func() { n.g.serveClient(c, p) })
		case errors.Is(err, net.ErrClosed):
			return
		default:
			n.g.cfg.Log.Warn("node port can't accept a client", "service", p.service.String(), "err", err)
			select {
			case <-n.g.ctx.Done():
				return
			case <-time.After(acceptPause):
			}
		}
	}
}

// udpListener is a node port's socket with the sessions that use it.
type udpListener struct {
	sock  *hostSocket
	relay *relay
}

func (n *nodePorts) listenUDP(at netip.AddrPort, p *nodePort) (io.Closer, error) {
	sock, err := openHostSocket(kindOf(false, at.Addr().Is6()), at)
	if err != nil {
		return nil, err
	}
	sock.port = p
	n.g.relay.read(sock)
	return &udpListener{sock, n.g.relay}, nil
}

// Close closes the socket first, so that no datagram can begin another session.
func (l *udpListener) Close() error {
	l.sock.close()
	l.relay.endIf(func(s *session) bool { return s.sock == l.sock })
	return nil
}

// status lists all node ports.
func (n *nodePorts) status() []NodePortStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []NodePortStatus
	add := func(b binding, err error) {
		if p := n.want[portKey{b.addr.Port(), b.proto}]; p != nil {
			all = append(all, NodePortStatus{Service: p.service, Protocol: b.proto, Addr: b.addr, Err: err})
		}
	}
	for b := range n.open {
		add(b, nil)
	}
	for b, err := range n.failed {
		add(b, err)
	}
	slices.SortFunc(all, func(a, b NodePortStatus) int {
		if c := a.Addr.Compare(b.Addr); c != 0 {
			return c
		}
		return int(a.Protocol) - int(b.Protocol)
	})
	return all
}

// close closes every port. Clients being served are waited for with serving.
func (n *nodePorts) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	for b, c := range n.open {
		c.Close()
		delete(n.open, b)
	}
}
