package gateway

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
)

// Proxy mode: the gateway ends a client's TCP connection in the netstack and makes
// one of its own to an endpoint. An endpoint that does not answer is replaced by
// another before the client learns of anything; the client's connection is
// accepted once one has. Pods come by a flow that leads to the gateway (Pick),
// clients outside by the host's sockets. An endpoint sees the router's address for
// a pod, so a service may ask for a PROXY protocol header. UDP and SCTP ports of
// such a service are served as any other's.

const (
	proxyTries = 3
	// proxyTryTimeout has room for one SYN lost: the netstack repeats it after 1 s.
	proxyTryTimeout = 2500 * time.Millisecond
)

// proxied is a service port in proxy mode. It outlives changes of the service.
type proxied struct {
	protocolV2 atomic.Bool
	proxyCounters
}

type proxyCounters struct {
	accepted, refused, retried, toEndpoints, toClients atomic.Uint64
	open                                               atomic.Int64
}

// ProxyStats are the counters of one service port in proxy mode, since it has been
// in that mode.
type ProxyStats struct {
	Service  ServiceKey
	Open     int    // connections, now
	Accepted uint64 // connections that an endpoint answered
	Refused  uint64 // those that none did
	Retried  uint64 // endpoints that did not answer and were replaced by another
	// ToEndpoints and ToClients are the bytes that were moved, without PROXY headers.
	ToEndpoints, ToClients uint64
}

// ProxyStats are the services in proxy mode, sorted by key.
func (g *Gateway) ProxyStats() []ProxyStats {
	var all []ProxyStats
	for key, p := range g.services.proxies() {
		all = append(all, ProxyStats{
			Service: key, Open: int(p.open.Load()), Accepted: p.accepted.Load(), Refused: p.refused.Load(),
			Retried: p.retried.Load(), ToEndpoints: p.toEndpoints.Load(), ToClients: p.toClients.Load(),
		})
	}
	slices.SortFunc(all, func(a, b ProxyStats) int {
		x, y := a.Service, b.Service
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name), cmp.Compare(x.PortName, y.PortName))
	})
	return all
}

// proxyFor is what next asks for: prev's, if that was in proxy mode too; nil: none.
func proxyFor(prev *served, next *Service) *proxied {
	if next.Proxy == nil || next.Protocol != wire.ProtoTCP {
		return nil
	}
	p := new(proxied)
	if prev != nil && prev.proxy != nil {
		p = prev.proxy
	}
	p.protocolV2.Store(next.Proxy.ProtocolV2)
	return p
}

// backend is an endpoint as a connection's other end: of which service, which pod.
type backend struct {
	service  ServiceKey
	endpoint uint64
}

// upstream is a connection to an endpoint, by the netstack or by the host.
type upstream struct {
	pod  *podConn
	host *net.TCPConn
	to   backend
}

func (u *upstream) abort() {
	if u.pod != nil {
		u.pod.abort()
		return
	}
	reset(u.host)
}

// proxyPod carries one connection of a pod to a service in proxy mode.
func (g *Gateway) proxyPod(r *tcp.ForwarderRequest, k *flow.Key, p *pool) {
	up, err := g.dialEndpoint(p, addrPort(&k.Src, k.SrcPort), addrPort(&k.Dst, k.DstPort))
	if err != nil {
		r.Complete(true)
		return
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	r.Complete(terr != nil)
	if terr != nil {
		up.abort()
		return
	}
	g.usage.established(k)
	p.proxy.accepted.Add(1)
	p.proxy.open.Add(1)
	defer p.proxy.open.Add(-1)
	client := newPodConn(ep, &wq)
	if up.pod != nil {
		(&podPair{client: client, server: up.pod, to: up.to, stats: &p.proxy.proxyCounters, g: g}).run()
		return
	}
	(&splice{host: up.host, pod: client, g: g, to: up.to, hostMoved: &p.proxy.toClients, podMoved: &p.proxy.toEndpoints}).run()
}

// proxyOutside carries one connection of a client outside to a service in proxy
// mode. The host has accepted it already.
func (g *Gateway) proxyOutside(client *net.TCPConn, from netip.AddrPort, p *pool) {
	up, err := g.dialEndpoint(p, from, unmapped(client.LocalAddr()))
	if err != nil {
		g.counters.ingressFailed.Add(1)
		reset(client)
		return
	}
	p.proxy.accepted.Add(1)
	p.proxy.open.Add(1)
	defer p.proxy.open.Add(-1)
	if up.pod == nil {
		g.joinHosts(client, up.host, up.to)
		return
	}
	(&splice{host: client, pod: up.pod, g: g, to: up.to, hostMoved: &p.proxy.toEndpoints, podMoved: &p.proxy.toClients}).run()
}

// errNoEndpoint says that no endpoint answered, or there is none.
var errNoEndpoint = errors.New("no endpoint answers")

// dialEndpoint connects to an endpoint for client, which asked for the address
// asked: to the one that is picked, or while that does not answer to another.
func (g *Gateway) dialEndpoint(p *pool, client, asked netip.AddrPort) (*upstream, error) {
	from := wire.AddrFrom(client.Addr())
	tried := make([]flow.Endpoint, 0, proxyTries)
	for len(tried) < proxyTries && g.ctx.Err() == nil {
		ep, reason := p.pickAnother(&from, g.tick.Load(), tried)
		if reason != drop.None {
			break
		}
		if len(tried) > 0 {
			p.proxy.retried.Add(1)
		}
		up, err := g.tryEndpoint(p, ep, client, asked)
		if err == nil {
			return up, nil
		}
		tried = append(tried, ep)
	}
	p.proxy.refused.Add(1)
	return nil, errNoEndpoint
}

// tryEndpoint connects to one endpoint and sends the header that the service asks for.
func (g *Gateway) tryEndpoint(p *pool, ep flow.Endpoint, client, asked netip.AddrPort) (*upstream, error) {
	up := &upstream{to: backend{p.service, ep.ID}}
	to := addrPort(&ep.Addr, ep.Port)
	ctx, cancel := context.WithTimeout(g.ctx, min(proxyTryTimeout, g.cfg.DialTimeout))
	defer cancel()
	var err error
	if g.policy.inCluster(to.Addr()) {
		src, ok := g.policy.sourceFor(client, to.Addr())
		if !ok {
			return nil, errNoEndpoint
		}
		up.pod, err = g.dialAs(ctx, src, to)
	} else if at, ok := g.policy.egressTCP(to); ok {
		up.host, err = dialTCP(ctx, netip.AddrPortFrom(at, to.Port()))
	} else {
		err = errForbidden
	}
	if err != nil || !p.proxy.protocolV2.Load() {
		return up, err
	}
	header := appendProxyHeader(make([]byte, 0, proxyMaxBytes), client, asked)
	if up.pod != nil {
		w := up.pod.watch(waiter.WritableEvents)
		defer w.stop()
		err = up.pod.write(header, w)
	} else {
		_, err = up.host.Write(header)
	}
	if err != nil {
		up.abort()
		return nil, err
	}
	return up, nil
}

// servesTCP reports whether the gateway takes a pod's connection at all: to a
// service in proxy mode, to the DNS server, or to where pods may go.
func (g *Gateway) servesTCP(k *flow.Key) bool {
	if p := g.poolFor(k); p != nil && p.proxy != nil || g.dns.serves(k) {
		return true
	}
	_, ok := g.policy.egressTCP(addrPort(&k.Dst, k.DstPort))
	return ok
}
