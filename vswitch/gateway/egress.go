package gateway

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"vswitch/internal/wire"
	"vswitch/vswitch/flow"
)

// TCP of pods to the world. A pod's SYN is answered only after the host has
// connected, so that what the pod sees is true: refused is refused, and what does
// not answer does not seem to.
//
// The netstack's forwarder keeps a slot for each SYN under way until Complete is
// called; its own limit is out of the way (unlimited), since it counts all pods
// together, and usage does the counting.

// startEgress makes the netstack call admitSYN for segments of no connection.
func (g *Gateway) startEgress() {
	const unlimited = 1 << 30
	forwarder := tcp.NewForwarder(g.stack, bufferDefaultBytes, unlimited, g.connect)
	g.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		return g.admitSYN(forwarder, id, pkt)
	})
}

// admitSYN gets each segment that belongs to no connection. False makes the
// netstack answer with a reset.
func (g *Gateway) admitSYN(forwarder *tcp.Forwarder, id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	const connectBits = header.TCPFlagSyn | header.TCPFlagAck | header.TCPFlagRst
	if header.TCP(pkt.TransportHeader().Slice()).Flags()&connectBits != header.TCPFlagSyn {
		return false
	}
	if g.ctx.Err() != nil {
		return false
	}
	k := keyOf(id)
	if !g.servesTCP(&k) { // judged already, unless it came in fragments
		return false
	}
	switch g.usage.reserve(&k) {
	case known, overHalfOpen:
		return true
	case overCap:
		return false
	}
	g.dials.Add(1)
	if !forwarder.HandlePacket(id, pkt) {
		g.usage.release(&k)
		g.dials.Done()
		return false
	}
	return true
}

// keyOf is the tuple of a pod's packets, of which the netstack's end is the
// destination.
func keyOf(id stack.TransportEndpointID) flow.Key {
	return flow.Key{
		Src: addrOf(id.RemoteAddress), SrcPort: id.RemotePort,
		Dst: addrOf(id.LocalAddress), DstPort: id.LocalPort, Proto: wire.ProtoTCP,
	}
}

// connect answers a SYN, in a goroutine of its own that the forwarder starts, and
// carries the connection to its end or has others do so.
func (g *Gateway) connect(r *tcp.ForwarderRequest) {
	k := keyOf(r.ID())
	ended := func() {
		g.usage.release(&k)
		g.dials.Done()
	}
	p := g.poolFor(&k)
	switch {
	case p != nil && p.proxy != nil:
		defer ended()
		g.proxyPod(r, &k, p)
	case g.dns.serves(&k):
		defer ended()
		g.serveDNS(r, &k)
	default:
		g.connectOut(r, &k, ended)
	}
}

// connectOut connects a pod with the host. It calls ended when the connection has
// ended, or at once if there is none.
func (g *Gateway) connectOut(r *tcp.ForwarderRequest, k *flow.Key, ended func()) {
	host, err := g.dialHost(addrPort(&k.Dst, k.DstPort))
	if err != nil {
		if errors.Is(err, unix.ECONNREFUSED) {
			g.counters.egressRefused.Add(1)
		} else {
			g.counters.egressFailed.Add(1)
		}
		r.Complete(true)
		ended()
		return
	}
	g.counters.egressDialed.Add(1)
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	r.Complete(terr != nil)
	if terr != nil {
		g.counters.egressFailed.Add(1)
		unix.Close(host) // marked: with a reset
		ended()
		return
	}
	g.usage.established(k)
	g.counters.egressOpen.Add(1)
	t := &talk{splice: splice{pod: newPodConn(ep, &wq), g: g}, q: g.queueOf(k), fd: host}
	t.ended = func() {
		g.counters.egressOpen.Add(-1)
		ended()
	}
	t.begin()
}

// errForbidden says that pods may not go to an address.
var errForbidden = errors.New("destination is not served")

// dialHost connects from the host to where a pod's packets to dst go. See connectHost.
func (g *Gateway) dialHost(dst netip.AddrPort) (int, error) {
	to, ok := g.policy.egressTCP(dst)
	if !ok {
		return -1, errForbidden
	}
	return connectHost(g.ctx, netip.AddrPortFrom(to, dst.Port()), g.cfg.DialTimeout)
}

func (g *Gateway) dialTCP(to netip.AddrPort) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(g.ctx, g.cfg.DialTimeout)
	defer cancel()
	return dialTCP(ctx, to)
}

func dialTCP(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	d := net.Dialer{KeepAliveConfig: hostKeepAlive}
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	conn := c.(*net.TCPConn)
	mark(conn)
	return conn, nil
}

var hostKeepAlive = net.KeepAliveConfig{Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount}
