package gateway

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"

	"vswitch/vswitch/drop"
)

// TCP of the world to pods, by way of the host's ports. The host's kernel has accepted
// the connection by the time we see it; a client whose endpoint then can't be
// reached gets a reset.

// serveClient carries one accepted connection to its end.
func (g *Gateway) serveClient(client *net.TCPConn, e *entrance) {
	if g.counters.ingressOpen.Add(1) > int64(g.cfg.IngressConnections) {
		g.counters.ingressOpen.Add(-1)
		g.counters.ingressRefused.Add(1)
		reset(client)
		return
	}
	defer g.counters.ingressOpen.Add(-1)
	g.counters.ingressTotal.Add(1)
	g.serveClientAs(client, unmapped(client.RemoteAddr()), e)
}

// serveClientAs is serveClient for a client known by the address from.
func (g *Gateway) serveClientAs(client *net.TCPConn, from netip.AddrPort, e *entrance) {
	if p := e.pools[familyOf(from.Addr())].Load(); p.proxy != nil {
		g.proxyOutside(client, from, p)
		return
	}
	ep, reason := e.pick(from.Addr(), g.tick.Load())
	if reason != drop.None {
		g.counters.refused(reason)
		reset(client)
		return
	}
	to := addrPort(&ep.Addr, ep.Port)
	if !g.policy.inCluster(to.Addr()) {
		g.serveByHost(client, to, e.backend(ep.ID))
		return
	}
	src, ok := g.policy.sourceFor(from, to.Addr())
	if !ok {
		g.counters.ingressFailed.Add(1)
		reset(client)
		return
	}
	ctx, cancel := context.WithTimeout(g.ctx, g.cfg.DialTimeout)
	pod, err := g.dialAs(ctx, src, to)
	cancel()
	if err != nil {
		g.counters.ingressFailed.Add(1)
		reset(client)
		return
	}
	(&splice{host: client, pod: pod, g: g, to: e.backend(ep.ID)}).run()
}

// dialAs connects to a pod in the name of src. A client's address is promised, its
// port is not: it may have a connection from that port to the same pod by another
// node port, here or by way of another node, and then the switch refuses. So a
// refusal is believed the second time, from another port.
func (g *Gateway) dialAs(ctx context.Context, src, to netip.AddrPort) (*podConn, error) {
	pod, err := dialPod(ctx, g.stack, src, to)
	if err != nil && ctx.Err() == nil && src.Port() != 0 {
		pod, err = dialPod(ctx, g.stack, netip.AddrPortFrom(src.Addr(), 0), to)
	}
	return pod, err
}

// serveByHost joins a client with an endpoint that is no pod: a program on a
// node, which the host reaches by itself.
func (g *Gateway) serveByHost(client *net.TCPConn, to netip.AddrPort, endpoint backend) {
	if g.policy.deniesTCP(to) {
		g.counters.ingressFailed.Add(1)
		reset(client)
		return
	}
	server, err := g.dialTCP(to)
	if err != nil {
		g.counters.ingressFailed.Add(1)
		reset(client)
		return
	}
	g.joinHosts(client, server, endpoint)
}

// joinHosts carries bytes between two connections of the host to their end.
func (g *Gateway) joinHosts(client, server *net.TCPConn, endpoint backend) {
	pair := &hostPair{client: client, server: server, to: endpoint}
	if !g.begin(pair) {
		pair.abort()
		return
	}
	defer g.connections.remove(pair)
	copyHalf := func(dst, src *net.TCPConn) {
		if _, err := io.Copy(dst, src); err != nil { // splice(2): the bytes stay in the kernel
			pair.abort()
			return
		}
		dst.CloseWrite()
	}
	var up sync.WaitGroup
	up.Go(func() { copyHalf(server, client) })
	copyHalf(client, server)
	up.Wait()
	finish(client)
	finish(server)
}

// A host connection under way is marked (mark) so that it ends with a reset whenever it
// is closed, which the kernel does when this process dies: half of what was sent
// must not look like all of it. One whose two directions have ended in order is closed
// in order (finish), which lets the last bytes arrive.

func mark(c hostConn) { c.SetLinger(0) }

// finish closes a connection in order.
func finish(c hostConn) {
	c.SetLinger(-1)
	c.Close()
}

// reset closes a connection with a reset rather than an orderly end.
func reset(c hostConn) {
	c.SetLinger(0)
	c.Close()
}

func unmapped(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
