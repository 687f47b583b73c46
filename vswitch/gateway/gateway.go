// Package gateway is a node's way between pods and everything that is not a
// pod: a gVisor netstack that the switch sees as a port.
//
// It owns every service address (Pick says where a new flow goes; the switch
// carries the flow), takes pods' connections out through host sockets, and
// brings node port clients in, with their own address as source where the
// endpoint's node lets that through. TCP terminates in the netstack; UDP and echo
// are relayed datagram by datagram, the netstack only cutting and joining
// fragments. It needs no capability.
//
// It routes nothing between pods, keeps no flow table, and does not know where
// services come from. Queue, Pick and HasVIP are for the switch's workers; the
// rest is for the node's wiring.
//
//	link/        frames in and out of the netstack: rings, offload, checksums
//	stack.go     the netstack's settings
//	inbound.go   what becomes of a frame from a pod
//	policy.go    where pods may go, and whose address is kept
//	egress.go    TCP of pods to the world; hostdial.go its connections of the host
//	relay.go     UDP and echo: sessions and the host sockets they share
//	relay_out.go, relay_in.go  their two ways
//	entrance.go  ways in for clients outside: node ports, addresses of services, host ports
//	listeners.go which of them are open at which address of the host
//	listen.go    sockets that listen; healthcheck.go what load balancers ask
//	ingress.go   TCP of the world to pods
//	queue.go     a worker's side: frames, and what it carries itself
//	talk.go      a TCP connection of messages, carried by a worker
//	splice.go    two TCP connections joined, carried by goroutines
//	memory.go    what they may hold
//	joins.go     how many datagrams the netstack joins from fragments
//	dns.go       the node's own DNS server
//	proxy.go     services whose connections end here; proxy_header.go, proxy_pair.go
//	refuse.go    resets and ICMP errors
//	orphan.go    connections of an earlier process; drain.go those at the end of this one
//	service.go   what a service is
//	service_table.go, service_index.go  where services are found
//	service_pool.go  which endpoint a flow gets
//	pins.go      clients that keep theirs
//	service_gone.go  endpoints that get no more
//	exposed.go   what clients outside reach by way of other nodes
package gateway

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"vswitch/internal/share"
	"vswitch/internal/uptime"
	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/gateway/link"
)

// Gateway is one node's. Its methods may be called from any goroutine.
type Gateway struct {
	cfg       Config
	policy    *policy
	services  *services
	usage     *usage
	link      *link.Link
	queues    []*Queue // of link
	stack     *stack.Stack
	refuser   *refuser
	relay     *relay
	dns       *dnsServer
	joins     *joins
	memory    *share.Pool[wire.Addr] // bytes in connections' buffers
	listeners *listeners
	exposed   exposed
	counters  counters
	started   time.Duration // of the machine, when the gateway was
	tick      atomic.Uint32

	ctx    context.Context // done when the gateway closes
	cancel context.CancelFunc

	connections connections
	dials       sync.WaitGroup // pods' connections, from SYN to end
	janitor     sync.WaitGroup

	draining atomic.Bool // no TCP connection is taken any more

	change  sync.Mutex // held while services change, so that table and ports agree
	closing sync.Once
}

// New starts a gateway without services.
func New(cfg Config) (*Gateway, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	g := &Gateway{cfg: cfg, services: newServices(cfg.Affinity)}
	g.services.noWay = cfg.Unreachable
	var err error
	if g.started, err = uptime.Now(); err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	g.tick.Store(ticksAt(g.started))
	g.policy = newPolicy(&g.cfg)
	g.usage = newUsage(&g.cfg)
	g.joins = newJoins()
	g.memory = share.New[wire.Addr](g.cfg.MemoryBytes)
	g.listeners = newListeners(g)
	g.link, err = link.New(link.Config{
		Queues: cfg.Queues, RingPackets: cfg.RingPackets, MTUBytes: cfg.MTUBytes, MAC: cfg.MAC, Handler: g,
	})
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	if err := g.openQueues(); err != nil {
		g.closeQueues()
		return nil, fmt.Errorf("gateway: %w", err)
	}
	if g.stack, err = newStack(g.link); err != nil {
		g.closeQueues()
		return nil, fmt.Errorf("gateway: %w", err)
	}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.refuser = newRefuser(g.policy, g.link.WriteIP)
	g.relay = newRelay(g)
	g.dns = newDNSServer(g)
	g.stack.SetTransportProtocolHandler(header.UDPProtocolNumber, g.fromNetstack(wire.ProtoUDP))
	g.stack.SetTransportProtocolHandler(header.ICMPv4ProtocolNumber, g.fromNetstack(wire.ProtoICMP))
	g.stack.SetTransportProtocolHandler(header.ICMPv6ProtocolNumber, g.fromNetstack(wire.ProtoICMPv6))
	g.startEgress()
	g.janitor.Go(g.tidy)
	return g, nil
}

func (g *Gateway) openQueues() error {
	for i := range g.cfg.Queues {
		q, err := newQueue(g.link.Queue(i))
		if err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
		g.queues = append(g.queues, q)
	}
	return nil
}

// closeQueues closes all queues of a gateway that no switch has got.
func (g *Gateway) closeQueues() {
	for _, q := range g.queues {
		q.Close()
	}
	g.link.Close()
}

// tidy advances the clock, ends what is idle and tends the node ports.
func (g *Gateway) tidy() {
	ticker := time.NewTicker(tickInterval)
	var addrsChanged <-chan struct{} // never, where the kernel doesn't tell: then NodePortRetry finds out
	if watch, err := watchAddrs(); err != nil {
		g.cfg.Log.Warn("changes of the host's addresses are found by looking now and then", "interval", g.cfg.NodePortRetry, "err", err)
	} else {
		defer watch.close()
		addrsChanged = watch.changed
	}
	defer ticker.Stop()
	begin, swept, refreshed := time.Now(), time.Now(), time.Now()
	for {
		select {
		case <-g.ctx.Done():
			return
		case <-addrsChanged:
			g.listeners.refresh()
		case now := <-ticker.C:
			g.tick.Store(ticksAt(g.started + now.Sub(begin)))
			if now.Sub(swept) >= time.Second {
				swept = now
				g.sweep(g.tick.Load())
			}
			if now.Sub(refreshed) >= g.cfg.NodePortRetry {
				refreshed = now
				g.listeners.refresh()
			}
		}
	}
}

// sweep ends what has been idle for too long.
func (g *Gateway) sweep(tick uint32) {
	g.relay.sweep(tick)
	g.joins.sweep(tick)
	limit, half := ticksOf(g.cfg.TCPIdle), ticksOf(g.cfg.TCPHalfClosedIdle)
	g.connections.abortIf(func(c connection) bool { return c.idle(tick, limit, half) })
}

// Queue is worker i's side of the gateway, 0 <= i < Config.Queues. The switch
// closes it when it removes the port.
func (g *Gateway) Queue(i int) *Queue { return g.queues[i] }

// queueOf is the queue that the netstack's packets of a pod's connection go through.
func (g *Gateway) queueOf(k *flow.Key) *Queue {
	return g.queues[g.link.QueueOf(tcpipAddr(&k.Dst), tcpipAddr(&k.Src), k.DstPort, k.SrcPort)]
}

// Pick chooses the endpoint for a new flow of a pod to a VIP or a node's address,
// each that takes flows with equal probability unless the service has affinity. A
// reason other than drop.None refuses it: drop.NoService, drop.NoEndpoint or
// drop.SourceRange.
//
// A service's own address and port come before a node port. A host port is
// no service's: pods reach it as they reach all else of the node, through the host.
func (g *Gateway) Pick(k *flow.Key, _ *wire.Headers) (flow.Endpoint, drop.Reason) {
	return g.pickFrom(g.poolFor(k), k, true)
}

// pickFrom is Pick from the pool for k, which may be nil.
func (g *Gateway) pickFrom(p *pool, k *flow.Key, remember bool) (flow.Endpoint, drop.Reason) {
	switch {
	case p == nil && g.dns.serves(k):
		return flow.Endpoint{Addr: k.Dst, Port: k.DstPort, Gateway: true}, drop.None
	case p == nil:
		return flow.Endpoint{}, drop.NoService
	case p.proxy != nil:
		return flow.Endpoint{Addr: k.Dst, Port: k.DstPort, Gateway: true}, p.refuses(&k.Src)
	}
	return p.choose(&k.Src, g.tick.Load(), remember)
}

// poolFor is what a pod's flow is served from; nil: no service has its destination.
func (g *Gateway) poolFor(k *flow.Key) *pool {
	if p := g.services.at(k); p != nil {
		return p
	}
	if p := g.services.atNodePort(k); p != nil && g.policy.onNode(k.Dst.Netip()) {
		return p
	}
	return nil
}

// HasVIP reports whether some service, or the DNS server, has this address.
func (g *Gateway) HasVIP(a *wire.Addr) bool { return g.services.hasVIP(a) || g.dns.hasAddr(a) }

// PutService adds a service port or replaces the one of the same key. The value
// is copied. An error means nothing changed. A host port that can't be opened is
// no error: it is logged, listed by Listeners and tried again.
func (g *Gateway) PutService(s Service) error {
	if err := s.validate(); err != nil {
		return fmt.Errorf("gateway: service %v: %w", s.ServiceKey, err)
	}
	if s.Affinity != 0 && g.cfg.Affinity == nil {
		return fmt.Errorf("gateway: service %v: affinity, and the gateway was given no memory for it (Config.Affinity)", s.ServiceKey)
	}
	next := s.clone()
	g.change.Lock()
	defer g.change.Unlock()
	if err := g.listeners.conflict(next); err != nil {
		return fmt.Errorf("gateway: service %v: %w", s.ServiceKey, err)
	}
	prev, now, gone, err := g.services.put(next)
	if err != nil {
		return fmt.Errorf("gateway: service %v: %w", s.ServiceKey, err)
	}
	g.exposed.replace(prev.service(), next)
	g.listeners.replace(prev, now)
	g.tellGone(gone)
	return nil
}

// DeleteService forgets a service port; one that is not there is no error.
func (g *Gateway) DeleteService(key ServiceKey) error {
	g.change.Lock()
	defer g.change.Unlock()
	prev, gone := g.services.delete(key)
	g.exposed.replace(prev.service(), nil)
	g.listeners.replace(prev, nil)
	g.tellGone(gone)
	return nil
}

func (g *Gateway) tellGone(gone []Gone) {
	g.abortGone(gone)
	if g.cfg.EndpointGone == nil {
		return
	}
	for _, e := range gone {
		g.cfg.EndpointGone(e)
	}
}

// Listeners lists what is open on the host for clients outside, or should be.
func (g *Gateway) Listeners() []ListenerStatus { return g.listeners.status() }

// abortPause is how often Close looks for handshakes that began meanwhile.
const abortPause = 20 * time.Millisecond

// Close ends every connection with a reset and stops all goroutines. Close it
// while the switch still serves its port, so that the resets reach the pods; the
// queues are the switch's to close. It may be called twice.
func (g *Gateway) Close() error {
	g.closing.Do(func() {
		g.cancel()
		g.janitor.Wait()
		g.listeners.close()
		g.connections.close()
		g.awaitDials()
		g.listeners.serving.Wait()
		g.dns.close()
		g.relay.close()
		g.stack.Destroy()
	})
	return nil
}

// awaitDials waits for pods' connections to end. One whose handshake is under way
// ends when its endpoint is aborted, which can only be done once it is
// registered: so again, until all are gone.
func (g *Gateway) awaitDials() {
	done := make(chan struct{})
	go func() {
		g.dials.Wait()
		close(done)
	}()
	for {
		for _, ep := range g.stack.RegisteredEndpoints() {
			ep.Abort()
		}
		select {
		case <-done:
			return
		case <-time.After(abortPause):
		}
	}
}
